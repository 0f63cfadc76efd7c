// Package replicaset keeps as many pods of one template as a ReplicaSet asks for, or its
// older sibling, a ReplicationController.
//
// It owns the pods that name the set as their controller, adopts orphans that match, and
// releases what no longer does. decide is pure: the set and its pods go in, a plan comes
// out. The package never looks at nodes or containers. A replication controller is read as
// the replica set that it amounts to; only what is written and told names it.
package replicaset

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
	"k8s.io/apimachinery/pkg/labels"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// burst bounds what one reconciliation creates or deletes.
const burst = 500

// Controller reconciles the sets of one family.
type Controller struct {
	*controller.Loop
	family family
	deps   controller.Deps
	events *record.Recorder
}

// New makes the controller of ReplicaSets.
func New(d controller.Deps) *Controller { return newController(d, replicaSets) }

// NewReplication makes the controller of ReplicationControllers.
func NewReplication(d controller.Deps) *Controller { return newController(d, replicationControllers) }

func newController(d controller.Deps, f family) *Controller {
	d = d.For(f.name)
	c := &Controller{family: f, deps: d, events: d.Recorder(f.name)}
	c.Loop = &controller.Loop{
		ControllerName: f.name, Reader: d.Reader, Log: d.Log, Workers: 4, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: f.resource, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: c.podKeys},
		},
	}
	return c
}

// podKeys are the sets a pod event concerns: its controller now and before, or whoever
// could adopt it.
func (c *Controller) podKeys(e store.Event) []string {
	return append(controller.OwnerKeys(e, c.family.gvk.Kind), controller.Adopters(c.deps.Reader, e, c.family.resource,
		func(o store.Object) *metav1.LabelSelector { return c.family.view(o).Spec.Selector })...)
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	set, ok := c.deps.Reader.Snapshot(c.family.resource).Get(ns, n)
	if !ok {
		return 0, nil
	}
	rs := c.family.view(set)
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of %s %q: %w", c.family.what, key, err)
	}
	pods, err := controller.Claimed[*corev1.Pod](ctx, c.deps, controller.Claim{
		Owner: rs, GVK: c.family.gvk, Selector: selector, Resource: kinds.Pods,
		Matches: func(o store.Object) bool { p := o.(*corev1.Pod); return controller.Active(p) || owned(p, rs) },
	})
	if err != nil {
		return 0, err
	}
	p := decide(rs, pods)
	manageErr := c.act(ctx, rs, p)
	// What was created and deleted is in the store already: count again.
	again, statusErr := c.report(ctx, rs, selector, manageErr)
	if manageErr != nil && !apierrors.HasStatusCause(manageErr, corev1.NamespaceTerminatingCause) {
		return 0, manageErr
	}
	return again, statusErr
}

func owned(p *corev1.Pod, rs *appsv1.ReplicaSet) bool { return metav1.IsControlledBy(p, rs) }

// plan is what is to be done about the number of pods.
type plan struct {
	create int
	remove []*corev1.Pod
}

func decide(rs *appsv1.ReplicaSet, pods []*corev1.Pod) plan {
	if rs.DeletionTimestamp != nil {
		return plan{}
	}
	var active []*corev1.Pod
	onNode := map[string]int{}
	for _, p := range pods {
		if controller.Active(p) {
			active = append(active, p)
			onNode[p.Spec.NodeName]++
		}
	}
	diff := len(active) - int(replicas(rs))
	if diff <= 0 {
		return plan{create: min(-diff, burst)}
	}
	slices.SortStableFunc(active, func(a, b *corev1.Pod) int { return controller.DeletionOrder(a, b, onNode) })
	return plan{remove: active[:min(diff, burst)]}
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

func (c *Controller) act(ctx context.Context, rs *appsv1.ReplicaSet, p plan) error {
	if p.create > 0 {
		ref := *metav1.NewControllerRef(rs, c.family.gvk)
		_, err := controller.Parallel(ctx, p.create, func(ctx context.Context, _ int) error { return c.createPod(ctx, rs, ref) })
		return err
	}
	_, err := controller.Parallel(ctx, len(p.remove), func(ctx context.Context, i int) error { return c.deletePod(ctx, rs, p.remove[i]) })
	return err
}

func (c *Controller) createPod(ctx context.Context, rs *appsv1.ReplicaSet, ref metav1.OwnerReference) error {
	pod, err := c.deps.Writer.Create(ctx, controller.PodFromTemplate(&rs.Spec.Template, rs, ref))
	if err != nil {
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.events.Warning(rs, "FailedCreate", "Error creating: %v", err)
		}
		return err
	}
	c.events.Normal(rs, "SuccessfulCreate", "Created pod: %s", pod.GetName())
	return nil
}

