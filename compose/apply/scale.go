package apply

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"slipway.dev/slipway/compose"
)

// annotationStopped is how many replicas a service had when it was stopped.
const annotationStopped = "slipway.dev/stopped-replicas"

// ChangeOptions are what verbs that change running services have in common.
type ChangeOptions struct {
	Services []string // empty: all of the project
	NoWait   bool
	Grace    *int64        // seconds that pods have to end; nil: as the file says
	Settle   time.Duration // as in UpOptions, like Patience
	Patience time.Duration
	Progress Progress
}

// change is a project's running services being changed by hand.
type change struct {
	c           *Cluster
	t           *tracker
	o           ChangeOptions
	namespace   string
	r           *rollout
	deployments []*appsv1.Deployment // of the services that are meant
	jobs        []*batchv1.Job       // likewise
}

// change finds the services that are meant, and does something to them while they are followed.
func (c *Cluster) change(ctx context.Context, namespace string, o ChangeOptions, do func(context.Context, *change) error) error {
	ctx, cancel := context.WithCancel(ctx)
	t, err := c.track(ctx, namespace)
	defer func() { cancel(); t.tasks.Wait() }()
	if err != nil {
		return err
	}
	r := newRollout(c, t, &compose.Plan{Namespace: namespace}, UpOptions{Settle: o.Settle, Patience: o.Patience, Progress: o.Progress}, nil)
	x := &change{c: c, t: t, o: o, namespace: namespace, r: r}
	if err := x.find(); err != nil {
		return err
	}
	return do(ctx, x)
}

// find looks for the deployments and jobs of the services that are meant.
func (x *change) find() error {
	x.t.mu.Lock()
	defer x.t.mu.Unlock()
	found := map[string]bool{}
	wanted := func(o Object) bool {
		if o.GetLabels()[labelPartOf] != setID(x.namespace) {
			return false
		}
		any := len(x.o.Services) == 0
		for _, service := range servicesOf(o) {
			if slices.Contains(x.o.Services, service) {
				found[service], any = true, true
			}
		}
		return any
	}
	for _, name := range sortedKeys(x.t.deployments) {
		if d := x.t.deployments[name]; wanted(d) {
			x.deployments = append(x.deployments, d)
		}
	}
	for _, name := range sortedKeys(x.t.jobs) {
		if j := x.t.jobs[name]; wanted(j) {
			x.jobs = append(x.jobs, j)
		}
	}
	for _, name := range x.o.Services {
		if !found[name] {
			return fmt.Errorf("service %s is not up: `slipway up %s` starts it", name, name)
		}
	}
	return nil
}

// patch changes an object and notes its version, to be waited for.
func (x *change) patch(ctx context.Context, k kind, o Object, format string, args ...any) error {
	out, err := x.c.in(k, x.namespace).Patch(ctx, o.GetName(), mergePatch, fmt.Appendf(nil, format, args...), metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("service %s: %w", o.GetLabels()[labelService], err)
	}
	x.note(out)
	return nil
}

func (x *change) note(o Object) {
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	x.r.versions[o.GetLabels()[labelService]] = version{o.GetUID(), o.GetGeneration()}
}

// await waits for the services that were changed.
func (x *change) await(ctx context.Context) error {
	if x.o.NoWait {
		return nil
	}
	for _, service := range sortedKeys(x.r.versions) {
		if err := x.r.await(ctx, service, compose.LegalName(service)); err != nil {
			return fmt.Errorf("service %s: %w", service, err)
		}
	}
	return nil
}

// Scale sets the replicas of services and waits until they are there. Services that share pods are scaled together.
func (c *Cluster) Scale(ctx context.Context, namespace string, replicas map[string]int32, o ChangeOptions) error {
	o.Services = sortedKeys(replicas)
	return c.change(ctx, namespace, o, func(ctx context.Context, x *change) error {
		for _, j := range x.jobs {
			return fmt.Errorf("service %s runs to completion: only services that go on running can be scaled", j.Labels[labelService])
		}
		counts := make([]int32, len(x.deployments))
		for i, d := range x.deployments {
			var err error
			if counts[i], err = replicasOf(d, replicas); err != nil {
				return err
			}
		}
		for i, d := range x.deployments {
			if err := x.patch(ctx, kinds[0], d, `{"spec":{"replicas":%d}}`, counts[i]); err != nil {
				return err
			}
		}
		return x.await(ctx)
	})
}

