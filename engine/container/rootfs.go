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
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// root is a container's file system as the container sees it: that of its process while
// it runs, else a private mount that lives as long as the descriptor. Everything in it
// is hostile: paths are only ever resolved by the kernel, inside it.
type root struct {
	dir *os.File // O_PATH
}

// openRoot gives access to a container's files, the volumes included.
func (m *Manager) openRoot(ctx context.Context, c *instance) (*root, func(), error) {
	if pid := c.runningPid(); pid != 0 {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			return &root{f}, func() { f.Close() }, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	// Held while the files are used, so that nobody starts the container meanwhile: one
	// writable layer must not be mounted twice.
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, nil, err
	}
	f, err := m.mountStopped(ctx, c)
	if err != nil {
		unlock()
		return nil, nil, fmt.Errorf("files of container %s: %w", c.spec().Name, err)
	}
	return &root{f}, func() { f.Close(); unlock() }, nil
}

func (m *Manager) mountStopped(ctx context.Context, c *instance) (*os.File, error) {
	if c.isGone() {
		return nil, errdefs.ErrNotFound.WithMessage("No such container: " + c.id)
	}
	c.mu.Lock()
	cleaned := c.cleaned
	c.mu.Unlock()
	if cleaned != nil {
		<-cleaned
	}
	chain, err := m.chain(c)
	if err != nil {
		return nil, err
	}
	lower := chain.Lower
	if len(lower) == 0 {
		lower = []string{filepath.Join(c.dir, "lower")}
	}
	work := filepath.Join(c.dir, "work")
	if err := clearVolatile(work); err != nil {
		return nil, err
	}
	// What the container cannot write to, nobody writes to through links that it left.
	binds := []bind{{target: "/", readOnly: c.spec().ReadOnly}}
	for _, mt := range c.spec().Mounts {
		b := bind{source: mt.Source, target: filepath.Clean(mt.Target), readOnly: mt.ReadOnly}
		if mt.Type == MountVolume && mt.Subpath == "" {
			b.source = m.Volumes.Path(mt.Source)
		} else if mt.Type != MountBind {
			continue
		}
		binds = append(binds, b)
	}
	for _, f := range startFiles { // those of the last run, where there was one
		if file := filepath.Join(c.dir, filepath.Base(f)); c.spec().Sandbox == "" && exists(file) {
			binds = append(binds, bind{source: file, target: f})
		}
	}
	return mountDetached(lower, filepath.Join(c.dir, "upper"), work, binds...)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// open opens a path; the last component is followed unless flags say otherwise.
func (r *root) open(path string, flags int) (*os.File, error) {
	return openIn(r.dir, path, flags)
}

// copyName is what the entries of a copied path begin with, as docker cp counts on: the last component, "." for the
// contents of a directory ("/etc/."), "/" for the root. Of a path that ends in a slash the last link is followed.
func copyName(p string) (name string, follow bool) {
	trimmed := strings.TrimRight(p, "/")
	switch clean := path.Clean("/" + p); {
	case trimmed == "." || strings.HasSuffix(trimmed, "/."):
		return ".", true
	case clean == "/":
		return "/", true
	default:
		return path.Base(clean), strings.HasSuffix(p, "/")
	}
}

// at opens the directory that path's last component is in, and returns its name there.
func (r *root) at(p string) (*os.File, string, error) {
	_, follow := copyName(p)
	p = path.Clean("/" + p)
	if follow {
		dir, err := r.open(p, unix.O_PATH|unix.O_DIRECTORY)
		return dir, ".", err
	}
	dir, err := r.open(path.Dir(p), unix.O_PATH|unix.O_DIRECTORY)
	return dir, path.Base(p), err
}

func lstatAt(dir *os.File, name string) (fs.FileInfo, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return f.Stat()
}

func readlinkAt(dir *os.File, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(buf[:n]), nil
}

// StatPath describes a file of a container, following no link at its end.
func (m *Manager) StatPath(ctx context.Context, ref, p string) (PathStat, error) {
	c, err := m.find(ref)
	if err != nil {
		return PathStat{}, err
	}
	r, done, err := m.openRoot(ctx, c)
	if err != nil {
		return PathStat{}, err
	}
	defer done()
	return r.stat(c, p)
}

func (r *root) stat(c *instance, p string) (PathStat, error) {
	dir, name, err := r.at(p)
	if errors.Is(err, syscall.ENOTDIR) && strings.HasSuffix(p, "/") {
		return PathStat{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: not a directory", p))
	}
	if err != nil {
		return PathStat{}, pathError(c, p, err)
	}
	defer dir.Close()
	fi, err := lstatAt(dir, name)
	if err != nil {
		return PathStat{}, pathError(c, p, err)
	}
	st := PathStat{Size: fi.Size(), Mode: fi.Mode(), Mtime: fi.ModTime()}
	st.Name, _ = copyName(p)
	if fi.Mode()&fs.ModeSymlink != 0 {
		target, err := readlinkAt(dir, name)
		if err != nil {
			return PathStat{}, pathError(c, p, err)
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(path.Clean("/"+p)), target)
		}
		st.LinkTarget = path.Clean(target)
	}
	return st, nil
}

func pathError(c *instance, p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("Could not find the file %s in container %s", p, c.id))
	}
	return fmt.Errorf("%s in container %s: %w", p, c.spec().Name, err)
}

