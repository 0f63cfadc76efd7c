package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"

	"slipway.dev/slipway/compose"
	"slipway.dev/slipway/compose/machine"
)

// imageOptions say how images come about.
type imageOptions struct {
	noBuild, noCache, pullBases bool
	pull                        string // of --pull: overrides each service's pull_policy
	only                        bool   // build what has build:, and pull nothing
	look                        bool   // change nothing: only what is already there counts
	push                        bool   // built images go to their registry, for another cluster
	verbose                     bool   // show the builds' output
}

// parallelImages bounds builds and pulls under way.
const parallelImages = 6

// images brings each service's image about, all at once, and finds out what the translation needs of them.
func (a *app) images(ctx context.Context, p *types.Project, o imageOptions, b *board) (map[string]compose.Image, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &resolver{engine: a.engine(), project: p, options: o, board: b}
	var (
		mu     sync.Mutex
		failed error
		out    = map[string]compose.Image{}
		tasks  sync.WaitGroup
		places = make(chan struct{}, parallelImages)
	)
	builder := map[string]string{}      // image to the service that builds it
	built := map[string]chan struct{}{} // by image: closed when that service's turn is over
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		if image := imageName(p, &s); s.Build != nil && builder[image] == "" {
			builder[image], built[image] = name, make(chan struct{})
		}
	}
	for _, name := range p.ServiceNames() {
		s := p.Services[name]
		turn, first := built[imageName(p, &s)], builder[imageName(p, &s)] == name
		tasks.Go(func() {
			switch {
			case first:
				defer close(turn)
			case turn != nil: // who only uses the image would find none, or an old one
				<-turn
			}
			places <- struct{}{}
			defer func() { <-places }()
			image, err := r.resolve(ctx, &s)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && failed == nil {
				failed = fmt.Errorf("service %s: %w", name, err)
				cancel() // the others would only delay the answer
			}
			out[name] = image
		})
	}
	tasks.Wait()
	return out, failed
}

type resolver struct {
	engine  *machine.Client
	project *types.Project
	options imageOptions
	board   *board
}

// imageName is the service's image, or what its build is called: docker compose's name.
func imageName(p *types.Project, s *types.ServiceConfig) string {
	if s.Image != "" {
		return s.Image
	}
	return p.Name + "-" + s.Name
}

func (r *resolver) resolve(ctx context.Context, s *types.ServiceConfig) (compose.Image, error) {
	name := imageName(r.project, s)
	if s.Image == "" && s.Build == nil {
		return compose.Image{}, errors.New("neither image nor build is given")
	}
	if err := r.obtain(ctx, s, name); err != nil {
		return compose.Image{}, err
	}
	found, err := r.engine.Inspect(ctx, name)
	if r.options.look && err != nil {
		return compose.Image{Ref: name}, nil
	}
	if err != nil {
		return compose.Image{}, err
	}
	image := describe(found)
	if image.Ref, err = pinned(name, found, r.options.push); err != nil {
		return compose.Image{}, err
	}
	image.User, err = user(s.User, func(path string) ([]byte, error) { return r.engine.ReadFile(ctx, found.ID, path) })
	return image, err
}

// obtain makes sure that the image is there, and as new as the file asks.
func (r *resolver) obtain(ctx context.Context, s *types.ServiceConfig, name string) error {
	o := r.options
	if o.look || (o.only && s.Build == nil) {
		return nil
	}
	policy, _, err := s.GetPullPolicy()
	if err != nil {
		return err
	}
	explicit := s.PullPolicy != ""
	if o.pull != "" && s.Build == nil {
		policy, explicit = o.pull, true
	}
	switch {
	case s.Build != nil && !o.noBuild && (o.only || !explicit || policy == types.PullPolicyBuild):
		return r.build(ctx, s, name)
	case policy == types.PullPolicyAlways, policy == types.PullPolicyRefresh:
		return r.fetch(ctx, s, name)
	}
	_, err = r.engine.Inspect(ctx, name)
	switch {
	case !machine.IsNotFound(err):
		return err
	case s.Build != nil && !o.noBuild && policy != types.PullPolicyNever:
		return r.build(ctx, s, name)
	case s.Build != nil:
		return fmt.Errorf("image %s is not there, and was not to be built: run `slipway build`", name)
	case policy == types.PullPolicyNever:
		return fmt.Errorf("image %s is not there, and pull_policy never forbids to pull it", name)
	}
	return r.fetch(ctx, s, name)
}

func (r *resolver) fetch(ctx context.Context, s *types.ServiceConfig, name string) error {
	r.board.State(s.Name, "pulling "+name, 0, 0)
	login, err := credentials(name)
	if err != nil {
		return err
	}
	if err := r.engine.Pull(ctx, name, login, s.Platform, func(line string) { r.board.detail(s.Name, "pulling "+line) }); err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	r.board.State(s.Name, "pulled", 0, 0)
	return nil
}

// keptOutput is how much of a build is shown when it fails.
const keptOutput = 40

