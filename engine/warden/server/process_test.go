package server

import (
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// Who stops a container with no patience sends KILL right after TERM, when the process may be reaped and its end not noted yet.
func TestSignalAfterReaping(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	p := &process{pidfd: pidfd, state: warden.ProcessState{Status: warden.Running}}
	if err := p.signal(unix.SIGKILL); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signal to a process that was reaped: %v; want that it is not running", err)
	}
}
