// Package statefulset keeps pods that have names, an order and storage of their own.
//
// A set's pods are numbered; each has the claims of its number, which outlive it. Templates
// are kept as ControllerRevisions, so that a pod can be made again as it was. decide is
// pure: the set, its two revisions, its pods and the time go in, a plan comes out: what to
// create, what to delete, and the status.
package statefulset

import (
	"context"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const name = "statefulset-controller"

var gvk = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

// Controller reconciles StatefulSets.
type Controller struct {
	*controller.Loop
	deps   controller.Deps
	events *record.Recorder
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	d = d.For(name)
	c := &Controller{deps: d, events: d.Recorder(name)}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: d.Log, Workers: 4, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.StatefulSets, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: c.podKeys},
			{Resource: kinds.PersistentVolumeClaims, Keys: c.claimKeys},
		},
	}
	return c
}

func (c *Controller) podKeys(e store.Event) []string {
	keys := controller.OwnerKeys(e, gvk.Kind)
	if len(keys) > 0 || e.Type == store.Deleted || metav1.GetControllerOfNoCopy(e.Object) != nil {
		return keys
	}
	if set, _, ok := parseName(e.Object.GetName()); ok {
		return []string{store.Key(e.Object.GetNamespace(), set)}
	}
	return nil
}

// claimKeys wakes the sets whose pod waits for an old claim of its name to go.
func (c *Controller) claimKeys(e store.Event) []string {
	if e.Type != store.Deleted {
		return nil
	}
	var keys []string
	for o := range c.deps.Reader.Snapshot(kinds.StatefulSets).All(e.Object.GetNamespace()) {
		if len(o.(*appsv1.StatefulSet).Spec.VolumeClaimTemplates) > 0 {
			keys = append(keys, store.KeyOf(o))
		}
	}
	return keys
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	set, ok := store.Get[*appsv1.StatefulSet](c.deps.Reader, kinds.StatefulSets, ns, n)
	if !ok || set.DeletionTimestamp != nil {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of stateful set %q: %w", key, err)
	}
	pods, err := controller.Claimed[*corev1.Pod](ctx, c.deps, controller.Claim{Owner: set, GVK: gvk, Selector: selector, Resource: kinds.Pods,
		Matches: func(o store.Object) bool { parent, _, ok := parseName(o.GetName()); return ok && parent == set.Name }})
	if err != nil {
		return 0, err
	}
	h, err := c.revisions(ctx, set, selector)
	if err != nil {
		return 0, err
	}
	p, err := decide(set, h, pods, time.Now())
	if err != nil {
		return 0, err
	}
	actErr := c.act(ctx, set, h, &p)
	if err := c.report(ctx, set, p.status); err != nil {
		return 0, err
	}
	if actErr != nil {
		return 0, actErr
	}
	return p.again, c.forget(ctx, set, h, pods)
}

func (c *Controller) act(ctx context.Context, set *appsv1.StatefulSet, h history, p *plan) error {
	for _, pod := range p.keep {
		if err := c.claims(ctx, set, pod); err != nil {
			return err
		}
	}
	made := make([]bool, len(p.create))
	_, err := controller.Parallel(ctx, len(p.create), func(ctx context.Context, i int) (err error) {
		made[i], err = c.createPod(ctx, set, p.create[i])
		return err
	})
	for i, pod := range p.create {
		if made[i] {
			p.created(pod, h)
		}
	}
	if err != nil {
		return err
	}
	// Before pods go: some are gone at once, and nobody knows then whose claims those were.
	if err := c.retain(ctx, set, *p); err != nil {
		return err
	}
	for _, pod := range p.remove {
		if err := c.deletePod(ctx, set, pod); err != nil {
			return err
		}
	}
	for _, pod := range p.repair {
		if _, err := c.deps.Writer.Update(ctx, pod); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("update pod %q: %w", pod.Name, err)
		}
	}
	return nil
}

