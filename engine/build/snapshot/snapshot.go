package snapshot

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/buildcontext"
)

// Layer is one layer of a snapshot.
type Layer struct {
	ChainID digest.Digest `json:"chain"`
	DiffID  digest.Digest `json:"diff"`
	Size    int64         `json:"size"`
	// Created is when the operation that made it ran. It is kept with the layer, so that
	// an unchanged rebuild gives the same image, byte for byte. Nil for layers of a base
	// image, whose history has its own times.
	Created     *time.Time `json:"created,omitempty"`
	Description string     `json:"desc,omitempty"`
}

// Snapshot is an immutable file tree: layers, bottom first, or a view of a context.
// The zero value is the empty tree.
type Snapshot struct {
	Layers []Layer            `json:"layers,omitempty"`
	View   *buildcontext.View `json:"view,omitempty"`
}

// Chain is the chain id of the topmost layer, empty for no layers.
func (s *Snapshot) Chain() digest.Digest {
	if s == nil || len(s.Layers) == 0 {
		return ""
	}
	return s.Layers[len(s.Layers)-1].ChainID
}

// Size is the content that this snapshot adds to the one it was made from.
func (s *Snapshot) size() int64 {
	if s == nil || len(s.Layers) == 0 || s.Layers[len(s.Layers)-1].Created == nil {
		return 0
	}
	return s.Layers[len(s.Layers)-1].Size
}

// Result is a snapshot in use, as the solver passes it around. Each clone holds the
// snapshot on disk until it is released.
type Result struct {
	id    string
	snap  *Snapshot
	store *Store
	once  sync.Once
}

var _ solver.Result = (*Result)(nil)

// ID names the result in the cache.
func (r *Result) ID() string { return r.id }

// Sys returns the *Snapshot.
func (r *Result) Sys() any { return r.snap }

// Clone takes one more reference.
func (r *Result) Clone() solver.Result {
	r.store.retain(r.id)
	return &Result{id: r.id, snap: r.snap, store: r.store}
}

// Release gives the reference back; further calls do nothing.
func (r *Result) Release(context.Context) error {
	r.once.Do(func() { r.store.release(r.id) })
	return nil
}

// Of returns the snapshot of a solver result.
func Of(r solver.Result) (*Snapshot, error) {
	s, ok := r.Sys().(*Snapshot)
	if !ok {
		return nil, fmt.Errorf("build result is a %T, not a snapshot", r.Sys())
	}
	return s, nil
}
