package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/moby/buildkit/util/overlay"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Commit digests the draft's directory, once, and makes it a layer on its parent. The
// draft must not be mounted any more. The layer is durable after Sync or WriteImage.
// Call it under a lease, or nothing keeps the layer from the collector.
func (d *LayerDraft) Commit(ctx context.Context) (Layer, error) {
	defer d.Discard()
	var (
		sum  digest.Digest
		size int64
	)
	err := d.store.limited(ctx, func() (err error) {
		sum, size, err = d.digest(ctx)
		return err
	})
	if err != nil {
		return Layer{}, fmt.Errorf("commit layer: %w", err)
	}
	return d.adopt(d.store.scope(ctx), sum, size)
}

// digest writes the draft as a tar to nowhere, keeping its headers and its digest.
func (d *LayerDraft) digest(ctx context.Context) (digest.Digest, int64, error) {
	headers, err := newHeaderWriter(d.dir+"/"+headersFile, d.store.limits.Entries)
	if err != nil {
		return "", 0, err
	}
	hashed := digest.Canonical.Digester()
	split := newSplitter(headers, hashed.Hash())
	err = d.writeTar(ctx, split, d.Upper)
	if err := errors.Join(err, split.Close(), headers.Close()); err != nil {
		return "", 0, err
	}
	return hashed.Digest(), headers.length, nil
}

// writeTar writes an overlay upper directory over the draft's parent as a layer's tar.
// Mounts are made only where a directory does not do: two mounts and their removal are
// most of the time that a layer of one small file takes.
func (d *LayerDraft) writeTar(ctx context.Context, w io.Writer, upper string) error {
	lower, done, err := d.lowerView()
	if err != nil {
		return err
	}
	defer done()
	view, done, err := d.store.cleanView(upper)
	if err != nil {
		return err
	}
	defer done()
	cw := archive.NewChangeWriter(w, view)
	err = overlay.Changes(ctx, cw.HandleChange, upper, view, lower)
	return errors.Join(err, cw.Close())
}

// lowerView is the parent as one directory.
func (d *LayerDraft) lowerView() (string, func(), error) {
	if len(d.Lower) == 1 {
		return d.Lower[0], func() {}, nil
	}
	opts := append([]string{"lowerdir=" + strings.Join(d.Lower, ":"), "ro"}, overlayOptions[:3]...)
	return d.store.view(mount.Mount{Type: "overlay", Source: "overlay", Options: opts})
}

// cleanView is an upper directory without overlay's marks for what is removed.
func (s *Store) cleanView(upper string) (string, func(), error) {
	marked, err := hasMarks(upper)
	if err != nil {
		return "", nil, err
	}
	if !marked {
		return upper, func() {}, nil
	}
	opts := append([]string{"lowerdir=" + upper + ":" + s.path("empty"), "ro"}, overlayOptions[:3]...)
	return s.view(mount.Mount{Type: "overlay", Source: "overlay", Options: opts})
}

var errMarked = errors.New("marked")

// hasMarks reports whether there is a whiteout or an opaque directory below dir.
func hasMarks(dir string) (bool, error) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // somebody goes on writing
		}
		if err != nil {
			return err
		}
		if e.Type()&fs.ModeCharDevice != 0 { // whiteouts are; devices are rare
			return errMarked
		}
		if e.IsDir() {
			if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", nil); err == nil && n > 0 {
				return errMarked
			}
		}
		return nil
	})
	if errors.Is(err, errMarked) {
		return true, nil
	}
	return false, err
}
