package server

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

func TestManyLayers(t *testing.T) {
	h := newHouse(t)
	lower := []string{}
	for i := range 120 { // too long for one page of absolute paths
		dir := filepath.Join(h.dir, "snapshots", fmt.Sprint(1000+i), "fs")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("layer%d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, dir)
	}
	lower = append(lower, h.lower)
	_, a := h.run("ls /", attached, func(s *warden.ContainerSpec) {
		s.Rootfs[0].Options[0] = "lowerdir=" + strings.Join(lower, ":")
	})
	out, _ := output(t, a)
	if !strings.Contains(out, "layer0\n") || !strings.Contains(out, "layer119\n") {
		t.Errorf("the root has %q; want the files of all 120 layers", out)
	}
}

// TestPrivateRoot runs itself in mount namespaces of its own: the outer one is the host, with everything shared, the inner
// one the warden's.
func TestPrivateRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	if os.Getenv("PRIVATE_ROOT_TEST") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestPrivateRoot$", "-test.v")
		cmd.Env = append(os.Environ(), "PRIVATE_ROOT_TEST="+t.TempDir())
		cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in its own mount namespace: %v\n%s", err, out)
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	dir := os.Getenv("PRIVATE_ROOT_TEST")
	roots, shared := filepath.Join(dir, "roots"), filepath.Join(dir, "shared")
	for _, d := range []string{filepath.Join(roots, "c"), shared} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := inDirectory("/", func() error { // on a thread that ends
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := privateRoot(roots); err != nil {
			return err
		}
		for _, d := range []string{filepath.Join(roots, "c"), shared} {
			if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(table), roots) {
		t.Errorf("the host sees mounts below the root directory:\n%s", table)
	}
	if !strings.Contains(string(table), shared) {
		t.Errorf("the host does not see other mounts of the warden:\n%s", table)
	}
	if err := unix.Unmount(shared, 0); err != nil {
		t.Error(err)
	}
}
