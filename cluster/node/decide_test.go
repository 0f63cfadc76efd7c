package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/engine/container"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func running() observed {
	return observed{current: &container.Info{State: container.State{Running: true, StartedAt: noon.Add(-time.Minute)}}, started: true, ready: true}
}

func exited(code int, ago, backOff time.Duration) observed {
	return observed{current: &container.Info{State: container.State{ExitCode: code, FinishedAt: noon.Add(-ago)}}, backOff: backOff}
}

func failingProbe(why string) observed {
	o := running()
	o.failing = why
	return o
}

func pod(policy corev1.RestartPolicy, init []string, main ...string) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: policy}}
	for _, name := range init {
		c := corev1.Container{Name: strings.TrimSuffix(name, "*")}
		if strings.HasSuffix(name, "*") { // a sidecar
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	for _, name := range main {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
	}
	return p
}

// debugged adds an ephemeral container to a pod.
func debugged(p *corev1.Pod) *corev1.Pod {
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
	return p
}

// say writes a decision the way the table below does.
func (d decision) say() string {
	var parts []string
	if len(d.start) > 0 {
		parts = append(parts, "start "+strings.Join(d.start, ","))
	}
	for name, why := range d.kill {
		parts = append(parts, "kill "+name+": "+why)
	}
	slices.Sort(parts)
	if !d.wakeAt.IsZero() {
		parts = append(parts, fmt.Sprintf("wake in %s", d.wakeAt.Sub(noon)))
	}
	if d.over {
		parts = append(parts, strings.TrimSpace("over "+d.failed))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, "; ")
}

func TestDecide(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	tests := []struct {
		name string
		pod  *corev1.Pod
		view view
		want string
	}{
		{"a new pod", pod(always, nil, "a", "b"), view{}, "start a,b"},
		{"all run", pod(always, nil, "a"), view{"a": running()}, "nothing"},
		{"one exited, its back-off is over", pod(always, nil, "a"), view{"a": exited(0, time.Minute, 10*time.Second)}, "start a"},
		{"one exited, its back-off is not over", pod(always, nil, "a"), view{"a": exited(1, 4*time.Second, 10*time.Second)}, "wake in 6s"},
		{"never restarts", pod(never, nil, "a"), view{"a": exited(1, time.Second, 10*time.Second)}, "over"},
		{"restarts on failure, and failed", pod(onFailure, nil, "a"), view{"a": exited(1, time.Minute, 10*time.Second)}, "start a"},
		{"restarts on failure, and succeeded", pod(onFailure, nil, "a"), view{"a": exited(0, time.Minute, 10*time.Second)}, "over"},
		{"one of two is over", pod(never, nil, "a", "b"), view{"a": exited(0, time.Minute, 0), "b": running()}, "nothing"},
		{"init comes first", pod(always, []string{"i", "j"}, "a"), view{}, "start i"},
		{"init runs", pod(always, []string{"i", "j"}, "a"), view{"i": running()}, "nothing"},
		{"init is done, the next follows", pod(always, []string{"i", "j"}, "a"), view{"i": exited(0, time.Second, 0)}, "start j"},
		{"all init done", pod(always, []string{"i", "j"}, "a"), view{"i": exited(0, time.Second, 0), "j": exited(0, time.Second, 0)}, "start a"},
		{"init failed and is tried again", pod(always, []string{"i"}, "a"), view{"i": exited(2, time.Minute, 10*time.Second)}, "start i"},
		{"init failed for good", pod(never, []string{"i"}, "a"), view{"i": exited(2, time.Minute, 0)}, "over"},
		{"init is not run again for a restart", pod(always, []string{"i"}, "a"), view{"i": exited(1, time.Hour, 0), "a": exited(0, time.Minute, 0)}, "start a"},
		{"a sidecar is waited for", pod(always, []string{"s*"}, "a"), view{}, "start s"},
		{"a sidecar that has started", pod(always, []string{"s*"}, "a"), view{"s": running()}, "start a"},
		{"a sidecar that exits is restarted", pod(never, []string{"s*"}, "a"), view{"s": exited(0, time.Minute, time.Second), "a": running()}, "start s"},
		{"a sidecar does not keep a pod alive", pod(never, []string{"s*"}, "a"), view{"s": running(), "a": exited(0, time.Minute, 0)}, "over"},
		{"a sidecar that was stopped at the end stays so", pod(never, []string{"s*"}, "a"), view{"s": exited(137, time.Second, 0), "a": exited(0, time.Minute, 0)}, "over"},
		{"a probe failed", pod(always, nil, "a"), view{"a": failingProbe("liveness")}, "kill a: liveness"},
		{"the image was changed", pod(always, nil, "a"), view{"a": func() observed { o := running(); o.outdated = true; return o }()}, "kill a: Container definition changed, will be restarted"},
		{"a new sandbox after a reboot", pod(always, []string{"i"}, "a"), view{
			"i": func() observed { o := exited(0, time.Hour, time.Second); o.stale = true; return o }(),
			"a": func() observed { o := exited(137, time.Second, 10*time.Second); o.stale = true; return o }()}, "start i"},
		{"an ephemeral container", debugged(pod(always, nil, "a")), view{"a": running()}, "start debug"},
		{"an ephemeral container does not wait for init", debugged(pod(always, []string{"i"}, "a")), view{"i": running()}, "start debug"},
		{"an ephemeral container is started once", debugged(pod(always, nil, "a")), view{"a": running(), "debug": exited(1, time.Hour, 0)}, "nothing"},
		{"an ephemeral container does not keep a pod alive", debugged(pod(never, nil, "a")), view{"a": exited(0, time.Minute, 0), "debug": running()}, "over"},
	}
	for _, tt := range tests {
		if got := decide(tt.pod, tt.view, noon).say(); got != tt.want {
			t.Errorf("%s: decide = %q; want %q", tt.name, got, tt.want)
		}
	}
}

func TestDecideDeadline(t *testing.T) {
	p := pod(corev1.RestartPolicyAlways, nil, "a")
	seconds := int64(60)
	p.Spec.ActiveDeadlineSeconds = &seconds
	p.Status.StartTime = &metav1.Time{Time: noon.Add(-50 * time.Second)}
	if got, want := decide(p, view{"a": running()}, noon).say(), "wake in 10s"; got != want {
		t.Errorf("before the deadline: decide = %q; want %q", got, want)
	}
	if got, want := decide(p, view{"a": running()}, noon.Add(10*time.Second)).say(), "over DeadlineExceeded"; got != want {
		t.Errorf("at the deadline: decide = %q; want %q", got, want)
	}
}

func TestNextBackOff(t *testing.T) {
	wait := time.Duration(0)
	for i, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute} {
		if wait = nextBackOff(i, wait, time.Second); wait != want {
			t.Errorf("restart %d waits %s; want %s", i+1, wait, want)
		}
	}
	if got := nextBackOff(7, wait, 10*time.Minute); got != 0 {
		t.Errorf("after ten good minutes a restart waits %s; want none", got)
	}
}

