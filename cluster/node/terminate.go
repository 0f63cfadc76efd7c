package node

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/container"
)

// stopState is a container on its way out.
type stopState struct {
	deadline time.Time
}

// stopContainer stops one container in the background: preStop hook, stop signal, and after grace
// SIGKILL. It does nothing when that is already under way, but to hurry when grace has become shorter.
func (w *worker) stopContainer(ctx context.Context, pod *corev1.Pod, info *container.Info, grace time.Duration, reason string) {
	addr := cmp.Or(w.address(), pod.Status.PodIP) // the sandbox is not looked for again only to end
	w.mu.Lock()
	defer w.mu.Unlock()
	deadline := time.Now().Add(grace)
	if s, busy := w.stopping[info.ID]; busy {
		if deadline.Before(s.deadline.Add(-time.Second)) {
			s.deadline = deadline
			id := info.ID
			w.agent.tasks.Go(func() { w.killAt(ctx, id, deadline) })
		}
		return
	}
	w.stopping[info.ID] = &stopState{deadline: deadline}
	name := info.Spec.Labels[labelContainer]
	w.agent.record.podEvent(pod, fieldPath(pod, name), corev1.EventTypeNormal, "Killing", "%s", reason)
	w.agent.tasks.Go(func() {
		if !w.stopNow(ctx, pod, name, info.ID, addr, deadline) {
			pause(ctx, retryFirst) // or the next step would be here again at once
		}
		w.mu.Lock()
		delete(w.stopping, info.ID)
		w.mu.Unlock()
		w.nudge()
	})
}

func (w *worker) killAt(ctx context.Context, id string, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		w.agent.Containers.Kill(ctx, id, "SIGKILL")
	}
}

// pause reports whether it was not cut short by ctx.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// leastGrace is what a container gets between its stop signal and SIGKILL even when a hook, or containers
// before it, used everything up: the kubelet's figure.
const leastGrace = 2 * time.Second

func (w *worker) stopNow(ctx context.Context, pod *corev1.Pod, name, id, addr string, deadline time.Time) (ok bool) {
	c := findContainer(pod, name)
	if c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && time.Until(deadline) > 0 {
		hookCtx, cancel := context.WithDeadline(ctx, deadline)
		if err := w.hook(hookCtx, c, c.Lifecycle.PreStop, id, addr); err != nil && hookCtx.Err() == nil {
			w.agent.record.podEvent(pod, fieldPath(pod, name), corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
		cancel()
	}
	seconds := int(max(time.Until(deadline).Round(time.Second), leastGrace) / time.Second)
	err := w.agent.Containers.Stop(ctx, id, container.StopOptions{Timeout: &seconds})
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsNotModified(err) && ctx.Err() == nil {
		w.agent.Log.Warn("stop container", "container", id, "error", err)
		return false
	}
	return true
}

// killGrace is how long a container that failed a probe has.
func (w *worker) killGrace(pod *corev1.Pod, name string) time.Duration {
	c := findContainer(pod, name)
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.StartupProbe} {
		if p != nil && p.TerminationGracePeriodSeconds != nil {
			return time.Duration(*p.TerminationGracePeriodSeconds) * time.Second
		}
	}
	return podGrace(pod)
}

func podGrace(pod *corev1.Pod) time.Duration {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return corev1.DefaultTerminationGracePeriodSeconds * time.Second
}

// terminate ends a pod that is being deleted: containers first, then the place they had, then the
// object itself. at is when to look again without an event.
func (w *worker) terminate(ctx context.Context, pod *corev1.Pod) (at time.Time) {
	w.stopProbers()
	v := w.observe(pod)
	grace := podGrace(pod)
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	// The clock started when the deletion was asked for, not when it was heard here.
	grace = min(grace, max(time.Until(pod.DeletionTimestamp.Time), 0))
	if w.stopAll(ctx, pod, v, grace) {
		w.report(ctx, pod, decision{})
		return time.Time{}
	}
	if !w.release(ctx, pod) {
		return w.delay()
	}
	w.report(ctx, pod, decision{over: true})
	if w.unreported {
		return w.delay() // how it ended has to be known before it is gone
	}
	zero := int64(0)
	err := w.agent.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
		w.agent.Log.Warn("delete the object of a pod that has ended", "pod", store.KeyOf(pod), "error", err)
		return w.delay()
	}
	return time.Time{}
}

