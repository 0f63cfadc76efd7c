package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

// limit ends tests that hang; nothing is measured by it.
const limit = 60 * time.Second

// house is a directory with a warden in it.
type house struct {
	t      testing.TB
	dir    string
	parent string // cgroup
	lower  string
	client *warden.Client
	opts   warden.Options
	ctx    context.Context
	seq    atomic.Int64
}

var houses atomic.Int64

// newHouse starts a warden, and checks at the end that nothing of it is left.
func newHouse(t testing.TB) *house {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (apt-get install busybox-static) as the containers' program")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	dir := t.TempDir()
	h := &house{
		t: t, dir: dir, ctx: ctx, lower: filepath.Join(dir, "lower"),
		parent: fmt.Sprintf("/slipway-test-%d-%d", os.Getpid(), houses.Add(1)),
		opts: warden.Options{
			Socket: filepath.Join(dir, "w.sock"), Executable: "/proc/self/exe", StateDir: filepath.Join(dir, "state"),
			RootDir: filepath.Join(dir, "roots"), Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		},
	}
	h.opts.Cgroup = h.parent + "-warden"
	if exe := os.Getenv("SLIPWAY_TEST_WARDEN"); exe != "" { // the real, static one
		h.opts.Executable = exe
	}
	makeRoot(t, busybox, h.lower)
	h.client = h.connect()
	t.Cleanup(h.close)
	return h
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(bytes.TrimSpace(p)))
	return len(p), nil
}

func makeRoot(t testing.TB, busybox, root string) {
	t.Helper()
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "etc/plain"), nil, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "sleep", "true", "echo", "dd", "hostname", "stty", "id", "ps", "ulimit", "tail", "kill", "mkdir", "rm", "seq", "yes", "head", "test", "ls", "touch", "env", "readlink"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
}

func (h *house) connect() *warden.Client {
	h.t.Helper()
	c, err := warden.Connect(h.ctx, h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// close ends the warden and looks for leaks.
func (h *house) close() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	states, err := h.client.List(ctx)
	if err != nil {
		h.t.Errorf("list at the end: %v", err)
	}
	for _, st := range states {
		if err := h.client.Delete(ctx, st.ContainerID); err != nil {
			h.t.Errorf("delete at the end: %v", err)
		}
	}
	pid := h.client.Pid()
	if err := h.client.RemoveCgroup(ctx, h.parent); err != nil {
		h.t.Errorf("remove the parent cgroup: %v", err)
	}
	if err := h.client.Shutdown(ctx); err != nil {
		h.t.Errorf("shutdown: %v", err)
	}
	h.client.Close()
	waitGone(h.t, pid)
	h.checkLeaks()
	log, _ := os.ReadFile(filepath.Join(h.opts.StateDir, "warden.log"))
	if h.t.Failed() || bytes.Contains(log, []byte("DATA RACE")) || bytes.Contains(log, []byte("goroutine ")) {
		h.t.Errorf("warden.log:\n%s", log)
	}
}

func (h *house) checkLeaks() {
	h.t.Helper()
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte(h.dir)) {
		h.t.Errorf("mounts are left in the host's table:\n%s", mounts)
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if name := filepath.Base(h.parent); err == nil && (d.Name() == name || d.Name() == name+"-warden") {
			h.t.Errorf("cgroup %s is left", path)
		}
		return nil
	})
	for _, pat := range []string{"containers/*", "execs/*", "sandboxes/*", "runc/*"} {
		if left, _ := filepath.Glob(filepath.Join(h.opts.StateDir, pat)); len(left) > 0 {
			h.t.Errorf("records are left: %v", left)
		}
	}
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range cmdlines {
		if b, _ := os.ReadFile(f); bytes.Contains(b, []byte(h.dir)) {
			h.t.Errorf("process %s is left: %q", f, b)
		}
	}
}

// waitGone waits for a process's end, whoever its parent is.
func waitGone(t testing.TB, pid int) {
	t.Helper()
	f, err := openPidfd(pid)
	if err != nil {
		return
	}
	defer f.Close()
	waitPidfd(f, pid, 0)
}

type option func(*warden.ContainerSpec)

