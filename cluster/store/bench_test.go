package store_test

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func benchPod(n int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprintf("ns%d", n%50), Name: fmt.Sprintf("pod-%07d", n), UID: "0b0b4e6c-5d6f-4a7c-9a36-52a1d3b1c0de",
			Labels: map[string]string{"app": "web", "pod-template-hash": "5d4f8c7b9"}},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%04d", n%5000),
			Containers: []corev1.Container{{Name: "web", Image: "registry.example/web:1.2.3",
				Env:       []corev1.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Value: "d"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("64Mi")}}}},
			Tolerations: []corev1.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

func benchStore(b *testing.B, backend store.Backend) *store.Store {
	b.Helper()
	s, err := store.Open(b.Context(), store.Options{Kinds: kinds.All(), Backend: backend})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

// benchDir is on a disk where TMPDIR is: fsync is what etcd's figures are about.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp("", "slipway-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func benchmarkCreate(b *testing.B, backend store.Backend, writers int) {
	s := benchStore(b, backend)
	var n atomic.Int64
	b.SetParallelism(writers) // times GOMAXPROCS
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Create(b.Context(), kinds.Pods, benchPod(int(n.Add(1)))); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
}

func BenchmarkCreateMemory(b *testing.B) { benchmarkCreate(b, store.Memory(), 1) }

func BenchmarkCreateEtcd(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run(fmt.Sprintf("writers=%dxP", writers), func(b *testing.B) {
			benchmarkCreate(b, store.Etcd(store.EtcdOptions{Dir: benchDir(b)}), writers)
		})
	}
}

func BenchmarkLoneWriteEtcd(b *testing.B) {
	s := benchStore(b, store.Etcd(store.EtcdOptions{Dir: benchDir(b)}))
	for i := 0; b.Loop(); i++ {
		if _, err := s.Create(b.Context(), kinds.Pods, benchPod(i)); err != nil {
			b.Fatal(err)
		}
	}
}

func fill(b *testing.B, s *store.Store, n int) {
	b.Helper()
	for i := range n {
		if _, err := s.Create(b.Context(), kinds.Pods, benchPod(i)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s := benchStore(b, store.Memory())
	fill(b, s, 10_000)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, ok := s.Snapshot(kinds.Pods).Get("ns7", "pod-0000057"); !ok {
				b.Error("not found")
				return
			}
		}
	})
}

func BenchmarkListNamespace(b *testing.B) {
	s := benchStore(b, store.Memory())
	fill(b, s, 10_000)
	for b.Loop() {
		n := 0
		for range s.Snapshot(kinds.Pods).All("ns7") {
			n++
		}
		if n != 200 {
			b.Fatalf("%d pods; want 200", n)
		}
	}
}

// BenchmarkRestart opens a database of 100,000 pods.
func BenchmarkRestart100k(b *testing.B) {
	dir := benchDir(b)
	backend := store.Etcd(store.EtcdOptions{Dir: dir, Unsynced: true})
	s, err := store.Open(b.Context(), store.Options{Kinds: kinds.All(), Backend: backend, HistoryBytes: 1})
	if err != nil {
		b.Fatal(err)
	}
	const objects, writers = 100_000, 64
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := w; i < objects; i += writers {
				if _, err := s.Create(b.Context(), kinds.Pods, benchPod(i)); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		start := time.Now()
		s, err := store.Open(b.Context(), store.Options{Kinds: kinds.All(), Backend: backend})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/open")
		if s.Snapshot(kinds.Pods).Len() != objects {
			b.Fatal("objects are missing")
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
