package dockerapi

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	imagetypes "github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

func (s *Server) imageRoutes(t *router) {
	t.add("GET", "/images/json", s.listImages)
	t.add("GET", "/images/get", s.saveImages)
	t.add("POST", "/images/load", s.loadImages)
	t.add("POST", "/images/create", s.createImage)
	t.add("POST", "/images/prune", s.pruneImages)
	t.add("GET", "/images/{name...}/json", s.inspectImage)
	t.add("GET", "/images/{name...}/history", s.imageHistory)
	t.add("GET", "/images/{name...}/get", s.saveImages)
	t.add("POST", "/images/{name...}/push", s.pushImage)
	t.add("POST", "/images/{name...}/tag", s.tagImage)
	t.add("DELETE", "/images/{name...}", s.removeImage)
	t.add("POST", "/build", s.build)
	t.add("POST", "/build/prune", s.pruneBuildCache)
	t.add("POST", "/build/cancel", s.cancelBuild)
}

var imageFilters = []string{"before", "dangling", "label", "label!", "reference", "since", "until"}

func (s *Server) listImages(w *reply, r *request) error {
	f, err := parseFilters(r, imageFilters...)
	if err != nil {
		return err
	}
	if old := r.query.Get("filter"); old != "" { // before 1.25
		f = filters{"reference": {old}}
	}
	list, err := s.images.List(r.Context())
	if err != nil {
		return err
	}
	fits, err := s.imageFilter(r.Context(), f)
	if err != nil {
		return err
	}
	shared := map[digest.Digest]int64{}
	if r.flag("shared-size") {
		if shared, err = s.sharedSizes(r.Context()); err != nil {
			return err
		}
	}
	users := s.imageUsers()
	summaries := []imagetypes.Summary{}
	for _, img := range list {
		if !fits(img) {
			continue
		}
		summary := imageSummary(img, users[img.ID.String()])
		if n, ok := shared[img.ID]; ok {
			summary.SharedSize = n
		}
		summary.RepoTags = fitting(f, summary.RepoTags)
		if r.flag("manifests") {
			summary.Manifests = []imagetypes.ManifestSummary{manifestSummary(img, users[img.ID.String()])}
		}
		summaries = append(summaries, summary)
	}
	return writeJSON(w, http.StatusOK, legacySummaries(summaries, r.version))
}

// legacySummaries adds what clients before 1.44 print as the size.
func legacySummaries(list []imagetypes.Summary, v apiVersion) any {
	if !v.less(apiVersion{1, 44}) {
		return list
	}
	type legacy struct {
		imagetypes.Summary
		VirtualSize int64
	}
	old := make([]legacy, 0, len(list))
	for _, summary := range list {
		old = append(old, legacy{summary, summary.Size})
	}
	return old
}

// fitting leaves the tags that the reference filter asks for, as `docker images app` expects.
func fitting(f filters, tags []string) []string {
	if !f.has("reference") {
		return tags
	}
	return slices.DeleteFunc(slices.Clone(tags), func(tag string) bool { return !f.accepts("reference", referenceMatcher(tag)) })
}

// imageFilter turns filters into a predicate. Times come from the images that since and before name.
func (s *Server) imageFilter(ctx context.Context, f filters) (func(image.Image) bool, error) {
	dangling, byDangling, err := f.boolean("dangling")
	if err != nil {
		return nil, err
	}
	var until time.Time // the earliest, where there are several
	for _, one := range f["until"] {
		t, err := filters{"until": {one}}.until(time.Now())
		if err != nil {
			return nil, err
		}
		if until.IsZero() || t.Before(until) {
			until = t
		}
	}
	var after time.Time
	for _, ref := range f["since"] {
		img, err := s.images.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		after = img.Created
	}
	for _, ref := range f["before"] {
		img, err := s.images.Get(ctx, ref)
		if err != nil {
			return nil, err
		}
		if until.IsZero() || img.Created.Before(until) {
			until = img.Created
		}
	}
	return func(img image.Image) bool {
		switch {
		case byDangling && dangling != (len(img.Names) == 0):
			return false
		case !after.IsZero() && !img.Created.After(after):
			return false
		case !until.IsZero() && !img.Created.Before(until):
			return false
		case f.has("reference") && !slices.ContainsFunc(append(slices.Clone(img.Names), img.RepoDigests...), func(n string) bool {
			return f.accepts("reference", referenceMatcher(n))
		}):
			return false
		}
		return f.labels(img.Config.Config.Labels)
	}, nil
}

