package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Save writes images as one tar that is an OCI layout and a docker-archive at the same
// time, as Docker's is since version 25, so that old and new tools read it. A reference
// without a tag or digest saves all tags of the repository; an id saves no tag.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) error {
	if len(refs) == 0 {
		return fmt.Errorf("save: no image was named: %w", errdefs.ErrInvalidArgument)
	}
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	a := &saveArchive{store: s, tw: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	for _, ref := range refs {
		if err := a.pick(ctx, ref); err != nil {
			return fmt.Errorf("save: %w", err)
		}
	}
	if err := a.write(ctx); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	for _, p := range a.picked {
		s.announce(ctx, "save", p.img.Target, "")
	}
	return nil
}

// saveArchive is an archive being written.
type saveArchive struct {
	store   *Store
	tw      *tar.Writer
	picked  []*pickedImage // in the order they were asked for, each image once
	written map[digest.Digest]bool
}

type pickedImage struct {
	img  Image
	tags []string // full names
}

func (a *saveArchive) pick(ctx context.Context, ref string) error {
	refs := []string{ref}
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		if tags := a.tagsOf(named.Name()); len(tags) > 0 {
			refs = tags
		}
	}
	for _, r := range refs {
		img, err := a.store.Get(ctx, r)
		if err != nil {
			return err
		}
		var tags []string
		if name, ok := recordMeant(a.store.names.snapshot(), r); ok {
			if _, tag, _ := splitRepo(name); tag != "" {
				tags = []string{name}
			}
		}
		a.add(img, tags)
	}
	return nil
}

func (a *saveArchive) tagsOf(repo string) []string {
	var tags []string
	for name := range a.store.names.snapshot() {
		if r, tag, _ := splitRepo(name); r == repo && tag != "" {
			tags = append(tags, name)
		}
	}
	sort.Strings(tags)
	return tags
}

func (a *saveArchive) add(img Image, tags []string) {
	for _, p := range a.picked {
		if p.img.ID == img.ID {
			p.tags = append(p.tags, tags...)
			return
		}
	}
	a.picked = append(a.picked, &pickedImage{img, tags})
}

func (a *saveArchive) write(ctx context.Context) error {
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		if err := a.tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var manifests []dockerManifest
	repositories := map[string]map[string]string{}
	for _, p := range a.picked {
		if err := a.image(ctx, p.img); err != nil {
			return fmt.Errorf("image %s: %w", p.img.ID, err)
		}
		index.Manifests = append(index.Manifests, p.descriptors()...)
		manifests = append(manifests, p.docker())
		p.legacy(repositories)
	}
	return a.documents(index, manifests, repositories)
}

func (a *saveArchive) documents(index ocispec.Index, manifests []dockerManifest, repositories map[string]map[string]string) error {
	for _, d := range []struct {
		name  string
		value any
	}{
		{ocispec.ImageIndexFile, index},
		{"manifest.json", manifests},
		{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}},
		{"repositories", repositories},
	} {
		raw, err := json.Marshal(d.value)
		if err != nil {
			return err
		}
		if err := a.file(d.name, int64(len(raw)), bytes.NewReader(raw)); err != nil {
			return err
		}
	}
	return a.tw.Close()
}

// descriptors are the image's entries of index.json: one per name.
func (p *pickedImage) descriptors() []ocispec.Descriptor {
	d := p.img.Target
	platform := p.img.Platform
	d.Platform = &platform
	if len(p.tags) == 0 {
		return []ocispec.Descriptor{d}
	}
	var ds []ocispec.Descriptor
	for _, t := range p.tags {
		_, tag, _ := splitRepo(t)
		d.Annotations = map[string]string{images.AnnotationImageName: t, ocispec.AnnotationRefName: tag}
		ds = append(ds, d)
	}
	return ds
}

func (p *pickedImage) docker() dockerManifest {
	m := dockerManifest{Config: blobPath(p.img.Manifest.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	for _, t := range p.tags {
		m.RepoTags = append(m.RepoTags, familiar(t))
	}
	for _, l := range p.img.Manifest.Layers {
		m.Layers = append(m.Layers, blobPath(l.Digest))
	}
	return m
}

// legacy fills in the file "repositories", which tools from before 2016 look for.
func (p *pickedImage) legacy(repositories map[string]map[string]string) {
	if len(p.img.Manifest.Layers) == 0 {
		return
	}
	top := p.img.Manifest.Layers[len(p.img.Manifest.Layers)-1].Digest.Encoded()
	for _, t := range p.tags {
		repo, tag, _ := splitRepo(t)
		repo = familiar(repo)
		if repositories[repo] == nil {
			repositories[repo] = map[string]string{}
		}
		repositories[repo][tag] = top
	}
}

func (a *saveArchive) image(ctx context.Context, img Image) error {
	for _, l := range img.Manifest.Layers {
		if err := a.layer(ctx, l); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	if err := a.blob(img.Manifest.Config, bytes.NewReader(img.RawConfig)); err != nil {
		return err
	}
	raw, err := a.store.readDocument(ctx, img.Target)
	if err != nil {
		return err
	}
	return a.blob(img.Target, bytes.NewReader(raw))
}

func (a *saveArchive) layer(ctx context.Context, d ocispec.Descriptor) error {
	if a.written[d.Digest] {
		return nil
	}
	r, size, err := a.store.OpenBlob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	d.Size = size
	return a.blob(d, r)
}

func (a *saveArchive) blob(d ocispec.Descriptor, r io.Reader) error {
	if a.written[d.Digest] {
		return nil
	}
	a.written[d.Digest] = true
	return a.file(blobPath(d.Digest), d.Size, r)
}

// file adds a member; everything but names and contents is always the same, so that
// saving an image twice gives the same bytes.
func (a *saveArchive) file(name string, size int64, r io.Reader) error {
	if err := a.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	n, err := io.Copy(a.tw, r)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// OpenBlob opens what a manifest of ours lists: a stored blob, or a layer made again from
// its directory.
func (s *Store) OpenBlob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, int64, error) {
	ctx = s.scope(ctx)
	r, err := s.content.ReaderAt(ctx, d)
	if err == nil {
		return bothClosers{io.NopCloser(content.NewReader(r)), r}, r.Size(), nil
	}
	if !errdefs.IsNotFound(err) {
		return nil, 0, err
	}
	return s.OpenLayer(ctx, d.Digest)
}
