package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// parallelLayers is how many layers of one image move at a time, as with Docker.
const parallelLayers = 3

// PullOptions say what to pull and as whom. The zero value pulls this machine's platform
// anonymously.
type PullOptions struct {
	Platform  *ocispec.Platform
	Auth      AuthFunc
	Progress  ProgressFunc
	PlainHTTP bool   // the registry may be reached without TLS
	Owner     string // see PruneOptions; empty is docker
}

// Pull fetches an image from the registry that its name says, and names it so.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return Image{}, fmt.Errorf("invalid reference format: %q: %w", ref, errdefs.ErrInvalidArgument)
	}
	named = reference.TagNameOnly(named)
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	p := &pull{store: s, named: named, o: o, say: o.Progress}
	if err := p.run(ctx); err != nil {
		return Image{}, fmt.Errorf("pull: %w", err)
	}
	s.announce(ctx, "pull", p.target, reference.FamiliarString(named))
	return s.read(ctx, s.names.snapshot(), p.target)
}

// pull is one image on its way in.
type pull struct {
	store  *Store
	named  reference.Named
	o      PullOptions
	say    ProgressFunc
	remote ocispec.Descriptor // what the registry calls the image: a manifest or an index
	target ocispec.Descriptor // what we call it
}

func (p *pull) run(ctx context.Context) error {
	host := reference.Domain(p.named)
	if p.store.local(host) {
		return p.fromOurselves(ctx)
	}
	c, err := p.store.remote.client(host, p.o.Auth, p.o.PlainHTTP)
	if err != nil {
		return err
	}
	defer c.close()
	if err := p.fromRegistry(ctx, c); err != nil {
		return remoteError(p.named, err)
	}
	return nil
}

func (p *pull) fromRegistry(ctx context.Context, c *registryClient) error {
	p.say.say(Progress{ID: tagOf(p.named), Status: "Pulling from " + reference.FamiliarName(reference.TrimNamed(p.named))})
	name, desc, err := c.Resolve(ctx, p.named.String())
	if err != nil {
		return err
	}
	p.remote = desc
	fetcher, err := c.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	before, _ := p.store.resolve(p.named.String())
	document, config, manifest, err := p.manifest(ctx, fetcher, desc, 0)
	if err != nil {
		return err
	}
	top, err := p.layers(ctx, fetcher, config, manifest)
	if err != nil {
		return err
	}
	if p.target, err = p.store.writeLocal(ctx, config, top); err != nil {
		return err
	}
	if err := p.finish(ctx, document); err != nil {
		return err
	}
	p.sayDone(before.Digest == p.target.Digest)
	return nil
}

func tagOf(named reference.Named) string {
	if t, ok := named.(reference.Tagged); ok {
		return t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		return d.Digest().String()
	}
	return ""
}

func (p *pull) sayDone(same bool) {
	p.say.say(Progress{Status: "Digest: " + p.remote.Digest.String()})
	status := "Status: Downloaded newer image for "
	if same {
		status = "Status: Image is up to date for "
	}
	p.say.say(Progress{Status: status + reference.FamiliarString(p.named)})
}

func (p *pull) platform() platforms.MatchComparer {
	if p.o.Platform != nil {
		return platforms.Only(*p.o.Platform)
	}
	return platforms.Default()
}

