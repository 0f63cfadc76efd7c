package container

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What a commit takes out of the copied layer is in the copy, whatever links the container made.
func TestCommitRemovesNothingOfTheHost(t *testing.T) {
	host, src, dst := t.TempDir(), t.TempDir(), t.TempDir()
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(host, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(host, filepath.Join(src, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := copyLayer(dst, src); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{host: 3, dst: 1} {
		if left, err := os.ReadDir(name); err != nil || len(left) != want {
			t.Errorf("%s has %v (%v); want %d entries", name, left, err, want)
		}
	}
}

// A link that a container left is no way to write where the container itself cannot.
func TestCopyRespectsReadOnly(t *testing.T) {
	m := newMachine(t)
	host := t.TempDir()
	for _, running := range []bool{false, true} {
		i := m.create(Spec{
			Cmd: []string{"sh", "-c", "ln -s /ro /rw/to-ro; ln -s /etc /rw/to-root; echo ready; exec sleep 1000"}, ReadOnly: true,
			Mounts: []Mount{
				{Type: MountBind, Source: host, Target: "/ro", ReadOnly: true},
				{Type: MountVolume, Source: "writable", Target: "/rw"},
			},
		})
		m.start(i.ID)
		m.awaitLine(i.ID, "ready")
		if !running {
			if err := m.Kill(t.Context(), i.ID, "KILL"); err != nil {
				t.Fatal(err)
			}
			m.await(i.ID, WaitNotRunning)
		}
		for _, to := range []string{"/rw/to-ro", "/rw/to-root"} {
			err := m.CopyTo(t.Context(), i.ID, to, archiveOf(t, "planted", "x"), CopyToOptions{})
			if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("running %v: copy to %s: %v; want it refused", running, to, err)
			}
		}
		if _, err := os.Lstat(filepath.Join(host, "planted")); !os.IsNotExist(err) {
			t.Errorf("running %v: a file was made in a read-only mount", running)
		}
		if err := m.CopyTo(t.Context(), i.ID, "/rw", archiveOf(t, "welcome", "x"), CopyToOptions{}); err != nil {
			t.Errorf("running %v: copy to the writable volume: %v", running, err)
		}
	}
}

func (m *machine) awaitLine(ref, line string) {
	m.t.Helper()
	logs, err := m.Logs(m.t.Context(), ref, LogOptions{Stdout: true, Follow: true, Tail: -1})
	if err != nil {
		m.t.Fatal(err)
	}
	defer logs.Close()
	for {
		e, err := logs.Next()
		if err != nil {
			m.t.Fatalf("container %s ended without printing %q: %v", ref, line, err)
		}
		if string(e.Line) == line+"\n" {
			return
		}
	}
}

// TestVolumeSubpath mounts a part of a volume, which links in the volume cannot make a part of the machine.
func TestVolumeSubpath(t *testing.T) {
	m := newMachine(t)
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "secret"), []byte("of the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	whole := Mount{Type: MountVolume, Source: "vol", Target: "/vol"}
	m.output(Spec{Mounts: []Mount{whole}, Cmd: []string{"sh", "-c", "mkdir -p /vol/a/b; echo part >/vol/a/b/f; ln -s a/b /vol/inner; ln -s " + host + " /vol/outer"}})
	part := func(sub string) Spec {
		return Spec{Mounts: []Mount{{Type: MountVolume, Source: "vol", Target: "/part", Subpath: sub}}, Cmd: []string{"sh", "-c", "cat /part/* /part 2>/dev/null; true"}}
	}
	for _, sub := range []string{"a/b", "a/b/f", "inner"} {
		if out, code := m.output(part(sub)); out != "part\n" || code != 0 {
			t.Errorf("subpath %s shows %q, code %d; want the volume's part", sub, out, code)
		}
	}
	for _, sub := range []string{"outer", "outer/secret", "absent"} {
		i := m.create(part(sub))
		if err := m.Start(t.Context(), i.ID); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "cannot access path") {
			t.Errorf("subpath %s: %v; want it refused", sub, err)
		}
	}
	if left, err := os.ReadDir(m.subpaths()); err != nil || len(left) > 0 {
		t.Errorf("places for parts of volumes are left: %v, %v", left, err)
	}
	if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), m.subpaths()+"/") {
		t.Errorf("mounts of parts of volumes are left (%v)", err)
	}
}

// Groups that only the image's /etc/group gives its user are left out where somebody asked for that, also of an exec.
func TestStrictGroups(t *testing.T) {
	m := newMachine(t)
	i := m.run(Spec{User: "app", GroupAdd: []string{"77"}, StrictGroups: true, Cmd: []string{"sh", "-c", "id -G; echo said; exec sleep 1000"}})
	m.awaitLine(i.ID, "said")
	if got, want := m.logs(i.ID), "1001 77\n"; !strings.HasPrefix(got, want) {
		t.Errorf("the container's groups are %q; want %q", got, want)
	}
	out, err := m.ExecRun(t.Context(), i.ID, ExecSpec{Cmd: []string{"id", "-G"}}, 100)
	if err != nil || string(out.Output) != "1001 77\n" {
		t.Errorf("an exec's groups are %q, %v; want 1001 77", out.Output, err)
	}
}

// A container that nests directories deeper than paths can say is removed to the last file, and copied only so far.
func TestAbyss(t *testing.T) {
	m := newMachine(t)
	i := m.create(Spec{Cmd: []string{"true"}})
	upper := filepath.Join(m.dir, "containers", i.ID, "upper")
	at, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth + 1000 {
		err := unix.Mkdirat(at, "d", 0o755)
		next := -1
		if err == nil {
			next, err = unix.Openat(at, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	unix.Close(at)
	out, _, err := m.CopyFrom(t.Context(), i.ID, "/d")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, out); err == nil || !strings.Contains(err.Error(), "nested more than") {
		t.Errorf("the copy ended with %v; want it refused", err)
	}
	out.Close()
	if err := m.Remove(t.Context(), i.ID, RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	m.Drain()
	if _, err := os.Lstat(upper); !os.IsNotExist(err) {
		t.Errorf("after its removal: %v; want nothing left", err)
	}
}

// An account file may be anything that the container made of it: what is no file is not opened, so that nobody waits for
// the other end of a pipe, nor reads a device.
func TestAccountsAreReadFromFilesOnly(t *testing.T) {
	for kind, mode := range map[string]uint32{"device": unix.S_IFCHR, "pipe": unix.S_IFIFO} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		passwd := filepath.Join(dir, "etc/passwd")
		if err := unix.Mknod(passwd, mode|0o600, int(unix.Mkdev(1, 5))); err != nil { // the device of zeros
			t.Skipf("needs root: %v", err)
		}
		at, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer at.Close()
		if f, err := (accounts{&root{at}}).open("/etc/passwd"); err == nil {
			f.Close()
			t.Errorf("a %s as /etc/passwd was opened; want it refused", kind)
		}
		if text, err := readAccounts(layers{dir}, "/etc/passwd"); text != "" || err != nil {
			t.Errorf("a %s as /etc/passwd reads as %d bytes, %v; want it to be as good as empty", kind, len(text), err)
		}
	}
}
