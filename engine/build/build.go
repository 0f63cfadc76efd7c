package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver"
	"golang.org/x/sync/errgroup"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/build/snapshot"
)

// Progress hears of a build as it goes. Calls come from one goroutine at a time and
// should not block: the build waits.
type Progress interface {
	// Dockerfile is called at most once, before any step of the build runs.
	Dockerfile(content []byte, target string)
	// Status is called with every change. Vertices are the steps, named as BuildKit names
	// them; lines tell on which lines of the Dockerfile the instructions begin that a vertex
	// does the work of.
	Status(status *client.SolveStatus, lines map[string][]int)
}

// Build runs one build. On failure nothing has a new name.
func (b *Builder) Build(ctx context.Context, req Request, p Progress) (*Result, error) {
	end, err := b.begin()
	if err != nil {
		return nil, err
	}
	defer end()
	if err := req.check(); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if p == nil {
		p = silent{}
	}
	refs, opts, err := b.ingest(ctx, req)
	if refused := (*buildcontext.Error)(nil); errors.As(err, &refused) {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, r := range refs {
			r.Release()
		}
	}()
	job, err := b.solver.NewJob(identity.NewID())
	if err != nil {
		return nil, err
	}
	defer b.end(job)
	job.SetValue(op.JobKey, &op.Job{Secrets: req.Secrets})
	g := &gateway{b: b, job: job, opts: opts, contextID: refs[0].ID, auth: req.Auth, findings: &findings{images: map[string]resolved{}, progress: p, target: req.Target}}
	var out *Result
	err = b.follow(ctx, job, g, func(ctx context.Context) error {
		out, err = b.solve(ctx, g, req)
		return err
	})
	if err != nil {
		return nil, explain(err)
	}
	out.Warnings = g.warnings
	return out, nil
}

// end gives up what a build held.
func (b *Builder) end(job *solver.Job) {
	if err := job.Discard(); err != nil {
		b.log.Warn("build was not cleaned up", "error", err)
	}
	ctx := context.Background()
	if err := b.store.Settle(ctx); err != nil {
		b.log.Warn("build cache was not written", "error", err)
	}
	if err := b.trim(ctx); err != nil {
		b.log.Warn("build cache was not trimmed", "error", err)
	}
}

func (r Request) check() error {
	if r.Context == nil && r.ContextDir == "" && r.Inline == nil {
		return errors.New("build without a context: send one, or a Dockerfile")
	}
	for _, t := range r.Tags {
		if _, err := reference.ParseNormalizedNamed(t); err != nil {
			return fmt.Errorf("invalid tag %q: %w", t, err)
		}
	}
	if r.Platform != "" {
		want, err := platforms.Parse(r.Platform)
		if err != nil {
			return fmt.Errorf("platform %q: %w", r.Platform, err)
		}
		if !platforms.Only(platforms.DefaultSpec()).Match(want) {
			return fmt.Errorf("platform %s cannot be built on this machine, which is %s: emulation is not supported", r.Platform, platforms.Format(platforms.Normalize(platforms.DefaultSpec())))
		}
	}
	switch r.Network {
	case "", "default", "bridge", "none", "host":
	default:
		return fmt.Errorf("network %q cannot be used in builds: choose default, none or host", r.Network)
	}
	return nil
}

// ingest receives the context and says what the front end is told. The first reference
// is the context's.
func (b *Builder) ingest(ctx context.Context, req Request) ([]*buildcontext.Ref, map[string]string, error) {
	opts := req.frontendOpts()
	first, err := b.receive(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	refs := []*buildcontext.Ref{first}
	if req.Inline == nil {
		return refs, opts, nil
	}
	second, err := b.contexts.Ingest(ctx, tarOf(req.dockerfile(), req.Inline))
	if err != nil {
		first.Release()
		return nil, nil, err
	}
	opts["dockerfilekey"] = "dockerfile"
	opts["local-sessionid:dockerfile"] = second.ID
	return append(refs, second), opts, nil
}

func (b *Builder) receive(ctx context.Context, req Request) (*buildcontext.Ref, error) {
	if req.Context != nil {
		return b.contexts.Ingest(ctx, req.Context)
	}
	if req.ContextDir == "" {
		return b.contexts.Ingest(ctx, tarOf("", nil))
	}
	pr, pw := io.Pipe()
	var ref *buildcontext.Ref
	var g errgroup.Group
	g.Go(func() error {
		err := buildcontext.Pack(ctx, pw, req.ContextDir, req.dockerfile())
		pw.CloseWithError(err)
		return err
	})
	ref, err := b.contexts.Ingest(ctx, pr)
	pr.CloseWithError(err)
	if perr := g.Wait(); perr != nil && err == nil {
		ref.Release()
		err = perr
	}
	return ref, err
}

// tarOf is an archive of one file, or of none.
func tarOf(name string, data []byte) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if name != "" {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatPAX}) // memory does not fail
		_, _ = w.Write(data)
	}
	_ = w.Close()
	return &buf
}

