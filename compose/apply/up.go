package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/compose-spec/compose-go/v2/types"
	batchv1 "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"slipway.dev/slipway/compose"
)

// Progress hears what happens to a project. Service is empty for what is not a service's own.
type Progress interface {
	// Say reports a step in one line.
	Say(service, line string)
	// State replaces what is shown of a service.
	State(service, state string, ready, want int32)
}

// UpOptions refine Up.
type UpOptions struct {
	Project string
	Files   []string
	Wait    bool // for every service to be healthy, or complete
	// Orphan tells of a member that the plan does not have, by its service ("" for what is not a service's own),
	// whether it is to be removed. Nil: all are.
	Orphan   func(service string) bool
	Progress Progress
}

// Outcome counts what Up did to objects.
type Outcome struct{ Created, Changed, Removed int }

// Nothing is true of an Up that found everything as the plan wants it.
func (o Outcome) Nothing() bool { return o == Outcome{} }

// Up makes the cluster have the plan: everything is checked by a dry run before anything changes, what
// workloads need comes before them, and a service starts when what it depends on has come far enough.
func (c *Cluster) Up(ctx context.Context, plan *compose.Plan, o UpOptions) (Outcome, error) {
	if err := c.ensureNamespace(ctx, plan.Namespace, o.Project); err != nil {
		return Outcome{}, err
	}
	before, err := c.members(ctx, plan.Namespace)
	if err != nil {
		return Outcome{}, err
	}
	keep := mark(plan)
	if err := c.check(ctx, plan); err != nil {
		return Outcome{}, err
	}
	if err := c.writeParent(ctx, plan.Namespace, o.Project, o.Files); err != nil {
		return Outcome{}, err
	}
	tally := newTally(before)
	if err := c.applyAll(ctx, plan.Shared, false, tally.count); err != nil {
		return tally.outcome(), err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.track(ctx, plan.Namespace)
	if err != nil {
		return tally.outcome(), err
	}
	defer func() { cancel(); t.tasks.Wait() }()
	if err := c.workloads(ctx, t, plan, o, tally); err != nil {
		return tally.outcome(), err
	}
	if o.Wait && c.Slipway {
		if err := t.await(ctx, t.portsBound); err != nil {
			return tally.outcome(), err
		}
	}
	removed, err := c.prune(ctx, before, func(key, service string) bool {
		return !keep[key] && (o.Orphan == nil || o.Orphan(service))
	}, o.Progress)
	out := tally.outcome()
	out.Removed = removed
	return out, err
}

// mark labels the plan's objects as members of its set, and returns their keys.
func mark(plan *compose.Plan) map[string]bool {
	keep := map[string]bool{}
	label := func(obj Object) {
		labels := obj.GetLabels()
		labels[labelPartOf] = setID(plan.Namespace)
		obj.SetLabels(labels)
		keep[keyOf(obj)] = true
	}
	for _, obj := range plan.Shared {
		label(obj)
	}
	for _, w := range plan.Workloads {
		label(w.Object)
	}
	return keep
}

// keyOf tells the members of a project apart.
func keyOf(o Object) string {
	return o.GetObjectKind().GroupVersionKind().GroupKind().String() + "/" + o.GetName()
}

// tally compares what was applied with what was there.
type tally struct {
	before map[string]string // resourceVersions; immutable

	mu  sync.Mutex
	now Outcome // guarded by mu
}

func newTally(members map[string][]unstructured.Unstructured) *tally {
	t := &tally{before: map[string]string{}}
	for _, list := range members {
		for i := range list {
			t.before[keyOf(&list[i])] = list[i].GetResourceVersion()
		}
	}
	return t
}

// count notes an applied object and tells whether it is other than before.
func (t *tally) count(applied Object) bool {
	version, known := t.before[keyOf(applied)]
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !known:
		t.now.Created++
	case version != applied.GetResourceVersion():
		t.now.Changed++
	default:
		return false
	}
	return true
}

