package node

import (
	"testing"
	"time"

	"slipway.dev/slipway/engine/container"
)

// TestBackOffOfWhatNeverStarts: an attempt that failed before it ran must wait like one that ran and crashed.
func TestBackOffOfWhatNeverStarts(t *testing.T) {
	attempt := func(state container.State) container.Info {
		return container.Info{Created: noon, State: state, Spec: &container.Spec{Labels: map[string]string{
			labelContainer: "a", labelAttempt: "3", labelBackOff: "20", labelSandbox: "now"}}}
	}
	for _, tt := range []struct {
		name  string
		state container.State
		want  time.Duration
	}{
		{"did not start", container.State{Error: "no such program"}, 40 * time.Second},
		{"crashed", container.State{StartedAt: noon, FinishedAt: noon.Add(time.Second)}, 40 * time.Second},
		{"ran well for long", container.State{StartedAt: noon, FinishedAt: noon.Add(time.Hour)}, 0},
	} {
		if got := newView([]container.Info{attempt(tt.state)}, "now")["a"].backOff; got != tt.want {
			t.Errorf("a container that %s is restarted after %v; want %v", tt.name, got, tt.want)
		}
	}
}
