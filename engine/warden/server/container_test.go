package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

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

func TestStartFailures(t *testing.T) {
	h := newHouse(t)
	for _, tt := range []struct {
		name, want string
		change     option
	}{
		{"no such command", "executable file not found in $PATH", func(s *warden.ContainerSpec) { s.Bundle.Process.Args = []string{"nonesuch"} }},
		{"not executable", "permission denied", func(s *warden.ContainerSpec) { s.Bundle.Process.Args = []string{"/etc/plain"} }},
		{"a directory", "is a directory", func(s *warden.ContainerSpec) { s.Bundle.Process.Args = []string{"/etc"} }},
		{"no such working directory's parent", "not a directory", func(s *warden.ContainerSpec) { s.Bundle.Process.Cwd = "/bin/sh/x" }},
		{"no command", "has no command", func(s *warden.ContainerSpec) { s.Bundle.Process.Args = nil }},
		{"bad id", "use 1 to 200", func(s *warden.ContainerSpec) { s.ID = "../x" }},
		{"no such lower directory", "no such file", func(s *warden.ContainerSpec) { s.Rootfs[0].Options[0] = "lowerdir=/nonesuch" }},
		{"no such sandbox", `no sandbox "s"`, func(s *warden.ContainerSpec) {
			s.Sandbox, s.Bundle.Linux.Namespaces[2].Path = "s", warden.SandboxPath
		}},
		{"unknown limit", "RLIMIT_X", func(s *warden.ContainerSpec) { s.Bundle.Process.Rlimits[0].Type = "RLIMIT_X" }},
		{"log in no directory", "open log", logTo("/nonesuch/log")},
	} {
		spec := h.spec("true", tt.change)
		_, _, err := h.client.Start(h.ctx, spec)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("start with %s: error %v; want one that says %q", tt.name, err, tt.want)
		}
	}
	spec := h.spec("sleep 1000")
	if _, _, err := h.client.Start(h.ctx, spec); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.client.Start(h.ctx, spec); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second start of the same id: %v; want AlreadyExists", err)
	}
}

// Whoever is told that a container or an exec has started may signal it: its program must be there.
func TestStartedMeansExeced(t *testing.T) {
	h := newHouse(t)
	check := func(what string, pid int) {
		t.Helper()
		if st, err := readStat(pid); err != nil || st.forked {
			t.Errorf("%s that was started: %+v, %v; want one that has exec'ed", what, st, err)
		}
	}
	for range 10 {
		st, _ := h.run("sleep 1000")
		check("container", st.Pid)
		p := *h.spec("").Bundle.Process
		p.Args = []string{"/bin/sleep", "1000"}
		exec, _, err := h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: st.ContainerID, ID: "e", Process: &p})
		if err != nil {
			t.Fatal(err)
		}
		check("exec", exec.Pid)
		h.delete(st.ContainerID)
	}
}

func TestStdinAndStdinOnce(t *testing.T) {
	h := newHouse(t)
	_, a := h.run("cat", attached, withStdin)
	want := strings.Repeat("0123456789abcdef", 20000) // more than the pipe and a packet hold
	go func() {
		a.Write([]byte(want))
		a.CloseStdin()
	}()
	if got, _ := output(t, a); got != want {
		t.Errorf("cat returned %d bytes; want the %d that went in", len(got), len(want))
	}
	// A client that leaves takes standard input with it.
	st, a := h.run("cat; echo ended", attached, withStdin)
	a.Close()
	if st := h.wait(st.ContainerID, ""); st.ExitCode != 0 {
		t.Errorf("cat whose client left: %+v; want exit 0", st)
	}
}

func TestTerminal(t *testing.T) {
	h := newHouse(t)
	st, a := h.run("stty size; read x; stty size; echo got $x", attached, withStdin, terminal)
	read(t, a, "33 101")
	if err := h.client.Resize(h.ctx, st.ContainerID, "", 40, 120); err != nil {
		t.Fatal(err)
	}
	a.Write([]byte("input\n"))
	got, _ := output(t, a)
	if !strings.Contains(got, "40 120") || !strings.Contains(got, "got input") {
		t.Errorf("terminal said %q; want the new size and the input", got)
	}
	if !st.Terminal {
		t.Error("the state does not say that there is a terminal")
	}
}

