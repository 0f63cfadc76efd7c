// Package job runs pods until enough of them have succeeded.
//
// A pod that ends is counted exactly once, whatever happens to it: it carries a finalizer
// until its UID has been written to the job's status, and its UID leaves the status again
// with the write that counts it. decide is pure: the job, its pods and the time go in; the
// status, the pods to create and delete and the time to look again come out.
package job

import (
	"context"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name    = "job-controller"
	ttlName = "ttl-after-finished-controller"
)

var gvk = batchv1.SchemeGroupVersion.WithKind("Job")

// Controller reconciles Jobs.
type Controller struct {
	*controller.Loop
	deps    controller.Deps
	expired store.Writer // deletes finished jobs whose time to live is over
	events  *record.Recorder
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	c := &Controller{deps: d.For(name), expired: d.For(ttlName).Writer}
	c.events = c.deps.Recorder(name)
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Workers: 4, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Jobs, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: c.podKeys},
		},
	}
	return c
}

// podKeys are the jobs a pod's event concerns. A pod that is held for a job that is no more, or not the
// same, concerns its namespace: the key without a name.
func (c *Controller) podKeys(e store.Event) []string {
	keys := controller.OwnerKeys(e, gvk.Kind)
	if pod := e.Object.(*corev1.Pod); e.Type != store.Deleted && c.stray(pod) {
		keys = append(keys, store.Key(pod.Namespace, ""))
	}
	return keys
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	j, ok := store.Get[*batchv1.Job](c.deps.Reader, kinds.Jobs, ns, n)
	if !ok {
		return 0, c.releaseStrays(ctx, ns)
	}
	if j.Spec.ManagedBy != nil && *j.Spec.ManagedBy != batchv1.JobControllerName {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(j.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of job %q: %w", key, err)
	}
	pods, err := controller.Claimed[*corev1.Pod](ctx, c.deps, controller.Claim{
		Owner: j, GVK: gvk, Selector: selector, Resource: kinds.Pods, Finalizer: batchv1.JobTrackingFinalizer,
		Held: func(o store.Object) bool { return controller.Active(o.(*corev1.Pod)) }, // one that has ended may have been counted
	})
	if err != nil {
		return 0, err
	}
	if finished(j) {
		return c.afterwards(ctx, j, pods)
	}
	p := decide(j, pods, time.Now())
	return p.again, c.act(ctx, j, p)
}

// afterwards lets the pods of a finished job go, and the job itself when its time is over.
func (c *Controller) afterwards(ctx context.Context, j *batchv1.Job, pods []*corev1.Pod) (time.Duration, error) {
	if err := c.release(ctx, pods); err != nil {
		return 0, err
	}
	if j.Spec.TTLSecondsAfterFinished == nil || j.DeletionTimestamp != nil {
		return 0, nil
	}
	left := time.Until(finishedAt(j).Add(time.Duration(*j.Spec.TTLSecondsAfterFinished) * time.Second))
	if left > 0 {
		return left, nil
	}
	foreground := metav1.DeletePropagationForeground
	err := c.expired.Delete(ctx, kinds.Jobs, j.Namespace, j.Name, metav1.DeleteOptions{PropagationPolicy: &foreground, Preconditions: &metav1.Preconditions{UID: &j.UID}})
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	return 0, err
}

func finishedAt(j *batchv1.Job) time.Time {
	for _, cond := range j.Status.Conditions {
		if (cond.Type == batchv1.JobComplete || cond.Type == batchv1.JobFailed) && cond.Status == corev1.ConditionTrue {
			return cond.LastTransitionTime.Time
		}
	}
	return j.CreationTimestamp.Time
}

// act writes the status before it lets pods go and creates others: what has ended is then
// known for good.
func (c *Controller) act(ctx context.Context, j *batchv1.Job, p plan) error {
	if !equality.Semantic.DeepEqual(j.Status, p.status) {
		next := store.Copy(j)
		next.Status = p.status
		if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("status of job %q: %w", j.Name, err)
		}
		for _, e := range p.events {
			c.tell(j, e)
		}
	}
	if err := c.release(ctx, p.release); err != nil {
		return err
	}
	if err := c.deletePods(ctx, j, p.remove); err != nil {
		return err
	}
	_, err := controller.Parallel(ctx, len(p.create), func(ctx context.Context, i int) error { return c.createPod(ctx, j, p.create[i]) })
	return err
}

func (c *Controller) tell(j *batchv1.Job, e event) {
	if e.warning {
		c.events.Warning(j, e.reason, "%s", e.message)
		return
	}
	c.events.Normal(j, e.reason, "%s", e.message)
}

func (c *Controller) createPod(ctx context.Context, j *batchv1.Job, pod *corev1.Pod) error {
	made, err := c.deps.Writer.Create(ctx, pod)
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case err != nil:
		c.events.Warning(j, "FailedCreate", "Error creating: %v", err)
		return fmt.Errorf("create a pod of job %q: %w", j.Name, err)
	}
	c.events.Normal(j, "SuccessfulCreate", "Created pod: %s", made.GetName())
	return nil
}

func (c *Controller) deletePods(ctx context.Context, j *batchv1.Job, pods []*corev1.Pod) error {
	_, err := controller.Parallel(ctx, len(pods), func(ctx context.Context, i int) error {
		pod := pods[i]
		err := c.deps.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		if err != nil {
			c.events.Warning(j, "FailedDelete", "Error deleting: %v", err)
			return fmt.Errorf("delete pod %q: %w", pod.Name, err)
		}
		c.events.Normal(j, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
		return nil
	})
	return err
}

// release takes the finalizer off pods that have been counted or need not be.
func (c *Controller) release(ctx context.Context, pods []*corev1.Pod) error {
	var held []*corev1.Pod
	for _, p := range pods {
		if tracked(p) {
			held = append(held, p)
		}
	}
	_, err := controller.Parallel(ctx, len(held), func(ctx context.Context, i int) error {
		next := store.Copy(held[i])
		next.Finalizers = slices.DeleteFunc(next.Finalizers, func(f string) bool { return f == batchv1.JobTrackingFinalizer })
		if _, err := c.deps.Writer.Update(ctx, next); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("release pod %q: %w", next.Name, err)
		}
		return nil
	})
	return err
}

// releaseStrays lets the pods of a namespace go that are held for nobody, so that they can be deleted: their
// job has been, or another has its name by now, or they were taken away from it.
func (c *Controller) releaseStrays(ctx context.Context, ns string) error {
	var pods []*corev1.Pod
	for o := range c.deps.Reader.Snapshot(kinds.Pods).All(ns) {
		if pod := o.(*corev1.Pod); c.stray(pod) {
			pods = append(pods, pod)
		}
	}
	return c.release(ctx, pods)
}

// stray says whether a pod is held and there is no job to let it go.
func (c *Controller) stray(p *corev1.Pod) bool {
	if !tracked(p) {
		return false
	}
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != gvk.Kind {
		return true
	}
	j, ok := store.Get[*batchv1.Job](c.deps.Reader, kinds.Jobs, p.Namespace, ref.Name)
	return !ok || j.UID != ref.UID
}

func tracked(p *corev1.Pod) bool {
	return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer)
}
