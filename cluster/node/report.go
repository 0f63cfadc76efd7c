package node

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// reportTries bounds how often a status is written on top of somebody else's write before the agent
// takes a breath.
const reportTries = 10

// report writes the pod's status when it differs from what the cluster knows. Several changes
// between two steps are one write.
func (w *worker) report(ctx context.Context, pod *corev1.Pod, d decision) {
	p := picture{
		view: w.observe(pod), waiting: w.waiting, messages: w.messages, hostIP: w.agent.NodeAddr.String(),
		started: w.began, over: d.over, failed: d.failed,
	}
	if d.failed == "DeadlineExceeded" {
		p.message = "Pod was active on the node longer than the specified deadline"
	}
	if s := w.sandbox; s != nil {
		p.sandbox, p.podIP = true, s.addr.String()
	}
	w.unreported = false
	for range reportTries {
		current, ok := store.Get[*corev1.Pod](w.agent.Reader, kinds.Pods, pod.Namespace, pod.Name)
		if !ok || current.UID != w.uid {
			return
		}
		p.pod = current
		next := store.Copy(current)
		next.Status = p.status(time.Now())
		if sameStatus(&current.Status, &next.Status) {
			return
		}
		_, err := w.agent.Writer.UpdateStatus(ctx, next)
		switch {
		case err == nil || apierrors.IsNotFound(err):
			return
		case ctx.Err() != nil:
			w.unreported = true
			return
		case apierrors.IsConflict(err):
			continue // someone else wrote the object in between: again, on top of that
		}
		w.agent.Log.Warn("pod status not written", "pod", store.KeyOf(pod), "error", err)
		w.unreported = !apierrors.IsInvalid(err) // what is invalid is so the next time too
		return
	}
	w.unreported = true
}