func (r Request) dockerfile() string {
	if r.Dockerfile == "" {
		return "Dockerfile"
	}
	return path.Clean(strings.TrimLeft(r.Dockerfile, "/"))
}

// frontendOpts spells the request as the front end reads it.
func (r Request) frontendOpts() map[string]string {
	o := map[string]string{"filename": r.dockerfile()}
	set := func(key, value string) {
		if value != "" {
			o[key] = value
		}
	}
	number := func(key string, n int64) {
		if n != 0 {
			o[key] = strconv.FormatInt(n, 10)
		}
	}
	for k, v := range r.BuildArgs {
		o["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		o["label:"+k] = v
	}
	for k, v := range r.Contexts {
		o["context:"+k] = v
	}
	set("target", r.Target)
	set("hostname", r.Hostname)
	set("cgroup-parent", r.CgroupParent)
	set("cpusetcpus", r.CpusetCpus)
	set("cpusetmems", r.CpusetMems)
	set("ulimit", strings.Join(r.Ulimits, ","))
	number("shm-size", r.ShmSize)
	number("memory", r.Memory)
	number("memswap", r.MemorySwap)
	number("cpushares", r.CPUShares)
	number("cpuperiod", r.CPUPeriod)
	number("cpuquota", r.CPUQuota)
	if r.Network == "none" || r.Network == "host" {
		o["force-network-mode"] = r.Network
	}
	if len(r.ExtraHosts) > 0 {
		o["add-hosts"] = addHosts(r.ExtraHosts)
	}
	if r.NoCache {
		o["no-cache"] = ""
	} else if len(r.NoCacheOf) > 0 {
		o["no-cache"] = strings.Join(r.NoCacheOf, ",")
	}
	if r.Pull {
		o["image-resolve-mode"] = "pull"
	}
	return o
}

// addHosts turns Docker's "name:address" into the front end's CSV of "name=address".
func addHosts(hosts []string) string {
	out := make([]string, 0, len(hosts))
	for _, h := range hosts {
		name, addr, ok := strings.Cut(h, ":")
		if eq, rest, found := strings.Cut(h, "="); found {
			name, addr, ok = eq, rest, true
		}
		if ok {
			out = append(out, name+"="+strings.Trim(addr, "[]"))
		}
	}
	return strings.Join(out, ",")
}

// follow runs fn and passes the job's progress on until it is through.
func (b *Builder) follow(ctx context.Context, job *solver.Job, g *gateway, fn func(context.Context) error) error {
	ch := make(chan *client.SolveStatus)
	var eg errgroup.Group
	// The reader ends when CloseProgress below ends the stream, and not earlier: the last
	// lines of a failed step matter most.
	eg.Go(func() error { return job.Status(context.WithoutCancel(ctx), ch) })
	eg.Go(func() error {
		for s := range ch {
			g.report(s)
		}
		return nil
	})
	err := fn(ctx)
	job.CloseProgress()
	if serr := eg.Wait(); serr != nil && err == nil && !errors.Is(serr, context.Canceled) {
		b.log.Warn("progress of a build was lost", "error", serr)
	}
	return err
}

// solve runs the front end, the graph and the export.
func (b *Builder) solve(ctx context.Context, g *gateway, req Request) (*Result, error) {
	res, err := builder.Build(ctx, g)
	if err != nil {
		return nil, err
	}
	snap, err := solved(ctx, res)
	if err != nil {
		return nil, err
	}
	return b.export(ctx, res, snap, req.Tags)
}

// solved solves the result of the front end; no reference is the empty image.
func solved(ctx context.Context, res *gwclient.Result) (*snapshot.Snapshot, error) {
	if res.Ref == nil {
		return &snapshot.Snapshot{}, nil
	}
	s, ok := res.Ref.(*solution)
	if !ok {
		return nil, fmt.Errorf("front end answered with a %T", res.Ref)
	}
	return s.result(ctx)
}

// report passes progress on, with the lines that are known by now.
func (g *gateway) report(s *client.SolveStatus) {
	g.mu.Lock()
	lines := g.lines
	p := g.progress
	g.mu.Unlock()
	p.Status(s, lines)
}

type silent struct{}

func (silent) Dockerfile([]byte, string)                    {}
func (silent) Status(*client.SolveStatus, map[string][]int) {}
