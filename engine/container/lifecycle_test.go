package container

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRunReportsOutputAndExitCode(t *testing.T) {
	m := newMachine(t)
	out, code := m.output(Spec{Cmd: []string{"sh", "-c", "echo hello; echo oops >&2; exit 7"}})
	if code != 7 || !strings.Contains(out, "hello\n") || !strings.Contains(out, "oops\n") {
		t.Fatalf("run gave %q, exit %d; want both lines and 7", out, code)
	}
}

func TestCommandsThatCannotRun(t *testing.T) {
	m := newMachine(t)
	for _, tt := range []struct {
		cmd  string
		code int
		want string
	}{
		{"nope", 127, `exec: "nope": executable file not found in $PATH`},
		{"/etc/passwd", 126, "permission denied"},
		{"/etc", 126, "is a directory"},
	} {
		i := m.create(Spec{Cmd: []string{tt.cmd}})
		err := m.Start(t.Context(), i.ID)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("start %s = %v; want an invalid argument with %q", tt.cmd, err, tt.want)
		}
		if st := m.get(i.ID).State; st.ExitCode != tt.code || st.Running {
			t.Errorf("state after start of %s: %+v; want exit code %d", tt.cmd, st, tt.code)
		}
	}
}

func TestAutoRemove(t *testing.T) {
	m := newMachine(t)
	i := m.create(Spec{Cmd: []string{"sh", "-c", "exit 3"}, AutoRemove: true})
	ch, err := m.Wait(t.Context(), i.ID, WaitRemoved)
	if err != nil {
		t.Fatal(err)
	}
	m.start(i.ID)
	if st := <-ch; st.Code != 3 {
		t.Errorf("wait for removal gave %+v; want 3", st)
	}
	if _, err := m.Get(i.ID); !errdefs.IsNotFound(err) {
		t.Errorf("Get after removal = %v; want not found", err)
	}
}
