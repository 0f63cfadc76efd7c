package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// toOurselves is a push into the built-in registry: it is the same store, so the image
// only becomes a member of the repository.
func (p *push) toOurselves(ctx context.Context) error {
	raw, err := p.store.readDocument(ctx, p.img.Target)
	if err != nil {
		return err
	}
	var doc anyManifest
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	host, repo := reference.Domain(p.named), reference.Path(p.named)
	for _, l := range p.img.Manifest.Layers {
		p.say.say(Progress{ID: shortDigest(l.Digest), Status: "Layer already exists"})
	}
	if err := p.store.repos.publish(ctx, host, repo, p.named.Tag(), p.img.Target, doc); err != nil {
		return err
	}
	p.say.say(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", p.named.Tag(), p.img.ID, p.img.Target.Size)})
	return nil
}

// fromOurselves is a pull from the built-in registry: the manifest gets a name.
func (p *pull) fromOurselves(ctx context.Context) error {
	host, repo := reference.Domain(p.named), reference.Path(p.named)
	d, raw, err := p.store.repos.Manifest(ctx, repo, tagOf(p.named))
	if err != nil {
		return fmt.Errorf("manifest for %s not found: manifest unknown: %w", reference.FamiliarString(p.named), errdefs.ErrNotFound)
	}
	var doc anyManifest
	if err := json.Unmarshal(raw, &doc); err != nil {
		return err
	}
	target, runnable := p.store.repos.imageIn(ctx, d, doc, 0)
	if !runnable {
		return fmt.Errorf("%s is no image for this platform (%s): %w", reference.FamiliarString(p.named), p.wanted(), errdefs.ErrNotFound)
	}
	before, _ := p.store.resolve(p.named.String())
	p.remote, p.target = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, target
	err = p.store.editNames(ctx, func(now map[string]record) (c change, _ error) {
		name := host + "/" + repo
		if _, ok := p.named.(reference.Tagged); ok && now[name+":"+tagOf(p.named)].Target.Digest != target.Digest {
			c.point(now, name+":"+tagOf(p.named), target, nil)
		}
		if now[name+"@"+d.Digest.String()].Target.Digest != target.Digest {
			c.point(now, name+"@"+d.Digest.String(), target, nil)
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	p.sayDone(before.Digest == p.target.Digest)
	return nil
}
