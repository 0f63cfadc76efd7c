package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
)

// brief is a status in one line: phase, then each container, then the conditions that hold.
func brief(st corev1.PodStatus) string {
	parts := []string{string(st.Phase)}
	for _, c := range append(st.InitContainerStatuses, st.ContainerStatuses...) {
		s := c.Name + "="
		switch {
		case c.State.Running != nil:
			s += "running"
		case c.State.Waiting != nil:
			s += c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s += fmt.Sprintf("%s(%d)", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
		}
		if c.Ready {
			s += "+ready"
		}
		parts = append(parts, s)
	}
	for _, c := range st.Conditions {
		if c.Status == corev1.ConditionTrue {
			parts = append(parts, string(c.Type))
		}
	}
	return strings.Join(parts, " ")
}

// withSpec gives observed containers the spec that statuses read.
func withSpec(o observed) observed {
	if o.current != nil {
		o.current.Spec = &container.Spec{}
	}
	return o
}

func TestStatus(t *testing.T) {
	oom := exited(137, time.Second, 0)
	oom.current.State.OOMKilled = true
	notReady := running()
	notReady.ready = false
	tests := []struct {
		name string
		p    picture
		want string
	}{
		{"just bound", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a")}, "Pending a=ContainerCreating Initialized"},
		{"init has not run", picture{pod: pod(corev1.RestartPolicyAlways, []string{"i"}, "a"), sandbox: true},
			"Pending i=PodInitializing a=PodInitializing PodReadyToStartContainers"},
		{"no image", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a"), waiting: map[string]waiting{"a": {"ErrImagePull", "no"}}}, "Pending a=ErrImagePull Initialized"},
		{"runs", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a"), sandbox: true, view: view{"a": running()}},
			"Running a=running+ready PodReadyToStartContainers Initialized ContainersReady Ready"},
		{"runs, not ready", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a"), sandbox: true, view: view{"a": notReady}},
			"Running a=running PodReadyToStartContainers Initialized"},
		{"crash loop", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a"), sandbox: true, view: view{"a": exited(1, time.Second, time.Second)},
			waiting: map[string]waiting{"a": {"CrashLoopBackOff", "x"}}}, "Running a=CrashLoopBackOff PodReadyToStartContainers Initialized"},
		{"succeeded", picture{pod: pod(corev1.RestartPolicyNever, nil, "a"), over: true, view: view{"a": exited(0, time.Second, 0)}}, "Succeeded a=Completed(0) Initialized"},
		{"failed", picture{pod: pod(corev1.RestartPolicyNever, nil, "a"), over: true, view: view{"a": exited(3, time.Second, 0)}}, "Failed a=Error(3) Initialized"},
		{"out of memory", picture{pod: pod(corev1.RestartPolicyNever, nil, "a"), over: true, view: view{"a": oom}}, "Failed a=OOMKilled(137) Initialized"},
		{"a sidecar's exit does not fail a pod", picture{pod: pod(corev1.RestartPolicyNever, []string{"s*"}, "a"), over: true,
			view: view{"s": exited(143, time.Second, 0), "a": exited(0, time.Second, 0)}}, "Succeeded s=Error(143) a=Completed(0) Initialized"},
		{"ended before it began", picture{pod: pod(corev1.RestartPolicyNever, nil, "a"), over: true, waiting: map[string]waiting{"a": {"ErrImagePull", "no"}}},
			"Failed a=ContainerStatusUnknown(137) Initialized"},
		{"ended while one of two had not begun", picture{pod: pod(corev1.RestartPolicyNever, nil, "a", "b"), over: true, view: view{"a": exited(0, time.Second, 0)}},
			"Failed a=Completed(0) b=ContainerStatusUnknown(137) Initialized"},
		{"an init container failed for good", picture{pod: pod(corev1.RestartPolicyNever, []string{"i"}, "a"), over: true, view: view{"i": exited(1, time.Second, 0)}},
			"Failed i=Error(1) a=PodInitializing"},
		{"one of two has no image", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a", "b"), sandbox: true, view: view{"a": running()},
			waiting: map[string]waiting{"b": {"ErrImagePull", "no"}}}, "Pending a=running+ready b=ErrImagePull PodReadyToStartContainers Initialized"},
		{"a sidecar that is not ready", picture{pod: pod(corev1.RestartPolicyAlways, []string{"s*"}, "a"), sandbox: true, view: view{"s": notReady, "a": running()}},
			"Running s=running a=running+ready PodReadyToStartContainers Initialized"},
		{"past its deadline", picture{pod: pod(corev1.RestartPolicyAlways, nil, "a"), over: true, failed: "DeadlineExceeded", view: view{"a": exited(137, time.Second, 0)}},
			"Failed a=Error(137) Initialized"},
	}
	for _, tt := range tests {
		for name, o := range tt.p.view {
			tt.p.view[name] = withSpec(o)
		}
		tt.p.started = noon
		if got := brief(tt.p.status(noon)); got != tt.want {
			t.Errorf("%s: status = %q; want %q", tt.name, got, tt.want)
		}
	}
}

func TestStatusPhaseIsFinal(t *testing.T) {
	p := pod(corev1.RestartPolicyNever, nil, "a")
	p.Status.Phase = corev1.PodSucceeded
	if got := (picture{pod: p, started: noon}).status(noon).Phase; got != corev1.PodSucceeded {
		t.Errorf("a pod that had succeeded is %s; want it to stay %s", got, corev1.PodSucceeded)
	}
}

func TestStatusKeepsOthersConditions(t *testing.T) {
	p := pod(corev1.RestartPolicyAlways, nil, "a")
	p.Status.Conditions = []corev1.PodCondition{{Type: "example.org/checked", Status: corev1.ConditionTrue}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}}
	got := (picture{pod: p, started: noon}).status(noon).Conditions
	if got[0].Type != "example.org/checked" || got[1].Type != corev1.PodScheduled {
		t.Errorf("conditions begin with %s, %s; want those of others untouched", got[0].Type, got[1].Type)
	}
}
