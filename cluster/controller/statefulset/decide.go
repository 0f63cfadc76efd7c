package statefulset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/controller"
)

// plan is what one look at a set decides.
type plan struct {
	create    []*corev1.Pod
	remove    []*corev1.Pod
	repair    []*corev1.Pod // as they should be
	keep      []*corev1.Pod // that exist and stay: their claims are looked after
	condemned []*corev1.Pod // beyond the set's size
	status    appsv1.StatefulSetStatus
	again     time.Duration
}

// view is the state of a decision.
type view struct {
	set       *appsv1.StatefulSet
	h         history
	slots     []*corev1.Pod // by number from the set's first; nil: there is no pod
	condemned []*corev1.Pod // highest number first
	now       time.Time
	plan      plan
}

func decide(set *appsv1.StatefulSet, h history, pods []*corev1.Pod, now time.Time) (plan, error) {
	v := &view{set: set, h: h, slots: make([]*corev1.Pod, replicas(set)), now: now}
	for _, p := range pods {
		_, n, ok := parseName(p.Name)
		if i := n - first(set); ok && i >= 0 && i < len(v.slots) {
			v.slots[i] = p
		} else if ok {
			v.condemned = append(v.condemned, p)
		}
	}
	slices.SortFunc(v.condemned, func(a, b *corev1.Pod) int { return cmp.Compare(number(b), number(a)) })
	v.plan.condemned = v.condemned
	for _, p := range v.slots {
		if p != nil && p.DeletionTimestamp == nil {
			v.plan.keep = append(v.plan.keep, p)
		}
	}
	if err := v.step(); err != nil {
		return plan{}, err
	}
	v.status()
	return v.plan, nil
}

// step fills the numbers upwards, scales down, and then replaces what is of an old revision.
func (v *view) step() error {
	for i, p := range v.slots {
		stop, err := v.fill(i, p)
		if err != nil || stop {
			return err
		}
	}
	if v.shrink() || v.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return nil
	}
	v.replace()
	return nil
}

func (v *view) ordered() bool {
	return v.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
}

// fill looks after one number; it says whether the higher ones have to wait.
func (v *view) fill(i int, p *corev1.Pod) (stop bool, err error) {
	switch {
	case p == nil:
		pod, err := v.newPod(i)
		if err != nil {
			return true, err
		}
		v.plan.create = append(v.plan.create, pod)
		return v.ordered(), nil
	case p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded:
		if p.DeletionTimestamp == nil {
			v.plan.remove = append(v.plan.remove, p)
		}
		return v.ordered(), nil
	case v.ordered() && (p.DeletionTimestamp != nil || !v.available(p)):
		return true, nil
	}
	if next := v.repaired(p); next != nil {
		v.plan.repair = append(v.plan.repair, next)
	}
	return false, nil
}

// available also plans to look again when a pod will have been ready for long enough.
func (v *view) available(p *corev1.Pod) bool {
	if p.Status.Phase != corev1.PodRunning {
		return false
	}
	ok, wait := controller.Available(p, v.set.Spec.MinReadySeconds, v.now)
	if !ok && wait > 0 && (v.plan.again == 0 || wait < v.plan.again) {
		v.plan.again = wait
	}
	return ok
}

// shrink deletes what is beyond the set's size, from the top; it says whether that is
// still under way.
func (v *view) shrink() bool {
	for _, p := range v.condemned {
		switch {
		case p.DeletionTimestamp != nil:
			if v.ordered() {
				return true
			}
			continue
		case v.ordered() && !v.available(p) && p != v.firstUnhealthy():
			return true // the lowest that is not well goes first: the others may be waiting for it
		}
		v.plan.remove = append(v.plan.remove, p)
		if v.ordered() {
			return true
		}
	}
	return false
}

func (v *view) firstUnhealthy() *corev1.Pod {
	for _, p := range v.slots {
		if p == nil || p.DeletionTimestamp != nil || !v.available(p) {
			return p
		}
	}
	for _, p := range slices.Backward(v.condemned) {
		if p.DeletionTimestamp != nil || !v.available(p) {
			return p
		}
	}
	return nil
}

// replace deletes pods of the old revision, from the top, as many at a time as may be
// unavailable.
func (v *view) replace() {
	partition, budget := 0, 1
	if u := v.set.Spec.UpdateStrategy.RollingUpdate; u != nil {
		if u.Partition != nil {
			partition = int(*u.Partition)
		}
		if u.MaxUnavailable != nil {
			// Validation has seen it: what cannot be parsed counts as one.
			n, _ := intstr.GetScaledValueFromIntOrPercent(u.MaxUnavailable, len(v.slots), true)
			budget = max(1, n)
		}
	}
	for _, p := range v.slots {
		if p == nil || p.DeletionTimestamp != nil || !v.available(p) {
			budget--
		}
	}
	for i := len(v.slots) - 1; i >= 0 && i+first(v.set) >= partition; i-- {
		p := v.slots[i]
		if p == nil || p.DeletionTimestamp != nil || revisionOf(p) == v.h.update.Name {
			continue
		}
		switch {
		case !v.ordered() && !v.available(p): // it serves nobody: replacing it costs nothing
		case budget > 0:
			budget--
		default:
			if v.ordered() {
				return
			}
			continue
		}
		v.plan.remove = append(v.plan.remove, p)
	}
}

