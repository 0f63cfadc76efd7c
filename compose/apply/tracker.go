package apply

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"slipway.dev/slipway/compose"
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
	sets        map[types.UID]*appsv1.ReplicaSet
	changed     chan struct{} // closed and replaced at every change
	synced      int
	err         error

	tasks sync.WaitGroup
}

// track starts following until ctx ends; the first lists are there when it returns.
func (c *Cluster) track(ctx context.Context, namespace string) (*tracker, error) {
	t := &tracker{c: c, namespace: namespace, changed: make(chan struct{}),
		deployments: map[string]*appsv1.Deployment{}, jobs: map[string]*batchv1.Job{}, pods: map[string]*corev1.Pod{}, services: map[string]*corev1.Service{},
		sets: map[types.UID]*appsv1.ReplicaSet{}}
	follow(ctx, t, deploymentsGVR, func(d *appsv1.Deployment, gone bool) { put(t.deployments, d.Name, d, gone) }, func() { clear(t.deployments) })
	follow(ctx, t, jobsGVR, func(j *batchv1.Job, gone bool) { put(t.jobs, j.Name, j, gone) }, func() { clear(t.jobs) })
	follow(ctx, t, podsGVR, func(p *corev1.Pod, gone bool) { put(t.pods, p.Name, p, gone) }, func() { clear(t.pods) })
	follow(ctx, t, servicesGVR, func(s *corev1.Service, gone bool) { put(t.services, s.Name, s, gone) }, func() { clear(t.services) })
	follow(ctx, t, replicaSetsGVR, func(r *appsv1.ReplicaSet, gone bool) { put(t.sets, r.UID, r, gone) }, func() { clear(t.sets) })
	return t, t.await(ctx, func() (bool, error) { return t.synced >= 5, t.err })
}

func put[K comparable, T any](m map[K]*T, name K, v *T, gone bool) {
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

// again makes everybody who waits look once more, after d.
func (t *tracker) again(d time.Duration) {
	time.AfterFunc(d, func() { t.change(func() {}) })
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
	look
}

// look is what a service's pods tell, those of the newest version.
type look struct {
	pods        int32 // there are
	running, up int32
	trouble     string // what holds them up at the moment, in one line
	crash       bool   // the trouble is that a container exits again and again
	stuck       bool   // the trouble is one that waiting alone seldom mends
	hopeless    string // why they will not come up however long one waits, in one line
	probed      bool   // health checks tell that all of them is up; without one, that they go on running has to do
	runs        string // the containers that run, to tell whether they are still the same ones
	since       int64  // when the youngest of these started, in seconds
	restarts    int32  // of the pod that has most
	log         source // where to read more
}

// source is a container whose log can be read.
type source struct{ pod, container, service string }

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
	st := d.Status
	s.ready = st.ReadyReplicas
	if d.Generation < generation || st.ObservedGeneration < d.Generation {
		return s
	}
	newest, known := t.newest(d)
	if !known {
		return s // what an older version's pods tell is over
	}
	s.look = t.look(d.Name, newest)
	s.failed = s.hopeless
	for _, c := range st.Conditions {
		switch {
		case exceeded(c):
			s.failed = c.Message
		case c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue:
			s.trouble, s.stuck = firstLine(c.Message), true
		}
	}
	s.updating = st.UpdatedReplicas < st.Replicas && st.Replicas >= s.want
	// Ready, not available: for how long they have been ready decided when the older ones went.
	s.healthy = st.UpdatedReplicas == s.want && st.Replicas == s.want && st.ReadyReplicas == s.want
	s.started = s.healthy || (st.UpdatedReplicas == s.want && s.running >= s.want)
	return s
}

// annotationRevision numbers the versions of a deployment.
const annotationRevision = "deployment.kubernetes.io/revision"

// newest finds the replica set of a deployment's newest version; "" stands for any, where versions are not numbered. It is not
// known until both the set and the number have been seen.
func (t *tracker) newest(d *appsv1.Deployment) (owner types.UID, known bool) {
	revision := d.Annotations[annotationRevision]
	if revision == "" {
		return "", true
	}
	for _, rs := range t.sets {
		if o := metav1.GetControllerOf(rs); o != nil && o.UID == d.UID && rs.Annotations[annotationRevision] == revision {
			return rs.UID, true
		}
	}
	return "", false
}

func (t *tracker) job(j *batchv1.Job) state {
	s := state{want: 1, look: t.look(j.Name, j.UID)}
	if j.Spec.Completions != nil {
		s.want = *j.Spec.Completions
	}
	s.ready = j.Status.Succeeded + s.up
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete:
			s.started, s.healthy, s.completed = true, true, true
		case batchv1.JobFailed:
			s.failed = "it did not complete: " + c.Message
			if s.trouble != "" {
				s.failed = s.trouble
			}
		}
	}
	if s.running > 0 && s.running+j.Status.Succeeded >= s.want {
		s.started = true
		s.healthy = s.ready >= s.want
	}
	return s
}

// The condition by which Slipway says that a host port is somebody else's.
const conditionPorts = "slipway.dev/PortsBound"