// CopyFrom returns the file or directory at a path as a tar archive.
func (m *Manager) CopyFrom(ctx context.Context, ref, p string) (io.ReadCloser, PathStat, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, PathStat{}, err
	}
	r, done, err := m.openRoot(ctx, c)
	if err != nil {
		return nil, PathStat{}, err
	}
	st, err := r.stat(c, p)
	if err != nil {
		done()
		return nil, PathStat{}, err
	}
	out := m.stream(done, func(w *tar.Writer) error { return r.archive(ctx, w, p) })
	m.publish(c, "archive-path", nil)
	return out, st, nil
}

// Export returns the container's whole file system, without its volumes, as a tar archive.
func (m *Manager) Export(ctx context.Context, ref string) (io.ReadCloser, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	view, err := m.layerView(c)
	if err != nil {
		return nil, fmt.Errorf("export container %s: %w", c.spec().Name, err)
	}
	r := &root{view}
	m.publish(c, "export", nil)
	return m.stream(func() { view.Close() }, func(w *tar.Writer) error { return r.archiveAs(ctx, w, "/", "") }), nil
}

// layerView is the root file system without anything mounted in it, read-only. The upper
// layer of a running container changes underneath, which a reader may notice and the
// container does not.
func (m *Manager) layerView(c *instance) (*os.File, error) {
	chain, err := m.chain(c)
	if err != nil {
		return nil, err
	}
	lower := chain.Lower
	if len(lower) == 0 {
		lower = []string{filepath.Join(c.dir, "lower")}
	}
	return mountDetached(append([]string{filepath.Join(c.dir, "upper")}, lower...), "", "")
}

// stream runs write in the background of the returned reader; done is called at the end.
func (m *Manager) stream(done func(), write func(*tar.Writer) error) io.ReadCloser {
	pr, pw := io.Pipe()
	m.goes(func() {
		defer done()
		w := tar.NewWriter(pw)
		err := write(w)
		if err == nil {
			err = w.Close()
		}
		pw.CloseWithError(err)
	})
	stop := context.AfterFunc(m.ctx, func() { pr.CloseWithError(context.Cause(m.ctx)) })
	return &archiveReader{pr, stop}
}

type archiveReader struct {
	*io.PipeReader
	stop func() bool
}

func (a *archiveReader) Close() error {
	a.stop()
	return a.PipeReader.Close()
}

// archive writes the tree at p under the name of its copy.
func (r *root) archive(ctx context.Context, w *tar.Writer, p string) error {
	as, _ := copyName(p)
	return r.archiveAs(ctx, w, p, as)
}

