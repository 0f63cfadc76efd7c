package api

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
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

func benchPods(b *testing.B, n int) *instance {
	i := start(b)
	makeDefaultAccount(b, i)
	for k := range n {
		if _, err := i.Client().Create(b.Context(), podOf(fmt.Sprint("p", k))); err != nil {
			b.Fatal(err)
		}
	}
	return i
}

func BenchmarkCreate(b *testing.B) {
	i := benchPods(b, 0)
	spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
		_, err := cs.CoreV1().Pods("default").Create(ctx, podOf(fmt.Sprint("p", n)), metav1.CreateOptions{})
		return err
	})
}

func BenchmarkGet(b *testing.B) {
	i := benchPods(b, 1000)
	spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
		_, err := cs.CoreV1().Pods("default").Get(ctx, fmt.Sprint("p", n%1000), metav1.GetOptions{})
		return err
	})
}

func BenchmarkUpdate(b *testing.B) {
	i := benchPods(b, 0)
	cs := kubernetes.NewForConfigOrDie(i.config)
	pods := make([]*corev1.Pod, workers*4)
	for k := range pods {
		p, err := cs.CoreV1().Pods("default").Create(b.Context(), podOf(fmt.Sprint("p", k)), metav1.CreateOptions{})
		if err != nil {
			b.Fatal(err)
		}
		pods[k] = p
	}
	locks := make([]sync.Mutex, len(pods))
	spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
		k := n % len(pods)
		locks[k].Lock()
		defer locks[k].Unlock()
		next := pods[k].DeepCopy()
		next.Labels["n"] = fmt.Sprint(n)
		var err error
		pods[k], err = cs.CoreV1().Pods("default").Update(ctx, next, metav1.UpdateOptions{})
		return err
	})
}

// BenchmarkList lists 1,000 pods of which one has changed since the last list.
func BenchmarkList(b *testing.B) {
	for _, churn := range []bool{false, true} {
		b.Run(map[bool]string{false: "still", true: "changing"}[churn], func(b *testing.B) {
			i := benchPods(b, 1000)
			spread(b, i, func(ctx context.Context, cs *kubernetes.Clientset, n int) error {
				if churn {
					if _, err := i.Client().Create(ctx, podOf(fmt.Sprint("q", n))); err != nil {
						return err
					}
					zero := int64(0)
					if err := i.Client().Delete(ctx, podResource, "default", fmt.Sprint("q", n), metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
						return err
					}
				}
				list, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
				if err == nil && len(list.Items) < 1000 {
					err = fmt.Errorf("the list has %d pods", len(list.Items))
				}
				return err
			})
		})
	}
}
