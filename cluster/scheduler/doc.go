// Package scheduler decides which node runs which pod.
//
// One goroutine owns all state: nodes as a flat array with what they have and what is
// taken, patched by events; nothing is copied per decision. It takes the pod of the highest
// priority that has waited longest, decides, counts the pod as placed at once, and leaves
// the binding to workers, so decisions do not wait for the disk. A binding that fails is
// taken back.
//
// Pods that ask for the same thing form a class, and a class remembers its feasible nodes
// in a heap by score: a decision for the next pod of the class looks at the few nodes on
// top, and a binding moves one node. What depends on other pods (host ports, spread
// constraints, affinity between pods) and on volumes takes the slow path, which looks at
// every node, over the same state.
//
// Which nodes are feasible, and the words for why none is, are Kubernetes'. Scores are ours:
// upstream itself scores a random sample of the nodes.
package scheduler