// referenceMatcher fits patterns with and without a tag against a familiar name such as "app:1".
func referenceMatcher(name string) func(pattern string) bool {
	return func(pattern string) bool {
		ref, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return false
		}
		for _, n := range []string{name, reference.FamiliarName(ref), ref.String(), ref.Name()} {
			if glob(pattern, n) {
				return true
			}
		}
		ok, err := reference.FamiliarMatch(pattern, ref)
		return ok && err == nil
	}
}

// imageUsers counts Docker's containers by the image that they were made from.
func (s *Server) imageUsers() map[string][]string {
	users := map[string][]string{}
	for _, c := range s.dockerContainers(nil) {
		users[c.ImageID] = append(users[c.ImageID], c.ID)
	}
	return users
}

func (s *Server) sharedSizes(ctx context.Context) (map[digest.Digest]int64, error) {
	usage, err := s.images.Usage(ctx)
	if err != nil {
		return nil, err
	}
	shared := map[digest.Digest]int64{}
	for _, u := range usage.PerImage {
		shared[u.ID] = u.Shared
	}
	return shared, nil
}

func imageSummary(img image.Image, users []string) imagetypes.Summary {
	summary := imagetypes.Summary{
		ID: img.ID.String(), RepoTags: nonNil(img.Names), RepoDigests: nonNil(img.RepoDigests),
		Created: img.Created.Unix(), Size: img.Size, SharedSize: -1, Containers: int64(len(users)),
		Labels: img.Config.Config.Labels, Descriptor: &img.Target,
	}
	if img.Created.IsZero() {
		summary.Created = 0
	}
	return summary
}

func manifestSummary(img image.Image, users []string) imagetypes.ManifestSummary {
	m := imagetypes.ManifestSummary{
		ID: img.ID.String(), Descriptor: img.Target, Available: true, Kind: imagetypes.ManifestKindImage,
		ImageData: &imagetypes.ImageProperties{Platform: img.Platform, Containers: nonNil(users)},
	}
	m.Size.Total, m.ImageData.Size.Unpacked = img.Size, img.Size
	return m
}

func (s *Server) inspectImage(w *reply, r *request) error {
	img, err := s.images.Get(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	config := img.Config
	answer := imagetypes.InspectResponse{
		ID: img.ID.String(), RepoTags: nonNil(img.Names), RepoDigests: nonNil(img.RepoDigests),
		Created: rfc3339(img.Created), Author: config.Author, Config: &config.Config,
		Architecture: config.Architecture, Variant: config.Variant, Os: config.OS, OsVersion: config.OSVersion,
		Size: img.Size, Descriptor: &img.Target,
		GraphDriver: &storage.DriverData{Name: s.host.driver()},
		RootFS:      imagetypes.RootFS{Type: "layers"},
		Metadata:    imagetypes.Metadata{LastTagTime: img.TaggedAt},
	}
	if img.Created.IsZero() {
		answer.Created = ""
	}
	for _, d := range config.RootFS.DiffIDs {
		answer.RootFS.Layers = append(answer.RootFS.Layers, d.String())
	}
	if n := len(config.History); n > 0 {
		answer.Comment = config.History[n-1].Comment
	}
	if r.flag("manifests") {
		answer.Manifests = []imagetypes.ManifestSummary{manifestSummary(img, s.imageUsers()[img.ID.String()])}
	}
	legacy := map[string]any{"Parent": "", "DockerVersion": "", "Container": "", "ContainerConfig": nil, "Author": "", "Comment": ""}
	if r.version.less(apiVersion{1, 44}) {
		legacy["VirtualSize"] = img.Size
	}
	whole := struct {
		imagetypes.InspectResponse
		Config json.RawMessage
	}{InspectResponse: answer}
	if whole.Config, err = withFields(answer.Config, legacyConfig(r.version)); err != nil {
		return err
	}
	b, err := withFields(whole, legacy)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, b)
}

