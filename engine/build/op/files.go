package op

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/solver/pb"
	fscopy "github.com/tonistiigi/fsutil/copy"

	"slipway.dev/slipway/engine/build/buildcontext"
)

// The functions here work on a mounted root that nobody else uses meanwhile. Every path
// is resolved inside the root first, as chroot would, and then used as it is.

func timeOf(ns int64) *time.Time {
	if ns == -1 {
		return nil
	}
	t := time.Unix(ns/1e9, ns%1e9)
	return &t
}

func (o *ids) chowner() fscopy.Chowner {
	if o == nil {
		return nil
	}
	return func(*fscopy.User) (*fscopy.User, error) { return &fscopy.User{UID: o.uid, GID: o.gid}, nil }
}

// rootless takes the root's place on this machine out of a path error: the user knows
// only the paths inside.
func rootless(err error, roots ...string) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		for _, root := range roots {
			if rest, ok := strings.CutPrefix(pe.Path, root); ok {
				pe.Path = "/" + strings.TrimPrefix(rest, "/")
			}
		}
	}
	return err
}

func mkdir(root string, a *pb.FileActionMkDir, o *ids) error {
	p, err := fs.RootPath(root, a.Path)
	if err != nil {
		return rootless(err, root)
	}
	at := timeOf(a.Timestamp)
	mode := os.FileMode(a.Mode) & 0o777
	if a.MakeParents {
		_, err := fscopy.MkdirAll(p, mode, o.chowner(), at)
		return rootless(err, root)
	}
	if err := os.Mkdir(p, mode); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return rootless(err, root)
	}
	return rootless(finish(p, o, at), root)
}

func finish(p string, o *ids, at *time.Time) error {
	if err := fscopy.Chown(p, nil, o.chowner()); err != nil {
		return err
	}
	return fscopy.Utimes(p, at)
}

// mkfile stages the content next to its place and renames it there, so that a device
// node or link that an image has under that name is replaced, never written through.
func mkfile(root string, a *pb.FileActionMkFile, o *ids) error {
	p, err := fs.RootPath(root, filepath.Join("/", a.Path))
	if err != nil {
		return rootless(err, root)
	}
	if p == root {
		return &os.PathError{Op: "write", Path: a.Path, Err: syscall.EISDIR}
	}
	f, err := os.CreateTemp(filepath.Dir(p), ".slipway-*")
	if err != nil {
		return rootless(&os.PathError{Op: "create", Path: p, Err: errors.Unwrap(err)}, root)
	}
	_, err = f.Write(a.Data)
	err = errors.Join(err, f.Chmod(os.FileMode(a.Mode)&0o777), f.Close())
	if err == nil {
		err = finish(f.Name(), o, timeOf(a.Timestamp))
	}
	if err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", a.Path, err)
	}
	return nil
}

func symlink(root string, a *pb.FileActionSymlink, o *ids) error {
	p, err := fs.RootPath(root, filepath.Join("/", a.Newpath))
	if err != nil {
		return rootless(err, root)
	}
	if err := os.Symlink(a.Oldpath, p); err != nil {
		return rootless(err, root)
	}
	return rootless(finish(p, o, timeOf(a.Timestamp)), root)
}

func remove(root string, a *pb.FileActionRm) error {
	paths := []string{a.Path}
	if a.AllowWildcard {
		m, err := fscopy.ResolveWildcards(root, cleanPath(a.Path), false)
		if err != nil {
			return rootless(err, root)
		}
		paths = m
	}
	for _, p := range paths {
		dir, base := filepath.Split(filepath.Join("/", p))
		if base == "" {
			return fmt.Errorf("remove %q: that is the root", a.Path)
		}
		dir, err := fs.RootPath(root, dir)
		if err != nil {
			return rootless(err, root)
		}
		full := filepath.Join(dir, base)
		if _, err := os.Lstat(full); err != nil && !a.AllowNotFound {
			return rootless(err, root)
		}
		if err := os.RemoveAll(full); err != nil {
			return rootless(err, root)
		}
	}
	return nil
}

// cleanPath cleans a path and keeps a trailing "/" or "/.", which mean something to COPY.
func cleanPath(s string) string {
	p := filepath.Join("/", s)
	switch {
	case strings.HasSuffix(s, "/."):
		if p != "/" {
			p += "/"
		}
		p += "."
	case strings.HasSuffix(s, "/") && p != "/":
		p += "/"
	}
	return p
}

