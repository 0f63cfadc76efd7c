package dockerapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
)

// Versions of the Docker Engine API between which a client may choose.
var (
	minVersion = apiVersion{1, 24}
	// 1.52 drops the fields that docker 28 and older read, so it needs replies shaped per version first.
	maxVersion = apiVersion{1, 51}
)

// Server answers the Docker Engine API. It is an http.Handler and safe for concurrent use.
type Server struct {
	containers Containers
	images     Images
	networks   Networks
	volumes    Volumes
	builder    Builder
	events     Events
	host       Host
	log        *slog.Logger
	routes     router
}

// Options are what a Server translates to. All fields except Log are required.
type Options struct {
	Containers Containers
	Images     Images
	Networks   Networks
	Volumes    Volumes
	Builder    Builder
	Events     Events
	Host       Host
	Log        *slog.Logger // nil: slog.Default
}

// New returns a server over the given rooms.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{
		containers: o.Containers, images: o.Images, networks: o.Networks, volumes: o.Volumes,
		builder: o.Builder, events: o.Events, host: o.Host, log: o.Log,
	}
	s.systemRoutes(&s.routes)
	s.containerRoutes(&s.routes)
	s.imageRoutes(&s.routes)
	s.networkRoutes(&s.routes)
	s.volumeRoutes(&s.routes)
	s.refusedRoutes(&s.routes)
	return s
}

// request is what a handler gets: the HTTP request and what the server learned from its path.
type request struct {
	*http.Request
	vars    map[string]string
	version apiVersion
	query   url.Values
}

func (r *request) flag(name string) bool { return truthy(r.query.Get(name)) }

// flagOr is flag for parameters whose absence means def.
func (r *request) flagOr(name string, def bool) bool {
	if !r.query.Has(name) {
		return def
	}
	return r.flag(name)
}

// truthy is Docker's reading of a boolean parameter.
func truthy(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// int reads an optional integer parameter.
func (r *request) int(name string) (int64, error) {
	v := r.query.Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return 0, invalid("parameter %s=%q: must be an integer", name, v)
	}
	return n, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	rw := &reply{ResponseWriter: w}
	h := w.Header()
	h.Set("Api-Version", maxVersion.String())
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "Slipway/"+s.host.Version+" (linux)")

	defer s.recoverPanic(rw, hr)
	if err := s.serve(rw, hr); err != nil {
		s.fail(rw, hr, err)
	}
}

func (s *Server) serve(w *reply, hr *http.Request) error {
	version, path, err := splitVersion(hr.URL.Path)
	if err != nil {
		return err
	}
	handle, vars := s.routes.find(hr.Method, path)
	if handle == nil {
		return errPageNotFound
	}
	query, err := url.ParseQuery(hr.URL.RawQuery)
	if err != nil {
		return invalid("query string: %v", err)
	}
	return handle(w, &request{Request: hr, vars: vars, version: version, query: query})
}

func (s *Server) fail(w *reply, r *http.Request, err error) {
	status := statusOf(err)
	if w.started {
		s.log.Debug("request failed after its reply began", "method", r.Method, "path", r.URL.Path, "err", err)
		return
	}
	if status == http.StatusInternalServerError { // others are answers
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "status", status, "err", err)
	}
	writeError(w, status, err.Error())
}

func (s *Server) recoverPanic(w *reply, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	s.log.Error("request handler panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
	if !w.started {
		writeError(w, http.StatusInternalServerError, fmt.Sprintf("internal error: %v", p))
	}
}

// reply remembers whether the reply has begun, because from then on an error can no longer become a status.
type reply struct {
	http.ResponseWriter
	started bool
}

func (w *reply) WriteHeader(status int) {
	w.started = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *reply) Write(p []byte) (int, error) {
	w.started = true
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written so far, headers included.
func (w *reply) Flush() {
	w.started = true
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController find the connection.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// apiVersion is a version of the Docker Engine API.
type apiVersion struct{ major, minor int }

func (v apiVersion) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

func (v apiVersion) less(o apiVersion) bool {
	if v.major != o.major {
		return v.major < o.major
	}
	return v.minor < o.minor
}

// splitVersion takes the optional /vX.Y off a path. A path without it means the newest version.
func splitVersion(path string) (apiVersion, string, error) {
	rest, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return maxVersion, path, nil
	}
	prefix, tail, _ := strings.Cut(rest, "/")
	v, ok := parseVersion(prefix)
	if !ok {
		return maxVersion, path, nil // /volumes, or nothing that is ours
	}
	if v.less(minVersion) {
		return v, "", invalid("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, minVersion)
	}
	if maxVersion.less(v) {
		return v, "", invalid("client version %s is too new. Maximum supported API version is %s", v, maxVersion)
	}
	return v, "/" + tail, nil
}

func parseVersion(s string) (apiVersion, bool) {
	major, minor, ok := strings.Cut(s, ".")
	if !ok {
		return apiVersion{}, false
	}
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return apiVersion{a, b}, errA == nil && errB == nil && a >= 0 && b >= 0
}
