package container

import (
	"errors"
	"fmt"
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

// bind is a host path that is seen in a root file system.
type bind struct {
	source, target string
	readOnly       bool
}

// mountDetached mounts an overlay that no path leads to: it lives exactly as long as the
// returned descriptor of its root, also when this process is killed. binds are mounted in
// it, where there is something to mount them on.
func mountDetached(lower []string, upper, work string, binds ...bind) (*os.File, error) {
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
// that is not there, or is of another kind, is left out: it has nothing to show. The target
// "/" without a source is the tree itself.
func bindInside(dir string, binds []bind) error {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	slices.SortFunc(binds, func(a, b bind) int { return depth(a.target) - depth(b.target) })
	for _, b := range binds { // before anything is made read-only
		if err := b.makeTarget(root); err != nil {
			return err
		}
	}
	for _, b := range binds {
		err := b.mount(root)
		if err != nil && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// makeTarget makes the directory that a directory is to be mounted on, as the first start of the container will: who
// copies into a volume of a container that was only created means the volume.
func (b bind) makeTarget(root *os.File) error {
	if fi, err := os.Stat(b.source); b.source == "" || err != nil || !fi.IsDir() {
		return nil // mount says what is wrong
	}
	at := ""
	for name := range strings.SplitSeq(strings.Trim(b.target, "/"), "/") {
		parent, err := openIn(root, "/"+at, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil // not a directory: mount leaves it out
		}
		err = unix.Mkdirat(int(parent.Fd()), name, 0o755)
		parent.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make %s to mount on: %w", b.target, err)
		}
		at += "/" + name
	}
	return nil
}

func (b bind) mount(root *os.File) error {
	if b.source != "" {
		at, err := openIn(root, b.target, unix.O_PATH)
		if err != nil {
			return nil
		}
		err = unix.Mount(b.source, fmt.Sprintf("/proc/self/fd/%d", at.Fd()), "", unix.MS_BIND|unix.MS_REC, "")
		at.Close()
		if err != nil {
			return err
		}
	}
	if !b.readOnly {
		return nil
	}
	at, err := openIn(root, b.target, unix.O_PATH) // again: what is mounted there now
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.Mount("", fmt.Sprintf("/proc/self/fd/%d", at.Fd()), "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", b.target, err)
	}
	return nil
}

// clearVolatile makes a writable layer that was once mounted volatile mountable again.
func clearVolatile(work string) error {
	return os.RemoveAll(filepath.Join(work, "work", "incompat", "volatile"))
}
