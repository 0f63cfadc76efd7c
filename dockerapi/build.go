package dockerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	buildtypes "github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/registry"

	"slipway.dev/slipway/engine/build"
	buildprogress "slipway.dev/slipway/engine/build/progress"
	"slipway.dev/slipway/engine/image"
)

// Builder is what this package needs of engine/build.
type Builder interface {
	Build(ctx context.Context, req build.Request, p build.Progress) (*build.Result, error)
	Usage(ctx context.Context) ([]build.CacheRecord, error)
	Prune(ctx context.Context, o build.PruneOptions) ([]build.CacheRecord, int64, error)
}

// build serves the classic builder's request: the context is the body, and the reply a stream of text that ends
// with the lines that docker-py and its kin look for.
func (s *Server) build(w *reply, r *request) error {
	req, err := buildRequest(r)
	if err != nil {
		return err
	}
	out := newProgress(w)
	var text io.Writer = out.lines()
	if r.flag("q") {
		text = io.Discard
	}
	classic := buildprogress.NewClassic(text)
	result, err := s.builder.Build(r.Context(), req, classic)
	if err != nil {
		_ = classic.Fail() // the client went away, or sees the error that follows
		if errdefs.IsInvalidArgument(err) {
			return out.finish(err)
		}
		out.begin()
		return out.fail(err)
	}
	out.aux(buildtypes.Result{ID: result.ImageID.String()})
	if r.flag("q") {
		out.line("%s\n", result.ImageID)
		return nil
	}
	for _, warning := range result.Warnings {
		out.line("[Warning] %s\n", warningLine(warning))
	}
	return classic.Finish(result.ImageID, shownTags(req.Tags))
}

// shownTags are names as `docker images` shows them: with the tag that was left out.
func shownTags(tags []string) []string {
	var shown []string
	for _, t := range tags {
		if ref, err := reference.ParseNormalizedNamed(t); err == nil {
			shown = append(shown, reference.FamiliarString(reference.TagNameOnly(ref)))
		}
	}
	return shown
}

func warningLine(w build.Warning) string {
	if w.Line == 0 {
		return w.Message
	}
	return fmt.Sprintf("line %d: %s", w.Line, w.Message)
}

func buildRequest(r *request) (build.Request, error) {
	q := r.query
	req := build.Request{
		Context: r.Body, Dockerfile: q.Get("dockerfile"), Tags: tagsOf(q["t"]), Target: q.Get("target"),
		NoCache: r.flag("nocache"), Pull: r.flag("pull"), Platform: q.Get("platform"), Network: q.Get("networkmode"),
		Hostname: q.Get("hostname"), ExtraHosts: q["extrahosts"], CgroupParent: q.Get("cgroupparent"),
		CpusetCpus: q.Get("cpusetcpus"), CpusetMems: q.Get("cpusetmems"), Auth: buildAuth(registryConfig(r)),
	}
	if q.Get("version") == "2" || q.Get("session") != "" || q.Get("remote") == "client-session" {
		return req, unsupported("BuildKit sessions are not served yet: build with the classic builder (DOCKER_BUILDKIT=0 docker build, or slipway build)")
	}
	if remote := q.Get("remote"); remote != "" {
		return req, unsupported("remote build contexts are not supported: download %s and send it as the context", remote)
	}
	if r.flag("squash") {
		return req, unsupported("squash is not supported: use a multi-stage build to leave files behind")
	}
	if q.Get("outputs") != "" {
		return req, unsupported("build outputs other than an image are not supported: use docker create and docker cp")
	}
	for _, n := range []struct {
		name string
		to   *int64
	}{
		{"memory", &req.Memory}, {"memswap", &req.MemorySwap}, {"cpushares", &req.CPUShares},
		{"cpuperiod", &req.CPUPeriod}, {"cpuquota", &req.CPUQuota}, {"shmsize", &req.ShmSize},
	} {
		var err error
		if *n.to, err = r.int(n.name); err != nil {
			return req, err
		}
	}
	return req, buildMaps(r, &req)
}

