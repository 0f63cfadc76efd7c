package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	// DefaultName is the schedulerName that this scheduler answers to.
	DefaultName = "default-scheduler"
	user        = "system:kube-scheduler"
)

// Options wire a Scheduler. Reader and Writer are required.
type Options struct {
	Reader store.Reader
	Writer store.Writer
	Events *record.Sink // nil records nothing
	Log    *slog.Logger
	// Binders is how many bindings are on their way at once; 0 means 64: enough for the
	// store to commit them in groups.
	Binders int
}

// Scheduler binds pods that name no node.
type Scheduler struct {
	o      Options
	log    *slog.Logger
	events *record.Recorder
	writer store.Writer

	d     *decider
	queue *queue
	inbox chan any // store.Event or outcome
	jobs  chan job
	tasks sync.WaitGroup
}

// job is a binding to be written, or a failure to be told.
type job struct {
	info    *podInfo    // the loop's: workers only hand it back
	pod     *corev1.Pod // as it was when it was decided
	node    string
	message string
}

// outcome is how a job ended.
type outcome struct {
	job
	err error
}

// New makes a scheduler.
func New(o Options) *Scheduler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Binders == 0 {
		o.Binders = 64
	}
	s := &Scheduler{o: o, log: o.Log.With("controller", "scheduler"), writer: o.Writer.As(user), d: newDecider(o.Reader), queue: newQueue(),
		inbox: make(chan any, 4096), jobs: make(chan job, 4096)}
	if o.Events != nil {
		s.events = o.Events.For(s.writer, DefaultName, "")
	}
	return s
}

// Name is the scheduler's name among the controllers.
func (s *Scheduler) Name() string { return "scheduler" }

// Run schedules until ctx ends. It runs once.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, gr := range watched {
		s.tasks.Go(func() {
			cancel(fmt.Errorf("scheduler: watch %s: %w", gr, store.Follow(ctx, s.o.Reader, gr, func(e store.Event) { s.tell(ctx, e) })))
		})
	}
	for range s.o.Binders {
		s.tasks.Go(func() { s.work(ctx) })
	}
	s.loop(ctx)
	s.tasks.Wait()
	return context.Cause(ctx)
}

// watched is what can change a decision. Nodes come first: nothing is lost otherwise, but
// fewer pods have to wait for a second try at start.
var watched = []schema.GroupResource{kinds.Nodes, kinds.Pods, kinds.PersistentVolumeClaims, kinds.PersistentVolumes}

func (s *Scheduler) tell(ctx context.Context, m any) {
	select {
	case s.inbox <- m:
	case <-ctx.Done():
	}
}

// loop owns all state. It prefers news over decisions, so that it decides on what is.
func (s *Scheduler) loop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		s.hear()
		next := s.queue.due(time.Now())
		if w := s.queue.pop(); w != nil {
			s.decide(ctx, w)
			continue
		}
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		select {
		case m := <-s.inbox:
			s.apply(m)
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// hear applies what has arrived, without waiting.
func (s *Scheduler) hear() {
	for {
		select {
		case m := <-s.inbox:
			s.apply(m)
		default:
			return
		}
	}
}

func (s *Scheduler) decide(ctx context.Context, w *waiting) {
	node, err := s.d.decide(w.info)
	if err != nil {
		s.queue.park(w, time.Now())
		if w.told != err.Error() {
			w.told = err.Error()
			s.send(ctx, job{info: w.info, pod: w.info.pod, message: w.told})
		}
		return
	}
	s.queue.remove(w.info.pod.UID)
	s.send(ctx, job{info: w.info, pod: w.info.pod, node: node})
}

// send hands a job to the workers. While they are all busy, news is listened to: they may
// be waiting for somebody to hear theirs.
func (s *Scheduler) send(ctx context.Context, j job) {
	for {
		select {
		case s.jobs <- j:
			return
		case m := <-s.inbox:
			s.apply(m)
		case <-ctx.Done():
			return
		}
	}
}

func (s *Scheduler) apply(m any) {
	switch m := m.(type) {
	case outcome:
		s.settle(m)
	case store.Event:
		switch o := m.Object.(type) {
		case *corev1.Node:
			s.nodeEvent(m, o)
		case *corev1.Pod:
			s.podEvent(m, o)
		default: // claims and volumes
			s.queue.wake(time.Now())
		}
	}
}

func (s *Scheduler) nodeEvent(e store.Event, n *corev1.Node) {
	if e.Type == store.Deleted {
		s.d.removeNode(n.Name)
		return
	}
	if s.d.setNode(n) {
		s.queue.wake(time.Now())
	}
}

func (s *Scheduler) podEvent(e store.Event, pod *corev1.Pod) {
	placed := s.d.pods[pod.UID]
	ended := e.Type == store.Deleted || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case ended:
		s.queue.remove(pod.UID)
		if placed != nil {
			s.d.remove(placed)
			s.queue.wake(time.Now())
		}
	case pod.Spec.NodeName != "":
		s.queue.remove(pod.UID)
		s.bound(placed, pod)
	case placed != nil:
		placed.pod = pod // an event from before its binding
	case pod.DeletionTimestamp != nil || len(pod.Spec.SchedulingGates) > 0 || !mine(pod):
		s.queue.remove(pod.UID)
	default:
		s.waits(e, pod)
	}
}

