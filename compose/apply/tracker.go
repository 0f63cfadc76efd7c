package apply

import (
	"context"
	"fmt"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// tracker follows a project's workloads and pods by watches, so that waiting is never polling.
type tracker struct {
	c         *Cluster
	namespace string

	mu          sync.Mutex
	deployments map[string]*appsv1.Deployment // guarded by mu, as are the others
	jobs        map[string]*batchv1.Job
	pods        map[string]*corev1.Pod
	services    map[string]*corev1.Service
	changed     chan struct{} // closed and replaced at every change
	synced      int
	err         error

	tasks sync.WaitGroup
}

// track starts following until ctx ends; the first lists are there when it returns.
func (c *Cluster) track(ctx context.Context, namespace string) (*tracker, error) {
	t := &tracker{c: c, namespace: namespace, changed: make(chan struct{}),
		deployments: map[string]*appsv1.Deployment{}, jobs: map[string]*batchv1.Job{}, pods: map[string]*corev1.Pod{}, services: map[string]*corev1.Service{}}
	follow(ctx, t, deploymentsGVR, func(d *appsv1.Deployment, gone bool) { put(t.deployments, d.Name, d, gone) }, func() { clear(t.deployments) })
	follow(ctx, t, jobsGVR, func(j *batchv1.Job, gone bool) { put(t.jobs, j.Name, j, gone) }, func() { clear(t.jobs) })
	follow(ctx, t, podsGVR, func(p *corev1.Pod, gone bool) { put(t.pods, p.Name, p, gone) }, func() { clear(t.pods) })
	follow(ctx, t, servicesGVR, func(s *corev1.Service, gone bool) { put(t.services, s.Name, s, gone) }, func() { clear(t.services) })
	return t, t.await(ctx, func() (bool, error) { return t.synced >= 4, t.err })
}

func put[T any](m map[string]*T, name string, v *T, gone bool) {
	if gone {
		delete(m, name)
		return
	}
	m[name] = v
}

// follow lists and watches one resource, again and again, until ctx ends.
func follow[T any](ctx context.Context, t *tracker, gvr schema.GroupVersionResource, set func(*T, bool), reset func()) {
	t.tasks.Go(func() {
		for first := true; ctx.Err() == nil; first = false {
			err := followOnce(ctx, t, gvr, set, reset, first)
			if err != nil && ctx.Err() == nil {
				t.change(func() { t.err = err })
				return
			}
		}
	})
}

func followOnce[T any](ctx context.Context, t *tracker, gvr schema.GroupVersionResource, set func(*T, bool), reset func(), first bool) error {
	r := t.c.client.Resource(gvr).Namespace(t.namespace)
	list, err := r.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	t.change(func() {
		reset()
		for i := range list.Items {
			if v, err := typed[T](&list.Items[i]); err == nil {
				set(v, false)
			}
		}
		if first {
			t.synced++
		}
	})
	w, err := r.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		u, ok := e.Object.(*unstructured.Unstructured)
		if e.Type == watch.Error || !ok {
			return nil // too old, or the server is going: list again
		}
		v, err := typed[T](u)
		if err != nil {
			return err
		}
		t.change(func() { set(v, e.Type == watch.Deleted) })
	}
	return nil
}

func (t *tracker) change(fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fn()
	close(t.changed)
	t.changed = make(chan struct{})
}

// await waits until done says so. done runs under the tracker's lock, after every change.
func (t *tracker) await(ctx context.Context, done func() (bool, error)) error {
	for {
		t.mu.Lock()
		ok, err := done()
		if err == nil {
			err = t.err
		}
		changed := t.changed
		t.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// state is how far a service has come.
type state struct {
	ready, want int32
	started     bool // every replica runs
	healthy     bool // every replica is ready, and of the newest version
	completed   bool
	updating    bool   // older versions still run
	failed      string // it will not get further by itself
	trouble     string // what holds it up at the moment
}

// version is an object as it was applied; zero: any.
type version struct {
	uid        types.UID
	generation int64
}

// is tells whether an object that a watch showed is the applied one, and not one of its name from before:
// a job that was replaced would seem complete before it ran.
func (v version) is(o Object) bool { return v.uid == "" || v.uid == o.GetUID() }

// service reads a service's state; it is called under the lock.
func (t *tracker) service(name string, v version) state {
	if d := t.deployments[name]; d != nil && v.is(d) {
		return t.deployment(d, v.generation)
	}
	if j := t.jobs[name]; j != nil && v.is(j) {
		return t.job(j)
	}
	return state{}
}

func (t *tracker) deployment(d *appsv1.Deployment, generation int64) state {
	s := state{want: 1}
	if d.Spec.Replicas != nil {
		s.want = *d.Spec.Replicas
	}
	s.trouble = t.trouble(d.Name)
	if s.failed = t.hopeless(d.Name); s.failed != "" {
		s.trouble = "" // said already
	}
	st := d.Status
	s.ready = st.AvailableReplicas
	if d.Generation < generation || st.ObservedGeneration < d.Generation {
		return s
	}
	for _, c := range st.Conditions {
		if c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded" {
			s.failed = c.Message
		}
	}
	s.updating = st.UpdatedReplicas < st.Replicas && st.Replicas >= s.want
	s.healthy = st.UpdatedReplicas == s.want && st.Replicas == s.want && st.AvailableReplicas == s.want
	s.started = s.healthy || (st.UpdatedReplicas == s.want && t.running(d.Name) >= s.want)
	return s
}

func (t *tracker) job(j *batchv1.Job) state {
	s := state{want: 1, ready: j.Status.Succeeded, trouble: t.trouble(j.Name)}
	if j.Spec.Completions != nil {
		s.want = *j.Spec.Completions
	}
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			s.started, s.healthy, s.completed = true, true, true
		case batchv1.JobFailed:
			s.failed = fmt.Sprintf("it did not complete: %s%s", c.Message, t.exitCode(j.Name))
		}
	}
	if t.running(j.Name) > 0 {
		s.started = true
		s.healthy = t.readyPods(j.Name) > 0
	}
	return s
}

