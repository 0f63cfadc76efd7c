package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

// diskSize leaves room for little more than an empty daemon.
const diskSize = "size=320m"

// smallDisk puts a daemon's data directory on a file system that is soon full.
func smallDisk(t *testing.T) *harness.Daemon {
	t.Helper()
	harness.Binaries(t)
	mount, err := os.MkdirTemp("", "slipway-disk")
	if err != nil {
		t.Fatal(err)
	}
	// Cleanups run backwards: the daemon is torn down before its disk goes.
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
		os.Remove(mount)
	})
	if err := unix.Mount("small", mount, "tmpfs", 0, diskSize); err != nil {
		t.Fatal(err)
	}
	d := harness.New(t)
	d.Data = filepath.Join(mount, "data")
	d.Launch()
	return d
}

// fill writes until not a byte more fits, and returns how to undo that.
func fill(t *testing.T, d *harness.Daemon) (empty func()) {
	t.Helper()
	path := filepath.Join(filepath.Dir(d.Data), "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	f.Close()
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDisk: what needs room says that there is none, what needs none goes on, and nothing is damaged.
func TestFullDisk(t *testing.T) {
	networktest.NewMachine(t)
	d := smallDisk(t)
	d.BaseImage(t)
	d.Namespace(t, ns)
	d.Kubectl(t, "create", "configmap", "-n", ns, "before", "--from-literal=a=b")
	d.Docker(t, "volume", "create", "before")
	d.Docker(t, "run", "-d", "--name", "counter", "-v", "before:/data", harness.Base, "sh", "-c", count)
	d.Docker(t, "tag", harness.Base, "spare:1")
	archive := filepath.Join(t.TempDir(), "spare.tar")
	d.Docker(t, "save", "-o", archive, "spare:1")
	process := d.Record.PID

	empty := fill(t, d)
	for _, tt := range []struct {
		want    string
		program string
		args    []string
	}{
		{"is full (0 MB are free, and 64 are kept back so that nothing is damaged): remove images or files", "kubectl", []string{"create", "configmap", "-n", ns, "during", "--from-literal=a=b"}},
		{"is full (0 MB are free", "kubectl", []string{"run", "-n", ns, "during", "--image", harness.Base}},
		{"volume.json: no space left on device", "docker", []string{"volume", "create", "during"}},
		{"no space left on device", "docker", []string{"network", "create", "during"}},
		{"no space left on device", "docker", []string{"load", "-i", archive}},
		{"no space left on device", "docker", []string{"cp", archive, "counter:/"}},
		{"No space left on device", "docker", []string{"exec", "counter", "sh", "-c", "echo x >/data/x"}},
	} {
		if r := d.Try(t, "", tt.program, tt.args...); r.Code == 0 || !strings.Contains(r.Stderr+r.Stdout, tt.want) {
			t.Errorf("on a full disk: %v\nwant an error with %q", r, tt.want)
		}
	}
	if _, err := d.Build(t.Context(), "during:1", map[string]string{"Dockerfile": "FROM " + harness.Base + "\nCOPY file /\n", "file": strings.Repeat("x", 1<<20)}); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a build on a full disk: %v", err)
	}
	if got := strings.TrimSpace(d.Docker(t, "exec", "counter", "echo", "inside")); got != "inside" {
		t.Errorf("exec on a full disk says %q", got)
	}
	d.Kubectl(t, "get", "configmap", "-n", ns, "before")
	d.Docker(t, "ps")
	if d.Record.PID != process {
		t.Errorf("the daemon was process %d and is %d", process, d.Record.PID)
	}

	d.Docker(t, "rmi", "spare:1") // to make room, one has to be able to remove
	empty()
	back(t, d)
	d.Restart()
	back(t, d)
	for _, kind := range []string{"configmap", "pod"} {
		if names := d.Kubectl(t, "get", kind, "-n", ns, "-o", "name"); strings.Contains(names, "during") {
			t.Errorf("%s was refused and is there", names)
		}
	}
	if names := d.Docker(t, "volume", "ls", "-q") + d.Docker(t, "network", "ls", "--format", "{{.Name}}") + d.Docker(t, "images"); strings.Contains(names, "during") {
		t.Errorf("something was refused and is there:\n%s", names)
	}
}

// TestKilledOnAFullDisk: a daemon that cannot start says why, leaves nobody waiting, and starts when it can.
func TestKilledOnAFullDisk(t *testing.T) {
	networktest.NewMachine(t)
	d := smallDisk(t)
	d.BaseImage(t)
	d.Namespace(t, ns)
	d.Kubectl(t, "create", "configmap", "-n", ns, "before", "--from-literal=a=b")
	d.Docker(t, "volume", "create", "before")
	d.Docker(t, "run", "-d", "--name", "counter", "-v", "before:/data", harness.Base, "sh", "-c", count)
	empty := fill(t, d)
	d.Kill()
	r := d.Try(t, "", "slipway", "serve", "--data-dir", d.Data, "--api-port", fmt.Sprint(d.Record.APIPort), "--registry-port", fmt.Sprint(d.Record.RegistryPort))
	if want := "is full (0 MB are free, and 64 are needed to start): remove files from it, and start the daemon again"; r.Code != 1 || !strings.Contains(r.Stderr, want) {
		t.Errorf("%v\nwant exit code 1 and an error with %q", r, want)
	}
	if r := d.Try(t, "", "docker", "ps"); r.Code == 0 || !strings.Contains(r.Stderr, "Cannot connect to the Docker daemon") {
		t.Errorf("after a start that failed: %v\nwant to hear that there is no daemon", r)
	}
	empty()
	d.Launch()
	back(t, d)
	d.Try(t, "", "docker", "exec", "counter", "touch", "/end") // dies with the container, or ends before
	if code := strings.TrimSpace(d.Docker(t, "wait", "counter")); code != "7" {
		t.Errorf("the exit code of a container that ran on meanwhile is %s; want 7", code)
	}
}

// back checks that a disk with room is written to again, and that what was there before is.
func back(t *testing.T, d *harness.Daemon) {
	t.Helper()
	d.Kubectl(t, "get", "configmap", "-n", ns, "before")
	d.Kubectl(t, "delete", "configmap", "-n", ns, "after", "--ignore-not-found")
	d.Kubectl(t, "create", "configmap", "-n", ns, "after", "--from-literal=a=b")
	d.Docker(t, "exec", "counter", "sh", "-c", "echo x >/data/x")
	if got := strings.TrimSpace(d.Docker(t, "run", "--rm", "-v", "before:/data", harness.Base, "cat", "/data/x")); got != "x" {
		t.Errorf("the volume holds %q; want x", got)
	}
	d.Docker(t, "volume", "create", "after")
	if _, err := d.Build(t.Context(), "after:1", map[string]string{"Dockerfile": fmt.Sprintf("FROM %s\nRUN echo %d >/after\n", harness.Base, d.Record.PID)}); err != nil {
		t.Errorf("a build once there is room again: %v", err)
	}
}
