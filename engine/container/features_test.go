package container

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/volume"
)

func TestWhatAContainerSees(t *testing.T) {
	m := newMachine(t)
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("from the host\n"), 0o600)
	tests := []struct {
		name string
		spec Spec
		want string
		code int
	}{
		{"user and groups", Spec{User: "app", Cmd: []string{"id"}}, "uid=1000(app) gid=1001(app) groups=50(staff),1001(app)", 0},
		{"numeric user, extra group", Spec{User: "5:6", GroupAdd: []string{"staff"}, Cmd: []string{"id"}}, "uid=5 gid=6 groups=6,50(staff)", 0},
		{"environment", Spec{Env: []string{"A=1", "B=x y"}, Cmd: []string{"sh", "-c", "echo $A-$B-$HOSTNAME"}, Hostname: "box"}, "1-x y-box", 0},
		{"working directory is made", Spec{WorkingDir: "/a/b", Cmd: []string{"pwd"}}, "/a/b", 0},
		{"read-only root", Spec{ReadOnly: true, Cmd: []string{"touch", "/x"}}, "Read-only file system", 1},
		{"tmpfs", Spec{ReadOnly: true, Mounts: []Mount{{Type: MountTmpfs, Target: "/t", TmpfsSize: 1 << 20}}, Cmd: []string{"sh", "-c", "touch /t/x && grep ' /t ' /proc/mounts"}}, "size=1024k", 0},
		{"bind", Spec{Mounts: []Mount{{Type: MountBind, Source: secret, Target: "/run/secret", ReadOnly: true, RecursiveReadOnly: true}}, Cmd: []string{"sh", "-c", "cat /run/secret; echo x >/run/secret"}}, "from the host", 1},
		{"capabilities", Spec{Cmd: []string{"grep", "CapEff", "/proc/self/status"}}, "00000000a80425fb", 0},
		{"no capabilities", Spec{CapDrop: []string{"ALL"}, CapAdd: []string{"net_raw"}, Cmd: []string{"grep", "CapEff", "/proc/self/status"}}, "0000000000002000", 0},
		{"seccomp", Spec{Cmd: []string{"grep", "Seccomp:", "/proc/self/status"}}, "Seccomp:\t2", 0},
		{"seccomp unconfined", Spec{SecurityOpt: []string{"seccomp=unconfined", "no-new-privileges"}, Cmd: []string{"sh", "-c", "grep -e Seccomp: -e NoNewPrivs /proc/self/status"}}, "NoNewPrivs:\t1\nSeccomp:\t0", 0},
		{"hosts", Spec{Hostname: "box", Domainname: "lan", ExtraHosts: []string{"db:10.9.9.9", "up=host-gateway"}, Cmd: []string{"cat", "/etc/hosts"}}, "\tbox.lan box\n", 0},
		{"resolver", Spec{Cmd: []string{"cat", "/etc/resolv.conf"}}, "nameserver 127.0.0.11", 0},
		{"no network", Spec{NetworkMode: "none", Cmd: []string{"ip", "-o", "link"}}, "LOOPBACK,UP", 0},
		{"limits", Spec{Resources: Resources{Ulimits: []Ulimit{{"nofile", 100, 200}}}, Cmd: []string{"sh", "-c", "ulimit -n; ulimit -Hn"}}, "100\n200\n", 0},
		{"sysctl", Spec{Sysctls: map[string]string{"net.ipv4.ip_forward": "0"}, Cmd: []string{"cat", "/proc/sys/net/ipv4/ip_forward"}}, "0\n", 0},
		{"shm", Spec{Resources: Resources{ShmSize: 2 << 20}, Cmd: []string{"grep", "/dev/shm", "/proc/mounts"}}, "size=2048k", 0},
		{"privileged", Spec{Privileged: true, Cmd: []string{"sh", "-c", "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp && echo mounted"}}, "Seccomp:\t0\nmounted", 0},
		{"masked", Spec{Cmd: []string{"sh", "-c", "head -c1 /proc/kcore | wc -c; ls /proc/sys >/dev/null; echo 1 >/proc/sys/kernel/hostname"}}, "Read-only file system", 1},
		{"tty", Spec{Tty: true, Cmd: []string{"sh", "-c", "test -t 1 && echo terminal $TERM"}}, "terminal xterm", 0},
		{"oom score", Spec{Cmd: []string{"cat", "/proc/self/oom_score_adj"}}, "0\n", 0},
		{"killed by a signal", Spec{Cmd: []string{"sh", "-c", "kill -9 $$"}}, "", 137},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "killed by a signal" {
				tt.spec.Cmd = []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"} // process 1 ignores its own
			}
			out, code := m.output(tt.spec)
			out = strings.ReplaceAll(out, "\r\n", "\n")
			if !strings.Contains(out, tt.want) || code != tt.code {
				t.Errorf("it printed %q and exited with %d; want %q and %d", out, code, tt.want, tt.code)
			}
		})
	}
}

