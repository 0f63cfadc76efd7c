// Package podgc removes pods that nobody else will: those of nodes that are gone, and the
// oldest of those that have ended, when there are too many.
package podgc

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "pod-garbage-collector"
	// quarantine is how long a pod waits for its node to appear, as upstream.
	quarantine = 40 * time.Second
	// maxEnded is how many ended pods are kept, as upstream.
	maxEnded = 12500
	// endedKey is the key under which ended pods are thinned out; no pod has it.
	endedKey = "|ended"
)

// Controller collects pods.
type Controller struct {
	*controller.Loop
	deps controller.Deps
	keep int

	mu    sync.Mutex
	ended map[types.UID]bool
	lost  map[types.UID]time.Time // since when a pod's node has been missing
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	c := &Controller{deps: d.For(name), keep: maxEnded, ended: map[types.UID]bool{}, lost: map[types.UID]time.Time{}}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Pods, Keys: c.podKeys},
			{Resource: kinds.Nodes, Keys: c.nodeKeys},
		},
	}
	return c
}

func terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (c *Controller) podKeys(e store.Event) []string {
	pod := e.Object.(*corev1.Pod)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.Type == store.Deleted {
		delete(c.ended, pod.UID)
		delete(c.lost, pod.UID)
		return nil
	}
	var keys []string
	if terminal(pod) {
		if c.ended[pod.UID] = true; len(c.ended) > c.keep {
			keys = append(keys, endedKey)
		}
	}
	if prev, ok := e.Prev.(*corev1.Pod); pod.Spec.NodeName != "" && (!ok || prev.Spec.NodeName != pod.Spec.NodeName) {
		keys = append(keys, store.KeyOf(pod))
	}
	return keys
}

// nodeKeys are the pods of a node that has gone.
func (c *Controller) nodeKeys(e store.Event) []string {
	if e.Type != store.Deleted {
		return nil
	}
	var keys []string
	for _, o := range c.deps.Reader.Snapshot(kinds.Pods).Index(kinds.ByNode, e.Object.GetName()) {
		keys = append(keys, store.KeyOf(o))
	}
	return keys
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	if key == endedKey {
		return 0, c.thin(ctx)
	}
	ns, n := controller.SplitKey(key)
	pod, ok := store.Get[*corev1.Pod](c.deps.Reader, kinds.Pods, ns, n)
	if !ok || pod.Spec.NodeName == "" {
		return 0, nil
	}
	if _, ok := c.deps.Reader.Snapshot(kinds.Nodes).Get("", pod.Spec.NodeName); ok {
		c.mu.Lock()
		delete(c.lost, pod.UID)
		c.mu.Unlock()
		return 0, nil
	}
	if wait := quarantine - time.Since(c.lostSince(pod)); wait > 0 {
		return wait, nil
	}
	return 0, c.remove(ctx, pod)
}

func (c *Controller) lostSince(pod *corev1.Pod) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.lost[pod.UID]
	if !ok {
		at = time.Now()
		c.lost[pod.UID] = at
	}
	return at
}

// remove deletes a pod whose node cannot confirm that it has ended.
func (c *Controller) remove(ctx context.Context, pod *corev1.Pod) error {
	if !terminal(pod) {
		next := store.Copy(pod)
		next.Status.Phase = corev1.PodFailed
		next.Status.Conditions = append(slices.DeleteFunc(next.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget }), corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC", Message: "PodGC: node no longer exists", LastTransitionTime: metav1.Now().Rfc3339Copy(),
		})
		if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("fail pod %q: %w", store.KeyOf(pod), err)
		}
	}
	return c.delete(ctx, pod)
}

func (c *Controller) delete(ctx context.Context, pod *corev1.Pod) error {
	err := c.deps.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %q: %w", store.KeyOf(pod), err)
	}
	return nil
}

// thin deletes the oldest ended pods beyond the bound.
func (c *Controller) thin(ctx context.Context) error {
	var pods []*corev1.Pod
	for _, p := range store.List[*corev1.Pod](c.deps.Reader, kinds.Pods, "") {
		if terminal(p) && p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	slices.SortFunc(pods, func(a, b *corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	doomed := pods[:max(0, len(pods)-c.keep)]
	_, err := controller.Parallel(ctx, len(doomed), func(ctx context.Context, i int) error { return c.delete(ctx, doomed[i]) })
	return err
}
