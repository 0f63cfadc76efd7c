package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

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
	// Recreate replaces what runs even where nothing has changed.
	Recreate bool
	// RemoveOrphans removes what the plan does not have even if it came from other files.
	RemoveOrphans bool
	// Settle is how long a service without a health check has to go on running before it counts as up.
	Settle time.Duration
	// Patience is how long what holds a service up may last, once nothing else moves, before it counts as failed. Zero: for ever.
	Patience time.Duration
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
	have, err := c.readParent(ctx, plan.Namespace)
	if err != nil {
		return Outcome{}, err
	}
	if err := have.refuse(plan.Namespace, o.Project); err != nil {
		return Outcome{}, err
	}
	before, err := c.members(ctx, plan.Namespace)
	if err != nil {
		return Outcome{}, err
	}
	keep := mark(plan)
	tally := newTally(before)
	if err := c.check(ctx, plan, tally); err != nil {
		return Outcome{}, err
	}
	gone, kept := o.orphans(before, keep, have)
	if err := c.writeParent(ctx, plan.Namespace, parent{project: o.Project, files: o.Files, kept: kept}); err != nil {
		return Outcome{}, err
	}
	if err := c.applyAll(ctx, plan.Shared, false, func(out *unstructured.Unstructured) error { tally.count(out); return nil }); err != nil {
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
	removed, err := c.prune(ctx, before, gone, o.Progress)
	out := tally.outcome()
	out.Removed = removed
	if err == nil && o.Wait && c.Slipway {
		// After pruning: a service that was renamed gets its port from the one that it was.
		moment := o.Settle
		if out.Changed+out.Removed > 0 {
			moment += handover
		}
		err = t.await(ctx, t.portsBound(moment))
	}
	return out, err
}

// handover is how long a port may take from one service of the project to another: the node tries again every few seconds.
const handover = 5 * time.Second

// orphans tells of each member whether it is to be removed, and names the services that stay although the plan does not have
// them: what other files brought up under the same project name is not lost because two folders are called the same.
func (o UpOptions) orphans(before map[string][]unstructured.Unstructured, keep map[string]bool, have parent) (gone func(key, service string) bool, kept []string) {
	orphan := func(key, service string) bool { return !keep[key] && (o.Orphan == nil || o.Orphan(service)) }
	if o.RemoveOrphans {
		return orphan, nil
	}
	ours := have.shares(o.Files)
	others := map[string]bool{}
	for _, k := range kinds[:2] {
		for i := range before[k.gk] {
			m := &before[k.gk][i]
			service := m.GetLabels()[labelService]
			if !keep[keyOf(m)] && (!ours || slices.Contains(have.kept, service)) {
				others[service] = true
			}
		}
	}
	kept = sortedKeys(others)
	if len(kept) == 0 {
		return orphan, nil
	}
	o.Progress.Say("", fmt.Sprintf("note: project %s also has %s, which came from other files: --remove-orphans removes what these files do not have, and -p gives this project another name",
		o.Project, strings.Join(kept, ", ")))
	return func(key, service string) bool {
		return ours && service != "" && !others[service] && orphan(key, service)
	}, kept
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
	before map[string]string // contents; immutable

	mu  sync.Mutex
	now Outcome // guarded by mu
}

func newTally(members map[string][]unstructured.Unstructured) *tally {
	t := &tally{before: map[string]string{}}
	for _, list := range members {
		for i := range list {
			t.before[keyOf(&list[i])] = content(&list[i])
		}
	}
	return t
}

// had tells whether an object was the project's before.
func (t *tally) had(o Object) bool { _, known := t.before[keyOf(o)]; return known }