func TestMemoryLimitKills(t *testing.T) {
	m := newMachine(t)
	sub := m.bus.Subscribe(time.Unix(0, 0))
	i := m.run(Spec{Cmd: []string{"sh", "-c", "x=a; while :; do x=$x$x; done"}, Resources: Resources{Memory: 8 << 20}})
	st := m.await(i.ID, WaitNotRunning)
	if got := m.get(i.ID).State; st.Code != 137 || !got.OOMKilled {
		t.Errorf("a container over its memory limit ended with %d, OOMKilled %v; want 137, true", st.Code, got.OOMKilled)
	}
	m.until(sub, "oom")
}

func TestStopSignalsThenKills(t *testing.T) {
	m := newMachine(t)
	loop := "; echo ready; while :; do sleep 0.01; done"
	polite := m.run(Spec{StopSignal: "SIGUSR1", Cmd: []string{"sh", "-c", "trap 'exit 3' USR1" + loop}})
	m.awaitLog(polite.ID, "ready")
	if err := m.Stop(t.Context(), polite.ID, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := m.get(polite.ID).State; st.ExitCode != 3 || st.Status != StatusExited {
		t.Errorf("after its stop signal: %+v; want exited with 3", st)
	}
	if err := m.Stop(t.Context(), polite.ID, StopOptions{}); !errdefs.IsNotModified(err) {
		t.Errorf("second stop = %v; want not modified", err)
	}
	deaf := m.run(Spec{Cmd: []string{"sh", "-c", "trap '' TERM" + loop}})
	m.awaitLog(deaf.ID, "ready")
	zero := 0
	if err := m.Stop(t.Context(), deaf.ID, StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	if st := m.get(deaf.ID).State; st.ExitCode != 137 || st.OOMKilled {
		t.Errorf("after the stop of a deaf container: %+v; want 137", st)
	}
}

func TestPauseRenameUpdateRemove(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Name: "aa", Cmd: []string{"sh", "-c", "echo up; exec sleep 1000"}})
	m.awaitLine(i.ID, "up") // a container that has started need not be its program yet
	if err := m.Pause(t.Context(), "aa"); err != nil {
		t.Fatal(err)
	}
	if st := m.get("aa").State; st.Status != StatusPaused || !st.Running {
		t.Errorf("paused container: %+v", st)
	}
	if err := m.Unpause(t.Context(), "aa"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Update(t.Context(), "aa", UpdateSpec{Resources: &Resources{Memory: 64 << 20}}); err != nil {
		t.Fatal(err)
	}
	st, err := m.Stats(t.Context(), "aa")
	if err != nil || st.Memory.Limit != 64<<20 || st.Networks["eth0"].RxPackets+1 == 0 {
		t.Errorf("stats after the update: limit %d, %v; want %d", st.Memory.Limit, err, 64<<20)
	}
	if err := m.Rename(t.Context(), "aa", "bb"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Create(t.Context(), Spec{Image: "busybox", Name: "bb"}); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), i.ID) {
		t.Errorf("second container of one name = %v; want a conflict naming the first", err)
	}
	top, err := m.Top(t.Context(), "bb", "")
	if err != nil || len(top.Processes) != 1 || !strings.Contains(strings.Join(top.Processes[0], " "), "sleep 1000") {
		t.Errorf("top = %+v, %v", top, err)
	}
	if err := m.Remove(t.Context(), "bb", RemoveOptions{}); !errdefs.IsConflict(err) {
		t.Errorf("remove of a running container = %v; want a conflict", err)
	}
	if err := m.Remove(t.Context(), "bb", RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if list, _ := m.List(Filter{All: true}); len(list) != 0 {
		t.Errorf("after the removal %d containers are listed", len(list))
	}
}

func TestRestartPolicyBacksOffAndGivesUp(t *testing.T) {
	m := newMachine(t)
	sub := m.bus.Subscribe(time.Unix(0, 0))
	i := m.create(Spec{Cmd: []string{"sh", "-c", "exit 2"}, Restart: RestartPolicy{RestartOnFailure, 2}})
	ch, _ := m.Wait(t.Context(), i.ID, WaitNextExit)
	m.start(i.ID)
	if st := <-ch; st.Code != 2 {
		t.Errorf("next exit: %+v", st)
	}
	for range 3 {
		m.until(sub, "die")
	}
	m.await(i.ID, WaitNotRunning)
	if got := m.get(i.ID); got.RestartCount != 2 || got.State.Status != StatusExited {
		t.Errorf("after giving up: %d restarts, %s; want 2, exited", got.RestartCount, got.State.Status)
	}
}

func TestNextDelay(t *testing.T) {
	for _, tt := range []struct{ last, ran, want time.Duration }{
		{0, 0, 100 * time.Millisecond},
		{100 * time.Millisecond, time.Second, 200 * time.Millisecond},
		{50 * time.Second, time.Second, time.Minute},
		{time.Minute, 11 * time.Second, 100 * time.Millisecond},
	} {
		if got := nextDelay(tt.last, tt.ran); got != tt.want {
			t.Errorf("nextDelay(%v, ran %v) = %v; want %v", tt.last, tt.ran, got, tt.want)
		}
	}
}

func TestVolumesTakeTheImagesContent(t *testing.T) {
	m := newMachine(t)
	m.makeImage("data:latest", map[string]string{"srv/a": "image\n"}, func(c *dockerspec.DockerOCIImage) {
		c.Config.Volumes = map[string]struct{}{"/anon": {}}
	})
	out, _ := m.output(Spec{Image: "data", Mounts: []Mount{{Type: MountVolume, Source: "vol", Target: "/srv"}}, Cmd: []string{"sh", "-c", "cat /srv/a; echo user >/srv/a; echo x >/anon/x"}})
	if out != "image\n" {
		t.Errorf("first user of the volume saw %q; want the image's content", out)
	}
	out, _ = m.output(Spec{Image: "data", Mounts: []Mount{{Type: MountVolume, Source: "vol", Target: "/srv"}}, Cmd: []string{"cat", "/srv/a"}})
	if out != "user\n" {
		t.Errorf("second user of the volume saw %q; want what the first wrote", out)
	}
	before := len(m.Volumes.List())
	i := m.create(Spec{Image: "data", AutoRemove: true, Cmd: []string{"true"}})
	removed, _ := m.Wait(t.Context(), i.ID, WaitRemoved)
	m.start(i.ID)
	<-removed
	if after := len(m.Volumes.List()); after != before {
		t.Errorf("--rm left %d anonymous volumes", after-before)
	}
}

func TestExec(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Cmd: []string{"sleep", "1000"}, Env: []string{"A=1"}})
	id, err := m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"sh", "-c", "cat; echo $A$B; id -u >&2; exit 4"}, Env: []string{"B=2"}, User: "app", AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if err := m.ExecStart(t.Context(), id, ExecIO{Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &errs}); err != nil {
		t.Fatal(err)
	}
	info, err := m.ExecInspect(id)
	if err != nil || info.ExitCode == nil || *info.ExitCode != 4 || info.Running || out.String() != "in\n12\n" || errs.String() != "1000\n" {
		t.Errorf("exec gave %q, %q, %+v, %v", out.String(), errs.String(), info, err)
	}
	id, _ = m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"nope"}})
	err = m.ExecStart(t.Context(), id, ExecIO{})
	if info, _ := m.ExecInspect(id); err == nil || info.ExitCode == nil || *info.ExitCode != 127 {
		t.Errorf("exec of a missing command: %v, %+v; want an error and 127", err, info)
	}
	res, err := m.ExecRun(t.Context(), i.ID, ExecSpec{Cmd: []string{"echo", "0123456789"}}, 4)
	if err != nil || string(res.Output) != "0123" || !res.Truncated {
		t.Errorf("ExecRun with limit 4 = %+v, %v", res, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	id, _ = m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"sh"}, Tty: true, AttachStdin: true})
	go pw.Write([]byte{'a', 16, 17})
	if err := m.ExecStart(ctx, id, ExecIO{Stdin: pr, Stdout: io.Discard, Rows: 10, Cols: 20}); !errors.Is(err, ErrDetached) {
		t.Errorf("detach keys gave %v; want ErrDetached", err)
	}
	cancel()
}

