package controller_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/store/kinds"
)

// journal notes what a loop does, with the seconds since the test began.
type journal struct {
	mu    sync.Mutex
	start time.Time
	lines []string
}

func (j *journal) add(format string, args ...any) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf("%.3f ", time.Since(j.start).Seconds())+fmt.Sprintf(format, args...))
	return len(j.lines)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return fmt.Sprint(j.lines)
}

func loop(c *controllertest.Cluster, sync func(context.Context, string) (time.Duration, error)) *controller.Loop {
	return &controller.Loop{
		ControllerName: "test", Reader: c.Store, Log: slog.New(slog.DiscardHandler), Workers: 2, Sync: sync,
		Watches: []controller.Watch{{Resource: kinds.ConfigMaps, Keys: controller.Self}},
	}
}

func object(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
}

func TestFailuresAreRepeatedWithBackoff(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		j := &journal{start: time.Now()}
		c.Start(loop(c, func(_ context.Context, key string) (time.Duration, error) {
			switch j.add("%s", key) {
			case 1:
				return 0, errors.New("not yet")
			case 2:
				panic("this neither")
			case 3:
				return 0, errors.New("still not")
			case 4:
				return time.Minute, nil // look again
			}
			return 0, nil
		}))
		controllertest.Create(c, object("x"))
		c.Sleep(10 * time.Minute)
		if got, want := j.String(), "[0.000 a/x 0.005 a/x 0.015 a/x 0.035 a/x 60.035 a/x]"; got != want {
			t.Errorf("the key was worked off at %s; want %s", got, want)
		}
	})
}

func TestAKeyIsWorkedOffByOneAtATime(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		j := &journal{start: time.Now()}
		c.Start(loop(c, func(_ context.Context, key string) (time.Duration, error) {
			j.add("%s begins", key)
			time.Sleep(time.Second)
			j.add("%s ends", key)
			return 0, nil
		}))
		o := controllertest.Create(c, object("x"))
		c.Settle()
		for i := range 5 { // all of these while it is worked off: once more is enough
			controllertest.Edit(c, o, func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"n": fmt.Sprint(i)} })
		}
		c.Sleep(10 * time.Second)
		if got, want := j.String(), "[0.000 a/x begins 1.000 a/x ends 1.000 a/x begins 2.000 a/x ends]"; got != want {
			t.Errorf("work: %s; want %s", got, want)
		}
	})
}

func TestParallelGrowsAndStopsAtTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var batches []int
		begun := 0
		run := func(n int, bad int) (int, error) {
			batches, begun = nil, 0
			last := time.Time{}
			return controller.Parallel(t.Context(), n, func(_ context.Context, i int) error {
				mu.Lock()
				if now := time.Now(); now != last {
					batches, last = append(batches, 0), now
				}
				batches[len(batches)-1]++
				begun++
				mu.Unlock()
				time.Sleep(time.Second)
				if i == bad {
					return errors.New("quota")
				}
				return nil
			})
		}
		if done, err := run(40, -1); done != 40 || err != nil || !slices.Equal(batches, []int{1, 2, 4, 8, 16, 9}) {
			t.Errorf("40 calls: %d done, %v, in batches %v; want growing batches up to 16", done, err, batches)
		}
		if done, err := run(40, 1); done != 2 || err == nil || begun != 3 {
			t.Errorf("with the second failing: %d done of %d begun, %v; want to stop after that batch", done, begun, err)
		}
	})
}

func TestDeletionOrder(t *testing.T) {
	now := time.Now()
	pod := func(name string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}, Spec: corev1.PodSpec{NodeName: "a"}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		controllertest.SetReady(p, true)
		for _, f := range change {
			f(p)
		}
		return p
	}
	pods := []*corev1.Pod{
		pod("7-old"),
		pod("6-young", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now) }),
		pod("5-doubled", func(p *corev1.Pod) { p.Spec.NodeName = "b" }),
		pod("4-cheap", func(p *corev1.Pod) {
			p.Annotations = map[string]string{corev1.PodDeletionCost: "-5"}
		}),
		pod("3-unready", func(p *corev1.Pod) { controllertest.SetReady(p, false) }),
		pod("2-pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }),
		pod("1-unassigned", func(p *corev1.Pod) { p.Spec.NodeName = "" }),
	}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int {
		return controller.DeletionOrder(a, b, map[string]int{"a": 1, "b": 2})
	})
	var got []string
	for _, p := range pods {
		got = append(got, p.Name)
	}
	if !slices.IsSorted(got) {
		t.Errorf("pods are deleted in the order %v; want the order of their numbers", got)
	}
}
