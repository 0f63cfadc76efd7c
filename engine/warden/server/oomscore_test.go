package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLowestAllowed(t *testing.T) {
	for _, floor := range []int{-1000, -999, -17, 0, 1, 200, 1000} {
		if got := lowestAllowed(func(score int) bool { return score >= floor }); got != floor {
			t.Errorf("lowest score where %d is the floor = %d", floor, got)
		}
	}
}

func TestOOMScoreBelowTheFloor(t *testing.T) {
	h := newHouse(t)
	var own int // the warden's own is as low as it may set, or next to it
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.client.Pid()))
	if err == nil {
		_, err = fmt.Sscan(string(b), &own)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		spec := h.spec("cat /proc/self/oom_score_adj", attached)
		score := -900
		spec.Bundle.Process.OOMScoreAdj = &score
		_, a, err := h.client.Start(h.ctx, spec)
		if err != nil {
			t.Fatalf("start with a score of %d: %v", score, err)
		}
		want := fmt.Sprintln(max(score, own))
		if got, _ := output(t, a); got != want {
			t.Errorf("score of a container that asked for %d = %q; want %q", score, got, want)
		}
	}
	log, err := os.ReadFile(filepath.Join(h.opts.StateDir, "warden.log"))
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	if own > -900 {
		want = 1
	}
	if got := bytes.Count(log, []byte("higher OOM score")); got != want {
		t.Errorf("the warden said %d times that it raised a score; want %d:\n%s", got, want, strings.TrimSpace(string(log)))
	}
}
