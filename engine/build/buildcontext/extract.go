package buildcontext

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Limits bounds what one archive may become on disk. The zero value of a field means
// the default beside it.
type Limits struct {
	Bytes   int64 // of file content, unpacked (16 GiB)
	Entries int   // files, directories and links (1,000,000)
	Ratio   int64 // unpacked to packed, counted once more than 64 MiB came out (1100: more than gzip can reach honestly)
}

func (l Limits) orDefault() Limits {
	if l.Bytes == 0 {
		l.Bytes = 16 << 30
	}
	if l.Entries == 0 {
		l.Entries = 1_000_000
	}
	if l.Ratio == 0 {
		l.Ratio = 1100
	}
	return l
}

// ratioFloor is how much an archive may expand to before its ratio is looked at: small
// files of zeros compress arbitrarily well and harm nobody.
const ratioFloor = 64 << 20

const maxNameLength = 4096

// Options say what an archive's entries may be. The zero value is right for a build
// context.
type Options struct {
	Limits Limits
	// Kind names the archive in errors; empty means "build context".
	Kind string
	// KeepOwner applies the archive's owners and xattrs; otherwise everything is root's.
	KeepOwner bool
	// Owner, when not nil, replaces every entry's owner.
	Owner *Owner
	// Devices allows device nodes and fifos.
	Devices bool
	// FollowParents lets entries pass through symbolic links to directories, resolved
	// inside the root as chroot would; otherwise such an entry is an error.
	FollowParents bool
	// ModTime, when not nil, replaces every entry's time.
	ModTime *time.Time
	// Index, when not nil, receives an entry per file, hashed while written.
	Index *Index
}

// Owner is a numeric user and group.
type Owner struct{ UID, GID int }

// Error is an archive that was refused, and where.
type Error struct {
	Kind   string // what the archive is for
	Name   string // the entry, empty for the archive as a whole
	Reason string
}

func (e *Error) Error() string {
	if e.Name == "" {
		return fmt.Sprintf("%s: %s", e.Kind, e.Reason)
	}
	return fmt.Sprintf("%s: entry %q: %s", e.Kind, e.Name, e.Reason)
}

// Extract unpacks the tar archive in r, compressed or not, below root. root is private
// to the caller until Extract returns; on error its content is undefined.
func Extract(ctx context.Context, r io.Reader, root string, opts Options) error {
	if opts.Kind == "" {
		opts.Kind = "build context"
	}
	opts.Limits = opts.Limits.orDefault()
	packed := &counter{r: r}
	plain, err := Decompress(packed)
	if err != nil {
		return &Error{Kind: opts.Kind, Reason: err.Error()}
	}
	defer plain.Close()
	x := &extractor{ctx: ctx, root: root, opts: opts, packed: packed, plain: &counter{r: plain}, buf: make([]byte, 128<<10)}
	if err := x.run(); err != nil {
		return err
	}
	if opts.Index != nil {
		opts.Index.finish()
	}
	return nil
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

type extractor struct {
	ctx           context.Context
	root          string
	opts          Options
	packed, plain *counter
	written       int64
	entries       int
	buf           []byte
	dirs          []dirTime
	lastParent    string // archive name of the last parent that was resolved
	lastDir       string // and where it is
}

// dirTime is a directory whose time is set after its children are in place.
type dirTime struct {
	path string
	at   time.Time
}

func (x *extractor) refuse(name, format string, args ...any) error {
	return &Error{Kind: x.opts.Kind, Name: name, Reason: fmt.Sprintf(format, args...)}
}

func (x *extractor) run() error {
	tr := tar.NewReader(x.plain)
	for {
		if err := context.Cause(x.ctx); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return x.refuse("", "not a readable tar archive: %v", err)
		}
		if x.entries++; x.entries > x.opts.Limits.Entries {
			return x.refuse("", "more than %d entries", x.opts.Limits.Entries)
		}
		if err := x.ratio(); err != nil {
			return err
		}
		if err := x.entry(hdr, tr); err != nil {
			return err
		}
	}
	return x.dirTimes()
}

// dirTimes gives directories their times, those made last first. A later entry may have
// put a symbolic link in the place of one, or on the way to it: what such a path leads to
// now was never this archive's.
func (x *extractor) dirTimes() error {
	root, err := os.OpenFile(x.root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, dir := range slices.Backward(x.dirs) {
		if err := dir.set(root); err != nil {
			return err
		}
	}
	return nil
}

func (d dirTime) set(root *os.File) error {
	rel, err := filepath.Rel(root.Name(), d.path)
	if err != nil {
		return err
	}
	fd, err := unix.Openat2(int(root.Fd()), rel, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil // replaced
	case err != nil:
		return &os.PathError{Op: "open", Path: d.path, Err: err}
	}
	defer unix.Close(fd)
	return setTime(fmt.Sprintf("/proc/self/fd/%d/.", fd), d.at)
}

// ratio refuses an archive that has become too much larger than what was sent. Sparse
// files count with the size they get, which their archive does not hold.
func (x *extractor) ratio() error {
	out := max(x.plain.n, x.written)
	if out > ratioFloor && out/max(x.packed.n, 1) > x.opts.Limits.Ratio {
		return x.refuse("", "expands to more than %d times its size: refusing a decompression bomb", x.opts.Limits.Ratio)
	}
	return nil
}

// entry unpacks one entry.
func (x *extractor) entry(hdr *tar.Header, body io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if !x.opts.Devices {
			return x.refuse(hdr.Name, "device nodes and pipes are not allowed")
		}
	}
	name, err := x.cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return x.rootEntry(hdr)
	}
	parent, err := x.parent(hdr.Name, path.Dir(name))
	if err != nil {
		return err
	}
	p := filepath.Join(parent, path.Base(name))
	sum, err := x.place(hdr, name, p, body)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return nil // the target already carries all metadata
	}
	if err := x.metadata(hdr, p); err != nil {
		return x.refuse(hdr.Name, "%v", err)
	}
	if x.opts.Index != nil {
		x.opts.Index.add(entryOf(hdr, name, sum))
	}
	return nil
}