// archiveAs writes the tree at p under a name; none leaves the tree's root out.
func (r *root) archiveAs(ctx context.Context, w *tar.Writer, p, as string) error {
	dir, name, err := r.at(p)
	if err != nil {
		return err
	}
	defer dir.Close()
	a := archiver{ctx: ctx, w: w, links: map[inodeID]string{}, buf: make([]byte, 64<<10)}
	return a.add(dir, name, as)
}

type inodeID struct{ dev, ino uint64 }

type archiver struct {
	ctx   context.Context
	w     *tar.Writer
	links map[inodeID]string // first name of a file with several
	buf   []byte
	below bool // the directory that was asked for is behind us
	depth int
}

// maxDepth is what no path could name: each level of an archive costs a descriptor, and names grow with it.
const maxDepth = 1024

// isOfTheKernel tells whether a directory is mounted in every container and no file of this one: a copy of "/" is to hold
// what the container is, not the processes and devices of the moment.
func isOfTheKernel(fd int, as string) bool {
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	switch uint32(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC:
		return true
	case unix.TMPFS_MAGIC:
		return path.Clean("/"+as) == "/dev"
	}
	return false
}

// add writes one entry of dir and what is below it.
func (a *archiver) add(dir *os.File, name, as string) error {
	if err := a.ctx.Err(); err != nil {
		return context.Cause(a.ctx)
	}
	fi, err := lstatAt(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it vanished while we looked
	}
	if err != nil {
		return err
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		return nil // tar has no sockets
	}
	if fi.Mode().IsRegular() {
		return a.addFile(dir, name, as)
	}
	h, err := a.header(dir, name, as, fi)
	if err != nil {
		return err
	}
	if as != "" {
		if err := a.w.WriteHeader(h); err != nil {
			return err
		}
	}
	if !fi.IsDir() {
		return nil
	}
	return a.addDir(dir, name, as)
}

func (a *archiver) header(dir *os.File, name, as string, fi fs.FileInfo) (*tar.Header, error) {
	target := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = readlinkAt(dir, name); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(plainInfo{fi}, target)
	if err != nil {
		return nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	h.Name, h.Format = as, tar.FormatPAX
	h.Uid, h.Gid = int(st.Uid), int(st.Gid)
	h.ModTime = fi.ModTime().Truncate(time.Second)
	if fi.IsDir() && as != "/" {
		h.Name += "/"
	}
	if fi.Mode()&fs.ModeDevice != 0 {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h, nil
}

// plainInfo keeps archive/tar from looking user names up on the host.
type plainInfo struct{ fs.FileInfo }

func (plainInfo) Sys() any { return nil }

func (a *archiver) addDir(parent *os.File, name, as string) error {
	if a.depth++; a.depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	defer func() { a.depth-- }()
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: as, Err: err}
	}
	dir := os.NewFile(uintptr(fd), as)
	defer dir.Close()
	if a.below && isOfTheKernel(fd, as) {
		return nil
	}
	a.below = true
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		below := as + "/" + n // not cleaned: "./n" is meant
		if as == "" || as == "/" {
			below = as + n
		}
		if err := a.add(dir, n, below); err != nil {
			return err
		}
	}
	return nil
}

// addFile writes a regular file, or a hard link to its first name. The file is opened
// before its size is believed, and exactly that size is written.
func (a *archiver) addFile(dir *os.File, name, as string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: as, Err: err}
	}
	f := os.NewFile(uintptr(fd), as)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return err
	}
	h, err := a.header(dir, name, as, fi)
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	if st.Nlink > 1 {
		id := inodeID{st.Dev, st.Ino}
		if first, ok := a.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return a.w.WriteHeader(h)
		}
		a.links[id] = as
	}
	if err := a.w.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(writerOnly{a.w}, io.LimitReader(f, h.Size), a.buf)
	if err == nil && n < h.Size { // it shrank: the header is out already
		_, err = io.CopyN(a.w, zeroes{}, h.Size-n)
	}
	return err
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