func (r *resolver) build(ctx context.Context, s *types.ServiceConfig, name string) error {
	b := s.Build
	if err := unsupported(b); err != nil {
		return err
	}
	if strings.Contains(b.Context, "://") || strings.HasPrefix(b.Context, "git@") {
		return fmt.Errorf("build.context %s: remote contexts are not supported: clone it first", b.Context)
	}
	for _, field := range ignoredOfBuild(b) {
		r.board.Say(s.Name, "note: build."+field+" is not supported and has no effect")
	}
	if !r.options.verbose {
		r.board.State(s.Name, "building", 0, 0)
	}
	stream, dockerfile, err := machine.Context(b.Context, b.Dockerfile, b.DockerfileInline)
	if err != nil {
		return err
	}
	defer stream.Close()
	platform := s.Platform
	if len(b.Platforms) == 1 {
		platform = b.Platforms[0]
	}
	var output []string
	id, err := r.engine.Build(ctx, machine.Build{
		Context: stream, Dockerfile: dockerfile, Tags: append([]string{name}, b.Tags...), Args: b.Args, Target: b.Target, Network: b.Network,
		Labels: buildLabels(r.project, s), ExtraHosts: b.ExtraHosts.AsList(":"), ShmSize: int64(b.ShmSize), NoCache: b.NoCache || r.options.noCache,
		Pull: b.Pull || r.options.pullBases, Platform: platform,
	}, func(line string) {
		if r.options.verbose {
			r.board.Say(s.Name, line)
			return
		}
		output = append(output[max(0, len(output)-keptOutput+1):], s.Name+" | "+line)
		r.board.detail(s.Name, "building: "+line)
	})
	if err != nil {
		if ctx.Err() == nil {
			r.board.Lines(output)
		}
		return fmt.Errorf("build: %w", err)
	}
	r.board.State(s.Name, "built "+short(id), 0, 0)
	if !r.options.push {
		return nil
	}
	r.board.State(s.Name, "pushing "+name, 0, 0)
	login, err := credentials(name)
	if err != nil {
		return err
	}
	if err := r.engine.Push(ctx, name, login, func(line string) { r.board.detail(s.Name, "pushing "+line) }); err != nil {
		return fmt.Errorf("push %s, so that the other cluster can pull it: %w", name, err)
	}
	return nil
}

// pullable refuses what is built here under a name by which no other cluster can pull it.
func pullable(p *types.Project) error {
	var errs []error
	for _, service := range p.ServiceNames() {
		s := p.Services[service]
		if s.Build == nil {
			continue
		}
		name := imageName(p, &s)
		if named, err := reference.ParseNormalizedNamed(name); err == nil && !strings.Contains(reference.FamiliarName(named), "/") {
			errs = append(errs, fmt.Errorf("service %s: image %s is built here, and its name has no registry that another cluster can pull it from: give it one, such as image: registry.example/%s", service, name, name))
		}
	}
	return errors.Join(errs...)
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// buildLabels tell whose the image is, as docker compose's builds do.
func buildLabels(p *types.Project, s *types.ServiceConfig) map[string]string {
	labels := map[string]string{}
	for k, v := range s.Build.Labels {
		labels[k] = v
	}
	labels[compose.LabelProject], labels[compose.LabelService] = p.Name, s.Name
	return labels
}

// unsupported finds what a build cannot do without.
func unsupported(b *types.BuildConfig) error {
	switch {
	case len(b.AdditionalContexts) > 0:
		return errors.New("build.additional_contexts is not supported: put what the build needs into its context")
	case len(b.Secrets) > 0:
		return errors.New("build.secrets is not supported")
	case len(b.SSH) > 0:
		return errors.New("build.ssh is not supported")
	case len(b.Platforms) > 1:
		return fmt.Errorf("build.platforms names %d platforms: one is possible", len(b.Platforms))
	case b.Privileged:
		return errors.New("build.privileged is not supported")
	}
	return nil
}

// ignoredOfBuild names the settings that a build is the same without.
func ignoredOfBuild(b *types.BuildConfig) (fields []string) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"cache_from", len(b.CacheFrom) > 0}, {"cache_to", len(b.CacheTo) > 0}, {"no_cache_filter", len(b.NoCacheFilter) > 0},
		{"entitlements", len(b.Entitlements) > 0}, {"provenance", b.Provenance != ""}, {"sbom", b.SBOM != ""},
		{"ulimits", len(b.Ulimits) > 0}, {"isolation", b.Isolation != ""},
	} {
		if f.set {
			fields = append(fields, f.name)
		}
	}
	return fields
}

// describe turns the engine's answer into what a translation wants to know.
func describe(found machine.Image) compose.Image {
	c := found.Config
	image := compose.Image{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Exposed: sortedKeys(c.ExposedPorts), Volumes: sortedKeys(c.Volumes)}
	if h := c.Healthcheck; h != nil {
		duration := func(n int64) *types.Duration {
			if n == 0 {
				return nil
			}
			d := types.Duration(n)
			return &d
		}
		image.Healthcheck = &types.HealthCheckConfig{
			Test: h.Test, Interval: duration(h.Interval), Timeout: duration(h.Timeout), StartPeriod: duration(h.StartPeriod),
		}
		if h.Retries > 0 {
			n := uint64(h.Retries)
			image.Healthcheck.Retries = &n
		}
	}
	return image
}

// pinned names the image by content, so that a new build is a new pod, and an old one still finds its own.
// Another cluster knows an image by the digest that its registry gave.
func pinned(name string, found machine.Image, elsewhere bool) (string, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", name, err)
	}
	bare := reference.FamiliarName(named)
	if !elsewhere {
		return bare + "@" + found.ID, nil
	}
	for _, d := range found.RepoDigests {
		if other, digest, ok := strings.Cut(d, "@"); ok && (other == bare || other == named.Name()) {
			return bare + "@" + digest, nil
		}
	}
	return name, nil
}