func (x *extractor) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return x.refuse(hdr.Name, "the root must be a directory")
	}
	// A context's own directory has no place in an image; ADD keeps its metadata.
	if !x.opts.KeepOwner {
		return nil
	}
	return x.metadata(hdr, x.root)
}

// cleanName is the entry's name relative to the root, or an error when it points
// outside: silently clamping it would hide either an attack or a broken client.
func (x *extractor) cleanName(name string) (string, error) {
	if len(name) > maxNameLength {
		return "", x.refuse(name[:64]+"...", "name is longer than %d bytes", maxNameLength)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", x.refuse(name, "name contains a zero byte")
	}
	// Read as it is written, "a/../b" is "b", whatever a may be.
	clean := path.Clean(strings.TrimLeft(name, "/") + "/.")
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", x.refuse(name, "name contains \"..\" and could leave the directory")
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > 255 {
			return "", x.refuse(name[:64]+"...", "a name longer than 255 bytes")
		}
	}
	return clean, nil
}

// parent returns the directory that holds an entry, making what the archive left out.
func (x *extractor) parent(entry, dir string) (string, error) {
	if dir == "." {
		return x.root, nil
	}
	if dir == x.lastParent {
		return x.lastDir, nil
	}
	var p string
	var err error
	if x.opts.FollowParents {
		p, err = x.followed(dir)
	} else {
		p, err = x.strict(dir)
	}
	if err != nil {
		return "", x.refuse(entry, "%v", err)
	}
	x.lastParent, x.lastDir = dir, p
	return p, nil
}

func (x *extractor) followed(dir string) (string, error) {
	p, err := fs.RootPath(x.root, dir)
	if err != nil {
		return "", err
	}
	return p, os.MkdirAll(p, 0o755)
}

// strict walks to dir without crossing a symbolic link.
func (x *extractor) strict(dir string) (string, error) {
	p := x.root
	walked := ""
	for part := range strings.SplitSeq(dir, "/") {
		p, walked = filepath.Join(p, part), path.Join(walked, part)
		st, err := os.Lstat(p)
		switch {
		case errors.Is(err, os.ErrNotExist):
			if err := os.Mkdir(p, 0o755); err != nil {
				return "", err
			}
			if x.opts.Index != nil {
				x.opts.Index.add(Entry{Path: walked, Mode: uint32(unix.S_IFDIR | 0o755)})
			}
		case err != nil:
			return "", err
		case st.Mode()&os.ModeSymlink != 0:
			return "", fmt.Errorf("%q is a symbolic link, and nothing may be stored below one", walked)
		case !st.IsDir():
			return "", fmt.Errorf("%q is not a directory", walked)
		}
	}
	return p, nil
}

// place creates the inode of an entry and returns the digest of its content.
func (x *extractor) place(hdr *tar.Header, name, p string, body io.Reader) (digest.Digest, error) {
	if err := x.clear(hdr, name, p); err != nil {
		return "", err
	}
	var err error
	switch hdr.Typeflag {
	case tar.TypeDir:
		err = os.Mkdir(p, 0o755)
		if errors.Is(err, os.ErrExist) {
			err = nil
		}
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.regular(hdr, p, body)
	case tar.TypeSymlink:
		if hdr.Linkname == "" || len(hdr.Linkname) >= maxNameLength {
			return "", x.refuse(hdr.Name, "symbolic link with a target of %d bytes", len(hdr.Linkname))
		}
		err = os.Symlink(hdr.Linkname, p)
	case tar.TypeLink:
		return "", x.hardlink(hdr, name, p)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = mknod(hdr, p)
	default:
		return "", x.refuse(hdr.Name, "entries of type %q are not supported", hdr.Typeflag)
	}
	if err != nil {
		return "", x.refuse(hdr.Name, "%v", err)
	}
	return "", nil
}

// clear removes what an earlier entry left at p: the last entry of a name wins.
func (x *extractor) clear(hdr *tar.Header, name, p string) error {
	st, err := os.Lstat(p)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return x.refuse(hdr.Name, "%v", err)
	}
	if hdr.Typeflag == tar.TypeDir && st.IsDir() {
		return nil
	}
	// Whatever is replaced may have been on the way to the last parent.
	x.lastParent = ""
	if st.IsDir() && x.opts.Index != nil {
		x.opts.Index.removeTree(name)
	}
	if err := os.RemoveAll(p); err != nil {
		return x.refuse(hdr.Name, "%v", err)
	}
	return nil
}

