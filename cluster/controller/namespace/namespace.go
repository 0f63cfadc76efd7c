// Package namespace empties namespaces that are being deleted, and lets them go when
// nothing is left: pods first, so that what they use outlives them, then everything else.
//
// The namespace's finalizer "kubernetes" is this controller's; its conditions say what is
// still being waited for.
package namespace

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "namespace-controller"
	// again is when the Events of a namespace are looked at again. They are not followed: there are too many of them.
	again = time.Second
)

// Controller reconciles namespaces that are being deleted.
type Controller struct {
	*controller.Loop
	deps    controller.Deps
	content []schema.GroupResource // every resource that lives in namespaces, pods first
}

// New makes the controller for the given kinds.
func New(d controller.Deps, all []store.Kind) *Controller {
	c := &Controller{deps: d.For(name), content: []schema.GroupResource{kinds.Pods}}
	watches := []controller.Watch{
		{Resource: kinds.Namespaces, Keys: controller.Self},
		{Resource: kinds.Pods, Keys: c.terminating},
	}
	for _, k := range all {
		if !k.Namespaced || k.Resource == kinds.Pods {
			continue
		}
		c.content = append(c.content, k.Resource)
		if k.Resource != kinds.Events {
			watches = append(watches, controller.Watch{Resource: k.Resource, Keys: c.terminating})
		}
	}
	c.Loop = &controller.Loop{ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Sync: c.sync, Watches: watches}
	return c
}

// terminating is the event's namespace if it is being deleted.
func (c *Controller) terminating(e store.Event) []string {
	ns, ok := c.deps.Reader.Snapshot(kinds.Namespaces).Get("", e.Object.GetNamespace())
	if !ok || ns.GetDeletionTimestamp() == nil {
		return nil
	}
	return []string{ns.GetName()}
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, ok := store.Get[*corev1.Namespace](c.deps.Reader, kinds.Namespaces, "", key)
	if !ok || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return 0, nil
	}
	deleteErr := c.empty(ctx, key)
	left := c.left(key)
	if err := c.report(ctx, ns, left, deleteErr); err != nil || deleteErr != nil {
		return 0, firstOf(deleteErr, err)
	}
	switch {
	case len(left) == 1 && left[0].gr == kinds.Events:
		return again, nil // of these nobody tells: one was on its way when the others were deleted
	case len(left) > 0:
		return 0, nil // the last of it going away is an event
	}
	return 0, c.finalize(ctx, key)
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// empty deletes what has not been deleted yet. While there are pods, only they are.
func (c *Controller) empty(ctx context.Context, ns string) error {
	var first error
	for i, gr := range c.content {
		var doomed []store.Object
		remaining := 0
		for o := range c.deps.Reader.Snapshot(gr).All(ns) {
			remaining++
			if o.GetDeletionTimestamp() == nil {
				doomed = append(doomed, o)
			}
		}
		if err := c.deleteAll(ctx, gr, doomed); err != nil && first == nil {
			first = err
		}
		if i == 0 && remaining > 0 && c.podsLeft(ns) {
			return first
		}
	}
	return first
}

func (c *Controller) podsLeft(ns string) bool {
	for range c.deps.Reader.Snapshot(kinds.Pods).All(ns) {
		return true
	}
	return false
}

func (c *Controller) deleteAll(ctx context.Context, gr schema.GroupResource, doomed []store.Object) error {
	background := metav1.DeletePropagationBackground
	_, err := controller.Parallel(ctx, len(doomed), func(ctx context.Context, i int) error {
		o := doomed[i]
		err := c.deps.Writer.Delete(ctx, gr, o.GetNamespace(), o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background, Preconditions: &metav1.Preconditions{UID: store.UIDOf(o)}})
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return fmt.Errorf("delete %s %q: %w", gr, o.GetName(), err)
	})
	return err
}

// remains counts what is left of a resource, and by which finalizers it is held.
type remains struct {
	gr         schema.GroupResource
	count      int
	finalizers map[string]int
}

func (c *Controller) left(ns string) []remains {
	var out []remains
	for _, gr := range c.content {
		r := remains{gr: gr, finalizers: map[string]int{}}
		for o := range c.deps.Reader.Snapshot(gr).All(ns) {
			r.count++
			for _, f := range o.GetFinalizers() {
				r.finalizers[f]++
			}
		}
		if r.count > 0 {
			out = append(out, r)
		}
	}
	return out
}

func (c *Controller) report(ctx context.Context, ns *corev1.Namespace, left []remains, deleteErr error) error {
	next := store.Copy(ns)
	next.Status.Phase = corev1.NamespaceTerminating
	next.Status.Conditions = conditions(ns.Status.Conditions, left, deleteErr, time.Now())
	if equality.Semantic.DeepEqual(next.Status, ns.Status) {
		return nil
	}
	_, err := c.deps.Writer.UpdateStatus(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// conditions are the five that upstream keeps, with its words.
func conditions(old []corev1.NamespaceCondition, left []remains, deleteErr error, now time.Time) []corev1.NamespaceCondition {
	want := []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"},
		{Type: corev1.NamespaceDeletionGVParsingFailure, Status: corev1.ConditionFalse, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
		{Type: corev1.NamespaceDeletionContentFailure, Status: corev1.ConditionFalse, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"},
		{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionFalse, Reason: "ContentRemoved", Message: "All content successfully removed"},
		{Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionFalse, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"},
	}
	if deleteErr != nil {
		want[2].Status, want[2].Reason = corev1.ConditionTrue, "ContentDeletionFailed"
		want[2].Message = fmt.Sprintf("Failed to delete all resource types, 1 remaining: %v", deleteErr)
	}
	if len(left) > 0 {
		want[3].Status, want[3].Reason = corev1.ConditionTrue, "SomeResourcesRemain"
		want[3].Message = "Some resources are remaining: " + resources(left)
	}
	if held := finalizers(left); held != "" {
		want[4].Status, want[4].Reason = corev1.ConditionTrue, "SomeFinalizersRemain"
		want[4].Message = "Some content in the namespace has finalizers remaining: " + held
	}
	for i := range want {
		want[i].LastTransitionTime = metav1.NewTime(now).Rfc3339Copy()
		for _, o := range old {
			if o.Type == want[i].Type && o.Status == want[i].Status {
				want[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	return want
}

func resources(left []remains) string {
	var out []string
	for _, r := range left {
		out = append(out, fmt.Sprintf("%s.%s has %d resource instances", r.gr.Resource, r.gr.Group, r.count))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func finalizers(left []remains) string {
	counts := map[string]int{}
	for _, r := range left {
		for f, n := range r.finalizers {
			counts[f] += n
		}
	}
	var out []string
	for f, n := range counts {
		out = append(out, fmt.Sprintf("%s in %d resource instances", f, n))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// finalize lets the namespace go.
func (c *Controller) finalize(ctx context.Context, key string) error {
	ns, ok := store.Get[*corev1.Namespace](c.deps.Reader, kinds.Namespaces, "", key)
	if !ok {
		return nil
	}
	next := store.Copy(ns)
	next.Spec.Finalizers = slices.DeleteFunc(next.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err := c.deps.Writer.Finalize(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
