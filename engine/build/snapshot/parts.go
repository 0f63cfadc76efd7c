package snapshot

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
)

// Parts returns the directories that make up path selected of a snapshot when they are
// stacked, topmost first, or the one file that it is. They are parts of layers: mounting
// them needs nothing that is mounted here, and so works from another mount namespace.
// An absent path is os.ErrNotExist.
func (s *Store) Parts(ctx context.Context, snap *Snapshot, selected string) (parts []string, file bool, err error) {
	rel, file, err := s.resolve(ctx, snap, selected)
	if err != nil {
		return nil, false, err
	}
	if snap != nil && snap.View != nil {
		dir, err := s.contexts.Dir(ctx, *snap.View)
		return []string{filepath.Join(dir, rel)}, file, err
	}
	chain, err := s.images.Chain(snap.Chain())
	if err != nil {
		return nil, false, err
	}
	for _, layer := range chain.Lower {
		p, last, err := partOf(layer, rel)
		if err != nil {
			return nil, false, err
		}
		if p != "" {
			parts = append(parts, p)
		}
		if last || (file && p != "") {
			break
		}
	}
	return parts, file, nil
}

// resolve finds the place of a path in the merged view, free of symbolic links.
func (s *Store) resolve(ctx context.Context, snap *Snapshot, selected string) (rel string, file bool, err error) {
	dir, release, err := s.Open(ctx, snap)
	if err != nil {
		return "", false, err
	}
	defer release()
	full, err := fs.RootPath(dir, filepath.Join("/", selected))
	if err != nil {
		return "", false, err
	}
	st, err := os.Lstat(full)
	if err != nil {
		return "", false, err
	}
	rel, err = filepath.Rel(dir, full)
	return rel, !st.IsDir(), err
}

// partOf is what one layer has at rel, "" for nothing, and whether layers below it do not
// show through there: something on the way was removed or replaced in this layer.
func partOf(layer, rel string) (p string, last bool, err error) {
	p = layer
	for name := range strings.SplitSeq(rel, "/") {
		if name == "." {
			break
		}
		p = filepath.Join(p, name)
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return "", last, nil
		}
		if err != nil {
			return "", false, &os.PathError{Op: "stat", Path: p, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			last = last || opaque(p)
		case unix.S_IFCHR:
			if st.Rdev == 0 {
				return "", true, nil // a whiteout
			}
			return p, true, nil
		default:
			return p, true, nil
		}
	}
	return p, last, nil
}

func opaque(dir string) bool {
	buf := make([]byte, 1)
	n, err := syscall.Getxattr(dir, "trusted.overlay.opaque", buf)
	return err == nil && n == 1 && buf[0] == 'y'
}
