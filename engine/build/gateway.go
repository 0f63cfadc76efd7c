package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/apicaps"
	apicapspb "github.com/moby/buildkit/util/apicaps/pb"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/image"
)

// gateway is what the front end sees of a build.
type gateway struct {
	b         *Builder
	job       *solver.Job
	opts      map[string]string
	contextID string // session id of all local sources: the context they come from
	auth      image.AuthFunc

	*findings
}

// findings gathers what a build learns on the way. Gateways of one build share it.
type findings struct {
	progress Progress
	target   string

	mu       sync.Mutex // guards all below
	warnings []Warning
	images   map[string]resolved
	lines    map[string][]int // vertex to lines of the Dockerfile; replaced, never changed
}

type resolved struct {
	digest digest.Digest
	config []byte
}

var _ client.Client = (*gateway)(nil)

// refused are capabilities of LLB that op does not have. Without them the front end does
// without, or says which one it needs.
var refused = map[apicaps.CapID]bool{
	pb.CapMergeOp: true, pb.CapDiffOp: true, pb.CapPassthroughOp: true,
	pb.CapSourceOCILayout: true, pb.CapSourceImageBlob: true, pb.CapSourceImageLayerLimit: true, pb.CapSourceImageChecksum: true,
	pb.CapSourceHTTPSignatureVerify: true, pb.CapSourceMetadataTransfer: true, pb.CapBuildOpLLBFileName: true,
	pb.CapExecMetaNetworkProxy: true, pb.CapExecMetaCDI: true, pb.CapExecMetaSecurityDeviceWhitelistV1: true,
	pb.CapRemoteCacheGHA: true, pb.CapRemoteCacheS3: true, pb.CapRemoteCacheAzBlob: true,
	pb.CapAnnotations: true, pb.CapAttestations: true, pb.CapMultipleExporters: true, pb.CapSessionExporter: true,
}

// offered are capabilities of the gateway itself.
var offered = map[apicaps.CapID]bool{
	gwpb.CapSolveBase: true, gwpb.CapSolveInlineReturn: true, gwpb.CapResolveImage: true, gwpb.CapResolveImageResolveMode: true,
	gwpb.CapReadFile: true, gwpb.CapReturnResult: true, gwpb.CapReturnMap: true, gwpb.CapReadDir: true, gwpb.CapStatFile: true,
	gwpb.CapProtoRefArray: true, gwpb.CapGatewayEvaluateSolve: true, gwpb.CapGatewayEvaluate: true, gwpb.CapGatewayWarnings: true,
	gwpb.CapGatewaySolveMetadata: true, gwpb.CapFrontendCaps: true, gwpb.CapSourceMetaResolver: true,
}

func capSet(l *apicaps.CapList, keep func(apicaps.CapID) bool) apicaps.CapSet {
	var caps []*apicapspb.APICap
	for _, c := range l.All() {
		if keep(apicaps.CapID(c.ID)) {
			caps = append(caps, c)
		}
	}
	return l.CapSet(caps)
}

// BuildOpts implements client.Client. The front end writes into what it gets, so each
// caller has a copy of its own.
func (g *gateway) BuildOpts() client.BuildOpts {
	return client.BuildOpts{
		Opts:      maps.Clone(g.opts),
		SessionID: g.contextID,
		Workers:   []client.WorkerInfo{{ID: "slipway", Platforms: []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())}}},
		Product:   "slipway",
		LLBCaps:   capSet(&pb.Caps, func(id apicaps.CapID) bool { return !refused[id] }),
		Caps:      capSet(&gwpb.Caps, func(id apicaps.CapID) bool { return offered[id] }),
	}
}

// Inputs implements client.Client: there are none besides the context.
func (g *gateway) Inputs(context.Context) (map[string]llb.State, error) {
	return map[string]llb.State{}, nil
}

// NewContainer implements client.Client; the Dockerfile front end never asks.
func (g *gateway) NewContainer(context.Context, client.NewContainerRequest) (client.Container, error) {
	return nil, errors.New("front ends may not start containers")
}

// Warn implements client.Client.
func (g *gateway) Warn(_ context.Context, _ digest.Digest, msg string, o client.WarnOpts) error {
	w := Warning{Message: msg, URL: o.URL}
	if len(o.Range) > 0 && o.Range[0].Start != nil {
		w.Line = int(o.Range[0].Start.Line)
	}
	for _, d := range o.Detail {
		w.Detail += string(d)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.warnings) < maxWarnings {
		g.warnings = append(g.warnings, w)
	}
	return nil
}

const maxWarnings = 1000

// Solve implements client.Client: nothing runs before the result is looked into.
func (g *gateway) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if req.Frontend != "" {
		return g.frontend(ctx, req)
	}
	res := client.NewResult()
	if req.Definition == nil || len(req.Definition.Def) == 0 {
		return res, nil // the empty image: its reference is nil, and untyped
	}
	edge, err := op.Load(req.Definition)
	if err != nil {
		return nil, err
	}
	ref := &solution{g: g, edge: edge, def: req.Definition}
	if req.Evaluate {
		if err := ref.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	g.learn(req.Definition.Source)
	res.SetRef(ref)
	return res, nil
}