func (t *tally) outcome() Outcome {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

// check dry-runs everything on the server. Jobs cannot be changed, only replaced: those that exist are
// not checked against themselves.
func (c *Cluster) check(ctx context.Context, plan *compose.Plan) error {
	all := append([]compose.Object{}, plan.Shared...)
	for _, w := range plan.Workloads {
		if _, job := w.Object.(*batchv1.Job); !job {
			all = append(all, w.Object)
		}
	}
	return c.applyAll(ctx, all, true, func(Object) bool { return false })
}

// parallel bounds requests under way.
const parallel = 8

// applyAll applies objects that do not depend on one another.
func (c *Cluster) applyAll(ctx context.Context, objects []compose.Object, dryRun bool, done func(Object) bool) error {
	var mu sync.Mutex
	var errs []error
	var tasks sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for _, obj := range objects {
		slots <- struct{}{}
		tasks.Go(func() {
			defer func() { <-slots }()
			out, err := c.apply(ctx, obj, dryRun)
			if err == nil {
				done(out)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	tasks.Wait()
	return errors.Join(errs...)
}

// workloads applies each service as soon as its dependencies allow, and waits for all.
func (c *Cluster) workloads(ctx context.Context, t *tracker, plan *compose.Plan, o UpOptions, count *tally) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &rollout{c: c, t: t, o: o, plan: plan, tally: count, versions: map[string]version{}, legal: map[string]string{}, applied: make(map[string]chan struct{})}
	for _, w := range plan.Workloads {
		r.applied[w.Service] = make(chan struct{})
		r.legal[w.Service] = w.Object.GetName()
	}
	var tasks sync.WaitGroup
	var mu sync.Mutex
	var first error
	for i := range plan.Workloads {
		w := &plan.Workloads[i]
		tasks.Go(func() {
			if err := r.one(ctx, w); err != nil {
				mu.Lock()
				if first == nil {
					first = fmt.Errorf("service %s: %w", w.Service, err)
				}
				mu.Unlock()
				cancel(first)
			}
		})
	}
	tasks.Wait()
	return first
}

// rollout is one Up's workloads under way.
type rollout struct {
	c       *Cluster
	t       *tracker
	o       UpOptions
	plan    *compose.Plan
	tally   *tally
	legal   map[string]string        // service to object name
	applied map[string]chan struct{} // closed when a service's object is there

	mu       sync.Mutex
	versions map[string]version // guarded by mu; of what was applied
}

func (r *rollout) one(ctx context.Context, w *compose.Workload) error {
	for _, need := range w.Needs {
		if err := r.need(ctx, w.Service, need); err != nil {
			return err
		}
	}
	if err := r.apply(ctx, w); err != nil {
		return err
	}
	close(r.applied[w.Service])
	if !r.o.Wait {
		r.o.Progress.State(w.Service, "applied", 0, 0)
		return nil
	}
	shown := ""
	return r.t.await(ctx, func() (bool, error) {
		s := r.t.service(w.Object.GetName(), r.version(w.Service))
		return r.show(w.Service, s, &shown)
	})
}

// show reports progress and says whether the service is done; a failure is its error.
func (r *rollout) show(service string, s state, shown *string) (bool, error) {
	_, job := r.job(service)
	text := "starting"
	done := false
	switch {
	case s.failed != "":
		text = "failed: " + s.failed
	case job && s.completed:
		text, done = "completed", true
	case !job && s.healthy:
		text, done = "running", true
	case s.trouble != "":
		text = s.trouble
	case s.updating:
		text = "updating"
	case s.ready > s.want:
		text = "stopping"
	}
	line := fmt.Sprintf("%s %d/%d", text, s.ready, s.want)
	if line != *shown && (s.want > 0 || done) {
		*shown = line
		r.o.Progress.State(service, text, s.ready, s.want)
	}
	if s.failed != "" {
		if s.trouble != "" {
			return false, fmt.Errorf("%s: %s", s.failed, s.trouble)
		}
		return false, errors.New(s.failed)
	}
	return done, nil
}

func (r *rollout) job(service string) (*batchv1.Job, bool) {
	for _, w := range r.plan.Workloads {
		if w.Service == service {
			j, ok := w.Object.(*batchv1.Job)
			return j, ok
		}
	}
	return nil, false
}

// need waits until a dependency has come as far as the file asks.
func (r *rollout) need(ctx context.Context, service string, n compose.Need) error {
	told := false
	applied, ok := r.applied[n.Service]
	if !ok {
		if n.Required {
			return fmt.Errorf("depends on %s, which is not among the selected services", n.Service)
		}
		return nil
	}
	select {
	case <-applied:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return r.t.await(ctx, func() (met bool, err error) {
		defer func() {
			if !met && err == nil && !told {
				told = true
				r.o.Progress.State(service, "waiting for "+n.Service, 0, 0)
			}
		}()
		s := r.t.service(r.legal[n.Service], r.version(n.Service))
		switch {
		case s.failed != "" && n.Required:
			return false, fmt.Errorf("depends on %s, which failed: %s", n.Service, s.failed)
		case s.failed != "":
			return true, nil
		case n.Condition == types.ServiceConditionCompletedSuccessfully:
			return s.completed, nil
		case n.Condition == types.ServiceConditionHealthy:
			return s.healthy, nil
		}
		return s.started, nil
	})
}

func (r *rollout) version(service string) version {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.versions[service]
}

// apply applies the workload; a Job whose template has changed is replaced.
func (r *rollout) apply(ctx context.Context, w *compose.Workload) error {
	out, err := r.c.apply(ctx, w.Object, false)
	if apierrors.IsInvalid(err) {
		if _, job := w.Object.(*batchv1.Job); job {
			if err := r.c.replaceJob(ctx, w.Object); err != nil {
				return err
			}
			out, err = r.c.apply(ctx, w.Object, false)
		}
	}
	if err != nil {
		return err
	}
	r.tally.count(out)
	r.mu.Lock()
	r.versions[w.Service] = version{out.GetUID(), out.GetGeneration()}
	r.mu.Unlock()
	return nil
}

func (c *Cluster) replaceJob(ctx context.Context, job Object) error {
	if err := c.remove(ctx, kinds[1], job.GetNamespace(), job.GetName()); err != nil {
		return err
	}
	return c.awaitGone(ctx, jobsGVR, job.GetNamespace(), job.GetName())
}

// Scale sets the replicas of services and waits until they are there.
func (c *Cluster) Scale(ctx context.Context, namespace string, replicas map[string]int32, wait bool, p Progress) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.track(ctx, namespace)
	if err != nil {
		return err
	}
	defer func() { cancel(); t.tasks.Wait() }()
	versions := map[string]version{}
	for service, n := range replicas {
		name := compose.LegalName(service)
		patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n)
		out, err := c.client.Resource(deploymentsGVR).Namespace(namespace).Patch(ctx, name, mergePatch, patch, metav1.PatchOptions{FieldManager: fieldManager})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("service %s is not up, or runs to completion: only running services can be scaled", service)
		}
		if err != nil {
			return fmt.Errorf("service %s: %w", service, err)
		}
		versions[service] = version{out.GetUID(), out.GetGeneration()}
	}
	if !wait {
		return nil
	}
	for service := range replicas {
		shown := ""
		r := &rollout{c: c, t: t, o: UpOptions{Progress: p}, plan: &compose.Plan{}}
		err := t.await(ctx, func() (bool, error) {
			return r.show(service, t.service(compose.LegalName(service), versions[service]), &shown)
		})
		if err != nil {
			return fmt.Errorf("service %s: %w", service, err)
		}
	}
	return nil
}
