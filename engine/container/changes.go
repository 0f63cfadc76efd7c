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
	"syscall"

	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/tree"
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
	out = dropUntouched(out, upper, lower)
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// dropUntouched drops directories that are in the layer only because something that is
// not reported was made in them.
func dropUntouched(all []Change, upper string, lower layers) []Change {
	busy := map[string]bool{}
	for _, ch := range all {
		own := ch.Kind != Modified || !isDir(filepath.Join(upper, ch.Path))
		if own && ch.Path != startParent {
			for p := filepath.Dir(ch.Path); p != "/"; p = filepath.Dir(p) {
				busy[p] = true
			}
		}
	}
	return slices.DeleteFunc(all, func(ch Change) bool {
		if busy[ch.Path] {
			return false
		}
		if ch.Path == startParent && ch.Kind == Added {
			return true
		}
		if ch.Kind != Modified {
			return false
		}
		now, err := os.Lstat(filepath.Join(upper, ch.Path))
		_, old, oldErr := lower.resolveNoFollow(ch.Path)
		return err == nil && oldErr == nil && now.IsDir() && old.IsDir() && sameAttributes(now, old)
	})
}

func isDir(p string) bool {
	fi, err := os.Lstat(p)
	return err == nil && fi.IsDir()
}

func sameAttributes(a, b fs.FileInfo) bool {
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	return a.Mode() == b.Mode() && x.Uid == y.Uid && x.Gid == y.Gid
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

// startFiles and startDirs are made by every start in an image that lacks them, to mount
// something on; the mark is made with the container.
var (
	startFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", dockerMark}
	startDirs  = []string{"/dev", "/proc", "/sys"}
)

// dockerMark is the empty file by which programs know that they run in a container of Docker's.
const dockerMark = "/.dockerenv"

// startParent is made for startFiles in an image that has no such directory.
const startParent = "/etc"

// mountPointOnly tells whether a path is there only because something is mounted on it.
func mountPointOnly(ch Change, upper string) bool {
	p := filepath.Join(upper, ch.Path)
	made := ch.Kind == Added || ch.Kind == Modified && ch.Path == dockerMark // an image that was a container once has it, too
	return made && (slices.Contains(startFiles, ch.Path) && isEmptyFile(p) || slices.Contains(startDirs, ch.Path) && isDir(p))
}

func isEmptyFile(p string) bool {
	fi, err := os.Lstat(p)
	return err == nil && emptyFile(fi)
}

func emptyFile(fi os.FileInfo) bool { return fi.Mode().IsRegular() && fi.Size() == 0 }

// Commit makes a layer of what the container changed, on its image's chain, and returns
// the new chain. With pause a running container is frozen while its files are copied. Call it
// under a lease of the image store, until an image refers to the chain. The event is the
// caller's: only it knows what image comes of the layer.
func (m *Manager) Commit(ctx context.Context, ref string, pause bool) (digest.Digest, error) {
	c, err := m.find(ref)
	if err != nil {
		return "", err
	}
	draft, err := m.Images.NewLayer(ctx, digest.Digest(c.record().ChainID))
	if err != nil {
		return "", fmt.Errorf("commit container %s: %w", c.spec().Name, err)
	}
	defer draft.Discard()
	if err := m.copyFrozen(ctx, c, draft.Upper, pause); err != nil {
		return "", fmt.Errorf("commit container %s: %w", c.spec().Name, err)
	}
	layer, err := draft.Commit(ctx)
	if err != nil {
		return "", fmt.Errorf("commit container %s: %w", c.spec().Name, err)
	}
	return layer.ChainID, nil
}

func (m *Manager) copyFrozen(ctx context.Context, c *instance, dst string, pause bool) error {
	if st := c.saved().State; pause && st.Running && !st.Paused {
		if err := m.Pause(ctx, c.id); err != nil {
			return err
		}
		defer func() { _ = m.Unpause(context.WithoutCancel(ctx), c.id) }() // it may have been killed meanwhile
	}
	return copyLayer(dst, filepath.Join(c.dir, "upper"))
}

// copyLayer copies a writable layer, whiteouts and all, without what only a start made.
func copyLayer(dst, src string) error {
	if err := tree.Copy(dst, src, nil); err != nil { // without a pause the container goes on changing it
		return err
	}
	root, err := os.OpenRoot(dst) // its links are the container's, and may lead anywhere
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range startFiles {
		f = strings.TrimPrefix(f, "/")
		if fi, err := root.Lstat(f); err != nil || !emptyFile(fi) {
			continue
		}
		if err := root.Remove(f); err != nil {
			return err
		}
	}
	for _, d := range startDirs {
		_ = root.Remove(strings.TrimPrefix(d, "/")) // only when empty
	}
	return nil
}
