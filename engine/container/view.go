package container

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// overlayOptions keep the upper directory readable without the mount, whatever the
// kernel's defaults are: that is what Changes and a later commit read.
var overlayOptions = []string{"metacopy=off", "redirect_dir=off", "index=off"}

// overlayMount describes lower under upper; without upper it is a read-only view.
func overlayMount(lower []string, upper, work string, more ...string) mount.Mount {
	if upper == "" && len(lower) == 1 {
		return mount.Mount{Type: "bind", Source: lower[0], Options: []string{"rbind", "ro"}}
	}
	opts := []string{"lowerdir=" + strings.Join(lower, ":")}
	if upper != "" {
		opts = append(opts, "upperdir="+upper, "workdir="+work)
	} else {
		opts = append(opts, "ro")
	}
	opts = append(append(opts, overlayOptions...), more...)
	return mount.Mount{Type: "overlay", Source: "overlay", Options: opts}
}

// mountDetached mounts an overlay that no path leads to: it lives exactly as long as the
// returned descriptor of its root, also when this process is killed. binds are mounted in
// it, host path by path inside, where there is something to mount them on.
func mountDetached(lower []string, upper, work string, binds map[string]string) (*os.File, error) {
	dir, err := os.MkdirTemp("", "slipway-view-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	m := overlayMount(lower, upper, work)
	if err := m.Mount(dir); err != nil {
		return nil, fmt.Errorf("mount root file system: %w", err)
	}
	fd := -1
	if err = bindInside(dir, binds); err == nil {
		// A clone keeps what is mounted inside, which a lazy unmount takes apart.
		fd, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	}
	if err := errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("mount root file system: %w", err)
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}

// bindInside mounts host paths in the tree at dir, resolving targets inside it. A target
// that is not there, or is of another kind, is left out: it has nothing to show.
func bindInside(dir string, binds map[string]string) error {
	if len(binds) == 0 {
		return nil
	}
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, target := range slices.SortedFunc(maps.Keys(binds), func(a, b string) int { return depth(a) - depth(b) }) {
		at, err := openIn(root, target, unix.O_PATH)
		if err != nil {
			continue
		}
		err = unix.Mount(binds[target], fmt.Sprintf("/proc/self/fd/%d", at.Fd()), "", unix.MS_BIND|unix.MS_REC, "")
		at.Close()
		if err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// clearVolatile makes a writable layer that was once mounted volatile mountable again.
func clearVolatile(work string) error {
	return os.RemoveAll(filepath.Join(work, "work", "incompat", "volatile"))
}
