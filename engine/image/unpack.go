package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"golang.org/x/sys/unix"
)

const mntDetach = unix.MNT_DETACH

// splitter is a writer that takes a tar apart into a header stream, while it is hashed.
type splitter struct {
	pw   *io.PipeWriter
	buf  *bufio.Writer
	done <-chan error
	out  io.ReadCloser
	copy chan error
}

func newSplitter(headers *headerWriter, sum hash.Hash) *splitter {
	pr, pw := io.Pipe()
	out, done, _ := asm.NewInputTarStreamWithDone(pr, headers, nil) // never fails
	s := &splitter{pw: pw, buf: bufio.NewWriterSize(pw, 256<<10), done: done, out: out, copy: make(chan error, 1)}
	go func() {
		_, err := io.Copy(sum, out)
		pr.CloseWithError(err) // a writer must not wait for a reader that gave up
		s.copy <- err
	}()
	return s
}

func (s *splitter) Write(p []byte) (int, error) { return s.buf.Write(p) }

func (s *splitter) Close() error {
	err := s.buf.Flush()
	s.pw.CloseWithError(err)
	return errors.Join(err, <-s.copy, <-s.done)
}

// unpacked is what came out of a tar.
type unpacked struct {
	draft  *LayerDraft
	diffID digest.Digest
	size   int64
	vet    vetting
}