func (c *Controller) deletePod(ctx context.Context, rs *appsv1.ReplicaSet, pod *corev1.Pod) error {
	err := c.deps.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, which is what was wanted
	}
	if err != nil {
		c.events.Warning(rs, "FailedDelete", "Error deleting: %v", err)
		return fmt.Errorf("delete pod %q: %w", pod.Name, err)
	}
	c.events.Normal(rs, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
	return nil
}

// report writes the status if it has changed, and says when it will change by time alone.
func (c *Controller) report(ctx context.Context, rs *appsv1.ReplicaSet, selector labels.Selector, manageErr error) (time.Duration, error) {
	set, ok := c.deps.Reader.Snapshot(c.family.resource).Get(rs.Namespace, rs.Name)
	if !ok || set.GetUID() != rs.UID {
		return 0, nil
	}
	cur := c.family.view(set)
	var pods []*corev1.Pod
	for _, p := range store.Indexed[*corev1.Pod](c.deps.Reader, kinds.Pods, kinds.ByOwner, string(rs.UID)) {
		if p.Namespace == rs.Namespace && owned(p, rs) && selector.Matches(labels.Set(p.Labels)) {
			pods = append(pods, p)
		}
	}
	// rs, not cur: its generation is the one that was acted on.
	status, again := statusOf(rs, cur.Status, pods, manageErr, time.Now())
	if !c.family.terminating {
		status.TerminatingReplicas = nil
	}
	if equality.Semantic.DeepEqual(status, cur.Status) {
		return again, nil
	}
	next := store.Copy(set)
	c.family.setStatus(next, status)
	if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("status of %s %q: %w", c.family.what, rs.Name, err)
	}
	return again, nil
}

func statusOf(rs *appsv1.ReplicaSet, old appsv1.ReplicaSetStatus, pods []*corev1.Pod, manageErr error, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	s := appsv1.ReplicaSetStatus{ObservedGeneration: max(rs.Generation, old.ObservedGeneration), TerminatingReplicas: new(int32)}
	template := labels.SelectorFromSet(rs.Spec.Template.Labels)
	var again time.Duration
	for _, p := range pods {
		if !controller.Active(p) {
			if p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				*s.TerminatingReplicas++
			}
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !controller.Ready(p) {
			continue
		}
		s.ReadyReplicas++
		ok, wait := controller.Available(p, rs.Spec.MinReadySeconds, now)
		if ok {
			s.AvailableReplicas++
		} else if again == 0 || wait < again {
			again = wait
		}
	}
	s.Conditions = conditions(rs, old, s.Replicas, manageErr, now)
	return s, again
}

// conditions keeps the others and sets or clears ReplicaFailure.
func conditions(rs *appsv1.ReplicaSet, old appsv1.ReplicaSetStatus, active int32, manageErr error, now time.Time) []appsv1.ReplicaSetCondition {
	var out []appsv1.ReplicaSetCondition
	var failure *appsv1.ReplicaSetCondition
	for i, c := range old.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			failure = &old.Conditions[i]
		} else {
			out = append(out, c)
		}
	}
	if manageErr == nil {
		return out
	}
	if failure != nil {
		return append(out, *failure)
	}
	reason := "FailedCreate"
	if active > replicas(rs) {
		reason = "FailedDelete"
	}
	return append(out, appsv1.ReplicaSetCondition{
		Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason, Message: manageErr.Error(),
		LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
	})
}