func (x *extractor) regular(hdr *tar.Header, p string, body io.Reader) (digest.Digest, error) {
	if hdr.Size < 0 || hdr.Size > x.opts.Limits.Bytes-x.written {
		return "", x.refuse(hdr.Name, "more than %d bytes of content in all", x.opts.Limits.Bytes)
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", x.refuse(hdr.Name, "%v", err)
	}
	defer f.Close()
	var w io.Writer = f
	var sum hash.Hash
	if x.opts.Index != nil {
		sum = sha256.New()
		w = io.MultiWriter(f, sum)
	}
	_, err = io.CopyBuffer(&measured{x, w}, body, x.buf)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		var refused *Error
		if errors.As(err, &refused) {
			return "", err
		}
		return "", x.refuse(hdr.Name, "write content: %v", err)
	}
	if sum == nil {
		return "", nil
	}
	return digest.NewDigest(digest.SHA256, sum), nil
}

// measured counts what is written. It also hides ReadFrom, which would bypass the buffer.
type measured struct {
	x *extractor
	w io.Writer
}

func (m *measured) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.x.written += int64(n)
	if err == nil {
		err = m.x.ratio()
	}
	return n, err
}

func (x *extractor) hardlink(hdr *tar.Header, name, p string) error {
	target, err := x.cleanName(hdr.Linkname)
	if err != nil {
		return x.refuse(hdr.Name, "hard link to %q: target could leave the directory", hdr.Linkname)
	}
	dir := filepath.Join(x.root, path.Dir(target))
	if x.opts.FollowParents {
		if dir, err = fs.RootPath(x.root, path.Dir(target)); err != nil {
			return x.refuse(hdr.Name, "hard link to %q: %v", hdr.Linkname, err)
		}
	} else if resolved, err := fs.RootPath(x.root, path.Dir(target)); err != nil || resolved != filepath.Clean(dir) {
		return x.refuse(hdr.Name, "hard link to %q: target lies below a symbolic link", hdr.Linkname)
	}
	old := filepath.Join(dir, path.Base(target))
	st, err := os.Lstat(old)
	if err != nil {
		return x.refuse(hdr.Name, "hard link to %q: no such entry earlier in the archive", hdr.Linkname)
	}
	if !st.Mode().IsRegular() && !x.opts.Devices {
		return x.refuse(hdr.Name, "hard link to %q: target is not a regular file", hdr.Linkname)
	}
	if err := os.Link(old, p); err != nil {
		return x.refuse(hdr.Name, "hard link to %q: %v", hdr.Linkname, errors.Unwrap(err))
	}
	if x.opts.Index != nil {
		x.opts.Index.link(name, target)
	}
	return nil
}

func (x *extractor) metadata(hdr *tar.Header, p string) error {
	uid, gid := 0, 0
	switch {
	case x.opts.Owner != nil:
		uid, gid = x.opts.Owner.UID, x.opts.Owner.GID
	case x.opts.KeepOwner:
		uid, gid = hdr.Uid, hdr.Gid
	}
	if err := os.Lchown(p, uid, gid); err != nil {
		return err
	}
	if err := x.xattrs(hdr, p); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(hdr.Mode)&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: hdr.Name, Err: err}
		}
	}
	at := hdr.ModTime
	if x.opts.ModTime != nil {
		at = *x.opts.ModTime
	}
	if hdr.Typeflag == tar.TypeDir {
		x.dirs = append(x.dirs, dirTime{p, at})
		return nil
	}
	return setTime(p, at)
}

const paxXattr = "SCHILY.xattr."

// xattrs keeps the attributes that mean something inside an image. The overlay's own
// are refused: a layer that carries them could redirect lookups out of itself.
func (x *extractor) xattrs(hdr *tar.Header, p string) error {
	if !x.opts.KeepOwner {
		return nil
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			return fmt.Errorf("extended attribute %s belongs to the overlay file system", name)
		}
		if !strings.HasPrefix(name, "security.") && !strings.HasPrefix(name, "user.") {
			continue
		}
		err := unix.Lsetxattr(p, name, []byte(value), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set extended attribute %s: %w", name, err)
		}
	}
	return nil
}

func mknod(hdr *tar.Header, p string) error {
	mode := uint32(hdr.Mode) & 0o7777
	switch hdr.Typeflag {
	case tar.TypeChar:
		mode |= unix.S_IFCHR
		if hdr.Devmajor == 0 && hdr.Devminor == 0 {
			return errors.New("character device 0:0 would hide the file below as an overlay whiteout")
		}
	case tar.TypeBlock:
		mode |= unix.S_IFBLK
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	}
	return unix.Mknod(p, mode, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
}

func setTime(p string, at time.Time) error {
	if at.IsZero() || at.Unix() < 0 {
		at = time.Unix(0, 0)
	}
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimes", Path: p, Err: err}
	}
	return nil
}