// unpack extracts an uncompressed tar, hostile or not, into a draft without a parent; the
// parent may be set before the draft is adopted. Nothing outside the draft's directory is
// touched whatever the tar says. again opens the same tar once more; where it is nil, a
// copy is kept until it is known not to be needed. sh is the caller's share of the
// processors where tarball comes from a patientReader; nil otherwise.
func (s *Store) unpack(ctx context.Context, sh *share, tarball io.Reader, again func() (io.ReadCloser, error)) (*unpacked, error) {
	d, err := s.NewLayer(ctx, "")
	if err != nil {
		return nil, err
	}
	u := &unpacked{draft: d, vet: vetting{listed: map[string]struct{}{}, implied: map[string]struct{}{}}}
	if sh == nil {
		sh = &share{cpu: s.cpu}
	}
	if err := sh.take(ctx); err != nil {
		d.Discard()
		return nil, err
	}
	defer sh.giveBack()
	if err := u.extract(ctx, tarball, again); err != nil {
		d.Discard()
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	return u, nil
}

func (u *unpacked) extract(ctx context.Context, tarball io.Reader, again func() (io.ReadCloser, error)) error {
	d := u.draft
	headers, err := newHeaderWriter(d.dir+"/"+headersFile, d.store.limits.Entries)
	if err != nil {
		return err
	}
	hashed := digest.Canonical.Digester()
	counted := &guardedReader{r: tarball, limit: d.store.limits.LayerBytes, dir: d.dir, reserve: d.store.limits.ReserveMB << 20}
	sink, closeSink, err := u.spool(hashed.Hash(), again)
	if err != nil {
		return errors.Join(err, headers.Close())
	}
	in, done, _ := asm.NewInputTarStreamWithDone(counted, headers, nil)
	err = applyTar(ctx, d.Upper, io.TeeReader(in, sink), u.vet.header)
	closeQuietly(in)
	if split := <-done; err == nil {
		err = split
	}
	if err := errors.Join(err, headers.Close(), closeSink()); err != nil {
		return err
	}
	u.diffID, u.size = hashed.Digest(), counted.n
	return u.keepRaw(headers.length, again)
}

// spool is where the bytes of the tar go beside the extraction: into the digest, and into
// a file when there is no other way to see them again.
func (u *unpacked) spool(sum io.Writer, again func() (io.ReadCloser, error)) (io.Writer, func() error, error) {
	if again != nil {
		return sum, func() error { return nil }, nil
	}
	f, err := os.OpenFile(u.draft.dir+"/"+rawFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return io.MultiWriter(sum, f), f.Close, nil
}

// keepRaw keeps the tar itself where directory and headers cannot make it again.
func (u *unpacked) keepRaw(described int64, again func() (io.ReadCloser, error)) error {
	d := u.draft
	raw := d.dir + "/" + rawFile
	whole, err := reproducible(d.Upper, d.dir+"/"+headersFile, u.size, described)
	if err != nil {
		return err
	}
	if whole {
		if again == nil {
			return os.Remove(raw)
		}
		return nil
	}
	if again == nil {
		return nil
	}
	in, err := again()
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFile(raw, in)
}

func writeFile(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// adopt makes the unpacked tar the next layer on parent.
func (u *unpacked) adopt(ctx context.Context, parent digest.Digest) (Layer, error) {
	d := u.draft
	below, err := d.store.Chain(parent)
	if err != nil {
		return Layer{}, err
	}
	if len(below.Lower) > 0 {
		if err := errors.Join(likeRoot(d.Upper, below.Lower[0]), u.vet.inherit(d.Upper, below.Lower)); err != nil {
			return Layer{}, fmt.Errorf("stack layer %s: %w", u.diffID, err)
		}
		d.Parent, d.Lower = parent, below.Lower
	}
	return d.adopt(ctx, u.diffID, u.size)
}

// applyTar extracts r into root and reads it to its very end.
func applyTar(ctx context.Context, root string, r io.Reader, vet archive.Filter) error {
	_, err := archive.Apply(ctx, root, r, archive.WithConvertWhiteout(whiteout), archive.WithFilter(vet))
	if err != nil {
		return named(err)
	}
	_, err = io.Copy(io.Discard, r)
	return named(err)
}

// named makes what a damaged tar says into an error that callers can recognise.
func named(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("damaged tar: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// vetting looks at every header before it is extracted, and remembers directories: those
// that the tar lists, and those that it only implies by what is in them.
type vetting struct {
	listed  map[string]struct{}
	implied map[string]struct{}
}

// header refuses or cleans what a layer has no business to hold.
func (v *vetting) header(h *tar.Header) (bool, error) {
	if h.Size < 0 {
		return false, fmt.Errorf("file %q has a negative size: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	for key := range h.PAXRecords {
		// The kernel follows these wherever they come from: a redirect or a metadata-only
		// copy in a layer would show files of other layers, or of none.
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if ok && (strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")) {
			delete(h.PAXRecords, key)
		}
	}
	path := filepath.Clean("/" + h.Name)
	if h.Typeflag == tar.TypeDir {
		v.listed[path] = struct{}{}
	}
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		if _, ok := v.implied[dir]; ok {
			break
		}
		v.implied[dir] = struct{}{}
	}
	return h.Typeflag != tar.TypeXGlobalHeader, nil
}

// inherit gives directories that the tar did not list the owner, mode and time that they
// have below: a layer that brings only tmp/x must not change /tmp.
func (v *vetting) inherit(upper string, lower []string) error {
	for path := range v.implied {
		if _, ok := v.listed[path]; ok {
			continue
		}
		if err := inheritDir(upper, path, lower); err != nil {
			return fmt.Errorf("directory %s: %w", path, err)
		}
	}
	return nil
}

func inheritDir(upper, path string, lower []string) error {
	// Resolved as the extraction resolved it: a part of the path may be a symbolic link
	// that the layer brought.
	target, err := fs.RootPath(upper, path)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(target); err != nil || !fi.IsDir() {
		return nil // replaced later in the same layer
	}
	for _, l := range lower {
		source, err := fs.RootPath(l, path)
		if err != nil {
			return err
		}
		fi, err := os.Lstat(source)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil || !fi.IsDir() {
			return err
		}
		uid, gid := ownerOf(fi)
		return errors.Join(os.Chown(target, uid, gid), os.Chmod(target, fi.Mode()), os.Chtimes(target, fi.ModTime(), fi.ModTime()))
	}
	return nil
}

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// whiteout turns a tar's whiteout into overlay's. Containerd's own does the same, but
// fails where the layer removes what it brought itself, and hides those files' removal
// behind an opaque directory; Docker accepts such layers.
func whiteout(h *tar.Header, path string) (bool, error) {
	dir, base := filepath.Split(path)
	if base == whiteoutOpaque {
		return false, os.NewSyscallError("make opaque", unix.Setxattr(filepath.Clean(dir), "trusted.overlay.opaque", []byte{'y'}, 0))
	}
	name, ok := strings.CutPrefix(base, whiteoutPrefix)
	if !ok {
		return true, nil
	}
	if name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteoutPrefix) {
		return false, fmt.Errorf("whiteout %q names no file: %w", h.Name, errdefs.ErrInvalidArgument)
	}
	target := filepath.Join(dir, name)
	if err := os.RemoveAll(target); err != nil {
		return false, err
	}
	return false, os.NewSyscallError("mknod "+name, unix.Mknod(target, unix.S_IFCHR, 0))
}

// guardedReader counts what is unpacked, and stops a bomb by its size or before the disk is full.
type guardedReader struct {
	r       io.Reader
	n       int64
	limit   int64
	dir     string
	reserve int64
	checked int64
}

const spaceCheckEvery = 32 << 20

func (g *guardedReader) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	g.n += int64(n)
	if g.n > g.limit {
		return n, fmt.Errorf("layer is larger than %d bytes unpacked: %w", g.limit, errdefs.ErrResourceExhausted)
	}
	if g.n-g.checked >= spaceCheckEvery {
		g.checked = g.n
		if free := freeBytes(g.dir); free < g.reserve {
			return n, fmt.Errorf("%d bytes are left on the disk of %s: %w: %w", free, g.dir, unix.ENOSPC, errdefs.ErrResourceExhausted)
		}
	}
	return n, err
}

func freeBytes(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

func ownerOf(fi os.FileInfo) (uid, gid int) {
	st := fi.Sys().(*syscall.Stat_t)
	return int(st.Uid), int(st.Gid)
}
