package container

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/image"
)

const maxArchiveEntries = 4 << 20

// CopyTo unpacks a tar archive, compressed or not, into a directory of a container. The archive and the
// container's files are both hostile: every path is resolved by the kernel inside the
// container's root, and nothing is ever opened through a link that the archive made
// elsewhere.
func (m *Manager) CopyTo(ctx context.Context, ref, p string, archive io.Reader, o CopyToOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	r, done, err := m.openRoot(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	p = path.Clean("/" + p) // as it is understood below: ".." means what it says, not where a link leads
	dest, err := r.open(p, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, syscall.ENOTDIR) {
		return errdefs.ErrInvalidArgument.WithMessage("extraction point is not a directory")
	}
	if err != nil {
		return pathError(c, p, err)
	}
	dest.Close()
	if err := r.writable(c, p); err != nil {
		return err
	}
	x := extractor{root: r, base: p, o: o}
	if o.CopyUIDGID && c.spec().User != "" { // without a user the archive's owners stay
		u, err := lookupUser(accounts{r}, c.spec().User, nil, false)
		if err != nil {
			return err
		}
		x.uid, x.gid, x.owned = int(u.UID), int(u.GID), true
	}
	err = x.unpack(ctx, archive)
	if errors.Is(err, syscall.EROFS) { // a link led there
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("copy to %s in container %s: %v: the container's root or the volume there is marked read-only", p, c.spec().Name, err))
	}
	if err != nil {
		return fmt.Errorf("copy to %s in container %s: %w", p, c.spec().Name, err)
	}
	m.publish(c, "extract-to-dir", nil)
	return nil
}

// writable refuses to write where the container could not: its root or the volume there
// may be read-only.
func (r *root) writable(c *instance, p string) error {
	spec := c.spec()
	p = path.Clean("/" + p)
	deepest := ""
	ro := spec.ReadOnly
	for _, mt := range spec.Mounts {
		t := path.Clean(mt.Target)
		if (p == t || strings.HasPrefix(p, t+"/")) && len(t) > len(deepest) {
			deepest, ro = t, mt.ReadOnly
		}
	}
	if !ro {
		return nil
	}
	if deepest != "" {
		return errdefs.ErrPermissionDenied.WithMessage("mounted volume is marked read-only")
	}
	return errdefs.ErrPermissionDenied.WithMessage("container rootfs is marked read-only")
}

// join makes a path in the container of a name in the archive; ".." stays inside the base.
func (x *extractor) join(name string) string { return path.Join(x.base, path.Clean("/"+name)) }

// accounts makes a root an opener.
type accounts struct{ root *root }

func (a accounts) open(path string) (*os.File, error) {
	return openRegular(a.root.dir, path)
}

type extractor struct {
	root     *root
	base     string
	o        CopyToOptions
	uid, gid int
	owned    bool
	dirs     []laterTime // directories whose times are set when all is in them
}

type laterTime struct {
	path string
	t    time.Time
}

func (x *extractor) unpack(ctx context.Context, archive io.Reader) error {
	plain, err := image.Decompress(archive)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("read archive: %v", err))
	}
	defer plain.Close()
	tr := tar.NewReader(plain)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return x.setTimes()
		}
		if err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("read archive: %v", err))
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if n > maxArchiveEntries {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("archive has more than %d entries", maxArchiveEntries))
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
}

// entry makes one file. Its parent is resolved inside the root, its own name never
// followed.
func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p := x.join(h.Name)
	if p == x.base {
		return nil // "./": the directory that is there
	}
	dir, err := x.parent(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	name := path.Base(p)
	if err := x.clear(dir, name, h); err != nil {
		return err
	}
	if err := x.make(dir, name, h, content); err != nil {
		return &fs.PathError{Op: "extract", Path: h.Name, Err: err}
	}
	if h.Typeflag == tar.TypeLink {
		return nil // the same inode: nothing more to set
	}
	if err := x.attributes(dir, name, h); err != nil {
		return &fs.PathError{Op: "set attributes of", Path: h.Name, Err: err}
	}
	if h.Typeflag == tar.TypeDir {
		x.dirs = append(x.dirs, laterTime{p, h.ModTime})
	}
	return nil
}