// createPod says whether the pod is there: in a namespace that goes there is no error, and no pod either.
func (c *Controller) createPod(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) (bool, error) {
	if err := c.claims(ctx, set, pod); err != nil {
		return false, err
	}
	_, err := c.deps.Writer.Create(ctx, pod)
	switch {
	case err == nil:
		c.events.Normal(set, "SuccessfulCreate", "create Pod %s in StatefulSet %s successful", pod.Name, set.Name)
		return true, nil
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return false, nil
	}
	c.events.Warning(set, "FailedCreate", "create Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
	return false, fmt.Errorf("create pod %q: %w", pod.Name, err)
}

func (c *Controller) deletePod(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		c.events.Normal(set, "RecreatingTerminatedPod", "StatefulSet %s/%s is recreating terminated Pod %s", set.Namespace, set.Name, pod.Name)
	}
	err := c.deps.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		c.events.Warning(set, "FailedDelete", "delete Pod %s in StatefulSet %s failed error: %v", pod.Name, set.Name, err)
		return fmt.Errorf("delete pod %q: %w", pod.Name, err)
	}
	c.events.Normal(set, "SuccessfulDelete", "delete Pod %s in StatefulSet %s successful", pod.Name, set.Name)
	return nil
}

// claims makes the claims of a pod that are missing.
func (c *Controller) claims(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	for _, claim := range claimsFor(set, pod) {
		cur, ok := c.deps.Reader.Snapshot(kinds.PersistentVolumeClaims).Get(claim.Namespace, claim.Name)
		if ok && cur.GetDeletionTimestamp() != nil {
			return fmt.Errorf("pod %q waits: its old claim %q is being deleted", pod.Name, claim.Name)
		}
		if ok {
			continue
		}
		if _, err := c.deps.Writer.Create(ctx, claim); err != nil {
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			c.events.Warning(set, "FailedCreate", "create Claim %s for Pod %s in StatefulSet %s failed error: %v", claim.Name, pod.Name, set.Name, err)
			return fmt.Errorf("create claim %q: %w", claim.Name, err)
		}
		c.events.Normal(set, "SuccessfulCreate", "create Claim %s Pod %s in StatefulSet %s success", claim.Name, pod.Name, set.Name)
	}
	return nil
}

// retain gives claims the owners that the retention policy asks for: the set, so that
// they go with it, or a pod that is scaled away.
func (c *Controller) retain(ctx context.Context, set *appsv1.StatefulSet, p plan) error {
	policy := set.Spec.PersistentVolumeClaimRetentionPolicy
	if policy == nil {
		return nil
	}
	withSet := policy.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	withPod := policy.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for _, pod := range p.keep {
		if err := c.ownClaims(ctx, set, pod, withSet, false); err != nil {
			return err
		}
	}
	for _, pod := range p.condemned {
		if err := c.ownClaims(ctx, set, pod, withSet && !withPod, withPod); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) ownClaims(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod, bySet, byPod bool) error {
	for _, want := range claimsFor(set, pod) {
		cur, ok := store.Get[*corev1.PersistentVolumeClaim](c.deps.Reader, kinds.PersistentVolumeClaims, want.Namespace, want.Name)
		if !ok {
			continue
		}
		var owners []metav1.OwnerReference
		for _, ref := range cur.OwnerReferences {
			if ref.UID != set.UID && ref.Kind != "Pod" {
				owners = append(owners, ref)
			}
		}
		if bySet {
			owners = append(owners, metav1.OwnerReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Name: set.Name, UID: set.UID})
		}
		if byPod && pod.UID != "" {
			owners = append(owners, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
		}
		if equality.Semantic.DeepEqual(owners, cur.OwnerReferences) {
			continue
		}
		next := store.Copy(cur)
		next.OwnerReferences = owners
		if _, err := c.deps.Writer.Update(ctx, next); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("update claim %q: %w", next.Name, err)
		}
	}
	return nil
}

func (c *Controller) report(ctx context.Context, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if equality.Semantic.DeepEqual(status, set.Status) {
		return nil
	}
	next := store.Copy(set)
	next.Status = status
	if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("status of stateful set %q: %w", set.Name, err)
	}
	return nil
}

// forget deletes the oldest revisions that nothing uses, beyond the history limit.
func (c *Controller) forget(ctx context.Context, set *appsv1.StatefulSet, h history, pods []*corev1.Pod) error {
	limit := 10
	if set.Spec.RevisionHistoryLimit != nil {
		limit = int(*set.Spec.RevisionHistoryLimit)
	}
	used := []string{h.current.Name, h.update.Name}
	for _, p := range pods {
		used = append(used, revisionOf(p))
	}
	var unused []*appsv1.ControllerRevision
	for _, r := range h.all {
		if !slices.Contains(used, r.Name) {
			unused = append(unused, r)
		}
	}
	for _, r := range unused[:max(0, len(unused)-limit)] {
		err := c.deps.Writer.Delete(ctx, kinds.ControllerRevisions, r.Namespace, r.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &r.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete old revision %q: %w", r.Name, err)
		}
	}
	return nil
}
