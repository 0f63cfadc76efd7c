// Package deployment rolls a Deployment's pods from one template to the next.
//
// It owns ReplicaSets, one per template, and never touches pods. Every look at a
// deployment is decided by pure code (decide): the deployment, its sets and the time go in;
// sets to create, scale and delete, the new status and the events come out. A rollback is
// nothing special: the template of an old set becomes the deployment's again.
//
// Names, annotations, conditions and messages are Kubernetes': kubectl rollout reads them.
package deployment

import (
	"context"
	"fmt"
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

const name = "deployment-controller"

var gvk = appsv1.SchemeGroupVersion.WithKind("Deployment")

// Controller reconciles Deployments.
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
			{Resource: kinds.Deployments, Keys: controller.Self},
			{Resource: kinds.ReplicaSets, Keys: c.setKeys},
			{Resource: kinds.Pods, Keys: c.podKeys},
		},
	}
	return c
}

// setKeys are the deployments that an event of a set concerns.
func (c *Controller) setKeys(e store.Event) []string {
	return append(controller.OwnerKeys(e, gvk.Kind), controller.Adopters(c.deps.Reader, e, kinds.Deployments,
		func(o store.Object) *metav1.LabelSelector { return o.(*appsv1.Deployment).Spec.Selector })...)
}

// podKeys wakes a deployment that recreates its pods when one of the old has ended.
func (c *Controller) podKeys(e store.Event) []string {
	if e.Type == store.Added || (e.Type == store.Modified && controller.Active(e.Object.(*corev1.Pod))) {
		return nil
	}
	for _, key := range controller.ControllerKey(e.Object, "ReplicaSet") {
		ns, n := controller.SplitKey(key)
		rs, ok := c.deps.Reader.Snapshot(kinds.ReplicaSets).Get(ns, n)
		if !ok {
			continue
		}
		for _, dkey := range controller.ControllerKey(rs, gvk.Kind) {
			ns, n := controller.SplitKey(dkey)
			d, ok := store.Get[*appsv1.Deployment](c.deps.Reader, kinds.Deployments, ns, n)
			if ok && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
				return []string{dkey}
			}
		}
	}
	return nil
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	d, ok := store.Get[*appsv1.Deployment](c.deps.Reader, kinds.Deployments, ns, n)
	if !ok {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of deployment %q: %w", key, err)
	}
	if selector.Empty() {
		c.events.Warning(d, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	sets, err := controller.Claimed[*appsv1.ReplicaSet](ctx, c.deps, controller.Claim{Owner: d, GVK: gvk, Selector: selector, Resource: kinds.ReplicaSets})
	if err != nil {
		return 0, err
	}
	p := decide(d, sets, c.oldPodsRun(d, sets), time.Now())
	return p.again, c.act(ctx, d, p)
}

// oldPodsRun says whether a pod of any but the newest set has not ended: a deployment that
// recreates waits for that.
func (c *Controller) oldPodsRun(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) bool {
	if d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return false
	}
	newest := findNew(d, sets)
	for _, rs := range sets {
		if rs == newest {
			continue
		}
		for _, p := range store.Indexed[*corev1.Pod](c.deps.Reader, kinds.Pods, kinds.ByOwner, string(rs.UID)) {
			if p.Namespace == rs.Namespace && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
				return true
			}
		}
	}
	return false
}

func (c *Controller) act(ctx context.Context, d *appsv1.Deployment, p plan) error {
	if p.create != nil {
		if _, err := c.deps.Writer.Create(ctx, p.create); err != nil {
			return c.createFailed(ctx, d, p.create, err)
		}
	}
	for _, rs := range p.update {
		if _, err := c.deps.Writer.Update(ctx, rs); err != nil {
			return fmt.Errorf("update replica set %q: %w", rs.Name, err)
		}
	}
	for _, e := range p.events {
		c.events.Normal(d, "ScalingReplicaSet", "%s", e)
	}
	for _, rs := range p.remove {
		err := c.deps.Writer.Delete(ctx, kinds.ReplicaSets, rs.Namespace, rs.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &rs.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete old replica set %q: %w", rs.Name, err)
		}
	}
	return c.report(ctx, d, p.status, p.revision)
}

// report writes the status, and with it the annotation of the revision.
func (c *Controller) report(ctx context.Context, d *appsv1.Deployment, status appsv1.DeploymentStatus, revision string) error {
	if equality.Semantic.DeepEqual(status, d.Status) && (revision == "" || d.Annotations[revisionAnnotation] == revision) {
		return nil
	}
	next := store.Copy(d)
	next.Status = status
	if revision != "" {
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[revisionAnnotation] = revision
	}
	if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("status of deployment %q: %w", d.Name, err)
	}
	return nil
}

// createFailed looks whether the name is taken by another template with the same hash,
// and otherwise tells the user.
func (c *Controller) createFailed(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet, err error) error {
	status := *d.Status.DeepCopy()
	switch {
	case apierrors.IsAlreadyExists(err):
		other, ok := store.Get[*appsv1.ReplicaSet](c.deps.Reader, kinds.ReplicaSets, rs.Namespace, rs.Name)
		if !ok || (metav1.IsControlledBy(other, d) && sameTemplate(&other.Spec.Template, &d.Spec.Template)) {
			return err
		}
		if status.CollisionCount == nil {
			status.CollisionCount = new(int32)
		}
		*status.CollisionCount++
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	default:
		msg := fmt.Sprintf("Failed to create new replica set %q: %v", rs.Name, err)
		c.events.Warning(d, "ReplicaSetCreateError", "%s", msg)
		if hasDeadline(d) {
			setCondition(&status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", msg, time.Now()))
		}
	}
	if reportErr := c.report(ctx, d, status, ""); reportErr != nil {
		return reportErr
	}
	return err
}
