package scheduler_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/scheduler"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const benchNodes = 5000

func benchStore(b *testing.B, backend store.Backend) *store.Store {
	b.Helper()
	s, err := store.Open(context.Background(), store.Options{Kinds: kinds.All(), Backend: backend})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	for i := range benchNodes {
		n := controllertest.Node(fmt.Sprintf("node-%05d", i), "32", "128Gi", 110)
		n.Labels[corev1.LabelTopologyZone] = fmt.Sprint("zone-", i%3)
		if _, err := s.Create(b.Context(), kinds.Nodes, n); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// benchPods creates pods in parallel; deployments is how many controllers they belong to, 0 for none.
func benchPods(b *testing.B, s *store.Store, n, deployments int) {
	b.Helper()
	var wg sync.WaitGroup
	const writers = 64
	for w := range writers {
		wg.Go(func() {
			for i := w; i < n; i += writers {
				p := pod(fmt.Sprintf("pod-%07d", i), "100m", "128Mi")
				p.UID = types.UID(p.Name)
				if deployments > 0 {
					yes := true
					d := fmt.Sprint("web-", i%deployments)
					p.Labels = map[string]string{"app": d}
					p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: d, UID: types.UID(d), Controller: &yes}}
				}
				if _, err := s.Create(b.Context(), kinds.Pods, p); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// unwritten takes bindings for granted: what is left is deciding.
type unwritten struct {
	store.Writer
	mu    sync.Mutex
	left  int
	ended chan struct{}
}

func (u *unwritten) As(string) store.Writer { return u }

func (u *unwritten) Bind(context.Context, *corev1.Binding) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.left--; u.left == 0 {
		close(u.ended)
	}
	return nil
}

func benchmarkDecisions(b *testing.B, pods, deployments int) {
	s := benchStore(b, store.Memory())
	benchPods(b, s, pods, deployments)
	for b.Loop() {
		u := &unwritten{left: pods, ended: make(chan struct{})}
		run(b, s, u, u.ended)
	}
	b.ReportMetric(float64(pods)*float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
}

// run starts a scheduler (its start counts) and waits until all is done.
func run(b *testing.B, s *store.Store, w store.Writer, ended <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	sched := scheduler.New(scheduler.Options{Reader: s, Writer: w})
	done := make(chan error)
	go func() { done <- sched.Run(ctx) }()
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		b.Fatal("pods are left")
	}
	cancel()
	<-done
}

// BenchmarkDecisions counts decisions at 5,000 nodes, over the memory back end, beginning
// with an empty scheduler: reading 5,000 nodes and all pods is part of it.
func BenchmarkDecisions(b *testing.B) {
	b.Run("bare", func(b *testing.B) { benchmarkDecisions(b, 50_000, 0) })
	b.Run("deployments=1000", func(b *testing.B) { benchmarkDecisions(b, 50_000, 1000) })
}

func benchmarkBound(b *testing.B, backend func() store.Backend, pods, deployments int) {
	for b.Loop() {
		b.StopTimer()
		s := benchStore(b, backend())
		benchPods(b, s, pods, deployments)
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			bound := 0
			_ = store.Follow(ctx, s, kinds.Pods, func(e store.Event) {
				if e.Type == store.Modified && e.Object.(*corev1.Pod).Spec.NodeName != "" {
					if bound++; bound == pods {
						close(ended)
					}
				}
			})
		}()
		b.StartTimer()
		run(b, s, store.Direct(s), ended)
		cancel()
	}
	b.ReportMetric(float64(pods)*float64(b.N)/b.Elapsed().Seconds(), "bound/s")
}

// BenchmarkBound counts pods that are bound in the store.
func BenchmarkBound(b *testing.B) {
	memory := func() store.Backend { return store.Memory() }
	b.Run("memory/bare", func(b *testing.B) { benchmarkBound(b, memory, 50_000, 0) })
	b.Run("memory/deployments=1000", func(b *testing.B) { benchmarkBound(b, memory, 50_000, 1000) })
	b.Run("etcd/bare", func(b *testing.B) {
		benchmarkBound(b, func() store.Backend { return store.Etcd(store.EtcdOptions{Dir: b.TempDir()}) }, 20_000, 0)
	})
}
