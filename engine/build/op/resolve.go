package op

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"slipway.dev/slipway/engine/build/snapshot"
	"slipway.dev/slipway/engine/image"
)

// Images finds base images.
type Images interface {
	// Resolve returns the image that ref names, pulling it when mode says so or when it is
	// not here ("default", "pull", "local": see pb.AttrImageResolveMode).
	Resolve(ctx context.Context, ref, mode string) (image.Image, error)
	// Rootfs unpacks the image's layers.
	Rootfs(ctx context.Context, img image.Image) (image.Chain, error)
}

// Options wires operations.
type Options struct {
	Store  *snapshot.Store
	Images Images
	Runner Runner
	HTTP   *http.Client // for ADD of an URL
	TmpDir string       // for downloads
	// Slots bounds how many operations work at once over all builds.
	Slots *semaphore.Weighted
	Now   func() time.Time
}

// JobKey is the key under which a build's *Job is among the values of its solver job.
const JobKey = "slipway.job"

// Job is what operations need to know of the build they run for, and that is no part of
// any cache key.
type Job struct {
	Secrets map[string][]byte
}

// Resolver returns the function by which the solver finds the operation of a vertex.
func Resolver(o Options) solver.ResolveOpFunc {
	return func(v solver.Vertex, b solver.Builder) (solver.Op, error) {
		op, ok := v.Sys().(*pb.Op)
		if !ok {
			return nil, fmt.Errorf("vertex %s holds a %T", v.Name(), v.Sys())
		}
		inputs := len(v.Inputs())
		switch t := op.Op.(type) {
		case *pb.Op_Source:
			return newSource(o, t.Source, op.Platform, v.Name())
		case *pb.Op_File:
			return &File{op: t.File, name: v.Name(), inputs: inputs, store: o.Store, slots: o.Slots, now: o.Now}, nil
		case *pb.Op_Exec:
			return &Exec{op: t.Exec, platform: op.Platform, name: v.Name(), inputs: inputs, o: o, builder: b, resources: limitsOf(v)}, nil
		}
		return nil, fmt.Errorf("operation %T is not supported", op.Op)
	}
}

func limitsOf(v solver.Vertex) *pb.LinuxResources {
	if l, ok := v.Options().Metadata.(limits); ok {
		return l.LinuxResources
	}
	return nil
}

// sourceDigest is the cache key of a source, as BuildKit's llbsolver/ops/source.go
// computes it.
func sourceDigest(key string) digest.Digest {
	return digest.FromString("buildkit.source.v0:" + key)
}

var errNoGit = errors.New("git sources are not supported: clone the repository and COPY it, or ADD its https archive")