// newPod makes the pod of a number from the revision it belongs to.
func (v *view) newPod(i int) (*corev1.Pod, error) {
	r := v.h.update
	if v.keepsOld(i) {
		r = v.h.current
	}
	template, err := templateOf(r)
	if err != nil {
		return nil, err
	}
	pod := controller.PodFromTemplate(template, v.set, *metav1.NewControllerRef(v.set, gvk))
	pod.GenerateName = ""
	pod.Name = podName(v.set, i+first(v.set))
	identify(pod)
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = r.Name
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, v.set.Spec.ServiceName
	pod.Spec.Volumes = volumesFor(v.set, pod)
	return pod, nil
}

// keepsOld says whether a number is (still) of the current revision.
func (v *view) keepsOld(i int) bool {
	u := v.set.Spec.UpdateStrategy
	if u.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return false
	}
	if u.RollingUpdate == nil || u.RollingUpdate.Partition == nil {
		return i < int(v.set.Status.CurrentReplicas)
	}
	return i+first(v.set) < first(v.set)+int(*u.RollingUpdate.Partition)
}

// repaired is the pod with its identity restored, or nil if nothing is missing.
func (v *view) repaired(p *corev1.Pod) *corev1.Pod {
	if p.Labels[appsv1.StatefulSetPodNameLabel] == p.Name && p.Labels[appsv1.PodIndexLabel] == strconv.Itoa(number(p)) {
		return nil
	}
	next := p.DeepCopy()
	identify(next)
	return next
}

func identify(p *corev1.Pod) {
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetPodNameLabel] = p.Name
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(number(p))
}

func replicas(set *appsv1.StatefulSet) int32 {
	if set.Spec.Replicas == nil {
		return 1
	}
	return *set.Spec.Replicas
}

func first(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals == nil {
		return 0
	}
	return int(set.Spec.Ordinals.Start)
}

func podName(set *appsv1.StatefulSet, n int) string { return fmt.Sprintf("%s-%d", set.Name, n) }

// parseName splits a pod's name into its set's name and its number.
func parseName(pod string) (set string, n int, ok bool) {
	i := strings.LastIndexByte(pod, '-')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(pod[i+1:])
	return pod[:i], n, err == nil && n >= 0
}

func number(p *corev1.Pod) int {
	_, n, _ := parseName(p.Name)
	return n
}

func revisionOf(p *corev1.Pod) string { return p.Labels[appsv1.ControllerRevisionHashLabelKey] }

// claimsFor are the claims of a pod, one of each of the set's templates.
func claimsFor(set *appsv1.StatefulSet, pod *corev1.Pod) []*corev1.PersistentVolumeClaim {
	var out []*corev1.PersistentVolumeClaim
	for i := range set.Spec.VolumeClaimTemplates {
		c := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		c.Name = claimName(c.Name, pod)
		c.Namespace = set.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		if set.Spec.Selector != nil {
			maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		}
		out = append(out, c)
	}
	return out
}

func claimName(template string, pod *corev1.Pod) string { return template + "-" + pod.Name }

// volumesFor are the pod's volumes, with those that claims replace.
func volumesFor(set *appsv1.StatefulSet, pod *corev1.Pod) []corev1.Volume {
	var out []corev1.Volume
	replaced := map[string]bool{}
	for i := range set.Spec.VolumeClaimTemplates {
		n := set.Spec.VolumeClaimTemplates[i].Name
		replaced[n] = true
		out = append(out, corev1.Volume{Name: n, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(n, pod)},
		}})
	}
	for _, vol := range pod.Spec.Volumes {
		if !replaced[vol.Name] {
			out = append(out, vol)
		}
	}
	return out
}

// status counts the pods as they are; deletions of this plan count as done for the current
// revision, as upstream counts them. What the plan creates counts when it has been created.
func (v *view) status() {
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: v.set.Generation, CurrentRevision: v.h.current.Name, UpdateRevision: v.h.update.Name,
		CollisionCount: v.h.collisions, Conditions: v.set.Status.Conditions,
	}
	if s.CollisionCount == nil {
		s.CollisionCount = new(int32)
	}
	for _, p := range slices.Concat(v.slots, v.condemned) {
		if p == nil {
			continue
		}
		s.Replicas++
		if p.Status.Phase == corev1.PodRunning && controller.Ready(p) {
			s.ReadyReplicas++
			if v.available(p) {
				s.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp != nil || slices.Contains(v.plan.remove, p) {
			continue
		}
		if revisionOf(p) == v.h.current.Name {
			s.CurrentReplicas++
		}
		if revisionOf(p) == v.h.update.Name {
			s.UpdatedReplicas++
		}
	}
	// With pods to create the update is not over, however many are ready: some may be beyond the set's size.
	if len(v.plan.create) == 0 && v.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && s.UpdatedReplicas == s.Replicas && s.ReadyReplicas == s.Replicas && s.Replicas == replicas(v.set) {
		s.CurrentReplicas, s.CurrentRevision = s.UpdatedReplicas, s.UpdateRevision
	}
	v.plan.status = s
}

// created counts a pod of the plan that is there now.
func (p *plan) created(pod *corev1.Pod, h history) {
	p.status.Replicas++
	if revisionOf(pod) == h.current.Name {
		p.status.CurrentReplicas++
	}
	if revisionOf(pod) == h.update.Name {
		p.status.UpdatedReplicas++
	}
}
