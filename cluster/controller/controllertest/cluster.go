// Package controllertest is a cluster without machines, for tests of controllers and of
// the scheduler: a store in memory, written directly, with the mutation detector on, and
// nodes whose pods run because they say so.
//
// It is meant to be used inside a testing/synctest bubble: time is virtual, and Settle
// returns when nobody has anything left to do.
package controllertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// Cluster is a store and whoever works on it.
type Cluster struct {
	T      testing.TB
	Store  *store.Store
	Writer store.Writer
	Deps   controller.Deps

	ctx   context.Context
	stop  context.CancelCauseFunc
	tasks sync.WaitGroup
}

var errEnd = errors.New("the test is over")

// Run runs a test against an empty cluster in a bubble, and checks at its end that nobody
// has changed a published object.
func Run(t *testing.T, test func(*Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := New(t)
		test(c)
		c.Close()
	})
}

// New makes an empty cluster; Close it.
func New(t testing.TB) *Cluster {
	s, err := store.Open(context.Background(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	c := &Cluster{T: t, Store: s, Writer: store.Direct(s), ctx: ctx, stop: stop}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	sink := record.NewSink(log)
	c.tasks.Go(func() { _ = sink.Run(ctx) })
	c.Deps = controller.Deps{Reader: s, Writer: c.Writer, Events: sink, Log: log}
	return c
}

// Close ends everything that Start has started.
func (c *Cluster) Close() {
	c.T.Helper()
	c.stop(errEnd)
	c.tasks.Wait()
	if err := c.Store.CheckFrozen(); err != nil {
		c.T.Error(err)
	}
	if err := c.Store.Close(); err != nil {
		c.T.Error(err)
	}
}

// Runner is anything that works until its context ends.
type Runner interface{ Run(context.Context) error }

// Start runs controllers until the cluster is closed.
func (c *Cluster) Start(runners ...Runner) {
	for _, r := range runners {
		c.tasks.Go(func() {
			if err := r.Run(c.ctx); !errors.Is(err, errEnd) {
				c.T.Errorf("%T ended with %v", r, err)
			}
		})
	}
}

// Settle waits until nothing happens any more without time passing.
func (c *Cluster) Settle() { synctest.Wait() }

// Sleep lets virtual time pass and settles.
func (c *Cluster) Sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Create writes an object or ends the test.
func Create[T store.Object](c *Cluster, o T) T {
	c.T.Helper()
	done, err := c.Writer.Create(c.ctx, o)
	if err != nil {
		c.T.Fatalf("create %T %q: %v", o, store.KeyOf(o), err)
	}
	return done.(T)
}

// Edit changes the newest version of an object (by the key of o), or ends the test.
func Edit[T store.Object](c *Cluster, o T, change func(T)) T {
	c.T.Helper()
	return c.write(o, func(cur store.Object) { change(cur.(T)) }, c.Writer.Update).(T)
}

// EditStatus is Edit for the status.
func EditStatus[T store.Object](c *Cluster, o T, change func(T)) T {
	c.T.Helper()
	return c.write(o, func(cur store.Object) { change(cur.(T)) }, c.Writer.UpdateStatus).(T)
}

func (c *Cluster) write(o store.Object, change func(store.Object), write func(context.Context, store.Object) (store.Object, error)) store.Object {
	c.T.Helper()
	gr, _ := c.Store.ResourceOf(o)
	for {
		cur, ok := c.Store.Snapshot(gr).Get(o.GetNamespace(), o.GetName())
		if !ok {
			c.T.Fatalf("edit %s %q: it does not exist", gr, store.KeyOf(o))
		}
		next := store.Copy(cur)
		change(next)
		done, err := write(c.ctx, next)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			c.T.Fatalf("edit %s %q: %v", gr, store.KeyOf(o), err)
		}
		return done
	}
}

// Delete deletes an object as kubectl does, with a propagation policy ("" for the default).
func (c *Cluster) Delete(o store.Object, policy metav1.DeletionPropagation) {
	c.T.Helper()
	gr, _ := c.Store.ResourceOf(o)
	opts := metav1.DeleteOptions{}
	if policy != "" {
		opts.PropagationPolicy = &policy
	}
	if err := c.Writer.Delete(c.ctx, gr, o.GetNamespace(), o.GetName(), opts); err != nil {
		c.T.Fatalf("delete %s %q: %v", gr, store.KeyOf(o), err)
	}
}

// Get is the newest version of an object; the test ends if there is none.
func Get[T store.Object](c *Cluster, o T) T {
	c.T.Helper()
	gr, _ := c.Store.ResourceOf(o)
	cur, ok := store.Get[T](c.Store, gr, o.GetNamespace(), o.GetName())
	if !ok {
		c.T.Fatalf("%s %q does not exist", gr, store.KeyOf(o))
	}
	return cur
}

// Exists says whether an object of that kind and key is there.
func (c *Cluster) Exists(o store.Object) bool {
	gr, _ := c.Store.ResourceOf(o)
	_, ok := c.Store.Snapshot(gr).Get(o.GetNamespace(), o.GetName())
	return ok
}

// Pods are the pods of a namespace.
func (c *Cluster) Pods(ns string) []*corev1.Pod {
	return store.List[*corev1.Pod](c.Store, kinds.Pods, ns)
}

// Events are the events about objects of a name, as "Reason: message (xN)", oldest first.
func (c *Cluster) Events(involved string) string {
	var out []string
	for _, e := range store.List[*corev1.Event](c.Store, kinds.Events, "") {
		if e.InvolvedObject.Name != involved {
			continue
		}
		line := e.Reason + ": " + e.Message
		if e.Count > 1 {
			line += fmt.Sprintf(" (x%d)", e.Count)
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// Node makes a node with room for that much, ready and schedulable.
func Node(name, cpu, memory string, pods int) *corev1.Node {
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
		corev1.ResourcePods: *resource.NewQuantity(int64(pods), resource.DecimalSI),
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{
			Capacity: room, Allocatable: room,
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}},
		},
	}
}