// portsBound waits until published ports answer on this machine. One that somebody else has is an error, because only people
// can decide who is to have it; it has to be taken for a moment, since it may be changing hands.
func (t *tracker) portsBound(moment time.Duration) func() (bool, error) {
	taken := map[string]time.Time{} // by Service
	return func() (bool, error) {
		all := true
		for _, s := range t.services {
			if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Labels[labelManagedBy] != fieldManager {
				continue
			}
			all = all && len(s.Status.LoadBalancer.Ingress) > 0
			problem := portProblem(s)
			if problem == "" {
				delete(taken, s.Name)
				continue
			}
			if taken[s.Name].IsZero() {
				taken[s.Name] = time.Now()
			}
			if rest := moment - time.Since(taken[s.Name]); rest > 0 {
				t.again(rest)
				continue
			}
			return false, fmt.Errorf("service %s: %s", s.Labels[labelService], problem)
		}
		return all, nil
	}
}

func portProblem(s *corev1.Service) string {
	for _, c := range s.Status.Conditions {
		if c.Type == conditionPorts && c.Status == metav1.ConditionFalse && c.ObservedGeneration >= s.Generation {
			return c.Message
		}
	}
	return ""
}

// look reads a service's live pods; owner is who must have made them, "" for anybody. It is called under the lock.
func (t *tracker) look(service string, owner types.UID) look {
	var l look
	var runs []string
	for _, name := range sortedKeys(t.pods) {
		p := t.pods[name]
		o := metav1.GetControllerOf(p)
		if p.Labels[labelName] != service || p.DeletionTimestamp != nil || (owner != "" && o != nil && o.UID != owner) {
			continue
		}
		l.pods++
		l.pod(p)
		for i := range p.Status.ContainerStatuses {
			c := &p.Status.ContainerStatuses[i]
			l.container(p, c, service)
			if c.State.Running != nil {
				runs = append(runs, c.ContainerID)
				l.since = max(l.since, c.State.Running.StartedAt.Unix())
			}
		}
		for i := range p.Status.InitContainerStatuses {
			l.container(p, &p.Status.InitContainerStatuses[i], service)
		}
	}
	l.runs = strings.Join(runs, " ")
	return l
}

func (l *look) pod(p *corev1.Pod) {
	if p.Status.Phase == corev1.PodRunning {
		l.running++
	}
	for _, c := range p.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue:
			l.up++
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable:
			l.trouble, l.stuck = "no room for it: "+firstLine(c.Message), true
			if strings.Contains(c.Message, "Insufficient") {
				l.trouble += " Lower its reservations, or make room (with update_config.order stop-first no older replica is in the way)"
			}
		}
	}
	// Of services that share a pod, one without a health check is ready as soon as it runs.
	unprobed := func(c corev1.Container) bool { return c.ReadinessProbe == nil }
	if len(p.Spec.Containers) > 0 && !slices.ContainsFunc(p.Spec.Containers, unprobed) {
		l.probed = true
	}
}

func (l *look) container(p *corev1.Pod, c *corev1.ContainerStatus, service string) {
	l.restarts = max(l.restarts, c.RestartCount)
	last := c.LastTerminationState.Terminated
	here := source{p.Name, c.Name, serviceOf(p, c.Name)}
	before := l.trouble
	defer func() {
		if l.trouble != before && len(p.Spec.Containers) > 1 {
			l.trouble = here.service + strings.TrimPrefix(l.trouble, "it") // of those that share a pod, this one
		}
	}()
	if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
		l.trouble, l.log = exited(t), here
	}
	if w := c.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
		l.trouble, l.log = w.Reason, here
		switch {
		case w.Reason == "CrashLoopBackOff" && last != nil:
			l.crash = true
			l.trouble = exited(last) + ", again and again (" + counted(c.RestartCount, "restart") + ")"
			if last.ExitCode == 0 {
				l.trouble += `: if it is meant to end, give it restart: "no" or on-failure`
			}
		default:
			// A pull may only have hiccuped; the others do not pass by themselves.
			l.stuck = w.Reason != "ErrImagePull"
			if w.Message != "" {
				l.trouble += ": " + firstLine(w.Message)
			}
		}
	}
	if c.Started != nil && *c.Started || last == nil {
		return
	}
	// Only those that have never been up are hopeless.
	switch {
	case last.Reason == "StartError":
		l.hopeless, l.log = "it cannot be started: "+firstLine(last.Message), here
	case c.RestartCount > 0 && stopped(last) && startupProbe(p, c.Name):
		l.hopeless, l.log = "it is unhealthy: its health check failed until it was killed", here
	}
}

// stopped tells an end that was asked for, as a failed health check asks for it, from one of the program's own.
func stopped(t *corev1.ContainerStateTerminated) bool { return t.ExitCode == 0 || t.ExitCode > 128 }

func startupProbe(p *corev1.Pod, container string) bool {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == container {
			return p.Spec.Containers[i].StartupProbe != nil
		}
	}
	return false
}

// exited says how a container ended.
func exited(t *corev1.ContainerStateTerminated) string {
	if t.Reason == "OOMKilled" {
		return "it runs out of memory (exit code 137): see its memory limit"
	}
	return fmt.Sprintf("it exits with code %d", t.ExitCode)
}

func counted(n int32, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// servicesOf are the services whose containers are in a workload's pods, or in a pod.
func servicesOf(o Object) []string {
	if all := o.GetAnnotations()[compose.AnnotationServices]; all != "" {
		return strings.Split(all, ",")
	}
	return []string{o.GetLabels()[labelService]}
}

// serviceOf is the service of one container of a pod.
func serviceOf(p *corev1.Pod, container string) string {
	for _, service := range servicesOf(p) {
		if compose.LegalName(service) == container {
			return service
		}
	}
	return p.Labels[labelService]
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
