package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
)

// recorder writes core/v1 Events. Repeats of an event raise its count instead of making a new one.
// Events are news, not state: when the queue is full they are dropped.
type recorder struct {
	write  store.Writer
	source corev1.EventSource
	log    *slog.Logger
	queue  chan *corev1.Event

	mu   sync.Mutex
	seen map[string]*corev1.Event // guarded by mu; by what makes events equal
}

const (
	eventQueue = 256
	eventsKept = 1024 // remembered for counting repeats
)

func newRecorder(w store.Writer, node string, log *slog.Logger) *recorder {
	return &recorder{
		write: w, log: log, source: corev1.EventSource{Component: "kubelet", Host: node},
		queue: make(chan *corev1.Event, eventQueue), seen: map[string]*corev1.Event{},
	}
}

// podEvent reports about a pod, or about one of its containers when container is not empty.
func (r *recorder) podEvent(pod *corev1.Pod, containerPath, kind, reason, format string, args ...any) {
	r.record(corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: containerPath,
	}, kind, reason, fmt.Sprintf(format, args...))
}

func (r *recorder) record(about corev1.ObjectReference, kind, reason, message string) {
	now := metav1.NewTime(time.Now())
	if len(message) > 1024 {
		message = message[:1024] // what validation allows
	}
	key := string(about.UID) + "\x00" + about.FieldPath + "\x00" + kind + reason + message
	namespace := about.Namespace
	if namespace == "" {
		namespace = metaDefault
	}
	r.mu.Lock()
	e, repeat := r.seen[key]
	if repeat {
		e = e.DeepCopy()
		e.Count++
		e.LastTimestamp = now
	} else {
		e = &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", about.Name, now.UnixNano())},
			InvolvedObject: about, Reason: reason, Message: message, Type: kind, Source: r.source,
			FirstTimestamp: now, LastTimestamp: now, Count: 1,
			ReportingController: r.source.Component, ReportingInstance: r.source.Host,
		}
	}
	if len(r.seen) >= eventsKept {
		clear(r.seen)
	}
	r.seen[key] = e
	r.mu.Unlock()
	select {
	case r.queue <- e:
	default:
		r.log.Warn("event dropped: too many at once", "reason", reason, "object", about.Name)
	}
}

// run writes events until ctx ends.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			if err := r.save(ctx, e); err != nil && ctx.Err() == nil {
				// A namespace on its way out takes no events; that is no fault.
				if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
					r.log.Warn("event not recorded", "reason", e.Reason, "error", err)
				}
			}
		}
	}
}

func (r *recorder) save(ctx context.Context, e *corev1.Event) error {
	if e.Count > 1 {
		if _, err := r.write.Update(ctx, e); !apierrors.IsNotFound(err) {
			return err
		}
		e = e.DeepCopy() // the first one has expired
	}
	_, err := r.write.Create(ctx, e)
	return err
}
