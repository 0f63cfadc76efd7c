package controller

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
)

// Active says whether a pod still counts: it has not ended and is not about to.
func Active(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && p.DeletionTimestamp == nil
}

// Condition is a pod's condition of that type, or nil.
func Condition(s *corev1.PodStatus, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// Ready says whether a pod's Ready condition is true.
func Ready(p *corev1.Pod) bool {
	c := Condition(&p.Status, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available says whether a pod has been ready for minReady seconds, and if it is ready
// but not for long enough, how long that will take.
func Available(p *corev1.Pod, minReady int32, now time.Time) (bool, time.Duration) {
	if !Ready(p) {
		return false, 0
	}
	if minReady == 0 {
		return true, 0
	}
	since := Condition(&p.Status, corev1.PodReady).LastTransitionTime
	if since.IsZero() {
		return false, time.Duration(minReady) * time.Second
	}
	left := since.Add(time.Duration(minReady) * time.Second).Sub(now)
	return left <= 0, max(left, 0)
}

// PodFromTemplate is the pod that a controller creates, as upstream's pod control makes it.
func PodFromTemplate(template *corev1.PodTemplateSpec, owner metav1.Object, ref metav1.OwnerReference) *corev1.Pod {
	t := template.DeepCopy()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			GenerateName:    namePrefix(owner.GetName()),
			Labels:          t.Labels,
			Annotations:     t.Annotations,
			Finalizers:      t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{ref},
		},
		Spec: t.Spec,
	}
}

// namePrefix leaves room for the five generated characters in a pod's host name.
func namePrefix(owner string) string {
	const maxGenerated = 63 - 5
	if len(owner) >= maxGenerated {
		owner = owner[:maxGenerated-1]
	}
	return strings.TrimRight(owner, "-.") + "-"
}

// TemplateHash is the pod-template-hash of a template, as upstream computes it.
func TemplateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	return Hash(*template, collisions)
}

// Hash is a short name for the content of a value.
func Hash(v any, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(v))
	if collisions != nil {
		var b [8]byte
		b[0], b[1], b[2], b[3] = byte(*collisions), byte(*collisions>>8), byte(*collisions>>16), byte(*collisions>>24)
		h.Write(b[:])
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// DeletionOrder compares two pods: negative when a should be deleted before b. It is
// upstream's order: unassigned, pending, not ready, cheaper, doubled on a node, younger.
// doubled is the number of active sibling pods on a pod's node.
func DeletionOrder(a, b *corev1.Pod, doubled map[string]int) int {
	return cmp.Or(
		boolOrder(a.Spec.NodeName == "", b.Spec.NodeName == ""),
		phaseRank(a)-phaseRank(b),
		boolOrder(!Ready(a), !Ready(b)),
		cmp.Compare(deletionCost(a), deletionCost(b)),
		doubled[b.Spec.NodeName]-doubled[a.Spec.NodeName],
		-byAge(readySince(a), readySince(b)),
		restarts(b)-restarts(a),
		-byAge(a.CreationTimestamp, b.CreationTimestamp),
		cmp.Compare(a.UID, b.UID),
	)
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodPending:
		return 0
	case corev1.PodUnknown:
		return 1
	}
	return 2
}

func deletionCost(p *corev1.Pod) int64 {
	var n int64
	_, _ = fmt.Sscan(p.Annotations[corev1.PodDeletionCost], &n) // 0 when it is absent or not a number
	return n
}

func readySince(p *corev1.Pod) metav1.Time {
	if c := Condition(&p.Status, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
		return c.LastTransitionTime
	}
	return metav1.Time{}
}

func restarts(p *corev1.Pod) int {
	n := 0
	for _, c := range p.Status.ContainerStatuses {
		n = max(n, int(c.RestartCount))
	}
	return n
}

// byAge is positive when a is younger than b.
func byAge(a, b metav1.Time) int { return a.Compare(b.Time) }

// parallel is how many writes a controller has on their way at once: enough for the
// store to commit them in groups.
const parallel = 16

// Parallel runs fn for 0 to n-1, a batch at a time; batches grow from one while all goes
// well, so that what fails for one is not tried for hundreds. It returns the number of
// successes and the first error.
func Parallel(ctx context.Context, n int, fn func(context.Context, int) error) (int, error) {
	done := 0
	for batch, start := 1, 0; start < n; batch = min(2*batch, parallel) {
		size := min(batch, n-start)
		ok, err := together(ctx, start, size, fn)
		done += ok
		if err != nil {
			return done, err
		}
		start += size
	}
	return done, nil
}

func together(ctx context.Context, start, n int, fn func(context.Context, int) error) (int, error) {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = fn(ctx, start+i) })
	}
	wg.Wait()
	ok := 0
	var first error
	for _, err := range errs {
		if err == nil {
			ok++
		} else if first == nil {
			first = err
		}
	}
	return ok, first
}
