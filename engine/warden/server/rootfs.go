package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// mountRootfs mounts the parts of a root file system on target, in order.
func mountRootfs(target string, mounts []warden.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := mountOne(target, m); err != nil {
			return fmt.Errorf("mount %s (%s) on %s: %w", m.Source, m.Type, target, err)
		}
	}
	return nil
}

func unmountRootfs(target string) error {
	for {
		// Detached: a process that hangs in the kernel may hold it, and that must not stop the removal.
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // not mounted: all parts are gone, or another warden mounted them
		}
		if err != nil {
			return &os.PathError{Op: "unmount", Path: target, Err: err}
		}
	}
}

func mountOne(target string, m warden.Mount) error {
	flags, data := mountOptions(m.Options)
	if m.Type == "overlay" {
		forgetVolatile(m.Options)
		return mountOverlay(target, m.Source, flags, data)
	}
	if err := unix.Mount(m.Source, target, m.Type, flags, strings.Join(data, ",")); err != nil {
		return err
	}
	if flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 { // bind ignores the other flags at first
		return unix.Mount("", target, "", flags|unix.MS_REMOUNT, "")
	}
	return nil
}

var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
	"bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "sync": unix.MS_SYNCHRONOUS, "rw": 0, "defaults": 0,
}

func mountOptions(options []string) (flags uintptr, data []string) {
	for _, o := range options {
		if f, ok := mountFlags[o]; ok {
			flags |= f
		} else {
			data = append(data, o)
		}
	}
	return flags, data
}

// forgetVolatile removes the mark that a volatile mount leaves, or the kernel refuses to mount the same directories again. It
// guards against a crash of the machine, after which a container's own layer may have lost what was not synced, as
// "volatile" says.
func forgetVolatile(options []string) {
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, "workdir="); ok {
			os.RemoveAll(filepath.Join(dir, "work", "incompat", "volatile"))
		}
	}
}

// mountOverlay mounts an overlay of any number of layers. The kernel takes one page of options: when the absolute paths do not
// fit, they are given relative to their common directory.
func mountOverlay(target, source string, flags uintptr, data []string) error {
	page := os.Getpagesize() - 1
	if opts := strings.Join(data, ","); len(opts) <= page {
		return unix.Mount(source, target, "overlay", flags, opts)
	}
	dir, data := relativeLower(data)
	opts := strings.Join(data, ",")
	if len(opts) > page {
		return fmt.Errorf("its %d bytes of options do not fit the kernel's %d: the image has too many layers", len(opts), page)
	}
	return inDirectory(dir, func() error { return unix.Mount(source, target, "overlay", flags, opts) })
}

// relativeLower shortens lowerdir.
func relativeLower(data []string) (dir string, short []string) {
	for _, o := range data {
		lower, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			short = append(short, o)
			continue
		}
		dirs := strings.Split(lower, ":")
		dir = commonDir(dirs)
		for i := range dirs {
			dirs[i] = strings.TrimPrefix(dirs[i], dir+"/")
		}
		short = append(short, "lowerdir="+strings.Join(dirs, ":"))
	}
	return dir, short
}

func commonDir(dirs []string) string {
	common := filepath.Dir(dirs[0])
	for _, d := range dirs[1:] {
		for common != "/" && !strings.HasPrefix(d, common+"/") {
			common = filepath.Dir(common)
		}
	}
	return common
}

// inDirectory runs f with another working directory than the rest of the process: on a thread that ends afterwards.
func inDirectory(dir string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
