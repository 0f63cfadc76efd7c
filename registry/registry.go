package registry

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

// Repositories is what the registry needs of the image store.
type Repositories interface {
	List(ctx context.Context) ([]string, error)
	Tags(ctx context.Context, repo string) ([]string, error)
	Manifest(ctx context.Context, repo, ref string) (ocispec.Descriptor, []byte, error)
	PutManifest(ctx context.Context, host, repo, ref string, tags []string, mediaType string, raw []byte) (ocispec.Descriptor, error)
	DeleteManifest(ctx context.Context, repo, ref string) error
	Referrers(ctx context.Context, repo string, subject digest.Digest) ([]ocispec.Descriptor, error)
	Blob(ctx context.Context, repo string, d digest.Digest) (image.Blob, error)
	DeleteBlob(ctx context.Context, repo string, d digest.Digest) error
	Mount(ctx context.Context, repo, from string, d digest.Digest) error
	NewUpload(ctx context.Context, repo string) (*image.Upload, error)
	Upload(repo, id string) (*image.Upload, error)
}

// Options are what a registry needs. Repositories is required.
type Options struct {
	Repositories Repositories
	// Host is how this machine's users call the registry: "localhost:5000". Tagged images
	// that are pushed get names under it. A function, because port 0 is known late.
	Host func() string
	Log  *slog.Logger
}

type registry struct {
	repos Repositories
	host  func() string
	log   *slog.Logger
}

// New makes the handler of everything below /v2/.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Host == nil {
		o.Host = func() string { return "" }
	}
	return &registry{repos: o.Repositories, host: o.Host, log: o.Log}
}

// Names and tags as the specification has them.
var (
	nameRule = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRule  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

const maxName = 255

func (g *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if strayBrowser(r) {
		g.fail(w, r, errorOf(codeDenied, "this registry asks for no password, so it does not answer web pages of "+quote(cmp.Or(r.Header.Get("Origin"), r.Host))))
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok && r.URL.Path != "/v2" {
		http.NotFound(w, r)
		return
	}
	var err error
	switch rest {
	case "":
		err = g.base(w, r)
	case "_catalog":
		err = g.catalog(w, r)
	default:
		err = g.inRepository(w, r, rest)
	}
	if err != nil {
		g.fail(w, r, err)
	}
}

// strayBrowser recognises a web page's request that a browser on this machine passes on: from another site, or from a site
// whose name was made to lead to this machine (DNS rebinding), which the browser then takes for the registry's own. Either
// could replace images that people here are going to run. Clients of registries are no browsers, and are not looked at.
func strayBrowser(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" && !strings.HasPrefix(r.UserAgent(), "Mozilla/") {
		return false
	}
	if origin != "" {
		if u, err := url.Parse(origin); err != nil || u.Host != r.Host {
			return true
		}
	}
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err != nil && name != "localhost" && !strings.HasSuffix(name, ".localhost")
}

func (g *registry) base(w http.ResponseWriter, r *http.Request) error {
	if err := allow(r, http.MethodGet, http.MethodHead); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err := w.Write([]byte("{}"))
	return err
}

// route is one shape of path behind a repository's name.
type route struct {
	marker string // what stands between the name and the argument
	serve  func(g *registry, w http.ResponseWriter, r *http.Request, repo, arg string) error
}

// routes in the order in which they are tried; a name may contain any of the markers but
// for its last place, so the last one in the path counts.
var routes = []route{
	{"/blobs/uploads/", (*registry).uploads},
	{"/blobs/", (*registry).blobs},
	{"/manifests/", (*registry).manifests},
	{"/tags/", (*registry).tags},
	{"/referrers/", (*registry).referrers},
}

func (g *registry) inRepository(w http.ResponseWriter, r *http.Request, rest string) error {
	for _, rt := range routes {
		at := strings.LastIndex(rest, rt.marker)
		if at <= 0 {
			continue
		}
		repo, arg := rest[:at], rest[at+len(rt.marker):]
		if strings.Contains(arg, "/") {
			continue
		}
		if len(repo) > maxName || !nameRule.MatchString(repo) {
			return errorOf(codeNameInvalid, "invalid repository name "+quote(repo))
		}
		return rt.serve(g, w, r, repo, arg)
	}
	if strings.HasSuffix(rest, "/blobs/uploads") {
		return g.inRepository(w, r, rest+"/")
	}
	return errorOf(codeNotFound, "no such route: "+quote(r.URL.Path))
}

func allow(r *http.Request, methods ...string) error {
	for _, m := range methods {
		if r.Method == m {
			return nil
		}
	}
	return errorOf(codeUnsupported, r.Method+" is not allowed here")
}
