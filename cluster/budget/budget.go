// Package budget says how much disruption a PodDisruptionBudget allows.
//
// It is pure: a budget, the pods of its namespace with those who ask for them, and the time go in, the budget with the
// status of that moment comes out. Eviction asks it for each claim, and the disruption
// controller writes the same answer down for people to read, so that the two cannot differ.
package budget

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	pdbhelper "k8s.io/component-helpers/apps/poddisruptionbudget"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// evictionTime is how long a pod that an eviction has claimed may take to be marked as
// deleted, before it counts again: upstream's figure.
const evictionTime = 2 * time.Minute

// Measure is a copy of a budget whose status tells how things are now. again says when that
// will change by time alone; zero: never.
func Measure(r store.Reader, b *policyv1.PodDisruptionBudget, now time.Time) (measured *policyv1.PodDisruptionBudget, again time.Duration) {
	b = b.DeepCopy()
	again = forget(r, b, now)
	expected, healthy := count(r, b)
	desired := desiredHealthy(b, expected)
	s := &b.Status
	s.ObservedGeneration, s.ExpectedPods, s.CurrentHealthy, s.DesiredHealthy = b.Generation, expected, healthy, desired
	s.DisruptionsAllowed = max(0, healthy-desired)
	if expected == 0 {
		s.DisruptionsAllowed = 0
	}
	pdbhelper.UpdateDisruptionAllowedCondition(b)
	return b, again
}

// forget drops claims of pods that are on their way, when what counts is in the pods, and of
// those that nobody has deleted in time.
func forget(r store.Reader, b *policyv1.PodDisruptionBudget, now time.Time) (again time.Duration) {
	for name, at := range b.Status.DisruptedPods {
		pod, ok := store.Get[*corev1.Pod](r, kinds.Pods, b.Namespace, name)
		left := at.Add(evictionTime).Sub(now)
		switch {
		case !ok || pod.DeletionTimestamp != nil || left <= 0:
			delete(b.Status.DisruptedPods, name)
		case again == 0 || left < again:
			again = left
		}
	}
	return again
}

// count leaves pods that have ended out of the sum, and those about to be evicted out of the
// healthy ones. Where the budget depends on the sum, that is how many pods there should be: one
// that is gone and not made anew yet is missing, and the next may not go as if it had never been.
func count(r store.Reader, b *policyv1.PodDisruptionBudget) (expected, healthy int32) {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return 0, 0
	}
	owners := map[types.UID]bool{}
	for o := range r.Snapshot(kinds.Pods).All(b.Namespace) {
		pod := o.(*corev1.Pod)
		if !selector.Matches(labels.Set(pod.Labels)) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		uid, replicas, known := owner(r, pod)
		switch {
		case !known || !relative(b):
			expected++
		case !owners[uid]:
			owners[uid] = true
			expected += replicas
		}
		if _, claimed := b.Status.DisruptedPods[pod.Name]; !claimed && pod.DeletionTimestamp == nil && ready(pod) {
			healthy++
		}
	}
	return expected, healthy
}

// relative says whether a budget depends on how many pods there should be.
func relative(b *policyv1.PodDisruptionBudget) bool {
	return b.Spec.MaxUnavailable != nil || b.Spec.MinAvailable != nil && b.Spec.MinAvailable.Type == intstr.String
}

// owner is who decides how many of a pod's kind there should be, and how many that is.
func owner(r store.Reader, pod *corev1.Pod) (uid types.UID, replicas int32, known bool) {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return "", 0, false
	}
	switch ref.Kind {
	case "ReplicaSet":
		rs, ok := store.Get[*appsv1.ReplicaSet](r, kinds.ReplicaSets, pod.Namespace, ref.Name)
		if !ok || rs.UID != ref.UID {
			return "", 0, false
		}
		if up := metav1.GetControllerOfNoCopy(rs); up != nil && up.Kind == "Deployment" {
			if d, ok := store.Get[*appsv1.Deployment](r, kinds.Deployments, pod.Namespace, up.Name); ok && d.UID == up.UID {
				return d.UID, wanted(d.Spec.Replicas), true
			}
		}
		return rs.UID, wanted(rs.Spec.Replicas), true
	case "StatefulSet":
		ss, ok := store.Get[*appsv1.StatefulSet](r, kinds.StatefulSets, pod.Namespace, ref.Name)
		if ok && ss.UID == ref.UID {
			return ss.UID, wanted(ss.Spec.Replicas), true
		}
	case "ReplicationController":
		rc, ok := store.Get[*corev1.ReplicationController](r, kinds.ReplicationControllers, pod.Namespace, ref.Name)
		if ok && rc.UID == ref.UID {
			return rc.UID, wanted(rc.Spec.Replicas), true
		}
	}
	return "", 0, false
}

func wanted(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

func ready(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func desiredHealthy(b *policyv1.PodDisruptionBudget, expected int32) int32 {
	if m := b.Spec.MaxUnavailable; m != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(m, int(expected), true)
		if err != nil {
			return expected
		}
		return max(0, expected-int32(n))
	}
	if m := b.Spec.MinAvailable; m != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(m, int(expected), true)
		if err != nil {
			return expected
		}
		return int32(n)
	}
	return expected
}
