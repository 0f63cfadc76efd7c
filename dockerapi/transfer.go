package dockerapi

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

// Images is what this package needs of engine/image.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	List(ctx context.Context) ([]image.Image, error)
	Tag(ctx context.Context, source, target string) error
	Remove(ctx context.Context, ref string, o image.RemoveOptions) ([]image.Deleted, error)
	Prune(ctx context.Context, o image.PruneOptions) ([]image.Deleted, int64, error)
	History(ctx context.Context, ref string) ([]image.HistoryEntry, error)
	Usage(ctx context.Context) (image.Usage, error)
	Pull(ctx context.Context, ref string, o image.PullOptions) (image.Image, error)
	Push(ctx context.Context, ref string, o image.PushOptions) error
	Load(ctx context.Context, r io.Reader, progress image.ProgressFunc) ([]string, error)
	Save(ctx context.Context, w io.Writer, refs []string) error
	Import(ctx context.Context, r io.Reader, ref string, o image.ImportOptions) (image.Image, error)
	Derive(ctx context.Context, parent, chain digest.Digest, ref, by string, o image.ImportOptions) (image.Image, error)
	Lease(ctx context.Context) (_ context.Context, done func(), err error)
}

// createImage is pull when the request names an image, and import when it brings one.
func (s *Server) createImage(w *reply, r *request) error {
	if r.query.Get("fromImage") == "" && r.query.Has("fromSrc") {
		return s.importImage(w, r)
	}
	return s.pullImage(w, r)
}

func (s *Server) pullImage(w *reply, r *request) error {
	name := r.query.Get("fromImage")
	if name == "" {
		return invalid("one of fromImage and fromSrc is required")
	}
	tag := r.query.Get("tag")
	if tag == "" && !hasTagOrDigest(name) {
		return unsupported("pulling all tags of %s is not supported: name one, as in %s:latest", name, name)
	}
	ref := name
	if tag != "" {
		var err error
		if ref, err = repoAndTag(name, tag); err != nil {
			return err
		}
	}
	if _, err := reference.ParseNormalizedNamed(ref); err != nil {
		return invalid("invalid reference format: %q: %v", ref, err)
	}
	o := image.PullOptions{Auth: authFor(registryAuth(r))}
	if p := r.query.Get("platform"); p != "" {
		platform, err := parsePlatform(p)
		if err != nil {
			return err
		}
		o.Platform = &platform
	}
	out := newImageProgress(w)
	o.Progress = out.report
	_, err := s.images.Pull(r.Context(), ref, o)
	return out.finish(err)
}

func hasTagOrDigest(name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	return err == nil && !reference.IsNameOnly(ref)
}

func tagOf(ref reference.Named) string {
	switch r := ref.(type) {
	case reference.Digested:
		return r.Digest().String()
	case reference.Tagged:
		return r.Tag()
	}
	return "latest"
}

// pulledDigest is what the registry calls the image, which is not our id when its layers came compressed.
func pulledDigest(img image.Image, named reference.Named) string {
	for _, d := range img.RepoDigests {
		ref, err := reference.ParseNormalizedNamed(d)
		if digested, ok := ref.(reference.Canonical); ok && err == nil && ref.Name() == named.Name() {
			return digested.Digest().String()
		}
	}
	return img.ID.String()
}

// authFor hands credentials to the store. They were given for the registry of this request and go to no other; the token
// server of that registry asks for them under the registry's name.
func authFor(auth registry.AuthConfig) image.AuthFunc {
	if auth.Auth != "" && auth.Username == "" {
		if raw, err := decodeBase64(auth.Auth); err == nil {
			auth.Username, auth.Password, _ = strings.Cut(string(raw), ":")
		}
	}
	return func(string) (string, string, error) {
		if auth.IdentityToken != "" {
			return "", auth.IdentityToken, nil
		}
		if auth.RegistryToken != "" {
			return "", auth.RegistryToken, nil
		}
		return auth.Username, auth.Password, nil
	}
}

func (s *Server) pushImage(w *reply, r *request) error {
	name := r.vars["name"]
	ref, err := repoAndTag(name, r.query.Get("tag"))
	if err != nil {
		return err
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return invalid("invalid reference format: %q: %v", ref, err)
	}
	img, err := s.images.Get(r.Context(), ref)
	if err != nil {
		return notFound("An image does not exist locally with the tag: %s", reference.FamiliarName(named))
	}
	out := newImageProgress(w)
	err = s.images.Push(r.Context(), ref, image.PushOptions{Auth: authFor(registryAuth(r)), Progress: out.report})
	if err != nil {
		return out.finish(err)
	}
	dgst, size := img.ID.String(), img.Target.Size
	if pushed, err := s.images.Get(r.Context(), ref); err == nil {
		dgst = pulledDigest(pushed, named)
	}
	out.aux(map[string]any{"Tag": tagOf(named), "Digest": dgst, "Size": size})
	return nil
}

