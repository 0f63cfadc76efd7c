package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// node is one place in the array of nodes. A node that pods are bound to before it is
// known, or after it is gone, has no object and is not chosen.
type node struct {
	object *corev1.Node
	name   string

	room    amounts // allocatable
	maxPods int64
	used    amounts
	// weightCPU and weightMemory are used, with the assumed amounts of pods that ask for nothing.
	weightCPU, weightMemory int64
	ports                   []hostPort
	pods                    []*podInfo

	gen  uint32 // changes with everything above
	spec uint32 // changes with object only
}

// podInfo is what the scheduler knows of a pod.
type podInfo struct {
	pod   *corev1.Pod
	req   amounts
	ports []hostPort
	owner types.UID // of its controller, "" without one

	at       *node // nil while it waits
	place    int   // in at.pods
	assumed  bool  // placed by us and not yet seen bound
	inSpace  int   // place in its namespace's list
	repelsIn int   // place in state.repelling, -1 without required anti-affinity
}

// state is everything that decisions depend on. It belongs to one goroutine.
type state struct {
	nodes  []*node // dead ones stay until their place is reused
	byName map[string]int
	free   []int
	alive  int

	pods      map[types.UID]*podInfo // those that are placed
	spaces    map[string][]*podInfo  // the same, by namespace
	repelling []*podInfo             // the same, with required anti-affinity
	siblings  map[types.UID]map[*node]int32

	// improved are the nodes on which something may have become possible, in the order
	// in which that happened; base is the number of entries forgotten at its front.
	improved []int
	base     uint64
	seq      uint32
}

func newState() *state {
	return &state{byName: map[string]int{}, pods: map[types.UID]*podInfo{}, spaces: map[string][]*podInfo{}, siblings: map[types.UID]map[*node]int32{}}
}

func (s *state) index(name string) int {
	if i, ok := s.byName[name]; ok {
		return i
	}
	n := &node{name: name}
	var i int
	if last := len(s.free) - 1; last >= 0 {
		i = s.free[last]
		s.free = s.free[:last]
		s.nodes[i] = n
	} else {
		i = len(s.nodes)
		s.nodes = append(s.nodes, n)
	}
	s.byName[name] = i
	s.touch(n)
	return i
}

func (s *state) touch(n *node) {
	s.seq++
	n.gen = s.seq
}

func (s *state) improve(i int) {
	s.improved = append(s.improved, i)
	if limit := 4*len(s.nodes) + 1024; len(s.improved) > limit {
		half := len(s.improved) / 2
		s.improved = append(s.improved[:0:0], s.improved[half:]...)
		s.base += uint64(half)
	}
}

// setNode records a node; it says whether pods that found no place should try again.
func (s *state) setNode(o *corev1.Node) bool {
	i := s.index(o.Name)
	n := s.nodes[i]
	old := n.object
	if old == nil {
		s.alive++
	}
	n.object = o
	if old != nil && equality.Semantic.DeepEqual(old.Status.Allocatable, o.Status.Allocatable) && equality.Semantic.DeepEqual(old.Spec.Taints, o.Spec.Taints) &&
		old.Spec.Unschedulable == o.Spec.Unschedulable && equality.Semantic.DeepEqual(old.Labels, o.Labels) {
		return false // a heartbeat
	}
	n.room = amountsOf(o.Status.Allocatable)
	n.maxPods = o.Status.Allocatable.Pods().Value()
	s.touch(n)
	n.spec = n.gen
	s.improve(i)
	return true
}

func (s *state) removeNode(name string) {
	i, ok := s.byName[name]
	if !ok || s.nodes[i].object == nil {
		return
	}
	s.nodes[i].object = nil
	s.alive--
	s.touch(s.nodes[i])
	s.release(i)
}

// release gives the place of a node without object and pods back.
func (s *state) release(i int) {
	n := s.nodes[i]
	if n.object == nil && len(n.pods) == 0 {
		delete(s.byName, n.name)
		s.free = append(s.free, i)
	}
}

func newPodInfo(pod *corev1.Pod) *podInfo {
	p := &podInfo{pod: pod, req: requestsOf(pod), ports: hostPorts(pod), repelsIn: -1}
	if ref := metav1.GetControllerOfNoCopy(pod); ref != nil {
		p.owner = ref.UID
	}
	return p
}

// place counts a pod on a node.
func (s *state) place(p *podInfo, name string) {
	n := s.nodes[s.index(name)]
	p.at, p.place = n, len(n.pods)
	n.pods = append(n.pods, p)
	s.count(n, p, +1)
	n.ports = append(n.ports, p.ports...)
	s.pods[p.pod.UID] = p
	space := s.spaces[p.pod.Namespace]
	p.inSpace = len(space)
	s.spaces[p.pod.Namespace] = append(space, p)
	if len(requiredAnti(p.pod)) > 0 {
		p.repelsIn = len(s.repelling)
		s.repelling = append(s.repelling, p)
	}
	if p.owner != "" {
		if s.siblings[p.owner] == nil {
			s.siblings[p.owner] = map[*node]int32{}
		}
		s.siblings[p.owner][n]++
	}
}

func (s *state) count(n *node, p *podInfo, sign int64) {
	n.used.add(&p.req, sign)
	cpu, memory := p.req.weights()
	n.weightCPU += sign * cpu
	n.weightMemory += sign * memory
	s.touch(n)
}

// remove takes a pod off its node.
func (s *state) remove(p *podInfo) {
	n := p.at
	delete(s.pods, p.pod.UID)
	n.pods = cut(n.pods, p.place, func(q *podInfo, i int) { q.place = i })
	space := cut(s.spaces[p.pod.Namespace], p.inSpace, func(q *podInfo, i int) { q.inSpace = i })
	if s.spaces[p.pod.Namespace] = space; len(space) == 0 {
		delete(s.spaces, p.pod.Namespace)
	}
	if p.repelsIn >= 0 {
		s.repelling = cut(s.repelling, p.repelsIn, func(q *podInfo, i int) { q.repelsIn = i })
		p.repelsIn = -1
	}
	for _, port := range p.ports {
		if i := slices.Index(n.ports, port); i >= 0 {
			n.ports = slices.Delete(n.ports, i, i+1)
		}
	}
	if on := s.siblings[p.owner]; on != nil {
		if on[n]--; on[n] <= 0 {
			delete(on, n)
		}
		if len(on) == 0 {
			delete(s.siblings, p.owner)
		}
	}
	s.count(n, p, -1)
	p.at = nil
	i := s.byName[n.name]
	s.improve(i)
	s.release(i)
}

// cut removes an element by moving the last one into its place.
func cut(list []*podInfo, i int, moved func(*podInfo, int)) []*podInfo {
	last := len(list) - 1
	list[i] = list[last]
	moved(list[i], i)
	list[last] = nil
	return list[:last]
}

// update replaces the object of a placed pod, and its share if that has changed.
func (s *state) update(p *podInfo, pod *corev1.Pod) bool {
	req := requestsOf(pod)
	same := req.equal(&p.req)
	if !same {
		s.count(p.at, p, -1)
		p.req = req
		s.count(p.at, p, +1)
		s.improve(s.byName[p.at.name])
	}
	relabelled := !labels.Equals(p.pod.Labels, pod.Labels)
	p.pod = pod
	return !same || relabelled
}

func requiredAnti(pod *corev1.Pod) []corev1.PodAffinityTerm {
	if a := pod.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		return a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

func requiredAffinity(pod *corev1.Pod) []corev1.PodAffinityTerm {
	if a := pod.Spec.Affinity; a != nil && a.PodAffinity != nil {
		return a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}
