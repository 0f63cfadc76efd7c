package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipway.dev/slipway/engine/warden"
)

func TestContainerLife(t *testing.T) {
	h := newHouse(t)
	events := h.client.Subscribe(h.ctx)
	log := filepath.Join(h.dir, "log")
	st, a := h.run("echo hello; echo oops >&2; hostname; exit 7", attached, logTo(log))
	if st.Status != warden.Running || st.Pid <= 0 {
		t.Errorf("state after start = %+v; want running with a pid", st)
	}
	stdout, stderr := output(t, a)
	if stdout != "hello\nbox\n" || stderr != "oops\n" {
		t.Errorf("output = %q, %q; want hello, box and oops", stdout, stderr)
	}
	e := nextEvent(t, events, warden.EventExit, st.ContainerID)
	if e.ExitCode != 7 || !e.ExitKnown || e.OOMKilled || e.Labels["test"] != t.Name() {
		t.Errorf("exit event = %+v; want code 7, known, with labels", e)
	}
	b, _ := os.ReadFile(log)
	for _, want := range []string{`{"log":"hello\n","stream":"stdout","time":"`, `{"log":"oops\n","stream":"stderr","time":"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("log = %s; want it to contain %s", b, want)
		}
	}
	h.delete(st.ContainerID)
	if states, err := h.client.List(h.ctx); err != nil || len(states) != 0 {
		t.Errorf("list after delete = %v, %v; want nothing", states, err)
	}
}
