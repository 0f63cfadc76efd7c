package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/event"
)

// Labels by which the collector finds its way from a manifest to directories.
const (
	labelConfigRef = "containerd.io/gc.ref.content.config"
	labelChainRef  = "containerd.io/gc.ref.snapshot." + Snapshotter
	labelRemoteRef = "containerd.io/gc.ref.content.remote"
)

// WriteImage makes an image of a configuration and a chain of layers (ChainID ids as
// returned by Commit; only the top-most is needed, "" for none), and gives it names; with
// no names it is dangling. The configuration's rootfs is filled in from the chain. All is
// durable when it returns.
func (s *Store) WriteImage(ctx context.Context, config []byte, chain digest.Digest, names []string) (Image, error) {
	tags, err := parseTags(names)
	if err != nil {
		return Image{}, err
	}
	doc, err := s.document(config, chain)
	if err != nil {
		return Image{}, fmt.Errorf("write image: %w", err)
	}
	if now := s.names.snapshot(); doc.isNamed(now, tags) {
		return s.read(s.scope(ctx), now, doc.target) // the same build again: all of it is on disk
	}
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	target, err := s.writeDocument(ctx, doc)
	if err != nil {
		return Image{}, fmt.Errorf("write image: %w", err)
	}
	if err := s.Sync(ctx); err != nil {
		return Image{}, err
	}
	if err := s.name(ctx, target, tags, nil); err != nil {
		return Image{}, err
	}
	return s.read(ctx, s.names.snapshot(), target)
}

func parseTags(names []string) ([]string, error) {
	tags := make([]string, 0, len(names))
	for _, n := range names {
		t, err := parseTag(n)
		if err != nil {
			return nil, err
		}
		tags = append(tags, t.String())
	}
	return tags, nil
}

// name points tags at an image, or makes it a dangling one when it has no name at all.
func (s *Store) name(ctx context.Context, target ocispec.Descriptor, tags []string, labels map[string]string) error {
	return s.editNames(ctx, func(now map[string]record) (change, error) {
		var c change
		for _, t := range tags {
			c.point(now, t, target, labels)
		}
		if len(tags) == 0 && len(namesOf(now, target.Digest)) == 0 {
			c.point(now, danglingPrefix+target.Digest.String(), target, labels)
		}
		return c, nil
	})
}

// imageDocument is a configuration and the local manifest over it, not written yet.
type imageDocument struct {
	config, manifest []byte
	configDigest     digest.Digest
	target           ocispec.Descriptor
	chain            digest.Digest
}

func (s *Store) document(config []byte, chainID digest.Digest) (d imageDocument, err error) {
	chain, err := s.Chain(chainID)
	if err != nil {
		return d, err
	}
	d.chain = chainID
	if d.config, err = withRootFS(config, chain); err != nil {
		return d, err
	}
	d.configDigest = digest.FromBytes(d.config)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: d.configDigest, Size: int64(len(d.config))}
	for _, l := range chain.Layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Size})
	}
	if d.manifest, err = json.Marshal(m); err != nil {
		return d, err
	}
	d.target = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(d.manifest), Size: int64(len(d.manifest))}
	return d, nil
}

// isNamed reports whether the image exists and has these names, or any when there are none.
func (d imageDocument) isNamed(now map[string]record, tags []string) bool {
	for _, t := range tags {
		if now[t].Target.Digest != d.target.Digest {
			return false
		}
	}
	return len(tags) > 0 || len(namesOf(now, d.target.Digest)) > 0
}

// writeLocal writes a configuration and the local manifest over it.
func (s *Store) writeLocal(ctx context.Context, config []byte, chainID digest.Digest) (ocispec.Descriptor, error) {
	d, err := s.document(config, chainID)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.writeDocument(ctx, d)
}

func (s *Store) writeDocument(ctx context.Context, d imageDocument) (ocispec.Descriptor, error) {
	labels := map[string]string{}
	if d.chain != "" {
		labels[labelChainRef] = d.chain.String()
	}
	if _, err := s.writeBlob(ctx, ocispec.MediaTypeImageConfig, d.config, labels); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("configuration: %w", err)
	}
	return s.writeBlob(ctx, d.target.MediaType, d.manifest, map[string]string{labelConfigRef: d.configDigest.String()})
}

// withRootFS sets rootfs in a configuration and leaves every other field, known to us or
// not, as it is. A configuration that says the same already keeps its very bytes.
func withRootFS(config []byte, chain Chain) ([]byte, error) {
	ids := make([]digest.Digest, 0, len(chain.Layers))
	for _, l := range chain.Layers {
		ids = append(ids, l.DiffID)
	}
	var has struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &has); err != nil {
		return nil, fmt.Errorf("configuration is not JSON: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if has.RootFS.Type == "layers" && equalDigests(has.RootFS.DiffIDs, ids) {
		return config, nil
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("configuration is not a JSON object: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: ids})
	if err != nil {
		return nil, err
	}
	fields["rootfs"] = rootfs
	return json.Marshal(fields)
}

func equalDigests(a, b []digest.Digest) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// writeBlob stores a small document. Content that is there already only gets the labels.
func (s *Store) writeBlob(ctx context.Context, mediaType string, raw []byte, labels map[string]string) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	return d, s.writeBlobAs(ctx, d, raw, labels)
}

func (s *Store) writeBlobAs(ctx context.Context, d ocispec.Descriptor, raw []byte, labels map[string]string) error {
	ref := "document-" + d.Digest.String()
	err := content.WriteBlob(ctx, s.content, ref, bytes.NewReader(raw), d, content.WithLabels(labels))
	if err != nil {
		return err
	}
	return s.label(ctx, d.Digest, labels)
}

// label adds labels to content, without a write when it has them.
func (s *Store) label(ctx context.Context, d digest.Digest, labels map[string]string) error {
	info, err := s.content.Info(ctx, d)
	if err != nil {
		return err
	}
	update := content.Info{Digest: d, Labels: map[string]string{}}
	var fields []string
	for k, v := range labels {
		if info.Labels[k] != v {
			update.Labels[k] = v
			fields = append(fields, "labels."+k)
		}
	}
	if len(fields) == 0 {
		return nil
	}
	_, err = s.content.Update(ctx, update, fields...)
	return err
}

// announce tells the engine's bus what happened to an image, in Docker's words: its labels are there to be filtered by, until it
// is deleted.
func (s *Store) announce(ctx context.Context, action string, target ocispec.Descriptor, name string) {
	id := target.Digest.String()
	if name == "" {
		name = id
	}
	attrs := map[string]string{}
	if action != "delete" {
		if p, err := s.parse(ctx, target); err == nil { // a damaged image may be untagged
			maps.Copy(attrs, p.config.Config.Labels)
		}
	}
	attrs["name"] = name
	s.events.Publish(event.Event{Type: event.Image, Action: action, Actor: event.Actor{ID: id, Attributes: attrs}, Time: time.Now()})
}

// Announce tells of an image that another room has made: its creation, and each of its names.
func (s *Store) Announce(ctx context.Context, img Image, tags []string) {
	s.announce(ctx, "create", img.Target, "")
	for _, t := range tags {
		s.announce(ctx, "tag", img.Target, t)
	}
}

func isManifestType(mediaType string) bool { return images.IsManifestType(mediaType) }
