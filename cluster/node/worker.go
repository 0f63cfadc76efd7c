package node

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/image"
)

// retryFirst and retryMost bound the wait before what failed (a pull, a volume, a sandbox) is tried again.
const (
	retryFirst = time.Second
	retryMost  = 5 * time.Minute
)

// worker brings one pod from what it is to what it should be, one step at a time. All fields below
// mu's are its goroutine's own.
type worker struct {
	agent *Agent
	uid   types.UID
	wake  chan struct{} // holds at most one: several reasons to look are one look

	mu        sync.Mutex
	pod       *corev1.Pod           // guarded by mu; the latest version
	gone      bool                  // guarded by mu; the object is no more
	stale     bool                  // guarded by mu; volumes have to be brought up to date
	again     bool                  // guarded by mu; what was waited for may be there: no more waiting
	interrupt context.CancelFunc    // guarded by mu; ends what a deleted pod no longer wants
	stopping  map[string]*stopState // guarded by mu; by engine container id

	began    time.Time
	sandbox  *sandbox
	paths    map[string]string // volume name to host path
	refresh  time.Time         // when volumes must be made again
	images   map[string]image.Image
	waiting  map[string]waiting
	probers  map[string]*prober // by container name
	messages map[string]string  // termination messages by engine container id
	retryAt  time.Time
	retry    time.Duration
	ended    bool // the sandbox of the finished pod is given back

	unreported bool // the newest status could not be written
}

func newWorker(a *Agent, pod *corev1.Pod) *worker {
	return &worker{
		agent: a, uid: pod.UID, pod: pod, wake: make(chan struct{}, 1), began: time.Now(),
		stopping: map[string]*stopState{}, images: map[string]image.Image{}, waiting: map[string]waiting{},
		probers: map[string]*prober{}, messages: map[string]string{},
	}
}

func (w *worker) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update takes the pod's newest version. A deletion interrupts whatever is being prepared.
func (w *worker) update(pod *corev1.Pod, gone bool) {
	w.mu.Lock()
	if shows(pod) && !(maps.Equal(pod.Labels, w.pod.Labels) && maps.Equal(pod.Annotations, w.pod.Annotations)) {
		w.stale, w.again = true, true
	}
	w.pod, w.gone = pod, w.gone || gone
	if (gone || pod.DeletionTimestamp != nil) && w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.nudge()
}

// shows says whether a volume of the pod has its own labels or annotations in it.
func shows(pod *corev1.Pod) bool {
	return anyVolume(pod, func(v *corev1.Volume) bool {
		return v.DownwardAPI != nil || anyProjection(v, func(p *corev1.VolumeProjection) bool { return p.DownwardAPI != nil })
	})
}

func (w *worker) latest() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// interruptible ends with ctx, and as soon as the pod is deleted.
func (w *worker) interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deletedLocked() {
		cancel()
	}
	w.interrupt = cancel
	return ctx, func() {
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
		cancel()
	}
}

func (w *worker) deleted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deletedLocked()
}

func (w *worker) deletedLocked() bool { return w.gone || w.pod.DeletionTimestamp != nil }

func (w *worker) refreshVolumes() {
	w.mu.Lock()
	w.stale, w.again = true, true
	w.mu.Unlock()
	w.nudge()
}

