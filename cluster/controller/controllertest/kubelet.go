package controllertest

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// Kubelet plays the agents of all nodes: pods that are bound run and become ready, pods
// that are deleted go away. It decides nothing else.
type Kubelet struct {
	Reader store.Reader
	Writer store.Writer
	// Bind is the node that pods without one are bound to; "" leaves that to a scheduler.
	Bind string
	// ReadyAfter and StopAfter are how long a pod takes to become ready and to end.
	ReadyAfter, StopAfter time.Duration
	// NeverReady names pods that run without becoming ready; nil names none.
	NeverReady func(*corev1.Pod) bool
	// Exit is the exit code of a pod that ends by itself, and after what time; nil: none does.
	Exit func(*corev1.Pod) (code int32, after time.Duration, ends bool)

	tasks sync.WaitGroup
	seen  map[string]bool // pods that have been started or stopped, by UID and phase
}

// Run plays until ctx ends.
func (k *Kubelet) Run(ctx context.Context) error {
	k.seen = map[string]bool{}
	err := store.Follow(ctx, k.Reader, kinds.Pods, func(e store.Event) {
		if e.Type == store.Deleted {
			return
		}
		k.look(ctx, e.Object.(*corev1.Pod))
	})
	k.tasks.Wait()
	return err
}

func (k *Kubelet) once(pod *corev1.Pod, what string) bool {
	key := string(pod.UID) + what
	if k.seen[key] {
		return false
	}
	k.seen[key] = true
	return true
}

func (k *Kubelet) look(ctx context.Context, pod *corev1.Pod) {
	switch {
	case pod.DeletionTimestamp != nil && pod.Spec.NodeName != "":
		if k.once(pod, "stop") {
			k.after(ctx, k.StopAfter, func() { k.stop(ctx, pod) })
		}
	case pod.Spec.NodeName == "" && k.Bind != "":
		if k.once(pod, "bind") {
			k.after(ctx, 0, func() {
				_ = k.Writer.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: k.Bind}})
			})
		}
	case pod.Spec.NodeName != "" && pod.Status.Phase == corev1.PodPending:
		if k.once(pod, "start") {
			k.after(ctx, k.ReadyAfter, func() { k.start(ctx, pod) })
		}
	}
}

func (k *Kubelet) after(ctx context.Context, d time.Duration, fn func()) {
	k.tasks.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(d):
			fn()
		}
	})
}

func (k *Kubelet) start(ctx context.Context, pod *corev1.Pod) {
	ready := k.NeverReady == nil || !k.NeverReady(pod)
	k.report(ctx, pod, func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Status.HostIP, p.Status.PodIP = "192.0.2.1", "10.0.0.1"
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		now := metav1.Now().Rfc3339Copy()
		p.Status.StartTime = &now
		SetReady(p, ready)
	})
	if k.Exit == nil {
		return
	}
	if code, after, ends := k.Exit(pod); ends {
		k.after(ctx, after, func() { k.exit(ctx, pod, code) })
	}
}

// SetReady sets a pod's Ready condition.
func SetReady(p *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	var kept []corev1.PodCondition
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodReady {
			kept = append(kept, c)
		}
	}
	p.Status.Conditions = append(kept, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now().Rfc3339Copy()})
}

func (k *Kubelet) exit(ctx context.Context, pod *corev1.Pod, code int32) {
	k.report(ctx, pod, func(p *corev1.Pod) {
		SetReady(p, false)
		p.Status.Phase = corev1.PodSucceeded
		if code != 0 {
			p.Status.Phase = corev1.PodFailed
		}
		now := metav1.Now().Rfc3339Copy()
		p.Status.ContainerStatuses = nil
		for _, c := range p.Spec.Containers {
			p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
				Name: c.Name, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, FinishedAt: now}},
			})
		}
	})
}

func (k *Kubelet) stop(ctx context.Context, pod *corev1.Pod) {
	zero := int64(0)
	if controller.Active(pod) || pod.Status.Phase == corev1.PodRunning {
		k.report(ctx, pod, func(p *corev1.Pod) { SetReady(p, false) })
	}
	_ = k.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
}

func (k *Kubelet) report(ctx context.Context, pod *corev1.Pod, change func(*corev1.Pod)) {
	for {
		cur, ok := store.Get[*corev1.Pod](k.Reader, kinds.Pods, pod.Namespace, pod.Name)
		if !ok || cur.UID != pod.UID {
			return
		}
		next := store.Copy(cur)
		change(next)
		if _, err := k.Writer.UpdateStatus(ctx, next); !apierrors.IsConflict(err) {
			return
		}
	}
}

// StartKubelet runs k against the cluster.
func (c *Cluster) StartKubelet(k *Kubelet) {
	k.Reader, k.Writer = c.Store, c.Writer
	c.Start(k)
}
