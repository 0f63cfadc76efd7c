package scheduler

import (
	"encoding/json"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// class is all pods that ask for the same of a node: amounts, selectors, tolerations.
type class struct {
	key       string
	req       amounts
	pod       *corev1.Pod // any of them
	required  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms

	static []static    // by node: what depends on the node's object alone
	valid  []uint32    // by node: the candidate that counts, 0 for none
	heap   []candidate // nodes that were feasible when they were last looked at
	seen   uint64      // how much of state.improved has been looked at
	filled bool
	next   uint32
	used   uint64 // for the least recently used
}

// static is what a node's labels and taints say to a class.
type static struct {
	spec   uint32 // the node's spec it was computed for
	reason reason // why not, or none
	score  int32
}

type candidate struct {
	score int32
	node  int32
	id    uint32
	gen   uint32
}

// classKey is what makes two pods the same to every node, as far as nodes go.
func classKey(p *podInfo) string {
	spec := &p.pod.Spec
	if len(spec.NodeSelector) == 0 && (spec.Affinity == nil || spec.Affinity.NodeAffinity == nil) && len(spec.Tolerations) == 0 {
		return p.req.key()
	}
	var b strings.Builder
	b.WriteString(p.req.key())
	// Maps are written in the order of their keys.
	enc := json.NewEncoder(&b)
	for _, part := range []any{spec.NodeSelector, nodeAffinity(p.pod), spec.Tolerations} {
		_ = enc.Encode(part) // writing to a Builder cannot fail, and these types can be encoded
	}
	return b.String()
}

func nodeAffinity(pod *corev1.Pod) *corev1.NodeAffinity {
	if pod.Spec.Affinity == nil {
		return nil
	}
	return pod.Spec.Affinity.NodeAffinity
}

func newClass(key string, p *podInfo) *class {
	c := &class{key: key, req: p.req, pod: p.pod, required: nodeaffinity.GetRequiredNodeAffinity(p.pod)}
	if a := nodeAffinity(p.pod); a != nil && len(a.PreferredDuringSchedulingIgnoredDuringExecution) > 0 {
		// Terms that cannot be parsed do not count: validation has seen them.
		c.preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return c
}

// staticOf is cached until the node's object changes.
func (c *class) staticOf(s *state, i int) *static {
	for len(c.static) < len(s.nodes) {
		c.static = append(c.static, static{})
		c.valid = append(c.valid, 0)
	}
	n, st := s.nodes[i], &c.static[i]
	if st.spec != n.spec || n.spec == 0 {
		*st = static{spec: n.spec, reason: c.matches(n.object)}
		if st.reason == none {
			st.score = c.preference(n.object)
		}
	}
	return st
}

// feasible says why the class cannot go to a node, as far as nodes go.
func (c *class) feasible(s *state, i int) (reason, int32) {
	n := s.nodes[i]
	if n.object == nil {
		return gone, 0
	}
	st := c.staticOf(s, i)
	if st.reason != none {
		return st.reason, 0
	}
	if !fits(n, &c.req) {
		return crowded, 0
	}
	return none, st.score + balance(n, &c.req)
}

// offer looks at a node again and makes it a candidate if it is feasible.
func (c *class) offer(s *state, i int) {
	why, score := c.feasible(s, i)
	if why == gone {
		if i < len(c.valid) {
			c.valid[i] = 0
		}
		return
	}
	if why != none {
		c.valid[i] = 0
		return
	}
	c.next++
	c.valid[i] = c.next
	c.push(candidate{score: score, node: int32(i), id: c.next, gen: s.nodes[i].gen})
}

// refresh brings the candidates up to date with what has become possible.
func (c *class) refresh(s *state) {
	if !c.filled || c.seen < s.base || len(c.heap) > 4*len(s.nodes)+64 {
		c.heap = c.heap[:0]
		for i := range s.nodes {
			c.offer(s, i)
		}
		c.filled, c.seen = true, s.base+uint64(len(s.improved))
		return
	}
	for ; c.seen < s.base+uint64(len(s.improved)); c.seen++ {
		c.offer(s, s.improved[c.seen-s.base])
	}
}

// spreadOver is how many of the best nodes are looked at for one with fewer siblings.
const spreadOver = 8

// choose takes the best node for a pod, or -1. Among the nodes on top, the one with the
// fewest pods of the same controller wins. place the pod, then call offer for the node.
func (c *class) choose(s *state, p *podInfo) int {
	c.refresh(s)
	siblings := s.siblings[p.owner]
	want := 1
	if len(siblings) > 0 {
		want = spreadOver
	}
	var buf [spreadOver]candidate
	tops := buf[:0]
	best, fewest := -1, int32(0)
	for len(tops) < want && len(c.heap) > 0 {
		top := c.pop()
		if c.valid[top.node] != top.id {
			continue
		}
		if n := s.nodes[top.node]; n.gen != top.gen {
			c.offer(s, int(top.node))
			continue
		}
		if k := siblings[s.nodes[top.node]]; best < 0 || k < fewest {
			best, fewest = len(tops), k
		}
		tops = append(tops, top)
		if fewest == 0 {
			break
		}
	}
	if best < 0 {
		return -1
	}
	for i, t := range tops {
		if i != best {
			c.push(t)
		}
	}
	return int(tops[best].node)
}

func (c *class) push(x candidate) {
	h := append(c.heap, x)
	i := len(h) - 1
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent].score >= x.score {
			break
		}
		h[i] = h[parent]
		i = parent
	}
	h[i] = x
	c.heap = h
}

func (c *class) pop() candidate {
	h := c.heap
	top, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	c.heap = h
	i := 0
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].score > h[child].score {
			child++
		}
		if h[child].score <= last.score {
			break
		}
		h[i] = h[child]
		i = child
	}
	if len(h) > 0 {
		h[i] = last
	}
	return top
}