// learn notes which lines of the Dockerfile the vertices of a definition come from.
func (g *gateway) learn(src *pb.Source) {
	if src == nil || len(src.Infos) == 0 {
		return
	}
	lines := map[string][]int{}
	for dgst, locs := range src.Locations {
		for _, loc := range locs.GetLocations() {
			if len(loc.Ranges) == 0 || loc.Ranges[0].Start == nil {
				continue
			}
			line := int(loc.Ranges[0].Start.Line)
			lines[dgst] = append(lines[dgst], line)
			// The name that the solver gives a vertex whose cache is ignored.
			bare := digest.FromString(dgst + "-ignorecache").String()
			lines[bare] = append(lines[bare], line)
		}
	}
	g.mu.Lock()
	first := g.lines == nil
	g.lines = lines
	g.mu.Unlock()
	if first {
		g.progress.Dockerfile(src.Infos[0].Data, g.target)
	}
}

// frontend answers `# syntax=`: the Dockerfile front end is the one linked in, whatever
// version of it is named; other languages cannot be run.
func (g *gateway) frontend(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if req.Frontend == "gateway.v0" {
		if err := checkSyntax(req.FrontendOpt["source"]); err != nil {
			return nil, err
		}
	} else if req.Frontend != "dockerfile.v0" {
		return nil, fmt.Errorf("front end %q is not supported", req.Frontend)
	}
	sub := &gateway{b: g.b, job: g.job, opts: req.FrontendOpt, contextID: g.contextID, auth: g.auth, findings: g.findings}
	if sub.opts["cmdline"] == "" {
		sub.opts = maps.Clone(sub.opts)
		sub.opts["cmdline"] = "dockerfile.v0" // stops the detection
	}
	return builder.Build(ctx, sub)
}

func checkSyntax(source string) error {
	if source == "dockerfile.v0" {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return fmt.Errorf("# syntax=%s: %w", source, err)
	}
	switch reference.Path(named) {
	case "docker/dockerfile", "docker/dockerfile-upstream":
		return nil
	}
	return fmt.Errorf("# syntax=%s: only docker/dockerfile is supported: remove the line, or name docker/dockerfile:1", source)
}

// ResolveImageConfig implements client.Client. The reference that comes back carries the
// digest, so that the build goes on with exactly what was looked at.
func (g *gateway) ResolveImageConfig(ctx context.Context, ref string, o sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", "", nil, fmt.Errorf("image name %q: %w", ref, err)
	}
	named = reference.TagNameOnly(named)
	mode := ""
	if o.ImageOpt != nil {
		mode = o.ImageOpt.ResolveMode
	}
	r, err := g.image(ctx, named.String(), mode, o.LogName)
	if err != nil {
		return "", "", nil, err
	}
	pinned, err := reference.WithDigest(named, r.digest)
	if err != nil {
		return "", "", nil, fmt.Errorf("image name %q: %w", ref, err)
	}
	return pinned.String(), r.digest, r.config, nil
}

// image looks an image up once per build, so that all stages start from the same one.
func (g *gateway) image(ctx context.Context, ref, mode, logName string) (resolved, error) {
	g.mu.Lock()
	r, ok := g.images[ref]
	g.mu.Unlock()
	if ok {
		return r, nil
	}
	err := g.job.InContext(ctx, func(ctx context.Context, _ solver.JobContext) error {
		return inVertex(ctx, logName, func(ctx context.Context) error {
			img, err := (&bases{b: g.b, auth: g.auth}).Resolve(ctx, ref, mode)
			if err != nil {
				return err
			}
			r = resolved{digest: img.ID, config: img.RawConfig}
			return nil
		})
	})
	if err != nil {
		return resolved{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if first, ok := g.images[ref]; ok {
		return first, nil
	}
	g.images[ref] = r
	return r, nil
}

// ResolveSourceMetadata implements client.Client.
func (g *gateway) ResolveSourceMetadata(ctx context.Context, s *pb.SourceOp, o sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	scheme, ref, _ := strings.Cut(s.Identifier, "://")
	switch scheme {
	case "docker-image":
		pinned, dgst, config, err := g.ResolveImageConfig(ctx, ref, o)
		if err != nil {
			return nil, err
		}
		return &sourceresolver.MetaResponse{
			Op:    &pb.SourceOp{Identifier: "docker-image://" + pinned, Attrs: s.Attrs},
			Image: &sourceresolver.ResolveImageResponse{Digest: dgst, Config: config},
		}, nil
	case "local":
		return &sourceresolver.MetaResponse{Op: s}, nil
	}
	return nil, fmt.Errorf("metadata of %s sources is not supported", path.Base(scheme))
}
