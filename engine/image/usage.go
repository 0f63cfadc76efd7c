package image

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
)

// Usage is what images cost on disk.
type Usage struct {
	Images   int64 // layers that some image refers to, each counted once
	Layers   int64 // all unpacked layers, those of build caches included
	Content  int64 // manifests, configurations and blobs that clients pushed
	PerImage []ImageUsage
}

// ImageUsage is one image's part. Size - Shared is what removing it alone would free.
type ImageUsage struct {
	ID     digest.Digest
	Size   int64
	Shared int64
}

// Usage measures the store.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	ctx = s.scope(ctx)
	list, err := s.List(ctx)
	if err != nil {
		return Usage{}, err
	}
	users := map[digest.Digest]int{} // of each chain
	for _, img := range list {
		for _, l := range s.unpackedLayers(img) {
			users[l.ChainID]++
		}
	}
	var u Usage
	counted := map[digest.Digest]bool{}
	for _, img := range list {
		per := ImageUsage{ID: img.ID, Size: img.Size}
		for _, l := range s.unpackedLayers(img) {
			if users[l.ChainID] > 1 {
				per.Shared += l.Size
			}
			if !counted[l.ChainID] {
				counted[l.ChainID] = true
				u.Images += l.Size
			}
		}
		u.PerImage = append(u.PerImage, per)
	}
	for _, l := range s.layers.all() {
		u.Layers += l.Size
	}
	err = s.content.Walk(ctx, func(i content.Info) error {
		u.Content += i.Size
		return nil
	})
	return u, err
}

// unpackedLayers lists an image's layers as far as they are unpacked.
func (s *Store) unpackedLayers(img Image) []Layer {
	var ls []Layer
	at := digest.Digest("")
	for _, diffID := range img.Config.RootFS.DiffIDs {
		at = nextChain(at, diffID)
		l, ok := s.layers.chain(at)
		if !ok {
			break
		}
		ls = append(ls, l)
	}
	return ls
}

// HistoryEntry is one step of how an image was made, as `docker history` shows it.
type HistoryEntry struct {
	ID        string // of the image, for the newest step; "<missing>" for the others
	Created   time.Time
	CreatedBy string
	Comment   string
	Size      int64
	Tags      []string
}

// History lists the steps of an image, newest first.
func (s *Store) History(ctx context.Context, ref string) ([]HistoryEntry, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	sizes := s.layerSizes(img)
	var out []HistoryEntry
	for _, h := range img.Config.History {
		e := HistoryEntry{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			e.Created = *h.Created
		}
		if !h.EmptyLayer && len(sizes) > 0 {
			e.Size, sizes = sizes[0], sizes[1:]
		}
		out = append([]HistoryEntry{e}, out...)
	}
	for _, size := range sizes { // layers that the history does not tell of
		out = append([]HistoryEntry{{ID: "<missing>", Size: size, Created: img.Created}}, out...)
	}
	if len(out) > 0 {
		out[0].ID, out[0].Tags = img.ID.String(), img.Names
	}
	return out, nil
}

func (s *Store) layerSizes(img Image) []int64 {
	sizes := make([]int64, len(img.Config.RootFS.DiffIDs))
	for i := range sizes {
		if i < len(img.Manifest.Layers) {
			sizes[i] = img.Manifest.Layers[i].Size
		}
	}
	for i, l := range s.unpackedLayers(img) {
		sizes[i] = l.Size
	}
	return sizes
}