func TestExec(t *testing.T) {
	h := newHouse(t)
	st, _ := h.run("sleep 1000")
	process := func(script string) *specs.Process {
		return &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/tmp", Env: []string{"PATH=/bin", "A=b"}}
	}
	_, a, err := h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: st.ContainerID, ID: "e1", Process: process("echo $A; cat; exit 3"), Stdin: true, Attach: true})
	if err != nil {
		t.Fatal(err)
	}
	a.Write([]byte("piped"))
	a.CloseStdin()
	if got, _ := output(t, a); got != "b\npiped" {
		t.Errorf("exec said %q; want b and piped", got)
	}
	if st := h.wait(st.ContainerID, "e1"); st.ExitCode != 3 {
		t.Errorf("exec ended with %+v; want code 3", st)
	}
	// A child that the exec leaves behind holds its pipe, and must not hold up its end.
	_, a, err = h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: st.ContainerID, ID: "e2", Process: process("sleep 1000 & echo left"), Attach: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := output(t, a); got != "left\n" {
		t.Errorf("exec with a child said %q; want left", got)
	}
	p := process("stty size; kill -9 $$")
	p.Terminal, p.ConsoleSize = true, &specs.Box{Height: 12, Width: 34}
	_, a, err = h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: st.ContainerID, ID: "e3", Process: p, Attach: true})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := output(t, a); !strings.Contains(got, "12 34") {
		t.Errorf("exec with a terminal said %q; want its size", got)
	}
	if st := h.wait(st.ContainerID, "e3"); st.ExitCode != 137 || st.Signal != 9 || st.OOMKilled {
		t.Errorf("killed exec ended with %+v; want 137 by signal 9", st)
	}
	if err := h.client.DeleteExec(h.ctx, st.ContainerID, "e1"); err != nil {
		t.Error(err)
	}
	if _, err := h.client.Wait(h.ctx, st.ContainerID, "e1"); !errdefs.IsNotFound(err) {
		t.Errorf("wait for a deleted exec: %v; want NotFound", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	h := newHouse(t)
	events := h.client.Subscribe(h.ctx)
	st, _ := h.run("tail /dev/zero", memory(64<<20))
	e := nextEvent(t, events, warden.EventExit, st.ContainerID)
	if !e.OOMKilled || e.ExitCode != 137 {
		t.Errorf("exit of a container over its limit = %+v; want 137, OOMKilled", e)
	}
	// Only a child is killed: an event while the container runs on.
	st, _ = h.run("tail /dev/zero; sleep 1000", memory(64<<20))
	nextEvent(t, events, warden.EventOOM, st.ContainerID)
	if st := h.state(st.ContainerID); st.Status != warden.Running {
		t.Errorf("state = %+v; want running", st)
	}
	st, _ = h.run("kill -9 $$")
	if st := h.wait(st.ContainerID, ""); st.OOMKilled {
		t.Errorf("killed without a lack of memory: %+v; want OOMKilled false", st)
	}
}

func TestSignalPauseUpdateStats(t *testing.T) {
	h := newHouse(t)
	st, a := h.run(`trap 'echo term; exit 4' TERM; echo up; while :; do sleep 0.01; done`, attached, memory(32<<20))
	id := st.ContainerID
	read(t, a, "up")
	if err := h.client.Pause(h.ctx, id); err != nil {
		t.Fatal(err)
	}
	if st := h.state(id); st.Status != warden.Paused {
		t.Errorf("state after pause = %+v; want paused", st)
	}
	if err := h.client.Pause(h.ctx, id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second pause: %v; want FailedPrecondition", err)
	}
	if err := h.client.Resume(h.ctx, id); err != nil {
		t.Fatal(err)
	}
	limit := int64(64 << 20)
	if err := h.client.Update(h.ctx, id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	stats, err := h.client.Stats(h.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Memory.Limit != uint64(limit) || stats.Memory.Usage == 0 || stats.CPU.Total == 0 || stats.Pids.Current == 0 || stats.Pids.Limit != 100 {
		t.Errorf("stats = %+v; want the new memory limit, and memory, processor time and processes", stats)
	}
	pids, err := h.client.Processes(h.ctx, id)
	if err != nil || !slices.Contains(pids, st.Pid) {
		t.Errorf("processes = %v, %v; want %d among them", pids, err, st.Pid)
	}
	if _, _, err := h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: id, ID: "after-update", Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}}); err != nil {
		t.Errorf("exec after update: %v", err)
	}
	if err := h.client.Signal(h.ctx, id, "", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if st := h.wait(id, ""); st.ExitCode != 4 {
		t.Errorf("exit after SIGTERM = %+v; want 4", st)
	}
	if err := h.client.Signal(h.ctx, id, "", syscall.SIGTERM); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signal after the end: %v; want FailedPrecondition", err)
	}
	// A paused container can be killed and deleted.
	st, _ = h.run("sleep 1000")
	if err := h.client.Pause(h.ctx, st.ContainerID); err != nil {
		t.Fatal(err)
	}
	h.delete(st.ContainerID)
}

