package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions describe an image that is made of a plain root file system.
type ImportOptions struct {
	Message  string
	Platform *ocispec.Platform
	Config   Config // of the new image; rootfs, history, platform and time are filled in
	Created  time.Time
	Progress ProgressFunc
}

// Import makes an image with one layer out of a tar of a root file system, compressed or
// not. ref names it; empty leaves it without a name.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, o ImportOptions) (Image, error) {
	var names []string
	if ref != "" {
		names = []string{ref}
	}
	if _, err := parseTags(names); err != nil {
		return Image{}, err
	}
	ctx, done, err := s.Lease(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	sh := &share{cpu: s.cpu}
	r = &patientReader{r: r, ctx: ctx, share: sh}
	in, err := Decompress(o.Progress.reader(r, Progress{Status: "Importing"}))
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	defer in.Close()
	u, err := s.unpack(ctx, sh, in, nil)
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	l, err := u.adopt(ctx, "")
	if err != nil {
		return Image{}, fmt.Errorf("import: %w", err)
	}
	c := o.config()
	c.History = []ocispec.History{{Created: c.Created, Comment: o.Message}}
	config, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	img, err := s.WriteImage(ctx, config, l.ChainID, names)
	if err == nil {
		s.announce(ctx, "import", img.Target, ref)
	}
	return img, err
}

func (o ImportOptions) config() Config {
	c := o.Config
	c.Platform = platforms.DefaultSpec()
	if o.Platform != nil {
		c.Platform = *o.Platform
	}
	created := o.Created
	if created.IsZero() {
		created = time.Now().UTC()
	}
	c.Created = &created
	return c
}

// Derive makes an image of a chain that has one layer more than the image parent: what a container
// changed. by is the command that ran. The parent's history is continued; it may be gone, because a
// container keeps the layers of its image only.
func (s *Store) Derive(ctx context.Context, parent, chain digest.Digest, ref, by string, o ImportOptions) (Image, error) {
	var names []string
	if ref != "" {
		names = []string{ref}
	}
	from, err := s.Get(ctx, parent.String())
	if err == nil && o.Platform == nil {
		o.Platform = &from.Platform
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return Image{}, err
	}
	c := o.config()
	below, err := s.Chain(chain)
	if err != nil {
		return Image{}, err
	}
	c.History = slices.Clone(from.Config.History)
	if len(c.History) == 0 {
		for range below.Layers[:len(below.Layers)-1] {
			c.History = append(c.History, ocispec.History{Comment: "not known"})
		}
	}
	c.History = append(c.History, ocispec.History{Created: c.Created, CreatedBy: by, Author: c.Author, Comment: o.Message})
	config, err := json.Marshal(c)
	if err != nil {
		return Image{}, err
	}
	img, err := s.WriteImage(ctx, config, chain, names)
	if err == nil && ref != "" {
		s.announce(ctx, "tag", img.Target, ref)
	}
	return img, err
}