// stopAll stops what runs: sidecars after the others, and one after the other, the last first. It reports
// whether something still runs.
func (w *worker) stopAll(ctx context.Context, pod *corev1.Pod, v view, grace time.Duration) (running bool) {
	stop := func(name string) {
		if o := v[name]; o.current != nil && o.current.State.Running {
			running = true
			w.stopContainer(ctx, pod, o.current, grace, fmt.Sprintf("Stopping container %s", name))
		}
	}
	for i := range pod.Spec.Containers {
		stop(pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		stop(pod.Spec.EphemeralContainers[i].Name)
	}
	if running {
		return true
	}
	for i := len(pod.Spec.InitContainers) - 1; i >= 0 && !running; i-- {
		stop(pod.Spec.InitContainers[i].Name)
	}
	return running
}

func (w *worker) stopProbers() {
	for name, p := range w.probers {
		p.stop()
		delete(w.probers, name)
	}
}

// release gives back the pod's address, namespaces and volumes; records and logs of its containers
// stay until the object is gone.
func (w *worker) release(ctx context.Context, pod *corev1.Pod) (ok bool) {
	if w.ended {
		return true
	}
	if err := w.agent.removeSandbox(ctx, w.uid); err != nil {
		w.agent.Log.Error("give back a pod's sandbox", "pod", store.KeyOf(pod), "error", err)
		return false
	}
	w.sandbox, w.paths, w.refresh, w.ended = nil, nil, time.Time{}, true
	return true
}

// finish keeps a pod that has run to completion: stopped, off the network, its records readable.
func (w *worker) finish(ctx context.Context, pod *corev1.Pod) (at time.Time) {
	w.stopProbers()
	if w.stopAll(ctx, pod, w.observe(pod), podGrace(pod)) {
		return time.Time{}
	}
	if !w.release(ctx, pod) {
		return w.delay()
	}
	w.report(ctx, pod, decision{over: true})
	return time.Time{}
}

// finishNow is finish for a pod whose object does not say yet that it is over.
func (w *worker) finishNow(ctx context.Context, pod *corev1.Pod, d decision) (at time.Time) {
	w.stopProbers()
	if d.failed != "" {
		w.agent.record.podEvent(pod, "", corev1.EventTypeNormal, d.failed, "Pod was active on the node longer than the specified deadline")
	}
	if w.stopAll(ctx, pod, w.observe(pod), podGrace(pod)) {
		return time.Time{}
	}
	w.report(ctx, pod, d)
	return time.Time{}
}

// destroy removes everything of a pod whose object is gone.
func (w *worker) destroy(ctx context.Context) (at time.Time, done bool) {
	w.stopProbers()
	pod := w.latest()
	infos, err := w.agent.Containers.List(container.Filter{
		Owner: container.OwnerNode, All: true, Label: []string{labelPodUID + "=" + string(w.uid)}})
	for _, info := range infos {
		if e := w.agent.Containers.Remove(ctx, info.ID, container.RemoveOptions{Force: true, Volumes: true}); e != nil && !errdefs.IsNotFound(e) {
			err = e
		}
	}
	if err == nil {
		err = w.agent.removeSandbox(ctx, w.uid)
	}
	if err == nil {
		err = w.agent.volumes.tearDown(w.uid)
	}
	if err != nil {
		w.agent.Log.Error("remove a pod", "pod", store.KeyOf(pod), "error", err)
		return w.delay(), false
	}
	return time.Time{}, true
}