func TestSharedPIDNamespaceIsKilledWhole(t *testing.T) {
	h := newHouse(t)
	st, a := h.run("sleep 4321 & echo $!", attached, func(s *warden.ContainerSpec) {
		s.Bundle.Linux.Namespaces = slices.DeleteFunc(s.Bundle.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	})
	out, _ := output(t, a)
	pid, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	h.wait(st.ContainerID, "")
	waitGone(t, pid) // hangs, and fails, if it lives on
}

func TestOomScoreAndLimitsAreNotTheWardens(t *testing.T) {
	h := newHouse(t)
	_, a := h.run("cat /proc/self/oom_score_adj; ulimit -n; ls /proc/self/fd", attached)
	out, _ := output(t, a)
	if want := "0\n1024\n0\n1\n2\n3\n"; out != want {
		t.Errorf("inside: oom_score_adj, files, descriptors = %q; want %q", out, want)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", h.client.Pid()))
	if err != nil || (string(b) != "-999\n" && hasCapability(unix.CAP_SYS_RESOURCE)) {
		t.Errorf("the warden's oom_score_adj = %q, %v; want -999", b, err)
	}
	b, err = os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", h.client.Pid()))
	for line := range strings.Lines(string(b)) {
		if !strings.HasSuffix(line, h.opts.Cgroup+"\n") {
			t.Errorf("the warden is in cgroup %q, %v; want it in %s", line, err, h.opts.Cgroup)
		}
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", h.client.Pid()))
	if err != nil || !strings.HasPrefix(exe, "/memfd:") {
		t.Errorf("the warden runs from %q, %v; want a memory file", exe, err)
	}
}

// hasCapability tells whether this process, and so the warden, has the capability: containers in CI may lack some.
func hasCapability(n int) bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[n/32].Effective&(1<<(n%32)) != 0
}

func TestConcurrentStarts(t *testing.T) {
	h := newHouse(t)
	const n = 40
	var wg sync.WaitGroup
	for i := range n {
		spec := h.spec(fmt.Sprintf("exit %d", i), attached)
		wg.Go(func() {
			st, a, err := h.client.Start(h.ctx, spec)
			if err != nil {
				t.Errorf("start %d of %d: %v", i, n, err)
				return
			}
			output(t, a)
			if st, err = h.client.Wait(h.ctx, st.ContainerID, ""); err != nil || st.ExitCode != i {
				t.Errorf("container %d ended with %+v, %v; want code %d", i, st, err, i)
			}
			if err := h.client.Delete(h.ctx, st.ContainerID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSlowClientDoesNotHoldUpTheExit(t *testing.T) {
	h := newHouse(t)
	log := filepath.Join(h.dir, "log")
	// More than the attachment's buffer, less than that and the pipe's.
	st, a := h.run("yes | head -c 1200000; exit 5", attached, logTo(log))
	if st := h.wait(st.ContainerID, ""); st.ExitCode != 5 { // although nobody has read yet
		t.Errorf("ended with %+v; want 5", st)
	}
	h.delete(st.ContainerID)
	if out, _ := output(t, a); len(out) != 1200000 {
		t.Errorf("the slow client got %d bytes; want all 1200000", len(out))
	}
}

func TestTwoClientsSeeTheSame(t *testing.T) {
	h := newHouse(t)
	st, a := h.run("read x; echo one; read x; echo two", attached, withStdin)
	b, err := h.client.Attach(h.ctx, st.ContainerID, "")
	if err != nil {
		t.Fatal(err)
	}
	a.Write([]byte("\n"))
	read(t, b, "one")
	read(t, a, "one")
	a.Write([]byte("\n"))
	read(t, b, "two")
	read(t, a, "two")
}

func (h *house) state(id string) warden.ProcessState {
	h.t.Helper()
	states, err := h.client.List(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, st := range states {
		if st.ContainerID == id && st.ExecID == "" {
			return st
		}
	}
	h.t.Fatalf("container %s is not in the list", id)
	return warden.ProcessState{}
}

func TestCgroupOfAPod(t *testing.T) {
	h := newHouse(t)
	pod, limit := h.parent+"/pod1", int64(64<<20)
	if err := h.client.SetCgroup(h.ctx, pod, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	st, _ := h.run("sleep 1000", func(s *warden.ContainerSpec) { s.Bundle.Linux.CgroupsPath = pod + "/" + s.ID })
	if err := h.client.RemoveCgroup(h.ctx, pod); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a cgroup with a container: %v; want FailedPrecondition", err)
	}
	h.delete(st.ContainerID)
	paths, err := cgroupAt(pod)
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := paths.memory()
	b, err := os.ReadFile(filepath.Join(dir, "memory.limit_in_bytes"))
	if errors.Is(err, os.ErrNotExist) {
		b, err = os.ReadFile(filepath.Join(dir, "memory.max"))
	}
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(limit) {
		t.Errorf("the pod's memory limit = %q, %v; want %d, after its container is gone", b, err, limit)
	}
	if err := h.client.RemoveCgroup(h.ctx, pod); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/", "relative", "/a/../b"} {
		if err := h.client.RemoveCgroup(h.ctx, path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove cgroup %q: %v; want InvalidArgument", path, err)
		}
	}
}

func TestSeccomp(t *testing.T) {
	h := newHouse(t)
	errno := uint(unix.EOWNERDEAD)
	_, a, err := h.client.Start(h.ctx, h.spec("mkdir /tmp/x || echo refused", attached, func(s *warden.ContainerSpec) {
		s.Bundle.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow,
			Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno}},
		}
	}))
	if err != nil && strings.Contains(err.Error(), "seccomp") && strings.Contains(err.Error(), "not supported") {
		t.Skip("this test was built without -tags seccomp (libseccomp-dev)")
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, errs := output(t, a); out != "refused\n" {
		t.Errorf("output = %q, %q; want refused", out, errs)
	}
}

// TestExecIntoDyingContainer starts execs without pause while the container is killed: those that fail half-way leave nothing
// behind, least of all a member of the container's pid namespace, for which its first process would wait for ever.
func TestExecIntoDyingContainer(t *testing.T) {
	h := newHouse(t)
	for range 15 {
		st, _ := h.run("sleep 1000")
		id := st.ContainerID
		begun := make(chan struct{}, 1000)
		var execs sync.WaitGroup
		for worker := range 3 {
			execs.Go(func() {
				for i := 0; ; i++ {
					process := &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"}}
					_, _, err := h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: id, ID: fmt.Sprintf("e%d-%d", worker, i), Process: process})
					if err != nil && (errdefs.IsFailedPrecondition(err) || errdefs.IsNotFound(err) || h.ctx.Err() != nil) {
						return
					}
					begun <- struct{}{}
				}
			})
		}
		for range 4 {
			<-begun
		}
		if err := h.client.Signal(h.ctx, id, "", syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if st := h.wait(id, ""); st.ExitCode != 137 {
			t.Errorf("killed container ended with %+v; want 137", st)
		}
		execs.Wait()
		h.delete(id)
	}
	if left := childrenOf(t, h.client.Pid()); len(left) > 0 {
		t.Errorf("the warden has children left: %v", left)
	}
}

// childrenOf lists the children of a process by name and state.
func childrenOf(t *testing.T, pid int) (children []string) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("the kernel does not list the children of %d: %v", pid, err)
	}
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, child := range strings.Fields(string(b)) {
			stat, _ := os.ReadFile("/proc/" + child + "/stat")
			name, _, _ := strings.Cut(string(stat), " 0 ")
			children = append(children, name)
		}
	}
	return children
}
