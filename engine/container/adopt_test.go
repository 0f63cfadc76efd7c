package container

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
	"slipway.dev/slipway/engine/warden/wardentest"
)

// crash ends the manager without any of its goodbyes, and opens another over the same
// directories and warden.
func (m *machine) crash() {
	m.t.Helper()
	m.cancel(errClosed) // no more events, no more writes
	m.tasks.Wait()
	m.reaper.close()
	m.files.close()
	m.closeRest()
}

func TestRunningContainersAreAdopted(t *testing.T) {
	m := newMachine(t)
	run := m.run(Spec{Name: "web", Cmd: []string{"sh", "-c", "echo before; read x; echo got $x; exit 5"}, OpenStdin: true})
	ended := m.run(Spec{Name: "short", Cmd: []string{"sh", "-c", "read x; exit 9"}, OpenStdin: true})
	made := m.create(Spec{Name: "made", Labels: map[string]string{"a": "b"}})
	if err := m.Rename(t.Context(), "made", "renamed"); err != nil {
		t.Fatal(err)
	}
	m.crash()
	if err := m.client.Close(); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Log(err)
	}
	m.open()

	got := m.get("web")
	if got.ID != run.ID || !got.State.Running || got.State.Pid != run.State.Pid {
		t.Fatalf("after the restart web is %+v; want it running on as pid %d", got.State, run.State.Pid)
	}
	if got.Endpoints["bridge"].Addr != run.Endpoints["bridge"].Addr {
		t.Errorf("address after the restart %v; want %v", got.Endpoints["bridge"].Addr, run.Endpoints["bridge"].Addr)
	}
	if got := m.get("renamed"); got.ID != made.ID || got.Spec.Labels["a"] != "b" || got.Args == nil && got.Path == "" {
		t.Errorf("a created and renamed container came back as %+v", got)
	}
	for _, x := range []struct {
		id   string
		code int
	}{{run.ID, 5}, {ended.ID, 9}} {
		ch, err := m.Wait(t.Context(), x.id, WaitNotRunning)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Attach(t.Context(), x.id, AttachOptions{Stdin: strings.NewReader("hello\n"), Stream: true}); err != nil {
			t.Fatal(err)
		}
		if st := <-ch; st.Code != x.code {
			t.Errorf("exit after adoption: %+v; want %d", st, x.code)
		}
	}
	if out := m.logs(run.ID); !strings.Contains(out, "before\n") || !strings.Contains(out, "got hello\n") {
		t.Errorf("log over the restart is %q; want both lines", out)
	}
}

func TestExitsDuringTheDaemonsAbsenceAreReported(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Name: "job", Cmd: []string{"sh", "-c", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done"}})
	gone := m.run(Spec{Name: "tmp", AutoRemove: true, Cmd: []string{"sleep", "1000"}})
	m.awaitLog(i.ID, "ready")
	m.crash()

	other, err := warden.Connect(t.Context(), warden.Options{Socket: m.dir + "/w.sock", Executable: wardentest.Program(t), StateDir: m.dir + "/warden", RootDir: m.dir + "/rootfs"})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		id  string
		sig int
	}{{i.ID, 15}, {gone.ID, 9}} {
		if err := other.Signal(t.Context(), x.id, "", syscall.Signal(x.sig)); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Wait(t.Context(), x.id, ""); err != nil {
			t.Fatal(err)
		}
	}
	// A container that nobody knows, as after a crash between the warden's start and ours.
	stray := wardenStray(t, other, i.ID)
	other.Close()
	m.open()

	if st := m.await(i.ID, WaitNotRunning); st.Code != 4 {
		t.Errorf("exit code found after the restart: %d; want 4", st.Code)
	}
	if _, err := m.Get("tmp"); !errdefs.IsNotFound(err) {
		t.Errorf("an --rm container that ended meanwhile is still there: %v", err)
	}
	m.Drain()
	list, err := m.client.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.ContainerID == stray {
			t.Errorf("the unknown container still exists: %+v", p)
		}
	}
}

func TestRestartPoliciesOverDaemonRestart(t *testing.T) {
	m := newMachine(t)
	sleep := []string{"sleep", "1000"}
	for _, p := range []string{RestartAlways, RestartUnlessStopped, RestartOnFailure} {
		m.run(Spec{Name: "c-" + p, Cmd: sleep, Restart: RestartPolicy{Policy: p}})
	}
	zero := 0
	for _, p := range []string{RestartAlways, RestartUnlessStopped} {
		if err := m.Stop(t.Context(), "c-"+p, StopOptions{Timeout: &zero}); err != nil {
			t.Fatal(err)
		}
	}
	m.stopDaemon()
	m.open()
	m.tasksIdle()
	for p, want := range map[string]bool{RestartAlways: true, RestartUnlessStopped: false, RestartOnFailure: true} {
		if got := m.get("c-" + p).State.Running; got != want {
			t.Errorf("policy %s: running after stop and daemon restart = %v; want %v", p, got, want)
		}
	}
}

func wardenStray(t *testing.T, w *warden.Client, like string) string {
	t.Helper()
	id, root := strings.Repeat("ab", 32), t.TempDir()
	b, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"bin", "dev", "proc"} {
		os.Mkdir(filepath.Join(root, d), 0o755)
	}
	os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)
	_, _, err = w.Start(t.Context(), warden.ContainerSpec{
		ID: id, Labels: map[string]string{labelRoom: roomName, labelRun: "1"},
		Bundle: &specs.Spec{
			Version: specs.Version, Root: &specs.Root{Path: root}, Process: &specs.Process{Args: []string{"/bin/busybox", "sleep", "1000"}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
			Linux:  &specs.Linux{CgroupsPath: "/slipway-stray-" + like[:12], Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}, Resources: &specs.LinuxResources{}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// awaitLog waits until a line is in the log.
func (m *machine) awaitLog(ref, want string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r, err := m.Logs(ctx, ref, LogOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true})
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	for {
		e, err := r.Next()
		if err != nil {
			m.t.Fatalf("log of %s ended before %q: %v", ref, want, err)
		}
		if strings.Contains(string(e.Line), want) {
			return
		}
	}
}

// tasksIdle waits until the starts at boot are decided.
func (m *machine) tasksIdle() {
	for _, c := range m.all() {
		if s := c.saved(); wantedAtBoot(c.spec().Restart, s) && !s.State.Running {
			sub := m.bus.Subscribe(time.Unix(0, 0))
			for {
				if e := m.until(sub, "start"); e.Actor.ID == c.id {
					break
				}
			}
		}
	}
}
