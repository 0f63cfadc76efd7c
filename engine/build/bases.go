package build

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/progress"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/image"
)

// bases finds base images: what is here first, then a registry.
type bases struct {
	b    *Builder
	auth image.AuthFunc
}

// Resolve implements op.Images.
func (s *bases) Resolve(ctx context.Context, ref, mode string) (image.Image, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return image.Image{}, fmt.Errorf("image name %q: %w", ref, err)
	}
	if pinned, ok := named.(reference.Digested); ok {
		// By digest alone: the tag may have moved on since it was looked up.
		if img, err := s.b.o.Images.Get(ctx, pinned.Digest().String()); err == nil {
			return img, nil
		}
	}
	familiar := reference.FamiliarString(named)
	if mode != pb.AttrImageResolveModeForcePull {
		img, err := s.b.o.Images.Get(ctx, familiar)
		if err == nil || !errdefs.IsNotFound(err) {
			return img, err
		}
	}
	return s.b.o.Images.Pull(ctx, familiar, image.PullOptions{Auth: s.auth})
}

// Rootfs implements op.Images.
func (s *bases) Rootfs(ctx context.Context, img image.Image) (image.Chain, error) {
	return s.b.o.Images.Rootfs(ctx, img)
}

var _ op.Images = (*bases)(nil)

// inVertex runs fn as a step of its own in the progress of a build.
func inVertex(ctx context.Context, name string, fn func(context.Context) error) error {
	if name == "" {
		return fn(ctx)
	}
	dgst := digest.FromString(identity.NewID())
	w, _, ctx := progress.NewFromContext(ctx, progress.WithMetadata("vertex", dgst))
	defer w.Close()
	started := time.Now()
	v := client.Vertex{Digest: dgst, Name: name, Started: &started}
	_ = w.Write(dgst.String(), v)
	err := fn(ctx)
	completed := time.Now()
	v.Completed = &completed
	if err != nil {
		v.Error = err.Error()
	}
	_ = w.Write(dgst.String(), v)
	return err
}