// replicasOf is how many replicas are asked for of a deployment, under the name of any service in its pods.
func replicasOf(d *appsv1.Deployment, asked map[string]int32) (n int32, err error) {
	by := ""
	for _, service := range servicesOf(d) {
		m, named := asked[service]
		switch {
		case !named:
		case by == "":
			by, n = service, m
		case m != n:
			return 0, fmt.Errorf("services %s and %s share their pods: both need the same number of replicas", by, service)
		}
	}
	return n, nil
}

// Restart replaces the replicas of services as an update does; what ran to completion runs again.
func (c *Cluster) Restart(ctx context.Context, namespace string, o ChangeOptions) error {
	return c.change(ctx, namespace, o, func(ctx context.Context, x *change) error {
		for _, d := range x.deployments {
			if *d.Spec.Replicas == 0 {
				if err := x.start(ctx, d); err != nil {
					return err
				}
				continue
			}
			out, err := c.restart(ctx, namespace, d.Name)
			if err != nil {
				return err
			}
			x.note(out)
		}
		for _, j := range x.jobs {
			if err := x.rerun(ctx, j); err != nil {
				return err
			}
		}
		return x.await(ctx)
	})
}

// restart makes a new version of a deployment that differs in nothing but its age.
func (c *Cluster) restart(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{%q:%q}}}}}`, annotationRestarted, time.Now().UTC().Format(time.RFC3339Nano))
	return c.client.Resource(deploymentsGVR).Namespace(namespace).Patch(ctx, name, mergePatch, patch, metav1.PatchOptions{FieldManager: fieldManager})
}

// rerun makes a job anew.
func (x *change) rerun(ctx context.Context, j *batchv1.Job) error {
	fresh := &batchv1.Job{TypeMeta: metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: metav1.ObjectMeta{Namespace: j.Namespace, Name: j.Name, Labels: j.Labels, Annotations: j.Annotations}, Spec: *j.Spec.DeepCopy()}
	fresh.Spec.Selector, fresh.Spec.Suspend = nil, nil
	for name := range fresh.Spec.Template.Labels {
		if name == "controller-uid" || name == "job-name" || name == batchv1.ControllerUidLabel || name == batchv1.JobNameLabel {
			delete(fresh.Spec.Template.Labels, name)
		}
	}
	if err := x.c.replaceJob(ctx, fresh); err != nil {
		return err
	}
	out, err := x.c.apply(ctx, fresh, false)
	if err != nil {
		return err
	}
	x.note(out)
	return nil
}

// Stop ends the replicas of services, which stay known until they are started again.
func (c *Cluster) Stop(ctx context.Context, namespace string, o ChangeOptions) error {
	return c.change(ctx, namespace, o, func(ctx context.Context, x *change) error {
		names := map[string]string{}
		for _, d := range x.deployments {
			if *d.Spec.Replicas == 0 {
				continue
			}
			names[d.Name] = d.Labels[labelService]
			if err := x.patch(ctx, kinds[0], d, `{"metadata":{"annotations":{%q:"%d"}},"spec":{"replicas":0}}`, annotationStopped, *d.Spec.Replicas); err != nil {
				return err
			}
		}
		for _, j := range x.jobs {
			if done(j) {
				continue
			}
			names[j.Name] = j.Labels[labelService]
			if err := x.patch(ctx, kinds[1], j, `{"spec":{"suspend":true}}`); err != nil {
				return err
			}
		}
		for _, name := range sortedKeys(names) {
			o.Progress.State(names[name], "stopping", 0, 0)
		}
		if err := x.t.hurry(ctx, set(names), o.Grace); err != nil {
			return err
		}
		for _, name := range sortedKeys(names) {
			if !o.NoWait {
				if err := x.t.await(ctx, func() (bool, error) { return x.t.noPods(map[string]bool{name: true}), nil }); err != nil {
					return err
				}
			}
			o.Progress.State(names[name], "stopped", 0, 0)
		}
		return nil
	})
}

// Start brings back what Stop has ended; what ran to completion runs again.
func (c *Cluster) Start(ctx context.Context, namespace string, o ChangeOptions) error {
	return c.change(ctx, namespace, o, func(ctx context.Context, x *change) error {
		for _, d := range x.deployments {
			if *d.Spec.Replicas > 0 {
				x.note(d)
			} else if err := x.start(ctx, d); err != nil {
				return err
			}
		}
		for _, j := range x.jobs {
			var err error
			switch {
			case j.Spec.Suspend != nil && *j.Spec.Suspend:
				err = x.patch(ctx, kinds[1], j, `{"spec":{"suspend":false}}`)
			case done(j):
				err = x.rerun(ctx, j)
			default:
				x.note(j)
			}
			if err != nil {
				return err
			}
		}
		return x.await(ctx)
	})
}

func (x *change) start(ctx context.Context, d *appsv1.Deployment) error {
	n, err := strconv.Atoi(d.Annotations[annotationStopped])
	if err != nil || n < 1 {
		n = 1
	}
	return x.patch(ctx, kinds[0], d, `{"metadata":{"annotations":{%q:null}},"spec":{"replicas":%d}}`, annotationStopped, n)
}

func set[T any](m map[string]T) map[string]bool {
	out := map[string]bool{}
	for name := range m {
		out[name] = true
	}
	return out
}

// hurry gives the pods of workloads less time to end than the file does, or more.
func (t *tracker) hurry(ctx context.Context, workloads map[string]bool, grace *int64) error {
	if grace == nil {
		return nil
	}
	t.mu.Lock()
	var names []string
	for name, p := range t.pods {
		if workloads[p.Labels[labelName]] {
			names = append(names, name)
		}
	}
	t.mu.Unlock()
	for _, name := range names {
		err := t.c.client.Resource(podsGVR).Namespace(t.namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: grace})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("stop pod %s: %w", name, err)
		}
	}
	return nil
}

// done tells of a job that it has ended, well or not.
func done(j *batchv1.Job) bool {
	return slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == "True"
	})
}

// DownServices removes some services of a project and leaves the others and the project as they are.
func (c *Cluster) DownServices(ctx context.Context, namespace string, o ChangeOptions) error {
	return c.change(ctx, namespace, o, func(ctx context.Context, x *change) error {
		names := map[string]bool{}
		for _, w := range x.workloads() {
			if err := wholePods(w, o.Services); err != nil {
				return err
			}
			names[w.GetName()] = true
			o.Progress.State(w.GetLabels()[labelService], "stopping", 0, 0)
		}
		all, err := c.members(ctx, namespace)
		if err != nil {
			return err
		}
		remove := func(some []kind) error {
			for _, k := range some {
				for _, m := range all[k.gk] {
					if !slices.Contains(o.Services, m.GetLabels()[labelService]) {
						continue
					}
					if err := c.remove(ctx, k, namespace, m.GetName()); err != nil {
						return err
					}
				}
			}
			return nil
		}
		if err := remove(kinds[:2]); err != nil { // the workloads
			return err
		}
		if err := x.t.hurry(ctx, names, o.Grace); err != nil {
			return err
		}
		if err := x.t.await(ctx, func() (bool, error) { return x.t.noPods(names), nil }); err != nil {
			return err
		}
		if err := remove(kinds[2:]); err != nil {
			return err
		}
		for _, service := range o.Services {
			o.Progress.State(service, "removed", 0, 0)
		}
		return nil
	})
}

// workloads are the deployments and jobs that are meant.
func (x *change) workloads() (all []Object) {
	for _, d := range x.deployments {
		all = append(all, d)
	}
	for _, j := range x.jobs {
		all = append(all, j)
	}
	return all
}

// wholePods refuses to remove some of the services that share a workload's pods: their containers come and go together.
func wholePods(workload Object, named []string) error {
	all := servicesOf(workload)
	for _, service := range all {
		if !slices.Contains(named, service) {
			return fmt.Errorf("services %s share their pods: remove all of them, with `slipway down %s`", strings.Join(all, ", "), strings.Join(all, " "))
		}
	}
	return nil
}
