package registry

import (
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"sort"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest is what other registries accept at most, and the store reads.
const maxManifest = 4 << 20

// maxTags is how many tags one request may set beside its own.
const maxTags = 100

func (g *registry) manifests(w http.ResponseWriter, r *http.Request, repo, ref string) error {
	if d := digest.Digest(ref); d.Validate() != nil && !tagRule.MatchString(ref) {
		return errorOf(codeManifestInvalid, "reference "+quote(ref)+" is neither a tag nor a digest")
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return g.getManifest(w, r, repo, ref)
	case http.MethodPut:
		return g.putManifest(w, r, repo, ref)
	case http.MethodDelete:
		if err := g.repos.DeleteManifest(r.Context(), repo, ref); err != nil {
			return missing(codeManifestUnknown, err)
		}
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	return allow(r)
}

func (g *registry) getManifest(w http.ResponseWriter, r *http.Request, repo, ref string) error {
	d, raw, err := g.repos.Manifest(r.Context(), repo, ref)
	if err != nil {
		return missing(codeManifestUnknown, err)
	}
	h := w.Header()
	h.Set("Content-Type", d.MediaType)
	h.Set("Docker-Content-Digest", d.Digest.String())
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	h.Set("Etag", quote(d.Digest.String()))
	if r.Method == http.MethodHead {
		return nil
	}
	_, _ = w.Write(raw) // a client that went away is no error of ours
	return nil
}

func (g *registry) putManifest(w http.ResponseWriter, r *http.Request, repo, ref string) error {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		return err
	}
	mediaType, err := manifestType(r.Header.Get("Content-Type"), raw)
	if err != nil {
		return err
	}
	tags := r.URL.Query()["tag"]
	if len(tags) > maxTags {
		return errorOf(codeManifestInvalid, fmt.Sprintf("%d tags at once are more than %d", len(tags), maxTags))
	}
	for _, tag := range tags {
		if !tagRule.MatchString(tag) {
			return errorOf(codeManifestInvalid, "tag "+quote(tag)+" is not valid")
		}
	}
	d, err := g.repos.PutManifest(r.Context(), g.host(), repo, ref, tags, mediaType, raw)
	if err != nil {
		if digest.Digest(ref).Validate() == nil && d.Digest != "" && d.Digest.String() != ref {
			return as(codeDigestInvalid, errdefs.IsInvalidArgument, err)
		}
		return manifestError(err)
	}
	h := w.Header()
	h.Set("Location", "/v2/"+repo+"/manifests/"+d.Digest.String())
	h.Set("Docker-Content-Digest", d.Digest.String())
	for _, tag := range tags {
		h.Add("OCI-Tag", tag)
	}
	var doc struct {
		Subject *ocispec.Descriptor `json:"subject"`
	}
	if json.Unmarshal(raw, &doc) == nil && doc.Subject != nil {
		h.Set("OCI-Subject", doc.Subject.Digest.String())
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// manifestError keeps the error for a missing blob, and makes every other bad manifest invalid.
func manifestError(err error) error {
	if e := choose(err); e.code == codeManifestBlobUnknown {
		return e
	}
	return as(codeManifestInvalid, errdefs.IsInvalidArgument, err)
}

// manifestType is what the client says a manifest is, or else what it says itself.
func manifestType(header string, raw []byte) (string, error) {
	if header != "" {
		t, _, err := mime.ParseMediaType(header)
		if err != nil {
			return "", errorOf(codeManifestInvalid, "Content-Type "+quote(header)+": "+err.Error())
		}
		return t, nil
	}
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil || doc.MediaType == "" {
		return "", errorOf(codeManifestInvalid, "neither Content-Type nor the manifest says what it is")
	}
	return doc.MediaType, nil
}

func (g *registry) tags(w http.ResponseWriter, r *http.Request, repo, arg string) error {
	if arg != "list" {
		return errorOf(codeNotFound, "no such route: "+quote(r.URL.Path))
	}
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return err
	}
	tags, err := g.repos.Tags(r.Context(), repo)
	if err != nil {
		return missing(codeNameUnknown, err)
	}
	page, err := paged(w, r, tags)
	if err != nil {
		return err
	}
	return reply(w, "application/json", map[string]any{"name": repo, "tags": page})
}

func (g *registry) catalog(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return err
	}
	names, err := g.repos.List(r.Context())
	if err != nil {
		return err
	}
	page, err := paged(w, r, names)
	if err != nil {
		return err
	}
	return reply(w, "application/json", map[string]any{"repositories": page})
}

// paged cuts a sorted list to what the query asks for, and links to what follows.
func paged(w http.ResponseWriter, r *http.Request, list []string) ([]string, error) {
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		list = list[sort.Search(len(list), func(i int) bool { return list[i] > last }):]
	}
	page := append([]string{}, list...)
	if !q.Has("n") {
		return page, nil
	}
	n, err := strconv.Atoi(q.Get("n"))
	if err != nil || n < 0 {
		return nil, errorOf(code{"PAGINATION_NUMBER_INVALID", http.StatusBadRequest}, "n="+quote(q.Get("n"))+" is not a number of entries")
	}
	if n >= len(page) {
		return page, nil
	}
	page = page[:n]
	if n > 0 {
		next := url.Values{"n": {strconv.Itoa(n)}, "last": {page[n-1]}}
		w.Header().Set("Link", "<"+r.URL.Path+"?"+next.Encode()+`>; rel="next"`)
	}
	return page, nil
}

func (g *registry) referrers(w http.ResponseWriter, r *http.Request, repo, arg string) error {
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return err
	}
	d := digest.Digest(arg)
	if err := d.Validate(); err != nil {
		return errorOf(codeDigestInvalid, "digest "+quote(arg)+": "+err.Error())
	}
	list, err := g.repos.Referrers(r.Context(), repo, d)
	if err != nil {
		return missing(codeNameUnknown, err)
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	want := r.URL.Query().Get("artifactType")
	if want != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	for _, m := range list {
		if want == "" || m.ArtifactType == want {
			index.Manifests = append(index.Manifests, m)
		}
	}
	return reply(w, ocispec.MediaTypeImageIndex, index)
}

func reply(w http.ResponseWriter, contentType string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	_, _ = w.Write(raw)
	return nil
}