func TestAttachBeforeStartLosesNothing(t *testing.T) {
	m := newMachine(t)
	i := m.create(Spec{Cmd: []string{"sh", "-c", "echo first; read x; echo $x; cat; echo end"}, OpenStdin: true, StdinOnce: true})
	var outs [2]bytes.Buffer
	errs, attached := make(chan error, 2), make(chan bool, 2)
	for n := range outs {
		o := AttachOptions{Stdout: &outs[n], Stderr: &outs[n], Stream: true, Attached: func() { attached <- true }}
		if n == 0 {
			o.Stdin = strings.NewReader("line\nrest\n")
		}
		go func() { errs <- m.Attach(t.Context(), i.ID, o) }()
	}
	<-attached
	<-attached
	m.start(i.ID)
	for n := range outs {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
		_ = n
	}
	for n := range outs {
		if got := outs[n].String(); got != "first\nline\nrest\nend\n" {
			t.Errorf("client %d saw %q; want everything", n, got)
		}
	}
}

func TestAttachIsSilentAboutAFailedStart(t *testing.T) {
	m := newMachine(t)
	i := m.create(Spec{Cmd: []string{"nonesuch"}})
	attached, end := make(chan bool), make(chan error, 1)
	go func() {
		end <- m.Attach(t.Context(), i.ID, AttachOptions{Stdout: io.Discard, Stream: true, Attached: func() { close(attached) }})
	}()
	<-attached
	if err := m.Start(t.Context(), i.ID); err == nil {
		t.Error("a command that is not there was started")
	}
	if err := <-end; err != nil {
		t.Errorf("attached before a start that failed: %v; want a quiet end, because the start says it", err)
	}
}

