package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
)

// hook runs a lifecycle handler in or against one container.
func (w *worker) hook(ctx context.Context, c *corev1.Container, h *corev1.LifecycleHandler, id, addr string) error {
	switch {
	case h.Exec != nil:
		res, err := w.agent.Containers.ExecRun(ctx, id, container.ExecSpec{Cmd: h.Exec.Command}, probeOutput)
		if err == nil && res.ExitCode != 0 {
			err = fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec.Command, " "), res.ExitCode, res.Output)
		}
		return err
	case h.HTTPGet != nil:
		message, err := httpGet(ctx, h.HTTPGet, c, addr, "kube-lifecycle/1.37")
		if err != nil && message != "" {
			return fmt.Errorf("%s", message)
		}
		return err
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		return nil
	}
	return fmt.Errorf("the lifecycle handler has no action that this node supports: use exec, httpGet or sleep")
}

// postStart runs the hook of a container that has just started; when it fails the container is killed.
func (w *worker) postStart(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string) {
	hookCtx, done := w.interruptible(ctx) // a hook without an end must not keep the pod from ending
	err := w.hook(hookCtx, c, c.Lifecycle.PostStart, id, w.address())
	interrupted := hookCtx.Err() != nil
	done()
	if err == nil || interrupted {
		return
	}
	w.agent.record.podEvent(pod, fieldPath(pod, c.Name), corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
	w.stopContainer(ctx, pod, &container.Info{ID: id, Spec: &container.Spec{Labels: map[string]string{labelContainer: c.Name}}},
		podGrace(pod), "FailedPostStartHook")
}
