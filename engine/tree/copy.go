// Package tree copies directories while containers may be changing them, and removes what containers left.
//
// Both sides of a copy can be hostile: a volume is filled while other containers already use it, and a container's own
// layer is committed while the container runs. Whatever they rename or link meanwhile, nothing outside the source is read
// and nothing outside the destination is made, because every step goes from an open directory to one name in it and
// follows no link. A change that gets in the way ends the copy with an error.
package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxDepth is far beyond what paths can name; every level holds two descriptors of the process.
const maxDepth = 1024

// Copy makes dst, a directory that is there, hold what the directory src holds: owners, permissions, times, hard links,
// devices and the extended attributes that keep (nil: all) accepts. The two paths themselves are trusted.
func Copy(dst, src string, keep func(xattr string) bool) error {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.Open(dst)
	if err != nil {
		return err
	}
	defer to.Close()
	c := copier{root: to, keep: keep, links: map[inode]string{}, buf: make([]byte, 128<<10)}
	return c.dir(from, to, ".")
}

type inode struct{ dev, ino uint64 }

type copier struct {
	root  *os.File // of the destination
	keep  func(string) bool
	links map[inode]string // where the first name of a file with several is
	buf   []byte
	depth int
}

// dir copies what is in from, and then its attributes: filling a directory changes its time.
func (c *copier) dir(from, to *os.File, rel string) error {
	if c.depth++; c.depth > maxDepth {
		return fmt.Errorf("%s: directories are nested more than %d deep", rel[:min(len(rel), 64)], maxDepth)
	}
	defer func() { c.depth-- }()
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.entry(from, to, name, path.Join(rel, name)); err != nil {
			return err
		}
	}
	info, err := from.Stat()
	if err != nil {
		return err
	}
	return errors.Join(c.xattrs(from, to), attributes(to, info))
}

func (c *copier) entry(from, to *os.File, name, rel string) error {
	at, err := openAt(from, name, unix.O_PATH, rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it vanished while we looked
	}
	if err != nil {
		return err
	}
	defer at.Close()
	info, err := at.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Nlink > 1 && !info.IsDir() {
		if done, err := c.again(inode{st.Dev, st.Ino}, to, name, rel); done || err != nil {
			return err
		}
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return c.subdir(from, to, name, rel)
	case mode.IsRegular():
		return c.file(from, to, name, rel)
	case mode&fs.ModeSocket != 0:
		return nil // of no use without who listens
	case mode&fs.ModeSymlink != 0:
		return c.symlink(at, to, name, rel, info)
	}
	if err := unix.Mknodat(int(to.Fd()), name, st.Mode, int(st.Rdev)); err != nil {
		return &fs.PathError{Op: "mknod", Path: rel, Err: err}
	}
	return c.finish(to, name, rel, info)
}

// again makes another name of a file that was copied before.
func (c *copier) again(id inode, to *os.File, name, rel string) (done bool, err error) {
	first, ok := c.links[id]
	if !ok {
		c.links[id] = rel
		return false, nil
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	dir, err := unix.Openat2(int(c.root.Fd()), path.Dir(first), &how)
	if err == nil {
		err = unix.Linkat(dir, path.Base(first), int(to.Fd()), name, 0)
		unix.Close(dir)
	}
	if err != nil {
		return true, &fs.PathError{Op: "link", Path: rel, Err: err}
	}
	return true, nil
}

func (c *copier) subdir(from, to *os.File, name, rel string) error {
	in, err := openAt(from, name, unix.O_RDONLY|unix.O_DIRECTORY, rel)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: rel, Err: err}
	}
	out, err := openAt(to, name, unix.O_RDONLY|unix.O_DIRECTORY, rel)
	if err != nil {
		return err
	}
	defer out.Close()
	return c.dir(in, out, rel)
}

func (c *copier) file(from, to *os.File, name, rel string) error {
	in, err := openAt(from, name, unix.O_RDONLY|unix.O_NONBLOCK, rel)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s became something else than a file while it was copied", rel)
	}
	fd, err := unix.Openat(int(to.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "create", Path: rel, Err: err}
	}
	out := os.NewFile(uintptr(fd), rel)
	defer out.Close()
	if _, err := io.CopyBuffer(out, in, c.buf); err != nil {
		return err
	}
	return errors.Join(c.xattrs(in, out), attributes(out, info))
}

func (c *copier) symlink(at, to *os.File, name, rel string, info fs.FileInfo) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(at.Fd()), "", target)
	if err == nil {
		err = unix.Symlinkat(string(target[:n]), int(to.Fd()), name)
	}
	if err != nil {
		return &fs.PathError{Op: "symlink", Path: rel, Err: err}
	}
	if err := c.finish(to, name, rel, info); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(int(to.Fd()), name, times(info), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "set times of", Path: rel, Err: err}
	}
	return nil
}

// finish sets the attributes of what cannot be opened for writing.
func (c *copier) finish(to *os.File, name, rel string, info fs.FileInfo) error {
	out, err := openAt(to, name, unix.O_PATH, rel)
	if err != nil {
		return err
	}
	defer out.Close()
	return attributes(out, info)
}

func openAt(dir *os.File, name string, flags int, rel string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: rel, Err: err}
	}
	return os.NewFile(uintptr(fd), rel), nil
}

func self(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// attributes gives a file owner, permissions and times, in this order: a change of owner takes set-user-id bits.
func attributes(f *os.File, info fs.FileInfo) error {
	st := info.Sys().(*syscall.Stat_t)
	if err := unix.Fchownat(int(f.Fd()), "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "chown", Path: f.Name(), Err: err}
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil
	}
	if err := unix.Chmod(self(f), st.Mode&0o7777); err != nil {
		return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, self(f), times(info), 0); err != nil {
		return &fs.PathError{Op: "set times of", Path: f.Name(), Err: err}
	}
	return nil
}

func times(info fs.FileInfo) []unix.Timespec {
	st := info.Sys().(*syscall.Stat_t)
	return []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
}

// xattrs copies extended attributes where the destination can have them.
func (c *copier) xattrs(from, to *os.File) error {
	names, err := listXattrs(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if c.keep != nil && !c.keep(name) {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Fgetxattr(int(from.Fd()), name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Fsetxattr(int(to.Fd()), name, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("extended attribute %s of %s: %w", name, from.Name(), err)
		}
	}
	return nil
}

func listXattrs(f *os.File) ([]string, error) {
	n, err := unix.Flistxattr(int(f.Fd()), nil)
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	buf := make([]byte, 64<<10) // the kernel's limit
	if n, err = unix.Flistxattr(int(f.Fd()), buf); err != nil {
		return nil, &fs.PathError{Op: "list extended attributes of", Path: f.Name(), Err: err}
	}
	return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
}