// parent opens a directory, making what is missing.
func (x *extractor) parent(p string) (*os.File, error) {
	dir, err := x.root.open(p, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) || p == "/" {
		return dir, err
	}
	above, err := x.parent(path.Dir(p))
	if err != nil {
		return nil, err
	}
	defer above.Close()
	if err := unix.Mkdirat(int(above.Fd()), path.Base(p), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, &fs.PathError{Op: "mkdir", Path: p, Err: err}
	}
	return x.root.open(p, unix.O_PATH|unix.O_DIRECTORY)
}

// clear removes what is in the way. A directory stays when a directory comes.
func (x *extractor) clear(dir *os.File, name string, h *tar.Header) error {
	fi, err := lstatAt(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	if fi.IsDir() && isDir {
		return nil
	}
	if x.o.NoOverwriteDirNonDir && fi.IsDir() != isDir {
		what := "non-directory with directory"
		if fi.IsDir() {
			what = "directory with non-directory"
		}
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("cannot overwrite %s: %s", what, h.Name))
	}
	if !fi.IsDir() {
		return ignoreNotExist(unix.Unlinkat(int(dir.Fd()), name, 0))
	}
	return removeAllAt(dir, name)
}

// removeAllAt removes a tree without following a link.
func removeAllAt(dir *os.File, name string) error {
	r, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return err
	}
	defer r.Close()
	return r.RemoveAll(name)
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (x *extractor) make(dir *os.File, name string, h *tar.Header, content io.Reader) error {
	fd := int(dir.Fd())
	mode := uint32(h.Mode & 0o7777)
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(fd, name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		return x.file(fd, name, h, content)
	case tar.TypeSymlink:
		return unix.Symlinkat(h.Linkname, fd, name)
	case tar.TypeLink:
		return x.link(fd, name, h)
	case tar.TypeFifo:
		return unix.Mknodat(fd, name, unix.S_IFIFO|mode, 0)
	case tar.TypeChar:
		return unix.Mknodat(fd, name, unix.S_IFCHR|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		return unix.Mknodat(fd, name, unix.S_IFBLK|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	}
	return fmt.Errorf("unsupported entry type %q", h.Typeflag)
}

func (x *extractor) file(dir int, name string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(h.Mode&0o7777))
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// link makes a hard link to something that must be inside the root as well.
func (x *extractor) link(dir int, name string, h *tar.Header) error {
	from, old, err := x.root.at(x.join(h.Linkname))
	if err != nil {
		return err
	}
	defer from.Close()
	return unix.Linkat(int(from.Fd()), old, dir, name, 0)
}

func (x *extractor) attributes(dir *os.File, name string, h *tar.Header) error {
	fd := int(dir.Fd())
	uid, gid := h.Uid, h.Gid
	if x.owned {
		uid, gid = x.uid, x.gid
	}
	if err := unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeSymlink {
		return setTime(fd, name, h.ModTime)
	}
	// What is there was made by us a moment ago, but the container may have put a link in
	// its place: change the mode through a descriptor that cannot be one.
	own, err := unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", own), uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok && (attr == "security.capability" || strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")) {
			if err := unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d", own), attr, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
				return err
			}
		}
	}
	return setTime(fd, name, h.ModTime)
}

func setTime(dir int, name string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func (x *extractor) setTimes() error {
	for i := len(x.dirs) - 1; i >= 0; i-- {
		dir, name, err := x.root.at(x.dirs[i].path)
		if err != nil {
			continue // a later entry replaced it
		}
		_ = setTime(int(dir.Fd()), name, x.dirs[i].t) // likewise
		dir.Close()
	}
	return nil
}
