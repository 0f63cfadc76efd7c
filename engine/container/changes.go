package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Changes lists what differs from the image, by path. It reads the container's own layer
// only: what is in there was added or changed, and a whiteout was deleted.
func (m *Manager) Changes(ctx context.Context, ref string) ([]Change, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	chain, err := m.chain(c)
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", c.spec().Name, err)
	}
	upper, lower := filepath.Join(c.dir, "upper"), layers(chain.Lower)
	var out []Change
	err = filepath.WalkDir(upper, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || p == upper {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return nil // it vanished while we looked
		}
		rel := strings.TrimPrefix(p, upper)
		kind := changeKind(rel, fi, lower)
		if kind == Modified && fi.IsDir() && isOpaque(p) {
			out = append(out, opaqueDeletions(upper, rel, lower)...)
		}
		out = append(out, Change{kind, rel})
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("changes of container %s: %w", c.spec().Name, err)
	}
	out = slices.DeleteFunc(out, func(ch Change) bool { return mountPointOnly(ch, upper) })
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

func changeKind(rel string, fi fs.FileInfo, lower layers) ChangeKind {
	_, old, err := lower.resolveNoFollow(rel)
	switch {
	case isWhiteout(fi):
		return Deleted
	case err != nil || old == nil:
		return Added
	}
	return Modified
}

// resolveNoFollow finds a path whose parents are no links, without following the last.
func (l layers) resolveNoFollow(p string) (string, fs.FileInfo, error) {
	host, fi, rest, _, err := l.walk(p)
	if err == nil && rest != "" {
		err = fs.ErrNotExist
	}
	return host, fi, err
}

// opaqueDeletions lists what an opaque directory hides and does not bring back itself.
func opaqueDeletions(upper, rel string, lower layers) []Change {
	var out []Change
	seen := map[string]bool{}
	for _, dir := range lower.directory(rel) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if seen[e.Name()] {
				continue
			}
			seen[e.Name()] = true
			if _, err := os.Lstat(filepath.Join(upper, rel, e.Name())); errors.Is(err, fs.ErrNotExist) {
				out = append(out, Change{Deleted, filepath.Join(rel, e.Name())})
			}
		}
	}
	return out
}

// mountPointOnly tells whether a path is there only because something is mounted on it.
func mountPointOnly(ch Change, upper string) bool {
	if ch.Kind == Deleted {
		return false
	}
	for _, t := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if ch.Path == t && isEmptyFile(filepath.Join(upper, t)) {
			return true
		}
	}
	return false
}

func isEmptyFile(p string) bool {
	fi, err := os.Lstat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Size() == 0
}

// Upper gives the container's own layer and the image chain below it, for a commit. The
// container must not run, or be paused, while the directory is read.
func (m *Manager) Upper(ref string) (dir, chainID string, err error) {
	c, err := m.find(ref)
	if err != nil {
		return "", "", err
	}
	if st := c.saved().State; st.Running && !st.Paused {
		return "", "", errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is running: pause it first", c.spec().Name))
	}
	return filepath.Join(c.dir, "upper"), c.record().ChainID, nil
}
