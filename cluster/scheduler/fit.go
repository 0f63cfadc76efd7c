package scheduler

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// reason is why a node is not feasible. The words are Kubernetes': people search for them.
type reason uint8

const (
	none reason = iota
	gone
	crowded // one or more Insufficient..., told by shortages
	unschedulable
	untolerated
	unmatched
	portsTaken
	unevenSpread
	spreadLabelMissing
	attractionMissing
	repelled
	repelledByOthers
	volumeElsewhere
)

var words = map[reason]string{
	unschedulable:      "node(s) were unschedulable",
	untolerated:        "node(s) had untolerated taint(s)",
	unmatched:          "node(s) didn't match Pod's node affinity/selector",
	portsTaken:         "node(s) didn't have free ports for the requested pod ports",
	unevenSpread:       "node(s) didn't match pod topology spread constraints",
	spreadLabelMissing: "node(s) didn't match pod topology spread constraints (missing required label)",
	attractionMissing:  "node(s) didn't match pod affinity rules",
	repelled:           "node(s) didn't match pod anti-affinity rules",
	repelledByOthers:   "node(s) didn't satisfy existing pods anti-affinity rules",
	volumeElsewhere:    "node(s) didn't match PersistentVolume's node affinity",
}

// matches compares a class with a node's object, in the order of upstream's plugins.
func (c *class) matches(n *corev1.Node) reason {
	if n.Spec.Unschedulable && !tolerates(c.pod.Spec.Tolerations, &corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}) {
		return unschedulable
	}
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(c.pod.Spec.Tolerations, t) {
			return untolerated
		}
	}
	if ok, _ := c.required.Match(n); !ok { // a term that cannot be parsed matches nothing
		return unmatched
	}
	return none
}

func tolerates(tolerations []corev1.Toleration, t *corev1.Taint) bool {
	for i := range tolerations {
		if Tolerates(&tolerations[i], t) {
			return true
		}
	}
	return false
}

// Tolerates says whether a toleration covers a taint.
func Tolerates(tol *corev1.Toleration, t *corev1.Taint) bool {
	if tol.Effect != "" && tol.Effect != t.Effect {
		return false
	}
	if tol.Key != "" && tol.Key != t.Key {
		return false
	}
	switch tol.Operator {
	case "", corev1.TolerationOpEqual:
		return tol.Value == t.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}

func fits(n *node, req *amounts) bool {
	if int64(len(n.pods))+1 > n.maxPods {
		return false
	}
	if req.cpu > n.room.cpu-n.used.cpu && req.cpu > 0 || req.memory > n.room.memory-n.used.memory && req.memory > 0 ||
		req.ephemeral > n.room.ephemeral-n.used.ephemeral && req.ephemeral > 0 {
		return false
	}
	for name, want := range req.other {
		if want > n.room.other[name]-n.used.other[name] {
			return false
		}
	}
	return true
}

// shortages tell why a pod does not fit, one line each.
func shortages(n *node, req *amounts) []string {
	var out []string
	if int64(len(n.pods))+1 > n.maxPods {
		out = append(out, "Too many pods")
	}
	for _, r := range []struct {
		name             corev1.ResourceName
		want, room, used int64
	}{
		{corev1.ResourceCPU, req.cpu, n.room.cpu, n.used.cpu},
		{corev1.ResourceMemory, req.memory, n.room.memory, n.used.memory},
		{corev1.ResourceEphemeralStorage, req.ephemeral, n.room.ephemeral, n.used.ephemeral},
	} {
		if r.want > 0 && r.want > r.room-r.used {
			out = append(out, "Insufficient "+string(r.name))
		}
	}
	for name, want := range req.other {
		if want > n.room.other[name]-n.used.other[name] {
			out = append(out, fmt.Sprintf("Insufficient %s", name))
		}
	}
	return out
}

// balance prefers nodes that stay emptiest and whose CPU and memory are used alike.
func balance(n *node, req *amounts) int32 {
	cpu, memory := req.weights()
	freeCPU := share(n.room.cpu-n.weightCPU-cpu, n.room.cpu)
	freeMemory := share(n.room.memory-n.weightMemory-memory, n.room.memory)
	skew := freeCPU - freeMemory
	if skew < 0 {
		skew = -skew
	}
	// Upstream's two plugins, each from 0 to 100, at a finer grain.
	return int32((freeCPU+freeMemory)/2 + (1000 - skew/2))
}

// share is free/room in thousandths.
func share(free, room int64) int64 {
	if free <= 0 || room <= 0 {
		return 0
	}
	return int64(float64(free) / float64(room) * 1000)
}

// preference is what a node's labels and soft taints are worth to the class.
func (c *class) preference(n *corev1.Node) int32 {
	var score int32
	if c.preferred != nil {
		score += 20 * int32(c.preferred.Score(n))
	}
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(c.pod.Spec.Tolerations, t) {
			score -= 3000
		}
	}
	return score
}