// legacyConfig are the fields of an image's configuration that are there even when they are empty, until 1.52: docker-py and
// `docker inspect -f {{.Config.Image}}` fail over a missing one. Until 1.50 those of a container were there too.
func legacyConfig(v apiVersion) map[string]any {
	fields := map[string]any{
		"Cmd": nil, "Entrypoint": nil, "Env": nil, "Labels": nil, "OnBuild": nil, "User": "", "Volumes": nil, "WorkingDir": "",
	}
	if v.less(apiVersion{1, 50}) {
		maps.Copy(fields, map[string]any{
			"AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Domainname": "", "Hostname": "", "Image": "",
			"OpenStdin": false, "StdinOnce": false, "Tty": false,
		})
	}
	return fields
}

func (s *Server) imageHistory(w *reply, r *request) error {
	entries, err := s.images.History(r.Context(), r.vars["name"])
	if err != nil {
		return err
	}
	list := make([]imagetypes.HistoryResponseItem, 0, len(entries))
	for _, e := range entries {
		item := imagetypes.HistoryResponseItem{ID: e.ID, CreatedBy: e.CreatedBy, Comment: e.Comment, Size: e.Size, Tags: e.Tags}
		if !e.Created.IsZero() {
			item.Created = e.Created.Unix()
		}
		list = append(list, item)
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) tagImage(w *reply, r *request) error {
	target, err := repoAndTag(r.query.Get("repo"), r.query.Get("tag"))
	if err != nil {
		return err
	}
	if err := s.images.Tag(r.Context(), r.vars["name"], target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// repoAndTag joins the two halves that Docker's API keeps apart; the tag may be a digest.
func repoAndTag(repo, tag string) (string, error) {
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", invalid("invalid reference format: %q: %v", repo, err)
	}
	if tag == "" {
		return reference.FamiliarString(reference.TagNameOnly(ref)), nil
	}
	ref = reference.TrimNamed(ref)
	if dgst, err := digest.Parse(tag); err == nil {
		withDigest, err := reference.WithDigest(ref, dgst)
		if err != nil {
			return "", invalid("%v", err)
		}
		return reference.FamiliarString(withDigest), nil
	}
	tagged, err := reference.WithTag(ref, tag)
	if err != nil {
		return "", invalid("%v", err)
	}
	return reference.FamiliarString(tagged), nil
}

func (s *Server) removeImage(w *reply, r *request) error {
	if strings.TrimSpace(r.vars["name"]) == "" {
		return invalid("image name cannot be blank")
	}
	deleted, err := s.images.Remove(r.Context(), r.vars["name"], image.RemoveOptions{Force: r.flag("force")})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, deleteResponses(deleted))
}

func deleteResponses(deleted []image.Deleted) []imagetypes.DeleteResponse {
	list := make([]imagetypes.DeleteResponse, 0, len(deleted))
	for _, d := range deleted {
		list = append(list, imagetypes.DeleteResponse{Deleted: d.Deleted, Untagged: d.Untagged})
	}
	return list
}

func (s *Server) pruneImages(w *reply, r *request) error {
	f, err := parseFilters(r, "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	dangling, set, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	deleted, reclaimed, err := s.images.Prune(r.Context(), image.PruneOptions{
		All: set && !dangling, Until: until,
		Keep: func(img image.Image) bool { return !f.labels(img.Config.Config.Labels) },
	})
	if err != nil {
		return err
	}
	s.publishPrune("image", reclaimed)
	return writeJSON(w, http.StatusOK, imagetypes.PruneReport{ImagesDeleted: deleteResponses(deleted), SpaceReclaimed: uint64(reclaimed)})
}

func parsePlatform(s string) (ocispec.Platform, error) {
	if strings.HasPrefix(s, "{") {
		return platformFromJSON(s)
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return p, invalid("invalid platform: %v", err)
	}
	return p, nil
}

func formatPlatform(p ocispec.Platform) string { return platforms.FormatAll(p) }