func mine(pod *corev1.Pod) bool {
	return pod.Spec.SchedulerName == "" || pod.Spec.SchedulerName == DefaultName
}

// waits queues a pod. Its own status, which is how it hears of its failures, is no news.
func (s *Scheduler) waits(e store.Event, pod *corev1.Pod) {
	if w := s.queue.all[pod.UID]; w != nil && e.Type == store.Modified {
		if old := w.info.pod; old.Generation == pod.Generation && labels.Equals(old.Labels, pod.Labels) {
			w.info.pod = pod
			return
		}
	}
	s.queue.add(newPodInfo(pod), time.Now())
}

// bound notes where a pod is: usually where it was assumed to be.
func (s *Scheduler) bound(placed *podInfo, pod *corev1.Pod) {
	if placed != nil && placed.at.name == pod.Spec.NodeName {
		placed.assumed = false
		if s.d.update(placed, pod) {
			s.queue.wake(time.Now())
		}
		return
	}
	if placed != nil {
		s.d.remove(placed)
	}
	s.d.place(newPodInfo(pod), pod.Spec.NodeName)
	if len(pod.Spec.TopologySpreadConstraints) > 0 || pod.Spec.Affinity != nil {
		s.queue.wake(time.Now())
	}
}

// settle takes a placement back whose binding failed.
func (s *Scheduler) settle(o outcome) {
	p := o.info
	if s.d.pods[p.pod.UID] != p || !p.assumed {
		return // it has been seen bound, or has gone
	}
	s.d.remove(p)
	if !apierrors.IsNotFound(o.err) && p.pod.DeletionTimestamp == nil {
		s.queue.again(newPodInfo(p.pod), time.Now())
	}
}

func (s *Scheduler) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.jobs:
			if j.node == "" {
				s.report(ctx, j)
				continue
			}
			if err := s.bind(ctx, j); err != nil && ctx.Err() == nil {
				if !apierrors.IsNotFound(err) {
					s.log.Info("a binding failed and the pod is queued again", "pod", store.KeyOf(j.pod), "node", j.node, "error", err)
				}
				s.tell(ctx, outcome{j, err})
			}
		}
	}
}

func (s *Scheduler) bind(ctx context.Context, j job) error {
	pod := j.pod
	err := s.writer.Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: j.node},
	})
	if err == nil {
		s.events.Normal(pod, "Scheduled", "Successfully assigned %s/%s to %s", pod.Namespace, pod.Name, j.node)
	}
	return err
}

// report tells the user why a pod waits.
func (s *Scheduler) report(ctx context.Context, j job) {
	s.events.Warning(j.pod, "FailedScheduling", "%s", j.message)
	for try := 0; try < 5; try++ {
		pod, ok := store.Get[*corev1.Pod](s.o.Reader, kinds.Pods, j.pod.Namespace, j.pod.Name)
		if !ok || pod.UID != j.pod.UID || pod.Spec.NodeName != "" {
			return
		}
		next := store.Copy(pod)
		setUnschedulable(next, j.message)
		_, err := s.writer.UpdateStatus(ctx, next)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			s.log.Warn("a pod was not told why it waits", "pod", store.KeyOf(pod), "error", err)
		}
		return
	}
}

func setUnschedulable(pod *corev1.Pod, message string) {
	c := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message,
		LastTransitionTime: metav1.Now().Rfc3339Copy(),
	}
	for i := range pod.Status.Conditions {
		if old := &pod.Status.Conditions[i]; old.Type == corev1.PodScheduled {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}
