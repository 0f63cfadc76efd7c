package rundir

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// ended is the number of a process that is no more.
func ended(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// unreaped is the number of a process that has ended and is not waited for until the test is over.
func unreaped(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() })
	io.Copy(io.Discard, out)
	// Its output ends a moment before it does; that it is a zombie is what waitid without reaping tells.
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestRecord(t *testing.T) {
	for _, tt := range []struct {
		what            string
		pid             int
		running, killed bool
	}{
		{"a daemon that runs", os.Getpid(), true, false},
		{"a daemon that was killed", ended(t), false, true},
		{"a daemon that was killed and is not waited for", unreaped(t), false, true},
		{"a daemon that was stopped", 0, false, false},
	} {
		dir := t.TempDir()
		r := Record{PID: tt.pid, DataDir: "/data", RunDir: dir, APIPort: 6443}
		if err := r.Write(); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(dir); err != nil || got != r {
			t.Errorf("%s: read %+v, %v; want %+v", tt.what, got, err, r)
		}
		if Running(dir) != tt.running || Killed(dir) != tt.killed {
			t.Errorf("%s: running %v, killed %v; want %v, %v", tt.what, Running(dir), Killed(dir), tt.running, tt.killed)
		}
		if err := r.Stopped(); err != nil {
			t.Fatal(err)
		}
		if Running(dir) || Killed(dir) {
			t.Errorf("%s, stopped: running %v, killed %v", tt.what, Running(dir), Killed(dir))
		}
	}
}

func TestWithoutRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record of an empty directory: %v", err)
	}
	if Running(dir) || Killed(dir) {
		t.Error("an empty directory has a daemon")
	}
	t.Setenv(dataDirVariable, "")
	if err := Start(t.Context(), dir, io.Discard); err == nil || !strings.Contains(err.Error(), "no daemon at "+Socket(dir)) {
		t.Errorf("start without knowing the data directory: %v", err)
	}
	if err := Teardown(dir); err == nil || !strings.Contains(err.Error(), "nothing to take down") {
		t.Errorf("teardown where nothing ran: %v", err)
	}
}

func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(Path(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "daemon.json")) {
		t.Errorf("a damaged record is not named: %v", err)
	}
}

func TestStartArguments(t *testing.T) {
	for _, tt := range []struct {
		r    Record
		data string
		want string
	}{
		{Record{}, "", "--detach --run-dir /r"},
		{Record{}, "/d", "--detach --run-dir /r --data-dir /d"},
		{Record{APIPort: 1, RegistryPort: 2}, "/d", "--detach --run-dir /r --data-dir /d --api-port 1 --registry-port 2"},
	} {
		if got := tt.r.startArguments("/r", tt.data); !slices.Equal(got, strings.Fields(tt.want)) {
			t.Errorf("%+v is started with %q; want %q", tt.r, got, tt.want)
		}
	}
}