// importImage makes an image of a root file system in the body.
func (s *Server) importImage(w *reply, r *request) error {
	if src := r.query.Get("fromSrc"); src != "-" {
		return unsupported("importing from a URL is not supported: download %s and send it, as in `docker import FILE`", src)
	}
	o := image.ImportOptions{Message: cmp.Or(r.query.Get("message"), "Imported from -")} // Docker's words
	if p := r.query.Get("platform"); p != "" {
		platform, err := parsePlatform(p)
		if err != nil {
			return err
		}
		o.Platform = &platform
	}
	if err := applyChanges(&o.Config.Config, r.query["changes"]); err != nil {
		return err
	}
	ref := ""
	if repo := r.query.Get("repo"); repo != "" {
		var err error
		if ref, err = repoAndTag(repo, r.query.Get("tag")); err != nil {
			return err
		}
	}
	// No progress: clients take the first object for the id, which is all that Docker sends.
	out := newImageProgress(w)
	img, err := s.images.Import(r.Context(), r.Body, ref, o)
	if err != nil {
		return out.finish(err)
	}
	out.status("", "%s", img.ID)
	return nil
}

func (s *Server) saveImages(w *reply, r *request) error {
	refs := r.query["names"]
	if name := r.vars["name"]; name != "" {
		refs = []string{name}
	}
	if len(refs) == 1 && strings.Contains(refs[0], ",") {
		refs = strings.Split(refs[0], ",")
	}
	if len(refs) == 0 {
		return invalid("no image names given")
	}
	for _, ref := range refs { // while an error can still be a status
		if _, err := s.images.Get(r.Context(), ref); err != nil && !s.isRepository(r.Context(), ref) {
			return err
		}
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if err := s.images.Save(r.Context(), w, refs); err != nil {
		if !w.started {
			return err
		}
		s.log.Warn("save failed half way", "images", refs, "err", err)
		panic(http.ErrAbortHandler) // the client must not take the half for the whole
	}
	return nil
}

// isRepository is true for a name without a tag that some image has with one.
func (s *Server) isRepository(ctx context.Context, ref string) bool {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil || !reference.IsNameOnly(named) {
		return false
	}
	list, err := s.images.List(ctx)
	if err != nil {
		return false
	}
	for _, img := range list {
		for _, name := range img.Names {
			if n, err := reference.ParseNormalizedNamed(name); err == nil && n.Name() == named.Name() {
				return true
			}
		}
	}
	return false
}

func (s *Server) loadImages(w *reply, r *request) error {
	out := newImageProgress(w)
	report := out.report
	if r.flagOr("quiet", false) {
		report = nil
	}
	names, err := s.images.Load(r.Context(), r.Body, report)
	if err != nil {
		return out.finish(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "sha256:") {
			out.line("Loaded image ID: %s\n", name)
		} else {
			out.line("Loaded image: %s\n", name)
		}
	}
	return nil
}

// imageProgress writes what the store reports, which may come from several goroutines.
type imageProgress struct {
	mu sync.Mutex
	p  *progress
}

func newImageProgress(w *reply) *imageProgress { return &imageProgress{p: newProgress(w)} }

func (o *imageProgress) report(u image.Progress) {
	m := jsonstream.Message{ID: u.ID, Status: u.Status}
	if u.Total > 0 || u.Current > 0 {
		m.Progress = &jsonstream.Progress{Current: u.Current, Total: u.Total}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.Progress != nil {
		o.p.send(m)
		return
	}
	// docker 20.10 wants an empty progressDetail with an id, to keep the line of that layer.
	o.p.object(struct {
		jsonstream.Message
		Progress struct{} `json:"progressDetail"`
	}{Message: m})
}

func (o *imageProgress) status(id, format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.p.status(id, format, args...)
}

func (o *imageProgress) line(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.p.line(format, args...)
}

func (o *imageProgress) aux(v any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.p.aux(v)
}

func (o *imageProgress) finish(err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.p.finish(err)
}

func platformFromJSON(s string) (p ocispec.Platform, err error) {
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return p, invalid("invalid platform: %v", err)
	}
	return p, nil
}
