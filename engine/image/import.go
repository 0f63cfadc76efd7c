package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/platforms"
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
	in, err := decompress(o.Progress.reader(r, Progress{Status: "Importing"}))
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
	config, err := json.Marshal(o.config())
	if err != nil {
		return Image{}, err
	}
	img, err := s.WriteImage(ctx, config, l.ChainID, names)
	if err == nil {
		s.announce("import", img.ID, ref)
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
	c.History = []ocispec.History{{Created: &created, Comment: o.Message}}
	return c
}