// content identifies an object as it is wanted. A resource version would not do: controllers write a status, or the number of
// a version, whenever they like.
func content(o *unstructured.Unstructured) string {
	wanted := maps.Clone(o.Object)
	for _, field := range []string{"apiVersion", "kind", "status"} {
		delete(wanted, field)
	}
	annotations := o.GetAnnotations()
	maps.DeleteFunc(annotations, func(key, _ string) bool {
		domain, _, _ := strings.Cut(key, "/")
		return slices.Contains([]string{"deployment.kubernetes.io", "pv.kubernetes.io", "volume.kubernetes.io"}, domain)
	})
	wanted["metadata"] = []string{string(o.GetUID()), fmt.Sprint(o.GetLabels()), fmt.Sprint(annotations)} // maps are printed in order
	raw, _ := json.Marshal(wanted)                                                                        // it came as JSON
	return string(raw)
}

// count notes an applied object and tells whether it is other than before.
func (t *tally) count(applied *unstructured.Unstructured) bool {
	before, known := t.before[keyOf(applied)]
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case !known:
		t.now.Created++
	case before != content(applied):
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
// not checked against themselves. What somebody else made is not taken over.
func (c *Cluster) check(ctx context.Context, plan *compose.Plan, t *tally) error {
	foreign := func(o Object) error {
		return fmt.Errorf("%s %s exists in namespace %s, and is not this project's: delete it, or give the project another name with -p",
			o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), plan.Namespace)
	}
	all := append([]compose.Object{}, plan.Shared...)
	for _, w := range plan.Workloads {
		if _, job := w.Object.(*batchv1.Job); job {
			if t.had(w.Object) {
				continue
			}
			// A dry run of one that exists would fail for what cannot be changed, and not say whose it is.
			_, err := c.in(kinds[1], plan.Namespace).Get(ctx, w.Object.GetName(), metav1.GetOptions{})
			if err == nil {
				return foreign(w.Object)
			}
			if !apierrors.IsNotFound(err) {
				return err
			}
		}
		all = append(all, w.Object)
	}
	return c.applyAll(ctx, all, true, func(out *unstructured.Unstructured) error {
		if !t.had(out) && out.GetResourceVersion() != "" {
			return foreign(out)
		}
		return nil
	})
}

// parallel bounds requests under way.
const parallel = 8

// applyAll applies objects that do not depend on one another.
func (c *Cluster) applyAll(ctx context.Context, objects []compose.Object, dryRun bool, done func(*unstructured.Unstructured) error) error {
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
				err = done(out)
			}
			if err == nil {
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
	r := newRollout(c, t, plan, o, count)
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
	ends    map[string]bool          // services that others wait for to complete

	mu       sync.Mutex
	versions map[string]version // guarded by mu; of what was applied
	phases   map[string]phase   // guarded by mu
	fresh    map[string]bool    // guarded by mu; started just now, and nothing but time tells when they are ready
}

// phase is how a service comes along, as far as others need to know.
type phase int

const (
	waits phase = iota // for what it depends on
	moves              // it may come further by itself
	rests              // it is up, or it is held up
)

func newRollout(c *Cluster, t *tracker, plan *compose.Plan, o UpOptions, count *tally) *rollout {
	r := &rollout{c: c, t: t, o: o, plan: plan, tally: count, versions: map[string]version{}, legal: map[string]string{},
		applied: map[string]chan struct{}{}, ends: map[string]bool{}, phases: map[string]phase{}, fresh: map[string]bool{}}
	for _, w := range plan.Workloads {
		r.applied[w.Service] = make(chan struct{})
		r.legal[w.Service] = w.Object.GetName()
		for _, n := range w.Needs {
			if n.Condition == types.ServiceConditionCompletedSuccessfully {
				r.ends[n.Service] = true
			}
		}
	}
	return r
}

// enter notes a service's phase. When nothing moves any more, those that are held up have to look again.
func (r *rollout) enter(service string, p phase) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phases[service] != p {
		r.phases[service] = p
		r.t.again(0)
	}
}

// othersMove tells whether another service may still come further, and take this one along.
func (r *rollout) othersMove(service string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, p := range r.phases {
		if other != service && p == moves {
			return true
		}
	}
	return false
}

