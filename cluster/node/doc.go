// Package node is the node agent: it makes the pods bound to this machine real.
//
// It owns everything between a Pod object and the engine: sandboxes, volumes, environment,
// containers, probes, hooks, restarts with back-off, graceful termination, and the status and
// events that tell the cluster about it. It is the only room of the cluster that touches
// containers, and it decides nothing about where pods run or how many there are.
//
// One worker per pod hears of changes (the Pod object, a container's exit, a probe's verdict,
// a timer) and brings the pod one step closer to what it should be: observe the engine, decide
// in pure code (decide), act, report. A worker keeps nothing that cannot be found again: which
// container is which is in the containers' labels, so an agent that was killed goes on where it
// stopped. Nothing here polls; probes and heartbeats tick because they are defined to.
//
// The kubelet API (logs, exec, attach, port-forward) is Handler; cluster/api reaches it through
// an in-memory dialer on the same machine.
package node
