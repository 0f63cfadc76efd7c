package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"
)

// PushOptions say as whom to push.
type PushOptions struct {
	Auth      AuthFunc
	Progress  ProgressFunc
	PlainHTTP bool
}

// Push sends the image with this name to the registry that the name says. Elsewhere
// layers travel compressed, under a manifest of their own, which is recorded as a repo
// digest; to the built-in registry nothing travels at all.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) error {
	named, err := parseTag(ref)
	if err != nil {
		return err
	}
	img, err := s.Get(ctx, named.String())
	if err != nil {
		return fmt.Errorf("An image does not exist locally with the tag: %s: %w", reference.FamiliarName(named), errdefs.ErrNotFound) //nolint // Docker's words
	}
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return err
	}
	defer done()
	p := &push{store: s, named: named, img: img, say: o.Progress}
	if err := p.run(ctx, o); err != nil {
		return fmt.Errorf("push: %w", err)
	}
	s.announce(ctx, "push", img.Target, reference.FamiliarString(named))
	return nil
}

// push is one image on its way out.
type push struct {
	store *Store
	named reference.NamedTagged
	img   Image
	say   ProgressFunc
}

func (p *push) run(ctx context.Context, o PushOptions) error {
	p.say.say(Progress{Status: "The push refers to repository [" + p.named.Name() + "]"})
	host := reference.Domain(p.named)
	if p.store.local(host) {
		return p.toOurselves(ctx)
	}
	c, err := p.store.remote.client(host, o.Auth, o.PlainHTTP)
	if err != nil {
		return err
	}
	defer c.close()
	pusher, err := c.Pusher(ctx, p.named.String())
	if err != nil {
		return err
	}
	if err := p.toRegistry(ctx, pusher); err != nil {
		return remoteError(p.named, err)
	}
	return nil
}

