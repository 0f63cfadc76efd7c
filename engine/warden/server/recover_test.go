package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

// killWarden kills the warden with SIGKILL and waits until the client has another.
func (h *house) killWarden() {
	h.t.Helper()
	pid := h.client.Pid()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	waitGone(h.t, pid)
	if _, err := h.client.List(h.ctx); err != nil {
		h.t.Fatal(err)
	}
	if h.client.Pid() == pid {
		h.t.Fatal("the list still came from the dead warden")
	}
}

func TestKilledWarden(t *testing.T) {
	h := newHouse(t)
	events := h.client.Subscribe(h.ctx)
	log := filepath.Join(h.dir, "log")
	// "before" may be read by either warden, "while" is written when there is none or a new one.
	st, a := h.run("echo before; read x; echo got $x; exit 9", attached, withStdin, logTo(log))
	tty, b := h.run("stty size; read x; echo tty $x; exit 8", attached, withStdin, terminal)
	ended, _ := h.run("exit 6")
	h.wait(ended.ContainerID, "")
	_, e, err := h.client.Exec(h.ctx, warden.ExecSpec{
		ContainerID: st.ContainerID, ID: "e", Stdin: true, Attach: true,
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", "read x; echo exec $x; exit 5"}, Cwd: "/", Env: []string{"PATH=/bin"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	read(t, a, "before")
	read(t, b, "33 101")

	h.killWarden()

	e.Write([]byte("three\n"))
	if got, _ := output(t, e); got != "exec three\n" {
		t.Errorf("after the warden's death the exec said %q; want exec three", got)
	}
	a.Write([]byte("one\n"))
	b.Write([]byte("two\n"))
	if got, _ := output(t, a); got != "got one\n" {
		t.Errorf("after the warden's death the container said %q; want got one", got)
	}
	if got, _ := output(t, b); !strings.Contains(got, "tty two") {
		t.Errorf("after the warden's death the terminal said %q; want tty two", got)
	}
	for _, want := range []struct {
		id, exec string
		code     int
	}{{st.ContainerID, "", 9}, {tty.ContainerID, "", 8}, {st.ContainerID, "e", 5}, {ended.ContainerID, "", 6}} {
		st := h.wait(want.id, want.exec)
		if st.ExitCode != want.code || !st.ExitKnown || st.Labels["test"] != t.Name() && want.exec == "" {
			t.Errorf("%s %s ended with %+v; want code %d, known", want.id, want.exec, st, want.code)
		}
	}
	if e := nextEvent(t, events, warden.EventExit, tty.ContainerID); e.ExitCode != 8 {
		t.Errorf("event = %+v; want code 8", e)
	}
	if b, _ := os.ReadFile(log); !strings.Contains(string(b), "before") || !strings.Contains(string(b), "got one") {
		t.Errorf("log = %s; want before and got one", b)
	}
}

// What ends while there is no warden is reported by the next one.
func TestExitWithoutWarden(t *testing.T) {
	h := newHouse(t)
	var ids []string
	for _, script := range []string{"read x; echo last words; exit 3", "read x; kill -15 $$"} {
		st, a := h.run(script, attached, withStdin, logTo(filepath.Join(h.dir, "log")))
		ids = append(ids, st.ContainerID)
		t.Cleanup(func() { a.Close() })
	}
	first, second := h.state(ids[0]), h.state(ids[1])
	pid := h.client.Pid()
	hold := h.stopConnecting()
	syscall.Kill(pid, syscall.SIGKILL)
	waitGone(t, pid)
	for _, p := range []int{first.Pid, second.Pid} { // by way of their parent, as nobody holds their input any more but us
		syscall.Kill(p, syscall.SIGTERM)
		syscall.Kill(p, syscall.SIGKILL)
		waitGone(t, p)
	}
	hold()
	for _, id := range ids {
		if st := h.wait(id, ""); st.ExitCode != 137 || !st.ExitKnown {
			t.Errorf("container that was killed without a warden ended with %+v; want 137, known", st)
		}
	}
}

// stopConnecting keeps the client from starting a warden until the returned function is called: it holds the lock that a
// warden takes.
func (h *house) stopConnecting() (release func()) {
	h.t.Helper()
	path := h.opts.StateDir + "/lock"
	if err := os.Rename(path, path+".aside"); err != nil {
		h.t.Fatal(err)
	}
	unlock, err := lock(path)
	if err != nil {
		h.t.Fatal(err)
	}
	return unlock
}

func TestRestartedDaemon(t *testing.T) {
	h := newHouse(t)
	log := filepath.Join(h.dir, "log")
	st, a := h.run("while read x; do echo got $x; done", attached, func(s *warden.ContainerSpec) { s.Stdin = true }, logTo(log))
	short, _ := h.run("exit 2")
	build, _ := h.run("sleep 1000", tied)
	h.wait(short.ContainerID, "")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.client.Keep(h.ctx, "pipe/1", w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	pid := h.client.Pid()
	a.Write([]byte("first\n"))
	read(t, a, "got first")
	h.client.Close()

	h.client = h.connect()
	if h.client.Pid() != pid {
		t.Errorf("the warden is %d; want the same as before, %d", h.client.Pid(), pid)
	}
	events := h.client.Subscribe(h.ctx)
	if e := nextEvent(t, events, warden.EventExit, short.ContainerID); e.ExitCode != 2 {
		t.Errorf("replayed exit = %+v; want code 2", e)
	}
	if a, err = h.client.Attach(h.ctx, st.ContainerID, ""); err != nil {
		t.Fatal(err)
	}
	a.Write([]byte("second\n"))
	if got := read(t, a, "second"); got != "got second\n" {
		t.Errorf("attached again, read %q; want got second", got)
	}
	waitGone(t, build.Pid) // it was tied to the first daemon
	files, err := h.client.Fetch(h.ctx, "pipe/")
	if err != nil || len(files) != 1 {
		t.Fatalf("fetch = %v, %v; want one pipe", files, err)
	}
	fmt.Fprint(files["pipe/1"], "kept")
	files["pipe/1"].Close()
	if err := h.client.Drop(h.ctx, "pipe/1"); err != nil {
		t.Fatal(err)
	}
	// With the last write end gone, the pipe ends.
	buf := make([]byte, 10)
	if n, _ := r.Read(buf); string(buf[:n]) != "kept" {
		t.Errorf("through the kept pipe came %q; want kept", buf[:n])
	}
	if n, err := r.Read(buf); n != 0 {
		t.Errorf("the dropped pipe gives %d bytes, %v; want its end", n, err)
	}
}

// Both die: containers run on, and what can be known is known.
func TestBothDie(t *testing.T) {
	h := newHouse(t)
	st, _ := h.run("sleep 1000", logTo(filepath.Join(h.dir, "log")))
	dead, _ := h.run("sleep 1000")
	h.client.Close()
	pid := wardenPid(t, h)
	syscall.Kill(pid, syscall.SIGKILL)
	waitGone(t, pid)
	syscall.Kill(dead.Pid, syscall.SIGKILL)
	waitGone(t, dead.Pid)
	h.client = h.connect()
	if got := h.state(st.ContainerID); got.Status != warden.Running || got.Pid != st.Pid {
		t.Errorf("state = %+v; want running as pid %d", got, st.Pid)
	}
	if got := h.state(dead.ContainerID); got.Status != warden.Exited ||
		got.ExitKnown && got.ExitCode != 137 || !got.ExitKnown && got.ExitCode != 255 { // known only if its new parent is slow
		t.Errorf("state = %+v; want exited: 137, or 255 and not known", got)
	}
	_, a, err := h.client.Exec(h.ctx, warden.ExecSpec{
		ContainerID: st.ContainerID, ID: "e", Attach: true, Process: &specs.Process{Args: []string{"/bin/hostname"}, Cwd: "/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := output(t, a); out != "box\n" {
		t.Errorf("exec in the recovered container said %q; want box", out)
	}
}

func wardenPid(t *testing.T, h *house) int {
	t.Helper()
	c := h.connect()
	defer c.Close()
	return c.Pid()
}

func TestSandbox(t *testing.T) {
	h := newHouse(t)
	netns, err := h.client.CreateSandbox(h.ctx, warden.SandboxSpec{
		ID: "pod", Net: true, IPC: true, UTS: true, SharePID: true, Hostname: "podname",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmax": "123456"},
	})
	if err != nil {
		t.Fatal(err)
	}
	netns.Close()
	join := func(s *warden.ContainerSpec) {
		s.Sandbox = "pod"
		for i := range s.Bundle.Linux.Namespaces {
			if ns := &s.Bundle.Linux.Namespaces[i]; ns.Type != specs.MountNamespace {
				ns.Path = warden.SandboxPath
			}
		}
	}
	h.killWarden()
	sleeper, up := h.run("echo up; exec sleep 7654", join, attached)
	read(t, up, "up") // a container that has started need not be its program yet
	_, a := h.run("hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax; cat /proc/1/comm; ps", join, attached)
	out, _ := output(t, a)
	for _, want := range []string{"podname\n80\n123456\nslipway-init\n", "sleep 7654"} {
		if !strings.Contains(out, want) {
			t.Errorf("in the sandbox: %q; want %q in it", out, want)
		}
	}
	if _, err := h.client.CreateSandbox(h.ctx, warden.SandboxSpec{ID: "pod"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second sandbox of the same id: %v; want AlreadyExists", err)
	}
	if _, err := h.client.CreateSandbox(h.ctx, warden.SandboxSpec{ID: "bad", Net: true, Sysctls: map[string]string{"kernel.panic": "1"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a sysctl of the host: %v; want InvalidArgument", err)
	}
	h.delete(sleeper.ContainerID)
	if ids, err := h.client.Sandboxes(h.ctx); err != nil || len(ids) != 1 || ids[0] != "pod" {
		t.Errorf("sandboxes = %v, %v; want pod", ids, err)
	}
	if err := h.client.RemoveSandbox(h.ctx, "pod"); err != nil {
		t.Fatal(err)
	}
	if _, err := h.client.Sandbox(h.ctx, "pod"); !errdefs.IsNotFound(err) {
		t.Errorf("removed sandbox: %v; want NotFound", err)
	}
}

// TestKillsWhileStarting kills wardens while containers start, run and are deleted. Nothing may be left, and every start
// that was acknowledged must be there.
func TestKillsWhileStarting(t *testing.T) {
	h := newHouse(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 8 {
				spec := h.spec("read x; exit 4", attached, withStdin, logTo(filepath.Join(h.dir, "log")))
				st, a, err := h.client.Start(h.ctx, spec)
				if errdefs.IsUnavailable(err) { // the warden died over it
					h.client.Delete(h.ctx, spec.ID)
					continue
				}
				if err != nil {
					t.Errorf("start: %v", err)
					return
				}
				a.Write([]byte("\n"))
				if got, _ := output(t, a); got != "" {
					t.Errorf("output %q; want none", got)
				}
				if st, err = h.client.Wait(h.ctx, st.ContainerID, ""); err != nil || st.ExitCode != 4 {
					t.Errorf("container ended with %+v, %v; want code 4", st, err)
				}
				if err := h.client.Delete(h.ctx, st.ContainerID); err != nil {
					t.Errorf("delete: %v", err)
				}
			}
		})
	}
	for range 5 {
		h.killWarden()
		st, _ := h.run("exit 0") // as a pause, in which the others get on
		h.delete(st.ContainerID)
	}
	wg.Wait()
}
