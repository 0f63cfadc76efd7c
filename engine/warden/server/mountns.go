package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// privateRoot makes mounts below dir invisible outside this process's mount namespace (its parent has given it one of its
// own) while everything else goes on propagating to and from the host, as storage drivers need it: dir becomes a private
// mount. The difficulty is that making that mount would itself propagate, so its parent leaves its peers for a moment.
func privateRoot(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	parent, shared, err := mountOf(dir)
	if err != nil {
		return err
	}
	if parent == dir && !shared {
		return nil
	}
	bind := func() error {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return os.NewSyscallError("bind mount", err)
		}
		return os.NewSyscallError("make private", unix.Mount("", dir, "", unix.MS_PRIVATE, ""))
	}
	if !shared {
		return bind()
	}
	return apartFromPeers(parent, bind)
}

// apartFromPeers runs f while the mount at path has no peers, and gives them back.
func apartFromPeers(path string, f func() error) error {
	peer, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(peer)
	if err := unix.Mount("", path, "", unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("make private", err)
	}
	ferr := f()
	const setGroup = 0x100 // MOVE_MOUNT_SET_GROUP, Linux 5.15: join the peers of another mount
	err = unix.MoveMount(peer, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|setGroup)
	if err != nil { // older: its containers still get a shared mount, only not one that reaches the host
		err = unix.Mount("", path, "", unix.MS_SHARED, "")
	}
	return errors.Join(ferr, os.NewSyscallError("rejoin", err))
}

// mountOf finds the mount that path is on, and whether it propagates.
func mountOf(path string) (mountpoint string, shared bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st); err != nil {
		return "", false, os.NewSyscallError("statx", err)
	}
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return "", false, err
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	for line := range bytes.Lines(table) {
		f := bytes.Fields(line)
		if len(f) < 7 || string(f[0]) != id {
			continue
		}
		for _, opt := range f[6:] {
			if string(opt) == "-" {
				break
			}
			shared = shared || bytes.HasPrefix(opt, []byte("shared:"))
		}
		return unescape(string(f[4])), shared, nil
	}
	return "", false, fmt.Errorf("mount %s of %s is not in the mount table", id, path)
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	b := []byte{}
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(c))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
