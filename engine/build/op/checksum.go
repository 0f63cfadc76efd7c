package op

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/build/snapshot"
)

// Selector says which files of an input an operation reads.
type Selector struct {
	Path        string
	Wildcard    bool
	FollowLinks bool
	Include     []string
	Exclude     []string
	Optional    bool // absent files are no error
	AllowEmpty  bool // a wildcard may match nothing
}

func (s Selector) filtered() bool {
	return s.Wildcard || len(s.Include) > 0 || len(s.Exclude) > 0
}

// attributes is what of a file's metadata goes into a checksum: all but its times.
type attributes struct {
	buildcontext.Entry
	uid, gid int
	rdev     uint64
	xattrs   string
}

// tree is a file tree that checksums are computed over. Paths are clean, relative and
// free of symbolic links except in their last component.
type tree interface {
	lookup(p string) (attributes, bool, error)
	children(p string) ([]string, error) // names, sorted
	content(p string, a attributes) (digest.Digest, error)
	where() string // for errors
}

func openTree(ctx context.Context, store *snapshot.Store, snap *snapshot.Snapshot) (tree, func(), error) {
	if snap.View != nil {
		index, err := store.Select(*snap.View)
		if err != nil {
			return nil, nil, err
		}
		return newIndexTree(index), func() {}, nil
	}
	dir, release, err := store.Open(ctx, snap)
	if err != nil {
		return nil, nil, err
	}
	return dirTree(dir), release, nil
}

// indexTree is a build context, known without touching the disk.
type indexTree struct {
	index *buildcontext.Index
	kids  map[string][]string
}

func newIndexTree(index *buildcontext.Index) *indexTree {
	t := &indexTree{index: index, kids: map[string][]string{}}
	for _, e := range index.Entries {
		dir := path.Dir(e.Path)
		t.kids[dir] = append(t.kids[dir], path.Base(e.Path))
	}
	return t
}

func (t *indexTree) lookup(p string) (attributes, bool, error) {
	if p == "." {
		return attributes{Entry: buildcontext.Entry{Path: ".", Mode: unix.S_IFDIR | 0o755}}, true, nil
	}
	e, ok := t.index.Lookup(p)
	return attributes{Entry: e}, ok, nil
}

func (t *indexTree) children(p string) ([]string, error) {
	names := slices.Clone(t.kids[p])
	slices.Sort(names)
	return names, nil
}

func (t *indexTree) content(_ string, a attributes) (digest.Digest, error) { return a.Digest, nil }
func (t *indexTree) where() string                                         { return "the build context" }

// dirTree is a mounted image or stage.
type dirTree string

func (t dirTree) lookup(p string) (attributes, bool, error) {
	full := filepath.Join(string(t), p)
	var st unix.Stat_t
	err := unix.Lstat(full, &st)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return attributes{}, false, nil
	}
	if err != nil {
		return attributes{}, false, &fs.PathError{Op: "stat", Path: "/" + p, Err: err}
	}
	a := attributes{Entry: buildcontext.Entry{Path: p, Mode: st.Mode}, uid: int(st.Uid), gid: int(st.Gid)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if a.Link, err = os.Readlink(full); err != nil {
			return attributes{}, false, err
		}
	case unix.S_IFREG:
		a.Size = st.Size
		a.xattrs = capabilities(full)
	case unix.S_IFCHR, unix.S_IFBLK:
		a.rdev = st.Rdev
	}
	return a, true, nil
}