// tagsOf leaves out the empty tag that clients send for no tag.
func tagsOf(tags []string) []string {
	var list []string
	for _, t := range tags {
		if t != "" {
			list = append(list, t)
		}
	}
	return list
}

func buildMaps(r *request, req *build.Request) error {
	args := map[string]*string{} // null: take the value from the client's environment, which has none
	if err := jsonParam(r, "buildargs", &args); err != nil {
		return err
	}
	for name, value := range args {
		if value == nil {
			continue
		}
		if req.BuildArgs == nil {
			req.BuildArgs = map[string]string{}
		}
		req.BuildArgs[name] = *value
	}
	if err := jsonParam(r, "labels", &req.Labels); err != nil {
		return err
	}
	var ulimits []struct {
		Name       string
		Soft, Hard int64
	}
	if err := jsonParam(r, "ulimits", &ulimits); err != nil {
		return err
	}
	for _, u := range ulimits {
		req.Ulimits = append(req.Ulimits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
	}
	return nil
}

func jsonParam(r *request, name string, v any) error {
	raw := r.query.Get(name)
	if raw == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(raw), v); err != nil {
		return invalid("error reading %s: %v", name, err)
	}
	return nil
}

// buildAuth finds the credentials for a registry. Docker Hub has three names.
func buildAuth(auths map[string]registry.AuthConfig) image.AuthFunc {
	return func(host string) (string, string, error) {
		names := []string{host, "https://" + host, "http://" + host}
		if strings.HasSuffix(host, "docker.io") {
			names = append(names, "https://index.docker.io/v1/", "docker.io", "index.docker.io")
		}
		for _, name := range names {
			if a, ok := auths[name]; ok {
				return authFor(a)(host)
			}
		}
		return "", "", nil
	}
}

func (s *Server) cancelBuild(w *reply, r *request) error {
	return unsupported("builds are cancelled by closing their connection")
}

func (s *Server) buildUsage(ctx context.Context, u *diskUsage) error {
	records, err := s.builder.Usage(ctx)
	if err != nil {
		return err
	}
	for _, c := range records {
		u.BuildCache = append(u.BuildCache, cacheRecord(c))
		if !c.Shared {
			u.BuilderSize += c.Size
		}
	}
	return nil
}

func cacheRecord(c build.CacheRecord) buildtypes.CacheRecord {
	j := buildtypes.CacheRecord{
		ID: c.ID, Type: c.Type, Description: c.Description, InUse: c.InUse, Shared: c.Shared, Size: c.Size, CreatedAt: c.Created, UsageCount: c.Uses,
	}
	if c.Parent != "" {
		j.Parents = []string{c.Parent}
	}
	if !c.LastUsed.IsZero() {
		j.LastUsedAt = &c.LastUsed
	}
	return j
}

var buildPruneFilters = []string{"until", "label", "label!", "id", "type", "description", "inuse", "shared", "private", "unused-for"}

func (s *Server) pruneBuildCache(w *reply, r *request) error {
	f, err := parseFilters(r, buildPruneFilters...)
	if err != nil {
		return err
	}
	if f.has("label") { // `docker system prune --filter label=x` asks all that can be pruned, and the cache has no labels
		return writeJSON(w, http.StatusOK, buildtypes.CachePruneReport{CachesDeleted: []string{}})
	}
	o := build.PruneOptions{IDs: f["id"], All: r.flag("all")}
	for _, name := range []string{"keep-storage", "reserved-space", "max-used-space"} {
		n, err := r.int(name)
		if err != nil {
			return err
		}
		o.Keep = max(o.Keep, n)
	}
	now := time.Now()
	until, err := f.until(now)
	if err != nil {
		return err
	}
	if !until.IsZero() {
		o.Unused = now.Sub(until)
	}
	removed, reclaimed, err := s.builder.Prune(r.Context(), o)
	if err != nil {
		return err
	}
	report := buildtypes.CachePruneReport{CachesDeleted: []string{}, SpaceReclaimed: uint64(reclaimed)}
	for _, c := range removed {
		report.CachesDeleted = append(report.CachesDeleted, c.ID)
	}
	s.publishPrune("builder", reclaimed)
	return writeJSON(w, http.StatusOK, report)
}
