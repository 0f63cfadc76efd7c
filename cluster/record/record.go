// Package record writes core/v1 Events: what kubectl describe shows under an object.
//
// Recording never makes its caller wait and never fails it: events are queued, bounded,
// and written by one goroutine. An event that repeats becomes one object with a count.
package record

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
)

const (
	maxQueued = 4096
	maxKnown  = 4096 // events that may still be counted up
)

// Sink writes the events of all recorders of a process. Run it; recorders may be used before.
type Sink struct {
	log    *slog.Logger
	queue  chan job
	known  map[string]*corev1.Event // by what makes two events the same; used by Run alone
	warned sync.Once
	last   atomic.Int64 // the newest time that an event was named by
}

type job struct {
	writer store.Writer
	event  *corev1.Event
}

// NewSink makes a sink; log hears of events that had to be dropped.
func NewSink(log *slog.Logger) *Sink {
	return &Sink{log: log, queue: make(chan job, maxQueued), known: map[string]*corev1.Event{}}
}

// Run writes events until ctx ends.
func (s *Sink) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case j := <-s.queue:
			if err := s.write(ctx, j); err != nil && ctx.Err() == nil {
				s.log.Debug("an event was not written", "event", j.event.Reason, "object", j.event.InvolvedObject.Name, "error", err)
			}
		}
	}
}

// Recorder records in the name of one component.
type Recorder struct {
	sink   *Sink
	writer store.Writer
	source corev1.EventSource
}

// For is a recorder that writes through w as a component; host is "" unless it is a node's.
func (s *Sink) For(w store.Writer, component, host string) *Recorder {
	return &Recorder{sink: s, writer: w, source: corev1.EventSource{Component: component, Host: host}}
}

// Normal records something expected. A nil Recorder records nothing.
func (r *Recorder) Normal(o store.Object, reason, format string, args ...any) {
	r.Record(reference(o), corev1.EventTypeNormal, reason, fmt.Sprintf(format, args...))
}

// Warning records something the user may have to act on.
func (r *Recorder) Warning(o store.Object, reason, format string, args ...any) {
	r.Record(reference(o), corev1.EventTypeWarning, reason, fmt.Sprintf(format, args...))
}

// Record records an event about a part of an object (ref.FieldPath: "spec.containers{web}").
func (r *Recorder) Record(ref corev1.ObjectReference, eventType, reason, message string) {
	if r == nil {
		return
	}
	now := metav1.Now().Rfc3339Copy()
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	e := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace,
			Name:      fmt.Sprintf("%s.%x", ref.Name, r.sink.moment()),
		},
		InvolvedObject: ref, Type: eventType, Reason: reason, Message: message, Source: r.source,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: r.source.Component, ReportingInstance: r.source.Host,
	}
	select {
	case r.sink.queue <- job{r.writer, e}:
	default:
		r.sink.warned.Do(func() { r.sink.log.Warn("events are dropped: they come faster than they can be written") })
	}
}

// moment is the time in nanoseconds, or the next one that has not been given out.
func (s *Sink) moment() int64 {
	for {
		last := s.last.Load()
		next := max(last+1, time.Now().UnixNano())
		if s.last.CompareAndSwap(last, next) {
			return next
		}
	}
}

// Reference is an object as events name it.
func Reference(o store.Object) corev1.ObjectReference { return reference(o) }

func reference(o store.Object) corev1.ObjectReference {
	gvk := o.GetObjectKind().GroupVersionKind()
	return corev1.ObjectReference{
		APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind,
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
	}
}

func (s *Sink) write(ctx context.Context, j job) error {
	e := j.event
	key := fmt.Sprint(e.InvolvedObject.UID, "|", e.InvolvedObject.Name, "|", e.InvolvedObject.FieldPath, "|", e.Source, "|", e.Type, "|", e.Reason, "|", e.Message)
	if last, ok := s.known[key]; ok {
		again := last.DeepCopy()
		again.Count++
		again.LastTimestamp = e.LastTimestamp
		again.ResourceVersion = ""
		done, err := j.writer.Update(ctx, again)
		if err == nil {
			s.known[key] = done.(*corev1.Event)
			return nil
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	done, err := j.writer.Create(ctx, e)
	if err != nil {
		return err
	}
	if len(s.known) >= maxKnown {
		clear(s.known) // repeats begin a new count: cheap, and rare
	}
	s.known[key] = done.(*corev1.Event)
	return nil
}
