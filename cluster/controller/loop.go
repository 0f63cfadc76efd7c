package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
)

// Controller runs until its context ends.
type Controller interface {
	Name() string
	Run(ctx context.Context) error
}

// Deps are what every controller is given.
type Deps struct {
	Reader store.Reader
	Writer store.Writer
	Events *record.Sink
	Log    *slog.Logger
}

// For narrows the dependencies to one controller: it writes as its own service account.
func (d Deps) For(name string) Deps {
	d.Writer = d.Writer.As("system:serviceaccount:kube-system:" + name)
	d.Log = d.Log.With("controller", name)
	return d
}

// Recorder records events as a component.
func (d Deps) Recorder(component string) *record.Recorder {
	if d.Events == nil {
		return nil
	}
	return d.Events.For(d.Writer, component, "")
}

// Loop is the shared body of controllers: watches feed keys, workers call Sync.
type Loop struct {
	ControllerName string
	Reader         store.Reader
	Log            *slog.Logger
	Workers        int // 0 means 2
	Watches        []Watch

	// Sync brings the world closer to what the object of that key asks for. It looks at
	// the newest state, and is called again after every event that concerns the key,
	// after the returned time if that is not 0, and, with back-off, after an error.
	Sync func(ctx context.Context, key string) (again time.Duration, err error)

	queue *queue
}

// Watch says which keys the events of a resource concern.
type Watch struct {
	Resource schema.GroupResource
	Keys     func(store.Event) []string
}

// Name is the controller's name.
func (l *Loop) Name() string { return l.ControllerName }

// Run works until ctx ends, and returns its cause.
func (l *Loop) Run(ctx context.Context) error {
	l.queue = newQueue()
	var tasks sync.WaitGroup
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, w := range l.Watches {
		tasks.Go(func() { cancel(l.follow(ctx, w)) })
	}
	for range cmp.Or(l.Workers, 2) {
		tasks.Go(func() { l.work(ctx) })
	}
	<-ctx.Done()
	l.queue.close()
	tasks.Wait()
	return context.Cause(ctx)
}

func (l *Loop) follow(ctx context.Context, w Watch) error {
	err := store.Follow(ctx, l.Reader, w.Resource, func(e store.Event) {
		for _, key := range w.Keys(e) {
			l.queue.add(key)
		}
	})
	return fmt.Errorf("%s: watch %s: %w", l.ControllerName, w.Resource, err)
}

func (l *Loop) work(ctx context.Context) {
	for {
		key, ok := l.queue.take()
		if !ok {
			return
		}
		l.process(ctx, key)
		l.queue.done(key)
	}
}

func (l *Loop) process(ctx context.Context, key string) {
	again, err := l.guarded(ctx, key)
	switch {
	case err == nil:
		l.queue.forget(key)
		if again > 0 {
			l.queue.addAfter(key, again)
		}
	case ctx.Err() != nil:
	case expected(err):
		l.queue.retry(key)
	default:
		l.Log.Warn("a reconciliation failed and will be repeated", "key", key, "error", err)
		l.queue.retry(key)
	}
}

// guarded turns a panic into an error: one object that a controller cannot bear must not
// end the process that serves all the others.
func (l *Loop) guarded(ctx context.Context, key string) (again time.Duration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return l.Sync(ctx, key)
}

// expected says whether an error is part of working with others: somebody was quicker.
func expected(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err) || errors.Is(err, store.ErrClosed)
}

// Self is the key of the event's own object.
func Self(e store.Event) []string { return []string{store.KeyOf(e.Object)} }

// SplitKey is the reverse of store.Key.
func SplitKey(key string) (namespace, name string) {
	if i := strings.IndexByte(key, '/'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}
