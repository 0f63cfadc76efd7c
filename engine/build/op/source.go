package op

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/build/snapshot"
	"slipway.dev/slipway/engine/image"
)

func newSource(o Options, s *pb.SourceOp, p *pb.Platform, name string) (solver.Op, error) {
	scheme, ref, ok := strings.Cut(s.Identifier, "://")
	if !ok {
		return nil, fmt.Errorf("source %q has no scheme", s.Identifier)
	}
	switch scheme {
	case "local":
		return newLocal(o, s)
	case "docker-image":
		return &Image{o: o, ref: ref, mode: s.Attrs[pb.AttrImageResolveMode], platform: p, name: name}, nil
	case "http", "https":
		return newDownload(o, s, name)
	case "git":
		return nil, errNoGit
	}
	return nil, fmt.Errorf("sources of type %q are not supported", scheme)
}

// Local is a view of the build's uploaded context.
type Local struct {
	o    Options
	view buildcontext.View
	name string
}

// newLocal reads which context is meant: the session attribute is the context's id, so
// that builds with different contexts never share a vertex and builds with equal ones do.
func newLocal(o Options, s *pb.SourceOp) (*Local, error) {
	id := s.Attrs[pb.AttrLocalSessionID]
	if id == "" {
		return nil, fmt.Errorf("source %s: this build came without a context", s.Identifier)
	}
	v := buildcontext.View{ID: id}
	if data := s.Attrs[pb.AttrExcludePatterns]; data != "" {
		if err := json.Unmarshal([]byte(data), &v.Excludes); err != nil {
			return nil, fmt.Errorf("source %s: read ignore patterns: %w", s.Identifier, err)
		}
	}
	return &Local{o: o, view: v, name: s.Identifier}, nil
}

// CacheMap implements solver.Op: equal contexts have equal keys, whoever sent them.
func (l *Local) CacheMap(context.Context, solver.JobContext, int) (*solver.CacheMap, bool, error) {
	return newCacheMap(digest.FromString("slipway.local.v0:"+l.view.Key()), 0), true, nil
}

// Exec implements solver.Op.
func (l *Local) Exec(context.Context, solver.JobContext, []solver.Result) ([]solver.Result, error) {
	return []solver.Result{l.o.Store.NewResult(&snapshot.Snapshot{View: &l.view}, l.name)}, nil
}

// Acquire implements solver.Op: nothing is done that would need a slot.
func (l *Local) Acquire(context.Context) (solver.ReleaseFunc, error) { return func() {}, nil }

// Image is a base image.
type Image struct {
	o         Options
	ref, mode string
	platform  *pb.Platform
	name      string
	img       image.Image
	found     bool
}

// CacheMap implements solver.Op with two keys, BuildKit's: first the manifest, then the
// layers alone, so that a base pushed again with the same files is a hit.
func (i *Image) CacheMap(ctx context.Context, _ solver.JobContext, index int) (*solver.CacheMap, bool, error) {
	img, err := i.resolve(ctx)
	if err != nil {
		return nil, false, err
	}
	layers := image.ChainID(img.Config.RootFS.DiffIDs)
	if index == 0 {
		key, err := i.manifestKey(img)
		return newCacheMap(sourceDigest(key), 0), layers == "", err
	}
	return newCacheMap(sourceDigest(layers.String()), 0), true, nil
}

func (i *Image) manifestKey(img image.Image) (string, error) {
	data, err := json.Marshal(struct {
		Digest     digest.Digest
		OS         string
		Arch       string
		Variant    string   `json:",omitempty"`
		OSVersion  string   `json:",omitempty"`
		OSFeatures []string `json:",omitempty"`
		Limit      *int     `json:",omitempty"`
	}{Digest: img.ID, OS: i.platform.OS, Arch: i.platform.Architecture, Variant: i.platform.Variant, OSVersion: i.platform.OSVersion, OSFeatures: i.platform.OSFeatures})
	return digest.FromBytes(data).String(), err
}

func (i *Image) resolve(ctx context.Context) (image.Image, error) {
	if i.found {
		return i.img, nil
	}
	img, err := i.o.Images.Resolve(ctx, i.ref, i.mode)
	if err != nil {
		return image.Image{}, fmt.Errorf("load base image %s: %w", i.ref, err)
	}
	i.img, i.found = img, true
	return img, nil
}

// Exec implements solver.Op.
func (i *Image) Exec(ctx context.Context, _ solver.JobContext, _ []solver.Result) ([]solver.Result, error) {
	img, err := i.resolve(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := i.o.Images.Rootfs(ctx, img)
	if err != nil {
		return nil, fmt.Errorf("unpack base image %s: %w", i.ref, err)
	}
	if err := i.o.Store.Keep(ctx, chain.ChainID); err != nil {
		return nil, err
	}
	return []solver.Result{i.o.Store.NewResult(snapshot.FromChain(chain), i.name)}, nil
}

// Acquire implements solver.Op.
func (i *Image) Acquire(ctx context.Context) (solver.ReleaseFunc, error) {
	return acquire(ctx, i.o.Slots)
}
