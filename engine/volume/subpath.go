package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// BindSubpath mounts a path inside the directory root on target; with create it makes a directory where there is nothing. Links in
// the path never lead out of the volume. Containers may change the volume at any moment, so what is
// mounted is what was opened, never what the path leads to by then (CVE-2017-1002101).
func BindSubpath(root, sub, target string, create bool) error {
	source, err := openSubpath(root, sub, create)
	if err != nil {
		return err
	}
	defer source.Close()
	return bind(source, target, 0)
}

// Bind mounts path, with what is mounted below it, on target too.
func Bind(path, target string) error {
	source, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	return bind(source, target, unix.MS_REC)
}

func bind(source *os.File, target string, recursive uintptr) error {
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := makeTarget(target, info.IsDir()); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), target, "", unix.MS_BIND|recursive, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	// A slave: what is unmounted here later stays mounted where it comes from.
	if err := unix.Mount("", target, "", unix.MS_SLAVE|recursive, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	return nil
}

// openSubpath opens a path inside root. A directory that it makes has the permissions of root, so that
// whoever may write to the volume may write there.
func openSubpath(root, sub string, create bool) (*os.File, error) {
	file, err := pathrs.OpenInRoot(root, sub)
	if !create || !errors.Is(err, os.ErrNotExist) {
		return file, err
	}
	dir, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return nil, err
	}
	file, err = pathrs.MkdirAllHandle(dir, sub, info.Mode().Perm())
	if err != nil {
		return nil, err
	}
	// The umask took its part.
	if err := os.Chmod(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), info.Mode().Perm()); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// makeTarget makes an empty directory or file to mount on, in the place of one that was used before.
func makeTarget(target string, dir bool) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	if _, err := os.Lstat(target); err == nil {
		if err := UnmountBelow(target); err != nil {
			return err
		}
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	if dir {
		return os.Mkdir(target, 0o700)
	}
	return os.WriteFile(target, nil, 0o600)
}

// UnmountBelow unmounts dir, when it is a mount, and everything below it: also what a container mounted
// into its volume, which would otherwise be deleted with the volume's own content.
func UnmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range mounts {
		// A recursive bind shares its inner mounts with their origin, and must not take them from there.
		// What cannot be made a slave is none of anybody's already.
		_ = unix.Mount("", m.Mountpoint, "", unix.MS_SLAVE, "")
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		// Detach: a process of another container that was given the directory must not keep it.
		if err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	return nil
}
