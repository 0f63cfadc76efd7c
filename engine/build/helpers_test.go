package build_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/build/run"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

const netnsEnv = "SLIPWAY_TEST_IN_NETNS"

// TestMain moves the tests, and the wardens that they start, into a network namespace of
// their own: their bridges are nobody else's business.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 && os.Getenv(netnsEnv) == "" {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), netnsEnv+"=1"))
		}
		fmt.Fprintln(os.Stderr, "tests of engine/build need a network namespace:", err)
		os.Exit(1)
	}
	if os.Getuid() == 0 {
		if err := netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}}); err != nil {
			fmt.Fprintln(os.Stderr, "bring up loopback:", err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if wardenDir != "" {
		os.RemoveAll(wardenDir)
	}
	os.Exit(code)
}

var (
	wardenDir  string
	wardenOnce sync.Once
	wardenErr  error
)

// wardenProgram builds the real warden, once.
func wardenProgram(t testing.TB) string {
	t.Helper()
	wardenOnce.Do(func() {
		if wardenDir, wardenErr = os.MkdirTemp("", "slipway-warden-"); wardenErr != nil {
			return
		}
		cmd := exec.Command("go", "build", "-tags", "seccomp netgo osusergo", "-ldflags", "-s -w -extldflags -static",
			"-o", filepath.Join(wardenDir, "slipway-warden"), "slipway.dev/slipway/cmd/slipway-warden")
		if out, err := cmd.CombinedOutput(); err != nil {
			wardenErr = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if wardenErr != nil {
		t.Fatalf("build the warden (it needs gcc and libseccomp's headers): %v", wardenErr)
	}
	return filepath.Join(wardenDir, "slipway-warden")
}

// withRunner lets builds run programs: a warden and a network, both real.
func withRunner(t testing.TB) func(*build.Options) {
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
		Socket: filepath.Join(dir, "w.sock"), Executable: wardenProgram(t), StateDir: filepath.Join(dir, "state"), RootDir: filepath.Join(dir, "roots"), Log: log,
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
	runner, err := run.New(ctx, run.Options{
		Dir: filepath.Join(dir, "run"), Rootfs: filepath.Join(dir, "roots"), Instance: instance, Warden: client, Networks: networks, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(o *build.Options) { o.Runner = runner }
}

// checkCgroups fails the test when steps left cgroups, and removes the parents.
func checkCgroups(t testing.TB, instance string) {
	for _, base := range []string{"/sys/fs/cgroup/*/slipway-", "/sys/fs/cgroup/slipway-"} {
		left, _ := filepath.Glob(base + instance + "/build/*/")
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