func logTo(path string) option {
	return func(s *warden.ContainerSpec) { s.Log = &warden.LogSpec{Path: path} }
}
func attached(s *warden.ContainerSpec)  { s.Attach = true }
func withStdin(s *warden.ContainerSpec) { s.Stdin, s.StdinOnce = true, true }
func terminal(s *warden.ContainerSpec) {
	s.Bundle.Process.Terminal = true
	s.Bundle.Process.ConsoleSize = &specs.Box{Height: 33, Width: 101}
}
func tied(s *warden.ContainerSpec) { s.Lifetime = warden.Tied }
func memory(bytes int64) option {
	return func(s *warden.ContainerSpec) {
		s.Bundle.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &bytes}
	}
}

// spec describes a container as a daemon would: five namespaces of its own, an overlay for a root, limits.
func (h *house) spec(script string, opts ...option) warden.ContainerSpec {
	h.t.Helper()
	id := fmt.Sprintf("c%d", h.seq.Add(1))
	work := filepath.Join(h.dir, "containers", id)
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o755); err != nil {
			h.t.Fatal(err)
		}
	}
	pids := int64(100)
	s := warden.ContainerSpec{
		ID:     id,
		Labels: map[string]string{"test": h.t.Name()},
		Rootfs: []warden.Mount{{Type: "overlay", Source: "overlay", Options: []string{
			"lowerdir=" + h.lower, "upperdir=" + work + "/upper", "workdir=" + work + "/work", "volatile",
		}}},
		Bundle: &specs.Spec{
			Version: specs.Version,
			Root:    &specs.Root{Path: filepath.Join(h.opts.RootDir, id)},
			Process: &specs.Process{
				Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
				Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}},
				Capabilities: &specs.LinuxCapabilities{
					Bounding: []string{"CAP_KILL", "CAP_CHOWN"}, Effective: []string{"CAP_KILL", "CAP_CHOWN"}, Permitted: []string{"CAP_KILL", "CAP_CHOWN"},
				},
			},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			},
			Hostname: "box",
			Linux: &specs.Linux{
				CgroupsPath: h.parent + "/" + id,
				Namespaces: []specs.LinuxNamespace{
					{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
					{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				},
				Resources: &specs.LinuxResources{
					Pids:    &specs.LinuxPids{Limit: &pids},
					Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				},
				MaskedPaths:   []string{"/proc/kcore"},
				ReadonlyPaths: []string{"/proc/sys"},
			},
		},
	}
	for _, o := range opts {
		o(&s)
	}
	return s
}

// run starts a container.
func (h *house) run(script string, opts ...option) (warden.ProcessState, *warden.Attachment) {
	h.t.Helper()
	st, a, err := h.client.Start(h.ctx, h.spec(script, opts...))
	if err != nil {
		h.t.Fatal(err)
	}
	return st, a
}

// output reads an attachment to its end.
func output(t testing.TB, a *warden.Attachment) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if err := a.Copy(&out, &errs); err != nil {
		t.Fatalf("read the attachment: %v (got %q)", err, out.String())
	}
	return out.String(), errs.String()
}

// read reads an attachment until its output contains want.
func read(t testing.TB, a *warden.Attachment, want string) string {
	t.Helper()
	var got strings.Builder
	for !strings.Contains(got.String(), want) {
		_, p, err := a.Next()
		if err != nil {
			t.Fatalf("waiting for %q: %v, after %q", want, err, got.String())
		}
		got.Write(p)
	}
	return got.String()
}

func (h *house) wait(id, exec string) warden.ProcessState {
	h.t.Helper()
	st, err := h.client.Wait(h.ctx, id, exec)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *house) delete(id string) {
	h.t.Helper()
	if err := h.client.Delete(h.ctx, id); err != nil {
		h.t.Fatal(err)
	}
}

// nextEvent waits for an event of the type about the process.
func nextEvent(t testing.TB, ch <-chan warden.Event, typ warden.EventType, id string) warden.Event {
	t.Helper()
	for e := range ch {
		if e.Type == typ && e.ContainerID == id {
			return e
		}
	}
	t.Fatalf("no %s event of container %s", typ, id)
	return warden.Event{}
}
