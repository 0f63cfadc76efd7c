package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config is an image's configuration: OCI's, with Docker's health check, ONBUILD and SHELL.
type Config = dockerspec.DockerOCIImage

// Image is one image as it is now. Its manifest and configuration never change; its
// names may have by the time they are read.
type Image struct {
	ID          digest.Digest // of the manifest
	Names       []string      // tags as users write them: "web:latest"; none: dangling
	RepoDigests []string      // what registries call it: "web@sha256:…"
	Manifest    ocispec.Manifest
	Config      Config
	RawConfig   []byte // must not be changed
	Size        int64  // bytes of all layers, uncompressed where they are unpacked
	Created     time.Time
	TaggedAt    time.Time // when a name last came to refer to it
	Owner       string    // who pulled or loaded it; empty: docker
	Platform    ocispec.Platform
	Target      ocispec.Descriptor // of the manifest
}

// maxDocument bounds a manifest, an index or a configuration that is read into memory.
const maxDocument = 8 << 20

// parsedImage is the part of an Image that never changes.
type parsedImage struct {
	manifest ocispec.Manifest
	config   Config
	raw      []byte
}

// imageCache keeps what was parsed, as long as an image has a name. The zero value is empty.
type imageCache struct {
	mu   sync.Mutex
	byID map[digest.Digest]*parsedImage
}

func (c *imageCache) get(id digest.Digest) (*parsedImage, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.byID[id]
	return p, ok
}

func (c *imageCache) put(id digest.Digest, p *parsedImage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID == nil {
		c.byID = map[digest.Digest]*parsedImage{}
	}
	c.byID[id] = p
}

// keepOnly drops what is not in use, so that the cache is bounded by the number of images.
func (c *imageCache) keepOnly(used map[digest.Digest]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.byID {
		if !used[id] {
			delete(c.byID, id)
		}
	}
}

// Get returns the image that ref means: name, name:tag, name@digest, id, or the start of
// an id. The error says "No such image: …" and is errdefs.ErrNotFound.
func (s *Store) Get(ctx context.Context, ref string) (Image, error) {
	target, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	return s.read(s.scope(ctx), s.names.snapshot(), target)
}

// List returns all images, newest first.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	ctx = s.scope(ctx)
	now := s.names.snapshot()
	targets := map[digest.Digest]ocispec.Descriptor{}
	for name, r := range now {
		if !isRegistry(name) {
			targets[r.Target.Digest] = r.Target
		}
	}
	list := make([]Image, 0, len(targets))
	for _, t := range targets {
		img, err := s.read(ctx, now, t)
		if err != nil {
			// One damaged image must not hide the others.
			s.log.Error("image is damaged: remove it, or load it again", "id", t.Digest, "names", namesOf(now, t.Digest), "err", err)
			continue
		}
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b Image) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

func (s *Store) read(ctx context.Context, now map[string]record, target ocispec.Descriptor) (Image, error) {
	p, err := s.parse(ctx, target)
	if err != nil {
		return Image{}, fmt.Errorf("read image %s: %w", target.Digest, err)
	}
	img := Image{
		ID: target.Digest, Manifest: p.manifest, Config: p.config, RawConfig: p.raw, Target: target,
		Size: s.sizeOf(p), Platform: platforms.Normalize(p.config.Platform),
	}
	if p.config.Created != nil {
		img.Created = *p.config.Created
	}
	for _, name := range namesOf(now, target.Digest) {
		img.addName(name, now[name])
	}
	return img, nil
}

func (i *Image) addName(name string, r record) {
	if r.UpdatedAt.After(i.TaggedAt) {
		i.TaggedAt = r.UpdatedAt
	}
	if owner := r.Labels[labelOwner]; owner != "" {
		i.Owner = owner
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return // dangling
	}
	if _, ok := named.(reference.Digested); ok {
		i.RepoDigests = append(i.RepoDigests, reference.FamiliarString(named))
		return
	}
	i.Names = append(i.Names, reference.FamiliarString(named))
}

// sizeOf counts layers as unpacked where they are, and as the manifest has them where not.
func (s *Store) sizeOf(p *parsedImage) int64 {
	var n int64
	at := digest.Digest("")
	for i, diffID := range p.config.RootFS.DiffIDs {
		at = nextChain(at, diffID)
		if l, ok := s.layers.chain(at); ok {
			n += l.Size
		} else if i < len(p.manifest.Layers) {
			n += p.manifest.Layers[i].Size
		}
	}
	return n
}

func nextChain(parent, diffID digest.Digest) digest.Digest {
	if parent == "" {
		return diffID
	}
	return ChainID([]digest.Digest{parent, diffID})
}

func (s *Store) parse(ctx context.Context, target ocispec.Descriptor) (*parsedImage, error) {
	if p, ok := s.parsed.get(target.Digest); ok {
		return p, nil
	}
	p := &parsedImage{}
	raw, err := s.readDocument(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if err := json.Unmarshal(raw, &p.manifest); err != nil {
		return nil, fmt.Errorf("manifest %s: %w: %w", target.Digest, err, errdefs.ErrDataLoss)
	}
	if p.raw, err = s.readDocument(ctx, p.manifest.Config); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if images.IsConfigType(p.manifest.Config.MediaType) || p.manifest.Config.MediaType == "" {
		if err := json.Unmarshal(p.raw, &p.config); err != nil {
			return nil, fmt.Errorf("configuration %s: %w: %w", p.manifest.Config.Digest, err, errdefs.ErrDataLoss)
		}
	}
	s.parsed.put(target.Digest, p)
	return p, nil
}

// readDocument reads a small blob and checks it: a damaged one is an error, never an image.
func (s *Store) readDocument(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("%s is %d bytes long, more than %d: %w", d.Digest, d.Size, maxDocument, errdefs.ErrInvalidArgument)
	}
	raw, err := content.ReadBlob(ctx, s.content, d)
	if err != nil {
		return nil, err
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return nil, fmt.Errorf("%s has changed on disk, it is now %s: %w", d.Digest, got, errdefs.ErrDataLoss)
	}
	return raw, nil
}

// Rootfs returns the directories of an image, unpacking what is not unpacked yet. The
// chain stays while the image has a name, a container record refers to it, or ctx carries
// a lease that was taken before the call.
func (s *Store) Rootfs(ctx context.Context, img Image) (Chain, error) {
	ids := img.Config.RootFS.DiffIDs
	id := ChainID(ids)
	ctx = s.scope(ctx)
	if c, err := s.Chain(id); err == nil {
		if err := s.retain(ctx, id); !errdefs.IsNotFound(err) {
			return c, err
		}
	}
	if err := s.unpackImage(ctx, img); err != nil {
		return Chain{}, fmt.Errorf("unpack image %s: %w", img.ID, err)
	}
	return s.Chain(id)
}
