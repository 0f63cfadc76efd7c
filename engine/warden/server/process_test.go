package server

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

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

// A start that returned before the process had become its program would let a signal hit what runs before it.
func TestAwaitProgram(t *testing.T) {
	cmd := exec.Command("sh", "-c", "(read go; exec sleep 1000) <&3 & echo $!; wait") // the part in parentheses is forked and waits
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer cmd.Wait()
	p := &process{}
	if _, err := fmt.Fscan(bufio.NewReader(out), &p.state.Pid); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(p.state.Pid, unix.SIGKILL)
	st, err := readStat(p.state.Pid)
	if err != nil || !st.forked {
		t.Fatalf("a process that has not exec'ed yet: %+v, %v; want forked", st, err)
	}
	p.startTime = st.startTime
	asked := 0
	p.awaitProgram(func(d time.Duration) {
		if asked++; asked == 1 {
			fmt.Fprintln(ours, "go")
		}
		time.Sleep(d)
	})
	if st, err := readStat(p.state.Pid); err != nil || st.forked || asked == 0 {
		t.Errorf("after it was waited for (%d pauses): %+v, %v; want one that has exec'ed", asked, st, err)
	}
}

// A process may write its only line and end at the very moment when its pipe is looked at.
func TestNothingIsLostAtTheEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ended := func() bool {
		fmt.Fprint(w, "last words")
		w.Close()
		return true
	}
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	err = raw.Read(func(fd uintptr) bool {
		n, last, rerr := readLeft(int(fd), got, ended)
		if string(got[:max(n, 0)]) != "last words" || !last || rerr != nil {
			t.Errorf("read %q, %v, %v; want the last words of a process that has ended", got[:max(n, 0)], last, rerr)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
}