func (p *push) toRegistry(ctx context.Context, to remotes.Pusher) error {
	m, mediaType := p.img.Manifest, p.img.Target.MediaType
	local := p.isLocal()
	if local {
		m = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: m.Config, Layers: make([]ocispec.Descriptor, len(m.Layers)), Annotations: m.Annotations}
		mediaType = ocispec.MediaTypeImageManifest
	}
	for _, l := range p.img.Manifest.Layers {
		p.say.say(Progress{ID: shortDigest(l.Digest), Status: "Preparing"})
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, l := range p.img.Manifest.Layers {
		g.Go(func() (err error) {
			if local {
				m.Layers[i], err = p.layer(gctx, to, l)
				return err
			}
			return p.blob(gctx, to, l)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := p.document(ctx, to, m.Config, p.img.RawConfig); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	raw, err := p.manifestBytes(ctx, local, m)
	if err != nil {
		return err
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := p.document(ctx, to, d, raw); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	p.say.say(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", p.named.Tag(), d.Digest, d.Size)})
	return p.remember(ctx, mediaType, raw)
}

// isLocal reports whether the manifest is ours, of uncompressed layers, and not one that
// a client pushed into the built-in registry.
func (p *push) isLocal() bool {
	for i, l := range p.img.Manifest.Layers {
		if i >= len(p.img.Config.RootFS.DiffIDs) || l.Digest != p.img.Config.RootFS.DiffIDs[i] {
			return false
		}
	}
	return true
}

func (p *push) manifestBytes(ctx context.Context, local bool, m ocispec.Manifest) ([]byte, error) {
	if local {
		return json.Marshal(m)
	}
	return p.store.readDocument(ctx, p.img.Target)
}

// remember records what the registry calls the image from now on.
func (p *push) remember(ctx context.Context, mediaType string, manifest []byte) error {
	s := p.store
	remote, err := s.writeBlob(ctx, mediaType, manifest, nil)
	if err != nil {
		return err
	}
	name, err := reference.WithDigest(reference.TrimNamed(p.named), remote.Digest)
	if err != nil {
		return err
	}
	return s.editNames(ctx, func(now map[string]record) (c change, _ error) {
		if r, ok := now[name.String()]; !ok || r.Target.Digest != p.img.ID {
			c.point(now, name.String(), p.img.Target, map[string]string{labelRemoteRef: remote.Digest.String()})
		}
		return c, nil
	})
}

// layer pushes one of our layers. What it is when compressed is remembered, so that a
// registry that has it is asked before anything is compressed a second time.
func (p *push) layer(ctx context.Context, to remotes.Pusher, l ocispec.Descriptor) (ocispec.Descriptor, error) {
	if d, ok := p.store.compressedForm(l.Digest); ok {
		w, err := to.Push(ctx, d)
		if errdefs.IsAlreadyExists(err) {
			p.say.say(Progress{ID: shortDigest(l.Digest), Status: "Layer already exists"})
			return d, nil
		}
		if err != nil {
			return d, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		closeQuietly(w)
	}
	file, d, err := p.store.compress(ctx, l.Digest)
	if err != nil {
		return d, fmt.Errorf("compress layer %s: %w", l.Digest, err)
	}
	defer os.Remove(file)
	f, err := os.Open(file)
	if err != nil {
		return d, err
	}
	defer f.Close()
	return d, p.upload(ctx, to, d, f, shortDigest(l.Digest))
}

// blob pushes a blob that is in the content store as it is.
func (p *push) blob(ctx context.Context, to remotes.Pusher, d ocispec.Descriptor) error {
	r, err := p.store.content.ReaderAt(ctx, d)
	if err != nil {
		return fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	defer r.Close()
	return p.upload(ctx, to, d, content.NewReader(r), shortDigest(d.Digest))
}

func (p *push) document(ctx context.Context, to remotes.Pusher, d ocispec.Descriptor, raw []byte) error {
	w, err := to.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.Write(raw); err != nil {
		return err
	}
	return w.Commit(ctx, d.Size, d.Digest)
}

func (p *push) upload(ctx context.Context, to remotes.Pusher, d ocispec.Descriptor, r io.Reader, id string) error {
	w, err := to.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		p.say.say(Progress{ID: id, Status: "Layer already exists"})
		return nil
	}
	if err != nil {
		return fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	defer w.Close()
	_, err = io.Copy(w, p.say.reader(r, Progress{ID: id, Status: "Pushing", Total: d.Size}))
	if err == nil {
		err = w.Commit(ctx, d.Size, d.Digest)
	}
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	p.say.say(Progress{ID: id, Status: "Pushed"})
	return nil
}

// compressedBucket in engine.db remembers what a layer is when compressed: its key is the
// uncompressed digest, its value a descriptor. Losing it costs time, nothing else.
var compressedBucket = []byte("slipway-compressed-layers")

func (s *Store) compressedForm(diffID digest.Digest) (d ocispec.Descriptor, ok bool) {
	err := s.bolt.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(compressedBucket)
		if b == nil {
			return errdefs.ErrNotFound
		}
		return json.Unmarshal(b.Get([]byte(diffID)), &d)
	})
	return d, err == nil
}

func (s *Store) rememberCompressed(diffID digest.Digest, d ocispec.Descriptor) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return s.bolt.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(compressedBucket)
		if err != nil {
			return err
		}
		return b.Put([]byte(diffID), raw)
	})
}

// forgetCompressed drops what is remembered of layers that are gone.
func (s *Store) forgetCompressed() error {
	var gone [][]byte
	err := s.bolt.View(func(tx *bbolt.Tx) error {
		b := tx.Bucket(compressedBucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error {
			if _, ok := s.layers.anyWith(digest.Digest(k)); !ok {
				gone = append(gone, append([]byte(nil), k...))
			}
			return nil
		})
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return s.bolt.Update(func(tx *bbolt.Tx) error {
		for _, k := range gone {
			if err := tx.Bucket(compressedBucket).Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// compress writes a layer, compressed, into a file that the caller removes.
func (s *Store) compress(ctx context.Context, diffID digest.Digest) (_ string, d ocispec.Descriptor, err error) {
	out, err := os.CreateTemp(s.path("drafts"), "push-")
	if err != nil {
		return "", d, err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	sum := digest.Canonical.Digester()
	err = s.limited(ctx, func() error { return s.compressTo(ctx, io.MultiWriter(out, sum.Hash()), diffID) })
	if err != nil {
		return "", d, err
	}
	size, err := out.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", d, err
	}
	d = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: sum.Digest(), Size: size}
	return out.Name(), d, s.rememberCompressed(diffID, d)
}

func (s *Store) compressTo(ctx context.Context, w io.Writer, diffID digest.Digest) error {
	in, _, err := s.OpenLayer(ctx, diffID)
	if err != nil {
		return err
	}
	defer in.Close()
	z := gzip.NewWriter(w)
	if _, err := io.Copy(z, in); err != nil {
		return err
	}
	return z.Close()
}
