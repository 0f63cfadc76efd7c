package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"slipway.dev/slipway/engine/build/snapshot"
)

// solution is a definition that is solved when somebody looks.
type solution struct {
	g    *gateway
	edge solver.Edge
	def  *pb.Definition

	mu   sync.Mutex // held while solving; guards res
	res  solver.CachedResult
	snap *snapshot.Snapshot
}

var _ client.Reference = (*solution)(nil)

// result solves the definition, once. A failure is not remembered: it may have been the
// caller's context.
func (s *solution) result(ctx context.Context) (*snapshot.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.res != nil {
		return s.snap, nil
	}
	res, err := s.g.job.Build(ctx, s.edge)
	if err != nil {
		return nil, withSource(err, s.def)
	}
	if err := s.g.job.Cleanup(func() error { return res.Release(context.WithoutCancel(ctx)) }); err != nil {
		return nil, err
	}
	snap, err := snapshot.Of(res)
	if err != nil {
		return nil, err
	}
	s.res, s.snap = res, snap
	return snap, nil
}

// withSource adds the lines of the Dockerfile that the failed vertex comes from.
func withSource(err error, def *pb.Definition) error {
	var ve *errdefs.VertexError
	if def.Source == nil || !errors.As(err, &ve) {
		return err
	}
	for _, loc := range locationsOf(def, ve.Digest) {
		if loc == nil || loc.SourceIndex < 0 || int(loc.SourceIndex) >= len(def.Source.Infos) {
			continue
		}
		err = errdefs.WithSource(err, &errdefs.Source{Info: def.Source.Infos[loc.SourceIndex], Ranges: loc.Ranges})
	}
	return err
}

// locationsOf returns a vertex's places. A download has none of its own: it has those of
// the ADD that uses it.
func locationsOf(def *pb.Definition, vertex string) []*pb.Location {
	if locs := def.Source.Locations[vertex].GetLocations(); len(locs) > 0 {
		return locs
	}
	for _, data := range def.Def {
		var o pb.Op
		if o.Unmarshal(data) != nil {
			continue
		}
		for _, in := range o.Inputs {
			if in.Digest != vertex {
				continue
			}
			if locs := def.Source.Locations[digest.FromBytes(data).String()].GetLocations(); len(locs) > 0 {
				return locs
			}
		}
	}
	return nil
}

// Evaluate implements client.Reference.
func (s *solution) Evaluate(ctx context.Context) error {
	_, err := s.result(ctx)
	return err
}

// ToState implements client.Reference.
func (s *solution) ToState() (llb.State, error) {
	def, err := llb.NewDefinitionOp(s.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(def), nil
}

// in resolves p inside the solved tree and calls fn with its place on this machine.
func (s *solution) in(ctx context.Context, p string, fn func(full string) error) error {
	snap, err := s.result(ctx)
	if err != nil {
		return err
	}
	dir, release, err := s.g.b.store.Open(ctx, snap)
	if err != nil {
		return err
	}
	defer release()
	full, err := fs.RootPath(dir, p)
	if err != nil {
		return err
	}
	err = fn(full)
	var pe *os.PathError
	if errors.As(err, &pe) {
		pe.Path = p
	}
	return err
}

// maxRead bounds what the front end may read of one file; a Dockerfile is smaller.
const maxRead = 16 << 20

// ReadFile implements client.Reference.
func (s *solution) ReadFile(ctx context.Context, req client.ReadRequest) (data []byte, err error) {
	err = s.in(ctx, req.Filename, func(full string) error {
		data, err = readRange(full, req.Range)
		return err
	})
	return data, err
}

func readRange(full string, r *client.FileRange) ([]byte, error) {
	// Not blocking: a pipe under this name must not hang the build.
	f, err := os.OpenFile(full, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: full, Err: errors.New("is not a regular file")}
	}
	offset, length := int64(0), int64(maxRead)
	if r != nil {
		offset = int64(r.Offset)
		if r.Length > 0 {
			length = min(length, int64(r.Length))
		}
	}
	return io.ReadAll(io.NewSectionReader(f, offset, length))
}

// StatFile implements client.Reference.
func (s *solution) StatFile(ctx context.Context, req client.StatRequest) (st *fstypes.Stat, err error) {
	err = s.in(ctx, req.Path, func(full string) error {
		st, err = fsutil.Stat(full)
		return err
	})
	return st, err
}

// ReadDir implements client.Reference.
func (s *solution) ReadDir(ctx context.Context, req client.ReadDirRequest) (out []*fstypes.Stat, err error) {
	err = s.in(ctx, req.Path, func(full string) error {
		entries, err := os.ReadDir(full)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if req.IncludePattern != "" {
				ok, err := patternmatcher.Matches(e.Name(), []string{req.IncludePattern})
				if err != nil {
					return fmt.Errorf("pattern %q: %w", req.IncludePattern, err)
				}
				if !ok {
					continue
				}
			}
			st, err := fsutil.Stat(filepath.Join(full, e.Name()))
			if err != nil {
				return err
			}
			out = append(out, st)
		}
		return nil
	})
	return out, err
}
