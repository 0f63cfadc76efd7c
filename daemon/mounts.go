package daemon

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// shareMounts makes mounts that are made below dir appear in the warden's mount namespace too, where the
// machine does not let mounts propagate by itself (one without systemd, or a container). It has to come
// before the warden's start.
func shareMounts(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	if on := innermost(mounts); on != nil && strings.Contains(on.Optional, "shared:") {
		return nil
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts of %s: %w", dir, err)
	}
	return nil
}

// innermost is the mount that a path is on, of those that contain it: the last one with the longest path.
func innermost(mounts []*mountinfo.Info) *mountinfo.Info {
	var in *mountinfo.Info
	for _, m := range mounts {
		if in == nil || len(m.Mountpoint) >= len(in.Mountpoint) {
			in = m
		}
	}
	return in
}

// unmountAll detaches dir, when it is a mount, and every mount below it.
func unmountAll(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// unmountBelow detaches every mount below dir, the deepest first.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		// A recursive bind of a container's shares its inner mounts with their origin, and must not take them
		// from there. What cannot be made a slave is shared with nobody.
		if strings.HasPrefix(m.Mountpoint, dir+"/") {
			_ = unix.Mount("", m.Mountpoint, "", unix.MS_SLAVE, "")
		}
	}
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- {
		if !strings.HasPrefix(mounts[i].Mountpoint, dir+"/") {
			continue
		}
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err))
		}
	}
	return errors.Join(errs...)
}