// The condition by which Slipway says that a host port is somebody else's.
const conditionPorts = "slipway.dev/PortsBound"

// portsBound waits until published ports answer on this machine; one that is taken is an error, because only
// people can decide who is to have it. It is called under the lock.
func (t *tracker) portsBound() (bool, error) {
	all := true
	for _, s := range t.services {
		if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Labels[labelManagedBy] != fieldManager {
			continue
		}
		for _, c := range s.Status.Conditions {
			if c.Type == conditionPorts && c.Status == metav1.ConditionFalse && c.ObservedGeneration >= s.Generation {
				return false, fmt.Errorf("service %s: %s", s.Labels[labelService], c.Message)
			}
		}
		all = all && len(s.Status.LoadBalancer.Ingress) > 0
	}
	return all, nil
}

// of calls fn for each live pod of a service.
func (t *tracker) of(service string, fn func(*corev1.Pod)) {
	for _, p := range t.pods {
		if p.Labels[labelName] == service && p.DeletionTimestamp == nil {
			fn(p)
		}
	}
}

func (t *tracker) running(service string) (n int32) {
	t.of(service, func(p *corev1.Pod) {
		if p.Status.Phase == corev1.PodRunning {
			n++
		}
	})
	return n
}

func (t *tracker) readyPods(service string) (n int32) {
	t.of(service, func(p *corev1.Pod) {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				n++
			}
		}
	})
	return n
}

// hopeless is why a service's pods will not come up however long one waits, in one line: what they run cannot be
// started, or their health check failed until they were killed. Only those that have never been up count.
func (t *tracker) hopeless(service string) (why string) {
	t.of(service, func(p *corev1.Pod) {
		for i, c := range p.Status.ContainerStatuses {
			if c.Started != nil && *c.Started {
				continue
			}
			last := c.LastTerminationState.Terminated
			switch {
			case last != nil && last.Reason == "StartError":
				why = "it cannot be started: " + firstLine(last.Message)
			case last != nil && c.RestartCount > 0 && i < len(p.Spec.Containers) && p.Spec.Containers[i].StartupProbe != nil:
				why = fmt.Sprintf("it is unhealthy: its health check failed until it was killed: see `slipway logs %s`", service)
			}
		}
	})
	return why
}

// trouble is what keeps a service's pods from running, in one line.
func (t *tracker) trouble(service string) (why string) {
	t.of(service, func(p *corev1.Pod) {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				why = c.Message
			}
		}
		for _, c := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			w := c.State.Waiting
			if w == nil || w.Reason == "ContainerCreating" || w.Reason == "PodInitializing" {
				continue
			}
			why = w.Reason
			if last := c.LastTerminationState.Terminated; w.Reason == "CrashLoopBackOff" && last != nil {
				why = fmt.Sprintf("it exits with code %d", last.ExitCode)
				if last.Reason == "OOMKilled" {
					why = "it runs out of memory"
				}
				why += fmt.Sprintf(" (%d restarts): see `slipway logs %s`", c.RestartCount, service)
			} else if w.Message != "" {
				why += ": " + firstLine(w.Message)
			}
		}
	})
	return why
}

func (t *tracker) exitCode(service string) (text string) {
	t.of(service, func(p *corev1.Pod) {
		for _, c := range p.Status.ContainerStatuses {
			if e := c.State.Terminated; e != nil && e.ExitCode != 0 {
				text = fmt.Sprintf(" (exit code %d): see `slipway logs %s`", e.ExitCode, service)
			}
		}
	})
	return text
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