func copyFiles(ctx context.Context, src, dest string, a *pb.FileActionCopy, o *ids) error {
	from, to := cleanPath(a.Src), cleanPath(a.Dest)
	if !a.CreateDestPath {
		p, err := fs.RootPath(dest, filepath.Join("/", a.Dest))
		if err != nil {
			return rootless(err, dest)
		}
		if _, err := os.Lstat(filepath.Dir(p)); err != nil {
			return rootless(err, dest)
		}
	}
	matches := []string{from}
	if a.AllowWildcard {
		var err error
		if matches, err = fscopy.ResolveWildcards(src, from, a.FollowSymlink); err != nil {
			return rootless(err, src)
		}
		if len(matches) == 0 && !a.AllowEmptyWildcard {
			return &NotFoundError{Path: from, Where: "the source of the copy"}
		}
	}
	for _, m := range matches {
		if a.AttemptUnpackDockerCompatibility {
			done, err := unpack(ctx, src, m, dest, to, a, o)
			if err != nil {
				return rootless(err, src, dest)
			}
			if done {
				continue
			}
		}
		if err := exists(src, m); err != nil {
			return err
		}
		if err := fscopy.Copy(ctx, src, m, dest, to, copyOptions(a, o)...); err != nil {
			return fmt.Errorf("copy %s to %s%s: %w", m, a.Dest, withMode(a), rootless(err, src, dest))
		}
	}
	return nil
}

// withMode mentions a symbolic mode, which may be what is wrong.
func withMode(a *pb.FileActionCopy) string {
	if a.ModeStr == "" {
		return ""
	}
	return " with mode " + a.ModeStr
}

// exists says in the user's words that a source is absent.
func exists(root, name string) error {
	p, err := fs.RootPath(root, name)
	if err != nil {
		return rootless(err, root)
	}
	if _, err := os.Lstat(p); errors.Is(err, os.ErrNotExist) {
		return &NotFoundError{Path: name, Where: "what it is copied from"}
	}
	return nil
}

func copyOptions(a *pb.FileActionCopy, o *ids) []fscopy.Opt {
	return []fscopy.Opt{
		func(ci *fscopy.CopyInfo) {
			ci.IncludePatterns, ci.ExcludePatterns = a.IncludePatterns, a.ExcludePatterns
			ci.Chown = o.chowner()
			ci.Utime = timeOf(a.Timestamp)
			if a.ModeStr != "" {
				ci.ModeStr = a.ModeStr
			} else if m := int(a.Mode); m != -1 {
				ci.Mode = &m
			}
			ci.CopyDirContents = a.DirCopyContents
			ci.FollowLinks = a.FollowSymlink
			ci.AlwaysReplaceExistingDestPaths = a.AlwaysReplaceExistingDestPaths
		},
		// An attribute that this file system does not know is left out, as Docker does.
		fscopy.WithXAttrErrorHandler(func(_, _, _ string, _ error) error { return nil }),
	}
}

// unpack extracts src into dest when it is a local tar archive, which only its content
// decides, and reports whether it was one.
func unpack(ctx context.Context, srcRoot, src, destRoot, dest string, a *pb.FileActionCopy, o *ids) (bool, error) {
	p, err := fs.RootPath(srcRoot, src)
	if err != nil {
		return false, err
	}
	if ok, err := isArchive(p); err != nil || !ok {
		return false, err
	}
	into, err := fs.RootPath(destRoot, dest)
	if err != nil {
		return false, err
	}
	if _, err := fscopy.MkdirAll(into, 0o755, o.chowner(), timeOf(a.Timestamp)); err != nil {
		return false, err
	}
	f, err := os.Open(p)
	if err != nil {
		return false, err
	}
	defer f.Close()
	opts := buildcontext.Options{
		Kind: fmt.Sprintf("archive %q", filepath.Base(src)), KeepOwner: true, Devices: true, FollowParents: true,
		ModTime: timeOf(a.Timestamp),
	}
	if o != nil {
		opts.Owner = &buildcontext.Owner{UID: o.uid, GID: o.gid}
	}
	return true, buildcontext.Extract(ctx, f, into, opts)
}

func isArchive(p string) (bool, error) {
	st, err := os.Lstat(p)
	if err != nil || !st.Mode().IsRegular() {
		return false, nil // the copy that follows says what is wrong
	}
	f, err := os.Open(p)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r, err := buildcontext.Decompress(f)
	if err == nil {
		defer r.Close()
		_, err = tar.NewReader(io.LimitReader(r, 1<<20)).Next()
	}
	if errors.Is(err, buildcontext.ErrWindow) { // an archive very likely, and copying it would be silently wrong
		return false, fmt.Errorf("unpack %q: %w", filepath.Base(p), err)
	}
	return err == nil, nil
}

// within resolves a selected path inside a root.
func within(root, selected string) (string, error) {
	if selected == "" || selected == "/" {
		return root, nil
	}
	p, err := fs.RootPath(root, selected)
	if err != nil {
		return "", rootless(err, root)
	}
	if _, err := os.Lstat(p); err != nil {
		return "", &NotFoundError{Path: selected, Where: "the source of the mount"}
	}
	return p, nil
}

// copyTree copies what is in src into dest.
func copyTree(ctx context.Context, src, dest string) error {
	st, err := os.Stat(src)
	if err != nil {
		return rootless(err, src)
	}
	if !st.IsDir() {
		return errors.New("the source of a cache mount must be a directory")
	}
	return rootless(fscopy.Copy(ctx, src, "/", dest, "/", func(ci *fscopy.CopyInfo) { ci.CopyDirContents = true }), src, dest)
}