func TestAttachToRunningRefusesWhatHasEnded(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Cmd: []string{"true"}})
	m.await(i.ID, WaitNotRunning)
	err := m.Attach(t.Context(), i.ID, AttachOptions{Stdout: io.Discard, Stream: true, Running: true})
	if want := "container " + i.ID + " is not running"; err == nil || err.Error() != want || !errdefs.IsConflict(err) {
		t.Errorf("attach to a container that has ended = %v; want the conflict %q", err, want)
	}
}

// A client that asks for the log has to have its connection before the first line of it.
func TestAttachWithLogs(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Cmd: []string{"echo", "said"}})
	m.await(i.ID, WaitNotRunning)
	for _, stream := range []bool{false, true} {
		out := &lateBuffer{}
		o := AttachOptions{Stdout: out, Logs: true, Stream: stream, Attached: out.open}
		ctx, cancel := context.WithCancel(t.Context())
		out.full = cancel // a stream would wait for the next start
		if err := m.Attach(ctx, i.ID, o); err != nil && !(stream && errors.Is(err, context.Canceled)) {
			t.Errorf("stream %v: %v", stream, err)
		}
		if out.String() != "said\n" || out.opened != 1 {
			t.Errorf("stream %v: got %q after %d calls of Attached; want the log after one", stream, out, out.opened)
		}
	}
}

// lateBuffer takes nothing before it is open, as a connection that is not taken over yet.
type lateBuffer struct {
	bytes.Buffer
	opened int
	full   func()
}

func (b *lateBuffer) open() { b.opened++ }

func (b *lateBuffer) Write(p []byte) (int, error) {
	if b.opened == 0 {
		return 0, io.ErrClosedPipe
	}
	defer b.full()
	return b.Buffer.Write(p)
}

