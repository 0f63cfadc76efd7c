// Package harness runs a whole Slipway for a test: the real daemon from $SLIPWAY_BIN in directories of its own,
// and the real clients (kubectl, docker, client-go) pointed at it.
//
// A test starts a Daemon, acts as people and programs would, and ends. Then the daemon is torn down and the
// machine is searched: a mount, namespace, interface, packet rule, cgroup or process of that daemon which is left
// fails the test. The daemon's log is shown when a test fails.
//
// Nothing here sleeps for luck: a test waits on watches, or with Eventually for what the machine does not announce.
package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startLimit is how long a daemon may take until it is ready, on a machine that does other things too.
const startLimit = 60 * time.Second

// Record is what a daemon writes down about itself.
type Record struct {
	PID          int    `json:"pid"`
	Instance     string `json:"instance"`
	APIPort      int    `json:"apiPort"`
	RegistryPort int    `json:"registryPort"`
}

// Daemon is one Slipway under test. Start makes it.
type Daemon struct {
	Data   string // its data directory
	Run    string // its run directory
	Record Record // of the process that runs now, or ran last

	t    testing.TB
	args []string
	log  string
	seen map[uint64]bool // network namespaces that were its own at some time; see leaks.go

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
}

// Binaries is the directory that holds the programs under test; a test without them is skipped.
func Binaries(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs a whole daemon with containers and networks")
	}
	dir := os.Getenv("SLIPWAY_BIN")
	if dir == "" {
		t.Skip("SLIPWAY_BIN does not say where the programs are: run `sudo make test`, or build them and set it")
	}
	for _, name := range []string{"slipwayd", "slipway-warden", "slipway", "slipway-compose"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("SLIPWAY_BIN: %v: run `make build`", err)
		}
	}
	return dir
}

// Start runs a daemon in new directories until the test ends, and then checks that nothing of it is left.
func Start(t testing.TB, args ...string) *Daemon {
	t.Helper()
	d := New(t, args...)
	d.Launch()
	return d
}

// New prepares a daemon without starting it.
func New(t testing.TB, args ...string) *Daemon {
	t.Helper()
	Binaries(t)
	// Not t.TempDir: the path of a socket has little room.
	dir, err := os.MkdirTemp("", "slipway")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, Data: filepath.Join(dir, "data"), Run: filepath.Join(dir, "run"), log: filepath.Join(dir, "log"), args: args, seen: map[uint64]bool{}}
	t.Cleanup(func() {
		d.Teardown()
		if t.Failed() {
			d.showLog()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the daemon's directories: %v", err)
		}
	})
	return d
}

// Launch starts the daemon's process and waits until it serves.
func (d *Daemon) Launch() {
	d.t.Helper()
	if err := d.launch(); err != nil {
		d.showLog()
		d.t.Fatalf("start the daemon: %v", err)
	}
}

func (d *Daemon) launch() error {
	ready, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(Binaries(d.t), "slipwayd"), append([]string{
		"--data-dir", d.Data, "--run-dir", d.Run, "--api-port", strconv.Itoa(d.Record.APIPort), "--registry-port", strconv.Itoa(d.Record.RegistryPort)}, d.args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{report}
	cmd.Env = append(os.Environ(), "SLIPWAY_READY_FD=3")
	// A session of its own, as a service has: signals to the test do not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	report.Close()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		cmd.Wait()
		close(done)
	}()
	d.mu.Lock()
	d.cmd, d.done = cmd, done
	d.mu.Unlock()
	return d.awaitReady(ready)
}

func (d *Daemon) awaitReady(ready *os.File) error {
	ready.SetReadDeadline(time.Now().Add(startLimit))
	line := make([]byte, 16)
	n, err := ready.Read(line)
	if err != nil || string(line[:n]) != "ready\n" {
		return fmt.Errorf("it did not get ready: %q, %v", line[:n], err)
	}
	raw, err := os.ReadFile(filepath.Join(d.Run, "daemon.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, &d.Record)
}

// Kill ends the daemon's process at once, as a crash does, and returns when it is gone.
func (d *Daemon) Kill() { d.signal(syscall.SIGKILL) }

// Stop ends the daemon's process in order.
func (d *Daemon) Stop() { d.signal(syscall.SIGTERM) }

func (d *Daemon) signal(sig syscall.Signal) {
	d.t.Helper()
	d.mu.Lock()
	cmd, done := d.cmd, d.done
	d.mu.Unlock()
	if cmd == nil {
		return
	}
	d.noteNamespaces()
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Fatalf("signal the daemon: %v", err)
	}
	select {
	case <-done:
	case <-time.After(startLimit):
		d.t.Fatalf("the daemon did not end after %v", sig)
	}
}

// Restart is a crash and a new start on the same ports.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Kill()
	d.Launch()
}

// WardenPID finds the warden's process.
func (d *Daemon) WardenPID() int {
	d.t.Helper()
	for _, p := range d.processes() {
		if strings.Contains(p.Command, "--socket="+filepath.Join(d.Run, "warden.sock")) {
			return p.PID
		}
	}
	d.t.Fatal("the daemon has no warden")
	return 0
}

// KillWarden ends the warden as a crash does. The daemon starts another.
func (d *Daemon) KillWarden() {
	d.t.Helper()
	d.noteNamespaces()
	pid := d.WardenPID()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		d.t.Fatal(err)
	}
	// Readable is a process whose files are closed, too: what is sent to it afterwards is not lost but refused.
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); n != 1 {
		d.t.Fatalf("the warden, process %d, has not ended within 10 s: %v", pid, err)
	}
}

// Teardown stops the daemon, removes what it runs, and checks that nothing is left. It may be called twice.
func (d *Daemon) Teardown() {
	d.t.Helper()
	d.mu.Lock()
	started := d.cmd != nil
	d.mu.Unlock()
	if !started {
		return
	}
	d.noteNamespaces()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.t.Context()), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(Binaries(d.t), "slipwayd"), "--teardown", "--data-dir", d.Data, "--run-dir", d.Run)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Errorf("slipwayd --teardown: %v\n%s", err, out)
		d.putDown()
		return
	}
	d.mu.Lock()
	d.cmd = nil
	d.mu.Unlock()
	d.checkNothingLeft()
}

// putDown ends whatever a failed teardown left, so that one failure does not disturb other tests.
func (d *Daemon) putDown() {
	for _, p := range d.processes() {
		syscall.Kill(p.PID, syscall.SIGKILL)
	}
}

// Log is what the daemon wrote so far.
func (d *Daemon) Log() string {
	raw, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (d *Daemon) showLog() {
	const most = 16 << 10
	log := d.Log()
	if len(log) > most {
		log = "...\n" + log[len(log)-most:]
	}
	d.t.Logf("the daemon's log:\n%s", log)
}