// run steps until the pod is gone or ctx ends; in the second case its containers go on.
func (w *worker) run(ctx context.Context) {
	defer func() {
		for _, p := range w.probers {
			p.stop()
		}
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		at, done := w.step(ctx)
		if done || ctx.Err() != nil {
			return
		}
		if soon := time.Now().Add(retryFirst); w.unreported && (at.IsZero() || soon.Before(at)) {
			at = soon
		}
		if at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(max(time.Until(at), 0))
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

// step does what can be done now. at is when to look again without an event; zero: never.
func (w *worker) step(ctx context.Context) (at time.Time, done bool) {
	w.mu.Lock()
	pod, gone := w.pod, w.gone
	w.mu.Unlock()
	switch {
	case gone:
		return w.destroy(ctx)
	case pod.DeletionTimestamp != nil:
		return w.terminate(ctx, pod), false
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return w.finish(ctx, pod), false
	}
	return w.advance(ctx, pod), false
}

// advance prepares the pod's place, starts and restarts containers, and reports.
func (w *worker) advance(ctx context.Context, pod *corev1.Pod) (at time.Time) {
	v := w.observe(pod)
	var wait time.Time
	if !overdue(pod, time.Now()) && w.needsPreparing(pod, v) {
		var ok bool
		if wait, ok = w.prepare(ctx, pod, v); !ok {
			w.report(ctx, pod, decision{})
			return sooner(wait, deadline(pod))
		}
		v = w.observe(pod)
	}
	d := decide(pod, v, time.Now())
	d.wakeAt = sooner(d.wakeAt, wait)
	for name, reason := range d.kill {
		w.stopContainer(ctx, pod, v[name].current, w.killGrace(pod, name), reason)
	}
	w.backOffs(pod, v)
	if slices.ContainsFunc(d.start, func(name string) bool { return v[name].exited() }) {
		w.report(ctx, pod, decision{}) // out of its services before the restart, which takes its time
	}
	for _, name := range d.start {
		if w.deleted() {
			break
		}
		if _, ok := w.images[findContainer(pod, name).Image]; !ok {
			if wait.IsZero() {
				d.wake(time.Now().Add(eagerFirst)) // it exited just now: prepare has not looked for its image yet
			}
			continue
		}
		if err := w.launch(ctx, pod, name, v); err != nil {
			d.wake(w.delay())
			break
		}
	}
	if len(d.start) > 0 {
		v = w.observe(pod)
		if next := decide(pod, v, time.Now()); len(next.start) == 0 {
			d.over, d.failed = next.over, next.failed
		}
	}
	if d.over {
		return w.finishNow(ctx, pod, d)
	}
	w.probe(ctx, pod, v)
	w.report(ctx, pod, d)
	if wait.IsZero() || w.refresh.After(time.Now()) { // one that is overdue waits for the next attempt
		d.wakeAt = sooner(d.wakeAt, w.refresh)
	}
	return d.wakeAt
}

// delay is when to try again after a failure; each is twice as far as the one before.
func (w *worker) delay() time.Time {
	w.retry = min(max(2*w.retry, retryFirst), retryMost)
	w.retryAt = time.Now().Add(w.retry)
	return w.retryAt
}

// epoch is that of the pod's sandbox. Before this agent has found the sandbox, the mark says it: what
// an agent before this one started must not be taken for leftovers, and end without its grace.
func (w *worker) epoch() string {
	if w.sandbox != nil {
		return w.sandbox.epoch
	}
	raw, _ := os.ReadFile(epochFile(w.agent.volumes.podDir(w.uid)))
	return string(raw)
}

// observe reads the pod's containers from the engine.
func (w *worker) observe(pod *corev1.Pod) view {
	infos, err := w.agent.Containers.List(container.Filter{
		Owner: container.OwnerNode, All: true, Label: []string{labelPodUID + "=" + string(w.uid)}})
	if err != nil {
		w.agent.Log.Error("list a pod's containers", "pod", store.KeyOf(pod), "error", err)
		return view{}
	}
	v := newView(infos, w.epoch())
	for c := range containersOf(pod) {
		o, ok := v[c.Name]
		if !ok {
			continue
		}
		o.outdated = o.current.Spec.Labels[labelImage] != c.Image
		if p := w.probers[c.Name]; p != nil && p.id == o.current.ID {
			o.started, o.ready, o.failing = p.verdict()
		} else {
			o.started = c.StartupProbe == nil
			o.ready = o.started && c.ReadinessProbe == nil
			if st := statusOf(pod, c.Name); st != nil && st.ContainerID == containerScheme+o.current.ID && st.Started != nil && *st.Started {
				o.started, o.ready = true, st.Ready // an agent before this one knew it
			}
		}
		w.mu.Lock()
		_, busy := w.stopping[o.current.ID]
		w.mu.Unlock()
		if busy {
			o.failing, o.outdated, o.ready = "", false, false
		}
		v[c.Name] = o
		w.readMessage(c, o.current)
		if o.previous != nil {
			w.readMessage(c, o.previous)
		}
	}
	return v
}

// probe starts the probes of containers that have come up and ends those of containers that are gone.
func (w *worker) probe(ctx context.Context, pod *corev1.Pod, v view) {
	for name, p := range w.probers {
		if o := v[name]; o.current == nil || o.current.ID != p.id || !o.running() {
			p.stop()
			delete(w.probers, name)
		}
	}
	for c := range containersOf(pod) {
		o := v[c.Name]
		if !o.running() || w.probers[c.Name] != nil || (c.StartupProbe == nil && c.ReadinessProbe == nil && c.LivenessProbe == nil) {
			continue
		}
		p := &prober{
			pod: pod, container: c, id: o.current.ID, addr: w.sandbox.addr.String(), exec: w.agent.Containers, changed: w.nudge,
			unhealthy: func(kind, message string) {
				w.agent.record.podEvent(pod, fieldPath(pod, c.Name), corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", kind, message)
			},
		}
		p.resume(statusOf(pod, c.Name))
		p.run(ctx, o.current.State.StartedAt)
		w.probers[c.Name] = p
		o.started, o.ready, o.failing = p.verdict()
		v[c.Name] = o
	}
}

// backOffs says why containers that exited are not running again yet.
func (w *worker) backOffs(pod *corev1.Pod, v view) {
	for name, o := range v {
		if o.exited() && !o.stale && o.backOff > 0 && willRestart(pod, name, o.current.State.ExitCode) {
			if w.waiting[name].reason != "CrashLoopBackOff" {
				w.agent.record.podEvent(pod, fieldPath(pod, name), corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)",
					name, pod.Name, pod.Namespace, pod.UID)
			}
			w.waiting[name] = waiting{"CrashLoopBackOff", fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
				o.backOff, name, pod.Name, pod.Namespace, pod.UID)}
		} else if w.waiting[name].reason == "CrashLoopBackOff" {
			delete(w.waiting, name)
		}
	}
}
