package build_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/build/run"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/engine/warden"
	"slipway.dev/slipway/engine/warden/wardentest"
)

// TestMain moves the tests, and the wardens that they start, into a network namespace of
// their own: their bridges are nobody else's business.
func TestMain(m *testing.M) {
	code := networktest.Run(m)
	wardentest.Remove()
	os.Exit(code)
}

// withRunner lets builds run programs: a warden and a network, both real. change may put something before the warden.
func withRunner(t testing.TB, change ...func(*run.Options)) func(*build.Options) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("runs real containers: run as root")
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		t.Skip("needs a static busybox at /bin/busybox (package busybox-static)")
	}
	dir := t.TempDir()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil))
	h := fnv.New32a()
	h.Write([]byte(dir))
	instance := fmt.Sprintf("%06x", h.Sum32()&0xffffff)
	client, err := warden.Connect(ctx, warden.Options{
		Socket: filepath.Join(dir, "w.sock"), Executable: wardentest.Program(t), StateDir: filepath.Join(dir, "state"), RootDir: filepath.Join(dir, "roots"), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	networks, err := network.Open(ctx, network.Options{Dir: filepath.Join(dir, "network"), Instance: instance, FDs: client, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if boxes, err := client.Sandboxes(ctx); err != nil || len(boxes) > 0 {
			t.Errorf("steps left namespaces %v (%v)", boxes, err)
		}
		if err := networks.Teardown(ctx); err != nil {
			t.Errorf("tear networks down: %v", err)
		}
		if err := client.Shutdown(ctx); err != nil {
			t.Errorf("shut the warden down: %v", err)
		}
		client.Close()
		checkCgroups(t, instance)
		for _, left := range []string{dir + "/roots/*", dir + "/run/steps/*", "/dev/shm/slipway-" + instance + "*"} {
			if found, _ := filepath.Glob(left); len(found) > 0 {
				t.Errorf("steps left %v", found)
			}
		}
	})
	opts := run.Options{
		Dir: filepath.Join(dir, "run"), Rootfs: filepath.Join(dir, "roots"), Instance: instance, Warden: client, Networks: networks, Log: log,
	}
	for _, c := range change {
		c(&opts)
	}
	runner, err := run.New(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	return func(o *build.Options) { o.Runner = runner }
}

// checkCgroups fails the test when steps left cgroups, and removes the parents.
func checkCgroups(t testing.TB, instance string) {
	for _, base := range []string{"/sys/fs/cgroup/*/slipway-", "/sys/fs/cgroup/slipway-"} {
		left, _ := filepath.Glob(base + instance + "/build/*/cgroup.procs")
		if len(left) > 0 {
			t.Errorf("cgroups are left behind: %v", left)
		}
		for _, sub := range []string{"/build", ""} {
			dirs, _ := filepath.Glob(base + instance + sub)
			for _, d := range dirs {
				os.Remove(d)
			}
		}
	}
}

func owner(st os.FileInfo) (uid, gid int) {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return -1, -1
	}
	return int(s.Uid), int(s.Gid)
}

var busyboxOnce = sync.OnceValue(func() string {
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return ""
	}
	return string(data)
})

var removeOptions = image.RemoveOptions{Force: true}
