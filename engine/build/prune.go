package build

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/image"
)

// CacheRecord is one entry of the build cache, as `docker system df` lists it.
type CacheRecord struct {
	ID, Parent  string
	Type        string // "regular", "source.local" or "exec.cachemount"
	Description string
	InUse       bool
	Shared      bool // an image has the layer too: removing the record frees nothing
	Size        int64
	Created     time.Time
	LastUsed    time.Time
	Uses        int
}

// cacheMounts is the optional part of a Runner that owns cache mounts.
type cacheMounts interface {
	CacheMounts() ([]CacheMount, error)
	RemoveCacheMount(id string) error
}

// CacheMount is the directory behind RUN --mount=type=cache.
type CacheMount = op.CacheMount

// Usage lists the build cache, most recently used first within each kind.
func (b *Builder) Usage(ctx context.Context) ([]CacheRecord, error) {
	shared, err := b.imageChains(ctx)
	if err != nil {
		return nil, err
	}
	var out []CacheRecord
	for _, u := range b.store.List() {
		out = append(out, CacheRecord{
			ID: u.ID, Parent: u.Parent, Type: "regular", Description: u.Description, InUse: u.InUse, Shared: shared[u.Chain],
			Size: u.Size, Created: u.Created, LastUsed: u.Used, Uses: u.Uses,
		})
	}
	for _, u := range b.contexts.List() {
		out = append(out, CacheRecord{ID: u.ID, Type: "source.local", Description: "build context", InUse: u.InUse, Size: u.Bytes, Created: u.Used, LastUsed: u.Used})
	}
	if m, ok := b.o.Runner.(cacheMounts); ok {
		mounts, err := m.CacheMounts()
		if err != nil {
			return nil, err
		}
		for _, c := range mounts {
			out = append(out, CacheRecord{ID: c.ID, Type: "exec.cachemount", Description: c.Name, InUse: c.InUse, Size: c.Size, Created: c.Used, LastUsed: c.Used})
		}
	}
	return out, nil
}

// imageChains are the chains of layers that images have, from each image's first layer up.
func (b *Builder) imageChains(ctx context.Context) (map[digest.Digest]bool, error) {
	list, err := b.o.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	chains := map[digest.Digest]bool{}
	for _, img := range list {
		ids := img.Config.RootFS.DiffIDs
		for n := range ids {
			chains[image.ChainID(ids[:n+1])] = true
		}
	}
	return chains, nil
}

// PruneOptions say what of the cache goes.
type PruneOptions struct {
	All    bool          // also what an image has, too: the next build of it begins anew
	Keep   int64         // bytes to keep, the most recently used
	Unused time.Duration // only records not used for this long
	IDs    []string      // only these; empty: any
}

// Prune removes cache records and returns those that went, and how many bytes.
func (b *Builder) Prune(ctx context.Context, o PruneOptions) ([]CacheRecord, int64, error) {
	all, err := b.Usage(ctx)
	if err != nil {
		return nil, 0, err
	}
	var total int64
	for _, r := range all {
		if o.All || !r.Shared {
			total += r.Size
		}
	}
	before := b.o.Now().Add(-o.Unused)
	only := map[string]bool{}
	for _, id := range o.IDs {
		only[id] = true
	}
	var victims []CacheRecord
	for _, r := range oldestFirst(all) {
		if o.Keep > 0 && total <= o.Keep {
			break
		}
		if r.InUse || (r.Shared && !o.All) || (o.Unused > 0 && r.LastUsed.After(before)) || (len(only) > 0 && !only[r.ID]) {
			continue
		}
		victims = append(victims, r)
		total -= r.Size
	}
	return b.remove(ctx, victims)
}

func (b *Builder) remove(ctx context.Context, victims []CacheRecord) (gone []CacheRecord, bytes int64, err error) {
	var ids []string
	byID := map[string]CacheRecord{}
	took := func(r CacheRecord) {
		gone = append(gone, r)
		if !r.Shared {
			bytes += r.Size
		}
	}
	for _, r := range victims {
		switch r.Type {
		case "source.local":
			ok, err := b.contexts.Remove(r.ID)
			if err != nil {
				return gone, bytes, err
			}
			if ok {
				took(r)
			}
		case "exec.cachemount":
			if err := b.o.Runner.(cacheMounts).RemoveCacheMount(r.ID); err != nil {
				return gone, bytes, err
			}
			took(r)
		default:
			ids = append(ids, r.ID)
			byID[r.ID] = r
		}
	}
	removed, err := b.store.Remove(ctx, ids)
	if err != nil {
		return gone, bytes, err
	}
	for _, id := range removed {
		took(byID[id])
	}
	if err := b.store.RemoveViews(ctx); err != nil {
		return gone, bytes, err
	}
	return gone, bytes, b.collect(ctx, len(gone) > 0)
}

// collect drops cache keys without results and lets the image store free what it may.
func (b *Builder) collect(ctx context.Context, any bool) error {
	if !any {
		return nil
	}
	if err := b.cache.ReleaseUnreferenced(ctx); err != nil {
		return fmt.Errorf("prune build cache: %w", err)
	}
	return b.o.Images.GC(ctx)
}

// trim keeps the cache within its bound, with a margin so that it is not done each time.
func (b *Builder) trim(ctx context.Context) error {
	total := b.store.Bytes() + b.contexts.Bytes()
	if total <= b.o.MaxCache {
		return nil
	}
	_, _, err := b.Prune(ctx, PruneOptions{All: true, Keep: b.o.MaxCache * 3 / 4})
	return err
}

func oldestFirst(in []CacheRecord) []CacheRecord {
	out := append([]CacheRecord{}, in...)
	slices.SortStableFunc(out, func(a, b CacheRecord) int { return a.LastUsed.Compare(b.LastUsed) })
	return out
}