func TestHealthChecks(t *testing.T) {
	m := newMachine(t)
	sub := m.bus.Subscribe(time.Unix(0, 0))
	i := m.run(Spec{
		Cmd:         []string{"sleep", "1000"},
		Healthcheck: &Health{Test: []string{"CMD-SHELL", "echo probe; test -f /tmp/ok"}, Interval: 5 * time.Millisecond, Retries: 2},
	})
	if got := m.get(i.ID).State.Health.Status; got != HealthStarting && got != HealthUnhealthy {
		t.Errorf("health at first: %s", got)
	}
	m.until(sub, "health_status: unhealthy")
	if _, err := m.ExecRun(t.Context(), i.ID, ExecSpec{Cmd: []string{"touch", "/tmp/ok"}}, 10); err != nil {
		t.Fatal(err)
	}
	m.until(sub, "health_status: healthy")
	h := m.get(i.ID).State.Health
	if h.Status != HealthHealthy || h.FailingStreak != 0 || len(h.Log) == 0 || h.Log[0].Output != "probe\n" {
		t.Errorf("health at last: %+v", h)
	}
}

func TestFilesOfStoppedAndRunningContainers(t *testing.T) {
	m := newMachine(t)
	for _, running := range []bool{false, true} {
		i := m.create(Spec{Cmd: []string{"sleep", "1000"}, Mounts: []Mount{{Type: MountVolume, Source: "files", Target: "/vol"}}})
		if running {
			m.start(i.ID)
		}
		if err := m.CopyTo(t.Context(), i.ID, "/tmp", archiveOf(t, "d/f", "hello"), CopyToOptions{}); err != nil {
			t.Fatal(err)
		}
		r, st, err := m.CopyFrom(t.Context(), i.ID, "/tmp/d")
		if err != nil || st.Name != "d" || !st.Mode.IsDir() {
			t.Fatalf("CopyFrom (running %v) = %+v, %v", running, st, err)
		}
		if got := untar(t, r)["d/f"]; got != "hello" {
			t.Errorf("copied back (running %v): %q; want hello", running, got)
		}
		if _, err := m.StatPath(t.Context(), i.ID, "/nope"); !errdefs.IsNotFound(err) {
			t.Errorf("stat of nothing = %v; want not found", err)
		}
		ch, err := m.Changes(t.Context(), i.ID)
		if err != nil {
			t.Fatal(err)
		}
		if !hasChange(ch, Added, "/tmp/d/f") || !hasChange(ch, Modified, "/tmp") {
			t.Errorf("changes (running %v): %v", running, ch)
		}
		x, err := m.Export(t.Context(), i.ID)
		if err != nil {
			t.Fatal(err)
		}
		if all := untar(t, x); all["tmp/d/f"] != "hello" || all["etc/passwd"] == "" {
			t.Errorf("export (running %v) lacks files", running)
		}
		if running {
			out, err := m.ExecRun(t.Context(), i.ID, ExecSpec{Cmd: []string{"cat", "/tmp/d/f"}}, 100)
			if err != nil || string(out.Output) != "hello" {
				t.Errorf("inside the container: %q, %v", out.Output, err)
			}
		}
	}
}

func hasChange(all []Change, kind ChangeKind, path string) bool {
	for _, c := range all {
		if c.Kind == kind && c.Path == path {
			return true
		}
	}
	return false
}