func TestWillRestart(t *testing.T) {
	for _, tt := range []struct {
		policy corev1.RestartPolicy
		name   string
		code   int
		want   bool
	}{
		{corev1.RestartPolicyAlways, "i", 0, false}, // done, also after a failure before
		{corev1.RestartPolicyAlways, "i", 1, true},
		{corev1.RestartPolicyNever, "i", 1, false},
		{corev1.RestartPolicyNever, "s", 0, true},
		{corev1.RestartPolicyAlways, "a", 0, true},
		{corev1.RestartPolicyOnFailure, "a", 0, false},
		{corev1.RestartPolicyOnFailure, "a", 1, true},
		{corev1.RestartPolicyAlways, "ghost", 1, false},
	} {
		if got := willRestart(pod(tt.policy, []string{"i", "s*"}, "a"), tt.name, tt.code); got != tt.want {
			t.Errorf("willRestart(%s, %s, exit code %d) = %v; want %v", tt.policy, tt.name, tt.code, got, tt.want)
		}
	}
}

func TestNeedsImage(t *testing.T) {
	outdated := running()
	outdated.outdated = true
	stale := exited(0, time.Second, 0)
	stale.stale = true
	lost := running()
	lost.stale = true
	p := pod(corev1.RestartPolicyOnFailure, []string{"i"}, "a")
	for _, tt := range []struct {
		what string
		name string
		o    observed
		want bool
	}{
		{"a container that was never made", "a", observed{}, true},
		{"one that runs", "a", running(), false},
		{"one that runs another image", "a", outdated, true},
		{"one that will be restarted", "a", exited(1, time.Second, 0), true},
		{"one that is done", "a", exited(0, time.Second, 0), false},
		{"one that was made and never started", "a", observed{current: &container.Info{}}, true},
		{"an init container that has succeeded", "i", exited(0, time.Second, 0), false},
		{"one whose sandbox is gone", "i", stale, true},
		{"one that outlived its sandbox", "a", lost, true},
	} {
		if got := needsImage(p, tt.name, tt.o); got != tt.want {
			t.Errorf("%s needs its image: %v; want %v", tt.what, got, tt.want)
		}
	}
}

func TestSooner(t *testing.T) {
	var never time.Time
	later := noon.Add(time.Hour)
	for _, tt := range []struct{ a, b, want time.Time }{
		{never, never, never}, {noon, never, noon}, {never, noon, noon}, {noon, later, noon}, {later, noon, noon},
	} {
		if got := sooner(tt.a, tt.b); !got.Equal(tt.want) {
			t.Errorf("sooner(%s, %s) = %s; want %s", tt.a, tt.b, got, tt.want)
		}
	}
}