// manifest follows a descriptor to the manifest for our platform, and returns the outermost
// document too: the one that the registry's digest is of.
func (p *pull) manifest(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor, depth int) (outer, config []byte, m ocispec.Manifest, err error) {
	raw, err := fetchDocument(ctx, f, d)
	if err != nil {
		return nil, nil, m, err
	}
	if images.IsIndexType(d.MediaType) {
		best, err := p.choose(raw, depth)
		if err != nil {
			return nil, nil, m, err
		}
		_, config, m, err = p.manifest(ctx, f, best, depth+1)
		return raw, config, m, err
	}
	if !isManifestType(d.MediaType) {
		return nil, nil, m, fmt.Errorf("%s is a %q, which is no image: %w", d.Digest, d.MediaType, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, nil, m, fmt.Errorf("manifest %s: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	if !images.IsConfigType(m.Config.MediaType) {
		return nil, nil, m, fmt.Errorf("manifest %s describes a %q, which is no image: %w", d.Digest, m.Config.MediaType, errdefs.ErrInvalidArgument)
	}
	config, err = fetchDocument(ctx, f, m.Config)
	return raw, config, m, err
}

func (p *pull) choose(raw []byte, depth int) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("index: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	best, ok := bestManifest(index.Manifests, p.platform(), func(ocispec.Descriptor) bool { return true })
	if !ok || depth > 4 {
		return best, fmt.Errorf("no matching manifest for %s in the manifest list entries: %w", p.wanted(), errdefs.ErrNotFound)
	}
	return best, nil
}

func (p *pull) wanted() string {
	if p.o.Platform != nil {
		return platforms.FormatAll(*p.o.Platform)
	}
	return platforms.DefaultString()
}

// layers brings the image's layers here, several at a time, and stacks them in order.
func (p *pull) layers(ctx context.Context, f remotes.Fetcher, config []byte, m ocispec.Manifest) (digest.Digest, error) {
	var cfg ocispec.Image
	if err := json.Unmarshal(config, &cfg); err != nil {
		return "", fmt.Errorf("configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	diffIDs := cfg.RootFS.DiffIDs
	if len(diffIDs) != len(m.Layers) {
		return "", fmt.Errorf("configuration lists %d layers, manifest %d: %w", len(diffIDs), len(m.Layers), errdefs.ErrInvalidArgument)
	}
	fetched, err := p.fetchLayers(ctx, f, diffIDs, m.Layers)
	defer func() {
		for _, u := range fetched {
			if u != nil {
				u.draft.Discard() // nothing is left of an adopted one
			}
		}
	}()
	if err != nil {
		return "", err
	}
	var top digest.Digest
	for i, diffID := range diffIDs {
		var l Layer
		if fetched[i] != nil {
			l, err = fetched[i].adopt(ctx, top)
		} else {
			l, err = p.store.restack(ctx, diffID, top)
		}
		if err != nil {
			return "", err
		}
		top = l.ChainID
	}
	return top, nil
}

// fetchLayers downloads and unpacks what is not here yet: nil stands for a layer that is,
// or that an earlier one of the same image brings.
func (p *pull) fetchLayers(ctx context.Context, f remotes.Fetcher, diffIDs []digest.Digest, descs []ocispec.Descriptor) ([]*unpacked, error) {
	fetched := make([]*unpacked, len(descs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	coming := map[digest.Digest]bool{}
	for _, d := range descs {
		p.say.say(Progress{ID: shortDigest(d.Digest), Status: "Pulling fs layer"})
	}
	for i, d := range descs {
		if _, ok := p.store.layers.anyWith(diffIDs[i]); ok || coming[diffIDs[i]] {
			p.say.say(Progress{ID: shortDigest(d.Digest), Status: "Already exists"})
			continue
		}
		coming[diffIDs[i]] = true
		g.Go(func() (err error) {
			fetched[i], err = p.layer(ctx, f, d, diffIDs[i])
			return err
		})
	}
	return fetched, g.Wait()
}

func (p *pull) layer(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor, diffID digest.Digest) (*unpacked, error) {
	id := shortDigest(d.Digest)
	blob, err := p.download(ctx, f, d)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	defer os.Remove(blob)
	open := func() (io.ReadCloser, error) { return openTar(blob) }
	file, err := os.Open(blob)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	in, err := Decompress(p.say.reader(file, Progress{ID: id, Status: "Extracting", Total: d.Size}))
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	defer in.Close()
	u, err := p.store.unpack(ctx, nil, in, open)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	if u.diffID != diffID {
		u.draft.Discard()
		return nil, mismatch("uncompressed layer", diffID, u.diffID)
	}
	p.say.say(Progress{ID: id, Status: "Pull complete"})
	return u, nil
}

// openTar opens a file of ours as the tar in it, however it is compressed.
func openTar(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in, err := Decompress(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return bothClosers{in, f}, nil
}

// download brings a blob into a file, checked. The file is read once and then removed, so
// it never needs to reach the disk.
func (p *pull) download(ctx context.Context, f remotes.Fetcher, d ocispec.Descriptor) (_ string, err error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w: %w", d.Digest, err, errdefs.ErrInvalidArgument)
	}
	out, err := os.CreateTemp(p.store.path("drafts"), "pull-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	r, err := f.Fetch(ctx, d)
	if err != nil {
		return "", err
	}
	defer r.Close()
	id := shortDigest(d.Digest)
	sum := d.Digest.Algorithm().Digester()
	// A registry may announce any size: what it sends is no reason to fill the disk.
	limits := p.store.limits
	guarded := &guardedReader{r: io.LimitReader(r, d.Size+1), limit: limits.LayerBytes, dir: p.store.root, reserve: limits.ReserveMB << 20}
	in := p.say.reader(guarded, Progress{ID: id, Status: "Downloading", Total: d.Size})
	n, err := io.Copy(io.MultiWriter(out, sum.Hash()), in)
	if err != nil {
		return "", err
	}
	p.say.say(Progress{ID: id, Status: "Verifying Checksum"})
	if n != d.Size || sum.Digest() != d.Digest {
		return "", fmt.Errorf("%w (%d bytes where %d were announced)", mismatch("layer", d.Digest, sum.Digest()), n, d.Size)
	}
	p.say.say(Progress{ID: id, Status: "Download complete"})
	return out.Name(), nil
}

// finish makes everything durable, and then gives the image its names: the tag that was
// asked for, and what the registry calls it.
func (p *pull) finish(ctx context.Context, document []byte) error {
	s := p.store
	remote, err := s.writeBlob(ctx, p.remote.MediaType, document, nil)
	if err != nil {
		return err
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(p.named), remote.Digest)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	if p.o.Owner != "" {
		labels[labelOwner] = p.o.Owner
	}
	return s.editNames(ctx, func(now map[string]record) (c change, _ error) {
		if _, ok := p.named.(reference.Tagged); ok {
			tag, _ := reference.WithTag(reference.TrimNamed(p.named), tagOf(p.named))
			c.point(now, tag.String(), p.target, labels)
		}
		known := map[string]string{labelRemoteRef: remote.Digest.String()}
		for k, v := range labels {
			known[k] = v
		}
		c.point(now, byDigest.String(), p.target, known)
		return c, nil
	})
}