// othersFresh tells whether another service was started just now without a health check: it runs, but may not serve yet.
func (r *rollout) othersFresh(service string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other := range r.fresh {
		if other != service {
			return true
		}
	}
	return false
}

// known notes that a service is ready, and not only running.
func (r *rollout) known(service string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.fresh, service)
}

func (r *rollout) one(ctx context.Context, w *compose.Workload) error {
	for _, need := range w.Needs {
		if err := r.need(ctx, w.Service, need); err != nil {
			return err
		}
	}
	if r.o.Wait {
		r.enter(w.Service, moves)
	}
	if err := r.apply(ctx, w); err != nil {
		return err
	}
	close(r.applied[w.Service])
	if !r.o.Wait {
		r.o.Progress.State(w.Service, "applied", 0, 0)
		return nil
	}
	return r.await(ctx, w.Service, w.Object.GetName())
}

// await waits until a service is up.
func (r *rollout) await(ctx context.Context, service, object string) error {
	v := &vigil{r: r, service: service, object: object}
	err := r.t.await(ctx, func() (bool, error) { return v.look(r.t.service(object, r.version(service))) })
	return r.explain(ctx, err)
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
	err := r.t.await(ctx, func() (met bool, err error) {
		defer func() {
			if !met && err == nil && !told {
				told = true
				r.o.Progress.State(service, "waiting for "+n.Service, 0, 0)
			}
		}()
		s := r.t.service(r.legal[n.Service], r.version(n.Service))
		switch {
		case s.failed != "" && n.Required:
			prefix := fmt.Sprintf("depends on %s, which failed: ", n.Service)
			return false, &FailedError{Service: n.Service, Reason: prefix + s.failed, from: s.log, prefix: prefix, object: r.legal[n.Service]}
		case s.failed != "":
			return true, nil
		case n.Condition == types.ServiceConditionCompletedSuccessfully:
			return s.completed, nil
		case n.Condition == types.ServiceConditionHealthy:
			return s.healthy, nil
		}
		return s.started, nil
	})
	return r.explain(ctx, err)
}

func (r *rollout) version(service string) version {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.versions[service]
}

// annotationRestarted is what kubectl rollout restart changes, too: a template that differs in it is a new version.
const annotationRestarted = "kubectl.kubernetes.io/restartedAt"

// apply applies the workload. A Job is replaced when its template has changed, when it has failed, and when asked for.
func (r *rollout) apply(ctx context.Context, w *compose.Workload) error {
	_, job := w.Object.(*batchv1.Job)
	if job && (r.o.Recreate || r.t.hasFailed(w.Object.GetName())) {
		if err := r.c.replaceJob(ctx, w.Object); err != nil {
			return err
		}
	}
	out, err := r.c.apply(ctx, w.Object, false)
	if job && apierrors.IsInvalid(err) {
		if err := r.c.replaceJob(ctx, w.Object); err != nil {
			return err
		}
		out, err = r.c.apply(ctx, w.Object, false)
	}
	if err != nil {
		return err
	}
	changed := r.tally.count(out)
	switch {
	case changed || job:
	case r.o.Recreate, r.t.gaveUp(w.Object.GetName()):
		if out, err = r.c.restart(ctx, out.GetNamespace(), out.GetName()); err != nil {
			return err
		}
		r.tally.count(out)
	default:
		if err := r.t.retry(ctx, w.Object.GetName()); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.versions[w.Service] = version{out.GetUID(), out.GetGeneration()}
	if changed {
		r.fresh[w.Service] = true
	}
	return nil
}

func (c *Cluster) replaceJob(ctx context.Context, job Object) error {
	if err := c.remove(ctx, kinds[1], job.GetNamespace(), job.GetName()); err != nil {
		return err
	}
	return c.awaitGone(ctx, jobsGVR, job.GetNamespace(), job.GetName())
}
