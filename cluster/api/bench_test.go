package api

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"slipway.dev/slipway/cluster/store"
)

const workers = 16

// spread runs op b.N times from 16 workers, each with a connection of its own, and reports
// operations per second.
func spread(b *testing.B, i *instance, op func(ctx context.Context, cs *kubernetes.Clientset, n int) error) {
	b.Helper()
	var clients []*kubernetes.Clientset
	for w := range workers {
		c := rest.CopyConfig(i.config)
		c.UserAgent = fmt.Sprint("bench-", w) // keeps client-go from sharing a connection
		c.Dial = i.dial                       // likewise
		cs, err := kubernetes.NewForConfig(c)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := cs.CoreV1().Namespaces().Get(b.Context(), "default", metav1.GetOptions{}); err != nil {
			b.Fatal(err)
		}
		clients = append(clients, cs)
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for _, cs := range clients {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= b.N {
					return
				}
				if err := op(b.Context(), cs, n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

// benchKinds are what the operations are measured on: small objects, and the ones that matter.
var benchKinds = map[string]struct {
	create func(ctx context.Context, cs *kubernetes.Clientset, name string) error
	get    func(ctx context.Context, cs *kubernetes.Clientset, name string) error
	update func(ctx context.Context, cs *kubernetes.Clientset, name, value string) error
	list   func(ctx context.Context, cs *kubernetes.Clientset) (int, error)
	object func(name string) store.Object
}{
	"configmap": {
		create: func(ctx context.Context, cs *kubernetes.Clientset, name string) error {
			_, err := cs.CoreV1().ConfigMaps("default").Create(ctx, configMap(name, nil), metav1.CreateOptions{})
			return err
		},
		get: func(ctx context.Context, cs *kubernetes.Clientset, name string) error {
			_, err := cs.CoreV1().ConfigMaps("default").Get(ctx, name, metav1.GetOptions{})
			return err
		},
		update: func(ctx context.Context, cs *kubernetes.Clientset, name, value string) error {
			o := configMap(name, nil)
			o.Data["k"] = value
			_, err := cs.CoreV1().ConfigMaps("default").Update(ctx, o, metav1.UpdateOptions{})
			return err
		},
		list: func(ctx context.Context, cs *kubernetes.Clientset) (int, error) {
			l, err := cs.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
		object: func(name string) store.Object { return configMap(name, nil) },
	},
	"pod": {
		create: func(ctx context.Context, cs *kubernetes.Clientset, name string) error {
			_, err := cs.CoreV1().Pods("default").Create(ctx, podOf(name), metav1.CreateOptions{})
			return err
		},
		get: func(ctx context.Context, cs *kubernetes.Clientset, name string) error {
			_, err := cs.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
			return err
		},
		update: func(ctx context.Context, cs *kubernetes.Clientset, name, value string) error {
			p := []byte(fmt.Sprintf(`{"metadata":{"labels":{"n":%q}}}`, value))
			_, err := cs.CoreV1().Pods("default").Patch(ctx, name, types.MergePatchType, p, metav1.PatchOptions{})
			return err
		},
		list: func(ctx context.Context, cs *kubernetes.Clientset) (int, error) {
			l, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
			return len(l.Items), err
		},
		object: func(name string) store.Object { return podOf(name) },
	},
}

// BenchmarkAPI is the API row of the budget: 16 clients over TLS, protobuf. The clients run in
// this process, so that their work is in the figures as well.
func BenchmarkAPI(b *testing.B) {
	for _, kind := range []string{"configmap", "pod"} {
		k := benchKinds[kind]
		fill := func(b *testing.B, n int) *instance {
			i := start(b)
			makeDefaultAccount(b, i)
			for m := range n {
				if _, err := i.Client().Create(b.Context(), k.object(fmt.Sprint("p", m))); err != nil {
					b.Fatal(err)
				}
			}
			return i
		}
		b.Run("create/"+kind, func(b *testing.B) {
			spread(b, fill(b, 0), func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
				return k.create(ctx, cs, fmt.Sprint("p", n))
			})
		})
		b.Run("get/"+kind, func(b *testing.B) {
			spread(b, fill(b, 1000), func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
				return k.get(ctx, cs, fmt.Sprint("p", n%1000))
			})
		})
		b.Run("update/"+kind, func(b *testing.B) {
			i := start(b)
			makeDefaultAccount(b, i)
			cs := kubernetes.NewForConfigOrDie(i.config)
			for m := range 1000 { // through the API, so that managed fields are there and kept
				if err := k.create(b.Context(), cs, fmt.Sprint("p", m)); err != nil {
					b.Fatal(err)
				}
			}
			spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
				return k.update(ctx, cs, fmt.Sprint("p", n%1000), fmt.Sprint(n))
			})
		})
		b.Run("list1000/"+kind, func(b *testing.B) {
			spread(b, fill(b, 1000), func(ctx context.Context, cs *kubernetes.Clientset, _ int) error {
				n, err := k.list(ctx, cs)
				if err == nil && n < 1000 {
					err = fmt.Errorf("the list has %d items", n)
				}
				return err
			})
		})
	}
}

// BenchmarkListChanging lists 1,000 pods of which one has changed since the last list.
func BenchmarkListChanging(b *testing.B) {
	i := start(b)
	makeDefaultAccount(b, i)
	for m := range 1000 {
		if _, err := i.Client().Create(b.Context(), podOf(fmt.Sprint("p", m))); err != nil {
			b.Fatal(err)
		}
	}
	spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
		pod, _ := store.Get[*corev1.Pod](i.store, podResource, "default", fmt.Sprint("p", n%1000))
		next := store.Copy(pod)
		next.Status.Message = fmt.Sprint(n)
		if _, err := i.Client().UpdateStatus(ctx, next); err != nil && !apierrors.IsConflict(err) {
			return err
		}
		_, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		return err
	})
}