// TestCopyStaysInside: neither the container's links nor the archive's lead out of it.
func TestCopyStaysInside(t *testing.T) {
	m := newMachine(t)
	outside := t.TempDir()
	for _, running := range []bool{false, true} {
		i := m.create(Spec{Cmd: []string{"sleep", "1000"}})
		if running {
			m.start(i.ID)
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range []*tar.Header{
			{Name: "out", Typeflag: tar.TypeSymlink, Linkname: outside},
			{Name: "up", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("../", 20) + outside},
			{Name: "out/planted", Typeflag: tar.TypeReg, Mode: 0o644},
			{Name: "up/planted", Typeflag: tar.TypeReg, Mode: 0o644},
			{Name: "../../../" + outside + "/planted", Typeflag: tar.TypeReg, Mode: 0o644},
			{Name: outside + "/planted", Typeflag: tar.TypeReg, Mode: 0o644},
		} {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		if err := m.CopyTo(t.Context(), i.ID, "/tmp", &b, CopyToOptions{}); err != nil {
			t.Log("refused:", err)
		}
		if entries, _ := os.ReadDir(outside); len(entries) > 0 {
			t.Fatalf("running %v: %s was planted on the host", running, entries[0].Name())
		}
		os.WriteFile(filepath.Join(outside, "host-secret"), []byte("s"), 0o600)
		if r, _, err := m.CopyFrom(t.Context(), i.ID, "/tmp/out/host-secret"); err == nil {
			t.Errorf("running %v: read %v of the host through a link", running, untar(t, r))
		}
		os.Remove(filepath.Join(outside, "host-secret"))
	}
}

// A client that creates execs and starts none must not fill the daemon's memory.
func TestExecsThatAreNeverStartedAreForgotten(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{Cmd: []string{"sleep", "1000"}})
	first, err := m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	for range keptExecs + waitingExecs {
		if _, err := m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"true"}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.ExecInspect(first); !errdefs.IsNotFound(err) {
		t.Errorf("the first of too many execs = %v; want not found", err)
	}
	last, err := m.ExecCreate(t.Context(), i.ID, ExecSpec{Cmd: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.ExecStart(t.Context(), last, ExecIO{}); err != nil {
		t.Errorf("the newest exec does not start: %v", err)
	}
}

// Docker's API takes archives compressed or not, and testcontainers sends them with gzip.
func TestCopyOfACompressedArchive(t *testing.T) {
	m := newMachine(t)
	i := m.create(Spec{Cmd: []string{"true"}})
	plain, err := io.ReadAll(archiveOf(t, "f", "hello"))
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	cut := bytes.NewReader(packed.Bytes()[:packed.Len()/2])
	if err := m.CopyTo(t.Context(), i.ID, "/tmp", cut, CopyToOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("CopyTo of half an archive = %v; want an invalid argument", err)
	}
	if err := m.CopyTo(t.Context(), i.ID, "/tmp", &packed, CopyToOptions{}); err != nil {
		t.Fatal(err)
	}
	r, _, err := m.CopyFrom(t.Context(), i.ID, "/tmp/f")
	if err != nil {
		t.Fatal(err)
	}
	if got := untar(t, r)["f"]; got != "hello" {
		t.Errorf("f holds %q; want hello", got)
	}
}

func archiveOf(t *testing.T, name, content string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte(content))
	w.Close()
	return &b
}

func untar(t *testing.T, r io.ReadCloser) map[string]string {
	t.Helper()
	defer r.Close()
	out := map[string]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(tr)
		out[h.Name] = string(b)
	}
}

func TestChangesAndCommit(t *testing.T) {
	m := newMachine(t)
	idle := m.create(Spec{Cmd: []string{"true"}})
	m.start(idle.ID)
	m.await(idle.ID, WaitNotRunning)
	if ch, err := m.Changes(t.Context(), idle.ID); err != nil || len(ch) != 0 {
		t.Errorf("changes of a container that changed nothing: %v, %v", ch, err)
	}
	i := m.create(Spec{Cmd: []string{"sh", "-c", "echo new >/etc/new; rm /etc/passwd; chmod 700 /root"}})
	m.start(i.ID)
	m.await(i.ID, WaitNotRunning)
	ch, err := m.Changes(t.Context(), i.ID)
	if err != nil || len(ch) != 4 || !hasChange(ch, Added, "/etc/new") || !hasChange(ch, Deleted, "/etc/passwd") || !hasChange(ch, Modified, "/root") || !hasChange(ch, Modified, "/etc") {
		t.Errorf("changes: %v, %v", ch, err)
	}
	ctx, done, err := m.images.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	chain, err := m.Commit(ctx, i.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	img, err := m.images.Get(ctx, "busybox")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.images.WriteImage(ctx, img.RawConfig, chain, []string{"committed:latest"}); err != nil {
		t.Fatal(err)
	}
	out, code := m.output(Spec{Image: "committed", Cmd: []string{"sh", "-c", "cat /etc/new; ls /etc/passwd /etc/hosts"}})
	if !strings.Contains(out, "new\n") || !strings.Contains(out, "/etc/passwd: No such file") || code == 0 {
		t.Errorf("a container of the committed image: %q, %d", out, code)
	}
}

func TestRestartOfAutoRemoveAndRemovalOfARestarting(t *testing.T) {
	m := newMachine(t)
	zero := 0
	i := m.run(Spec{AutoRemove: true, Cmd: []string{"sleep", "1000"}})
	if err := m.Restart(t.Context(), i.ID, StopOptions{Timeout: &zero}); err != nil {
		t.Fatal(err)
	}
	if !m.get(i.ID).State.Running {
		t.Error("an --rm container did not survive its restart")
	}
	sub := m.bus.Subscribe(time.Unix(0, 0))
	loop := m.run(Spec{Cmd: []string{"false"}, Restart: RestartPolicy{Policy: RestartAlways}})
	for range 3 {
		for m.until(sub, "die").Actor.ID != loop.ID {
		}
	}
	if err := m.Stop(t.Context(), loop.ID, StopOptions{}); err != nil && !errdefs.IsNotModified(err) {
		t.Fatal(err)
	}
	if st := m.await(loop.ID, WaitNotRunning); st.Code != 1 {
		t.Errorf("a stopped restart loop: %+v", st)
	}
	m.start(loop.ID)
	if err := m.Remove(t.Context(), loop.ID, RemoveOptions{Force: true}); err != nil {
		t.Errorf("forced removal of a restart loop: %v", err)
	}
}

// Where mounts do not propagate, the warden does not see by itself what was mounted after its start.
func TestMountsThatCameAfterTheWarden(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	for _, at := range []string{dir, dir + "/sub"} {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(at, unix.MNT_DETACH)
		if err := os.WriteFile(at+"/f", []byte("there "), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, code := m.output(Spec{Cmd: []string{"cat", "/d/f", "/d/sub/f", "/file"}, Mounts: []Mount{
		{Type: MountBind, Source: dir, Target: "/d"}, {Type: MountBind, Source: dir + "/f", Target: "/file"},
	}})
	if out != "there there there " || code != 0 {
		t.Errorf("what was mounted late: %q, %d; want it three times", out, code)
	}

	options := map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
	if _, err := m.Volumes.Create(t.Context(), volume.Spec{Name: "fast", Options: options}); err != nil {
		t.Fatal(err)
	}
	fast := []Mount{{Type: MountVolume, Source: "fast", Target: "/v"}}
	writer := m.run(Spec{Cmd: []string{"sh", "-c", "echo shared >/v/f; echo done; sleep 1000"}, Mounts: fast})
	m.awaitLog(writer.ID, "done")
	if out, code := m.output(Spec{Cmd: []string{"cat", "/v/f"}, Mounts: fast}); out != "shared\n" || code != 0 {
		t.Errorf("a second container of a tmpfs volume: %q, %d; want what the first wrote", out, code)
	}
	if left, err := os.ReadDir(m.dir + "/subpaths"); err != nil || len(left) != 0 {
		t.Errorf("after the starts %v, %v are left; want nothing", left, err)
	}
}

// waiting is a context that tells when an operation begins to wait for a container's lock.
type waiting struct {
	context.Context
	once  sync.Once
	begun chan struct{}
}

func (w *waiting) Done() <-chan struct{} {
	w.once.Do(func() { close(w.begun) })
	return w.Context.Done()
}

// What waits for a container that is being removed must not bring its names back: a name
// without its container would be nobody's, and found.
func TestOperationsThatWaitForARemoval(t *testing.T) {
	m := newMachine(t)
	for name, op := range map[string]func(ctx context.Context) error{
		"rename": func(ctx context.Context) error { return m.Rename(ctx, "aa", "bb") },
		"update": func(ctx context.Context) error {
			_, err := m.Update(ctx, "aa", UpdateSpec{Resources: &Resources{Memory: 64 << 20}})
			return err
		},
		"pause":   func(ctx context.Context) error { return m.Pause(ctx, "aa") },
		"connect": func(ctx context.Context) error { return m.Connect(ctx, "aa", "bridge", EndpointSpec{}) },
	} {
		t.Run(name, func(t *testing.T) {
			c, err := m.find(m.create(Spec{Name: "aa"}).ID)
			if err != nil {
				t.Fatal(err)
			}
			unlock, err := c.lock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ctx := &waiting{Context: t.Context(), begun: make(chan struct{})}
			ended := make(chan error)
			go func() { ended <- op(ctx) }()
			<-ctx.begun
			m.removeLocked(c, false)
			unlock()
			if err := <-ended; !errdefs.IsNotFound(err) {
				t.Errorf("%s of a container that is removed meanwhile: %v; want that it is not found", name, err)
			}
			for _, name := range []string{"aa", "bb"} {
				if c, err := m.find(name); !errdefs.IsNotFound(err) {
					t.Errorf("%s is found: %v, %v", name, c, err)
				}
			}
		})
	}
}
