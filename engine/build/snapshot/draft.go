package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/image"
)

// Draft is a layer being written on top of a snapshot. One of Commit and Discard must be
// called. It is for one goroutine at a time.
type Draft struct {
	store  *Store
	parent *Snapshot
	layer  *image.LayerDraft
	dir    string // where it is mounted, empty when it is not
}

// NewDraft starts a layer on parent, which must be layers (nil and empty: from nothing).
func (s *Store) NewDraft(ctx context.Context, parent *Snapshot) (*Draft, error) {
	if parent != nil && parent.View != nil {
		return nil, errors.New("a build context cannot be written to: copy from it")
	}
	l, err := s.images.NewLayer(s.scope(ctx), parent.Chain())
	if err != nil {
		return nil, fmt.Errorf("new layer: %w", err)
	}
	return &Draft{store: s, parent: parent, layer: l}, nil
}

// Dir mounts the draft, once, and returns the merged view. Paths in it come from the
// Dockerfile and from the image: resolve them inside it.
func (d *Draft) Dir() (string, error) {
	if d.dir != "" {
		return d.dir, nil
	}
	dir, err := os.MkdirTemp(d.store.mounts, "draft-")
	if err != nil {
		return "", fmt.Errorf("mount layer: %w", err)
	}
	if err := mount.All(d.layer.Mounts(), dir); err != nil {
		_ = os.Remove(dir)
		return "", fmt.Errorf("mount layer: %w", err)
	}
	d.dir = dir
	return dir, nil
}

// Mounts says how to mount the draft elsewhere. Only one of Dir and Mounts may be in
// effect at any time: two overlays on one upper directory corrupt it.
func (d *Draft) Mounts() []mount.Mount { return d.layer.Mounts() }

// Upper is the directory that becomes the layer.
func (d *Draft) Upper() string { return d.layer.Upper }

func (d *Draft) unmount() error {
	if d.dir == "" {
		return nil
	}
	if err := mount.UnmountAll(d.dir, 0); err != nil {
		return fmt.Errorf("unmount layer: %w", err)
	}
	_ = os.Remove(d.dir)
	d.dir = ""
	return nil
}

// Commit turns the draft into a layer and returns the snapshot with it on top.
func (d *Draft) Commit(ctx context.Context, description string, created time.Time) (*Snapshot, error) {
	if err := d.unmount(); err != nil {
		d.Discard()
		return nil, err
	}
	l, err := d.store.commit(ctx, d.layer)
	if err != nil {
		return nil, err
	}
	created = created.UTC()
	out := &Snapshot{}
	if d.parent != nil {
		out.Layers = slices.Clone(d.parent.Layers)
	}
	out.Layers = append(out.Layers, Layer{
		ChainID: l.ChainID, DiffID: l.DiffID, Size: l.Size, Created: &created, Description: description,
	})
	return out, nil
}

// Discard throws the draft away. After Commit it does nothing.
func (d *Draft) Discard() {
	if err := d.unmount(); err != nil {
		d.store.log.Warn("a layer being discarded stays mounted", "error", err)
	}
	d.layer.Discard()
}

// Open gives a snapshot as one read-only directory, until release is called. Nothing may
// be written there; paths from outside must be resolved inside it.
func (s *Store) Open(ctx context.Context, snap *Snapshot) (dir string, release func(), err error) {
	if snap != nil && snap.View != nil {
		dir, err := s.contexts.Dir(ctx, *snap.View)
		return dir, func() {}, err
	}
	return s.views.open(ctx, snap.Chain())
}

// FromChain makes a snapshot of an unpacked image.
func FromChain(c image.Chain) *Snapshot {
	snap := &Snapshot{}
	for _, l := range c.Layers {
		snap.Layers = append(snap.Layers, Layer{ChainID: l.ChainID, DiffID: l.DiffID, Size: l.Size})
	}
	return snap
}

// chainKey names a chain in maps; the empty chain has a name too.
func chainKey(id digest.Digest) string { return "chain " + id.String() }

// Select lists the files of a view.
func (s *Store) Select(v buildcontext.View) (*buildcontext.Index, error) { return s.contexts.Select(v) }

// Scratch is a writable layer that is thrown away.
type Scratch struct{ Upper, Work string }

// NewScratch makes the two directories of an overlay; discard removes them.
func (s *Store) NewScratch(ctx context.Context) (Scratch, func(), error) {
	l, err := s.images.NewLayer(s.scope(ctx), "")
	if err != nil {
		return Scratch{}, nil, err
	}
	return Scratch{Upper: l.Upper, Work: l.Work}, l.Discard, nil
}

// Overlay says of which directories the draft's mount consists.
func (d *Draft) Overlay() (lower []string, upper, work string) {
	return d.layer.Lower, d.layer.Upper, d.layer.Work
}