// capabilities is the one extended attribute that changes what a copied program may do.
func capabilities(p string) string {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(p, "security.capability", buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

func (t dirTree) children(p string) ([]string, error) {
	f, err := os.Open(filepath.Join(string(t), p))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (t dirTree) content(p string, _ attributes) (digest.Digest, error) {
	f, err := os.OpenFile(filepath.Join(string(t), p), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

func (t dirTree) where() string { return "what it is copied from" }

// NotFoundError is a path that an operation needs and its input does not have.
type NotFoundError struct{ Path, Where string }

func (e *NotFoundError) Error() string {
	hint := ""
	if strings.Contains(e.Where, "context") {
		hint = ": check the path and .dockerignore"
	}
	return fmt.Sprintf("%q: not found in %s%s", e.Path, e.Where, hint)
}

// Checksum is a digest of what s selects: names, types, modes, owners, links and content.
func Checksum(ctx context.Context, t tree, s Selector) (digest.Digest, error) {
	c, err := newChecksum(ctx, t, s)
	if err != nil {
		return "", err
	}
	roots := []string{cleanRel(s.Path)}
	if s.Wildcard {
		if roots, err = glob(t, cleanRel(s.Path)); err != nil {
			return "", err
		}
		if len(roots) == 0 && !s.AllowEmpty {
			return "", &NotFoundError{Path: s.Path, Where: t.where()}
		}
	}
	for _, p := range roots {
		if s.Wildcard {
			fmt.Fprintf(c.h, "match %q\n", path.Base(p))
		}
		if err := c.root(p, s); err != nil {
			return "", err
		}
	}
	return digest.NewDigest(digest.SHA256, c.h), nil
}

func cleanRel(p string) string {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return "."
	}
	return p
}

type checksum struct {
	ctx              context.Context
	t                tree
	h                hash.Hash
	include, exclude *patternmatcher.PatternMatcher
}

func newChecksum(ctx context.Context, t tree, s Selector) (*checksum, error) {
	c := &checksum{ctx: ctx, t: t, h: sha256.New()}
	var err error
	if len(s.Include) > 0 {
		if c.include, err = patternmatcher.New(s.Include); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", s.Include, err)
		}
	}
	if len(s.Exclude) > 0 {
		if c.exclude, err = patternmatcher.New(s.Exclude); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", s.Exclude, err)
		}
	}
	return c, nil
}

func (c *checksum) root(p string, s Selector) error {
	resolved, err := resolve(c.t, p, s.FollowLinks)
	if err != nil {
		return err
	}
	a, ok, err := c.t.lookup(resolved)
	if err != nil {
		return err
	}
	if !ok {
		if s.Optional {
			fmt.Fprint(c.h, "absent\n")
			return nil
		}
		return &NotFoundError{Path: "/" + strings.TrimPrefix(p, "."), Where: c.t.where()}
	}
	return c.walk(resolved, "", a)
}

// walk adds an entry and all below it. rel is its name relative to the root.
func (c *checksum) walk(p, rel string, a attributes) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	skip, err := c.skips(rel, a)
	if err != nil || (skip && !a.IsDir()) {
		return err
	}
	if !skip {
		if err := c.add(p, rel, a); err != nil {
			return err
		}
	}
	if !a.IsDir() {
		return nil
	}
	names, err := c.t.children(p)
	if err != nil {
		return err
	}
	for _, name := range names {
		child := path.Join(p, name)
		b, ok, err := c.t.lookup(child)
		if err != nil || !ok {
			return errors.Join(err)
		}
		if err := c.walk(child, path.Join(rel, name), b); err != nil {
			return err
		}
	}
	return nil
}

// skips reports whether patterns leave an entry out.
func (c *checksum) skips(rel string, a attributes) (bool, error) {
	if rel == "" {
		return false, nil
	}
	if c.exclude != nil {
		out, err := c.exclude.MatchesOrParentMatches(rel)
		if err != nil || out {
			return out, err
		}
	}
	if c.include != nil {
		in, err := c.include.MatchesOrParentMatches(rel)
		return !in, err
	}
	return false, nil
}

func (c *checksum) add(p, rel string, a attributes) error {
	var sum digest.Digest
	if a.Mode&unix.S_IFMT == unix.S_IFREG {
		var err error
		if sum, err = c.t.content(p, a); err != nil {
			return fmt.Errorf("read %q: %w", "/"+p, err)
		}
	}
	_, err := fmt.Fprintf(c.h, "%q %o %d %d %d %q %s %q\n", rel, a.Mode, a.uid, a.gid, a.rdev, a.Link, sum, a.xattrs)
	return err
}

const maxLinks = 255

// resolve follows the symbolic links in p inside the tree, those of the last component
// only when asked. What does not exist is kept as it is.
func resolve(t tree, p string, last bool) (string, error) {
	todo := strings.Split(p, "/")
	at := "."
	for links := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		next := path.Join(at, part)
		a, ok, err := t.lookup(next)
		if err != nil {
			return "", err
		}
		if !ok || !a.IsSymlink() || (len(todo) == 0 && !last) {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%q: too many symbolic links", "/"+p)
		}
		if path.IsAbs(a.Link) {
			at = "."
		}
		todo = append(strings.Split(a.Link, "/"), todo...)
	}
	return at, nil
}

// glob returns the paths that match a pattern, sorted. Only its components with
// wildcards are matched by name; the ones before are resolved.
func glob(t tree, pattern string) ([]string, error) {
	parts := strings.Split(pattern, "/")
	i := slices.IndexFunc(parts, hasWildcards)
	if i < 0 {
		return []string{pattern}, nil
	}
	base, err := resolve(t, strings.Join(parts[:i], "/"), true)
	if err != nil {
		return nil, err
	}
	at := []string{base}
	for n, part := range parts[i:] {
		final := n == len(parts[i:])-1
		var next []string
		for _, dir := range at {
			found, err := globIn(t, dir, part, final)
			if err != nil {
				return nil, err
			}
			next = append(next, found...)
		}
		at = next
	}
	slices.Sort(at)
	return at, nil
}

func globIn(t tree, dir, part string, final bool) ([]string, error) {
	a, ok, err := t.lookup(dir)
	if err != nil || !ok || !a.IsDir() {
		return nil, err
	}
	names, err := t.children(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		ok, err := path.Match(part, name)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", part, err)
		}
		if !ok {
			continue
		}
		p := path.Join(dir, name)
		if !final {
			if p, err = resolve(t, p, true); err != nil {
				return nil, err
			}
		}
		out = append(out, p)
	}
	return out, nil
}
