package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// restack puts a layer that is unpacked somewhere onto another parent as well.
func (s *Store) restack(ctx context.Context, diffID, parent digest.Digest) (Layer, error) {
	if l, ok := s.layers.chain(nextChain(parent, diffID)); ok {
		if err := s.retain(ctx, l.ChainID); !errdefs.IsNotFound(err) {
			return l, err
		}
	}
	open := func() (io.ReadCloser, error) {
		r, _, err := s.OpenLayer(ctx, diffID)
		return r, err
	}
	return s.stackTar(ctx, diffID, parent, open)
}

// stackTar unpacks a tar, which must be diffID, onto parent.
func (s *Store) stackTar(ctx context.Context, diffID, parent digest.Digest, open func() (io.ReadCloser, error)) (Layer, error) {
	r, err := open()
	if err != nil {
		return Layer{}, err
	}
	defer r.Close()
	u, err := s.unpack(ctx, nil, r, open)
	if err != nil {
		return Layer{}, err
	}
	if u.diffID != diffID {
		u.draft.Discard()
		return Layer{}, mismatch("layer", diffID, u.diffID)
	}
	return u.adopt(ctx, parent)
}

// unpackImage unpacks what is missing of an image from layers that are unpacked on other
// parents, or from blobs in the content store.
func (s *Store) unpackImage(ctx context.Context, img Image) error {
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	diffIDs := img.Config.RootFS.DiffIDs
	if len(diffIDs) != len(img.Manifest.Layers) {
		return fmt.Errorf("configuration lists %d layers, manifest %d: %w", len(diffIDs), len(img.Manifest.Layers), errdefs.ErrInvalidArgument)
	}
	var top digest.Digest
	for i, diffID := range diffIDs {
		l, err := s.unpackOne(ctx, diffID, top, img.Manifest.Layers[i])
		if err != nil {
			return fmt.Errorf("layer %d (%s): %w", i+1, diffID, err)
		}
		top = l.ChainID
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	// From now on the image keeps its directories.
	return s.label(ctx, img.Manifest.Config.Digest, map[string]string{labelChainRef: top.String()})
}

func (s *Store) unpackOne(ctx context.Context, diffID, parent digest.Digest, blob ocispec.Descriptor) (Layer, error) {
	l, err := s.restack(ctx, diffID, parent)
	if !errdefs.IsNotFound(err) {
		return l, err
	}
	open := func() (io.ReadCloser, error) {
		r, err := s.content.ReaderAt(ctx, blob)
		if err != nil {
			return nil, err
		}
		in, err := Decompress(content.NewReader(r))
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return bothClosers{in, r}, nil
	}
	l, err = s.stackTar(ctx, diffID, parent, open)
	if errdefs.IsNotFound(err) {
		return l, fmt.Errorf("%w: it is neither unpacked nor stored here: load or pull the image again", err)
	}
	return l, err
}

// bothClosers reads from one and closes both.
type bothClosers struct {
	io.ReadCloser
	below io.Closer
}

func (b bothClosers) Close() error { return errors.Join(b.ReadCloser.Close(), b.below.Close()) }
