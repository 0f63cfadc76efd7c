package api

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"slipway.dev/slipway/cluster/auth"
)

// requestTime bounds every request that is not a watch or a stream.
const requestTime = 60 * time.Second

// Handler is the whole pipeline: who is it, may it, what is asked, and the record of it.
func (s *Server) Handler() http.Handler {
	return filters.WithWarningRecorder(http.HandlerFunc(s.serve))
}

// call is one request on its way through the pipeline.
type call struct {
	s    *Server
	w    *recorder
	req  *http.Request
	info *request.RequestInfo
	user user.Info
	as   user.Info // whom the user acts as; nil when it acts as itself
	why  string    // a refusal's reason
}

func (s *Server) serve(w http.ResponseWriter, req *http.Request) {
	c := &call{s: s, w: &recorder{ResponseWriter: w, code: http.StatusOK}, req: req}
	began := time.Now()
	id := newID()
	h := w.Header()
	h.Set("Audit-Id", id)
	h.Set("Cache-Control", "no-cache, private")
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p) // the way to cut a response short
			}
			s.log.Error("a request panicked", "uri", req.URL.Path, "panic", p, "stack", string(debug.Stack()))
			c.fail(apierrors.NewInternalError(fmt.Errorf("this request made the server panic: its log has the stack; audit id %s", id)))
		}
		s.observe(c.info, c.w.code, time.Since(began))
		c.record(id, began)
	}()
	info, err := s.resolver.NewRequestInfo(req)
	if err != nil {
		c.fail(apierrors.NewBadRequest(err.Error()))
		return
	}
	c.info = info
	ctx := request.WithRequestInfo(audit.WithAuditContext(req.Context()), info)
	if !longRunning(info) {
		limit := timeoutOf(req)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		bound(w, began.Add(limit))
	}
	c.req = req.WithContext(ctx)
	if !c.authenticate() || !c.authorize() {
		return
	}
	release, ok := s.load.enter(longRunning(info))
	if !ok {
		c.fail(apierrors.NewTooManyRequests("the server has too many requests in hand: try again later", 1))
		return
	}
	defer release()
	c.dispatch()
}

// bound ends the waiting for a client that is slow to send its object, or to read the answer. The context alone does not:
// some hundred requests that never end their body, which anybody may send who may ask what he may do, would take all
// that the server has in hand at once.
func bound(w http.ResponseWriter, end time.Time) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(end) // neither fails but on a connection that is over, or in a test without one
	_ = c.SetWriteDeadline(end.Add(answerTime))
}

// answerTime is for sending what took all of the time to work out.
const answerTime = 30 * time.Second

// load bounds how much is in hand at once; each request holds memory, and each watch a stack.
type load struct{ short, long atomic.Int64 }

const (
	maxShort = 800 // upstream's: 400 reads and 200 writes, which matter less when reads wait for no disk
	maxLong  = 20_000
)

func (l *load) enter(long bool) (release func(), ok bool) {
	n, limit := &l.short, int64(maxShort)
	if long {
		n, limit = &l.long, maxLong
	}
	if n.Add(1) > limit {
		n.Add(-1)
		return nil, false
	}
	return func() { n.Add(-1) }, true
}

// longRunning are the requests without a time of their own: watches and streams.
func longRunning(i *request.RequestInfo) bool {
	if i.Verb == "watch" || strings.HasPrefix(i.Path, "/debug/pprof/") {
		return true
	}
	switch i.Subresource {
	case "exec", "attach", "portforward", "log", "proxy":
		return true
	}
	return false
}

// timeoutOf is the client's ?timeout=, if that is shorter than ours.
func timeoutOf(req *http.Request) time.Duration {
	if !strings.Contains(req.URL.RawQuery, "timeout=") {
		return requestTime
	}
	d, err := time.ParseDuration(req.URL.Query().Get("timeout"))
	if err != nil || d <= 0 || d > requestTime {
		return requestTime
	}
	return d
}

func (c *call) authenticate() bool {
	resp, ok, err := c.s.authn.AuthenticateRequest(c.req)
	switch {
	case err != nil:
		c.s.log.Debug("a client could not be authenticated", "remote", c.req.RemoteAddr, "error", err)
		c.why = err.Error()
		c.fail(apierrors.NewUnauthorized("Unauthorized"))
		return false
	case ok:
		c.user = resp.User
	default:
		c.user = auth.Anonymous()
	}
	if c.user.GetName() == user.Anonymous && !open(c.info.Path) {
		c.fail(apierrors.NewUnauthorized("Unauthorized"))
		return false
	}
	// Credentials end here: nothing behind the pipeline, a proxied pod least of all, sees them.
	c.req.Header.Del("Authorization")
	ctx := request.WithUser(c.req.Context(), c.user)
	c.req = c.req.WithContext(ctx)
	return c.impersonate()
}

// open are the paths that tell nothing about the cluster but that it is there.
func open(path string) bool {
	for _, p := range []string{"/healthz", "/livez", "/readyz"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return path == "/version"
}

func (c *call) authorize() bool {
	if c.user.GetName() == user.Anonymous {
		return true // on an open path
	}
	attrs, err := filters.GetAuthorizerAttributes(c.req.Context())
	if err != nil {
		c.fail(apierrors.NewInternalError(err))
		return false
	}
	decision, reason, err := c.s.authz.Authorize(c.req.Context(), attrs)
	if decision == authorizer.DecisionAllow {
		return true
	}
	if err != nil && reason == "" {
		reason = err.Error()
	}
	c.why = reason
	c.s.forbid(c.w, c.req, attrs, reason)
	return false
}

func (s *Server) forbid(w http.ResponseWriter, req *http.Request, attrs authorizer.Attributes, reason string) {
	responsewriters.Forbidden(attrs, w, req, reason, legacyscheme.Codecs)
}

// dispatch finds who answers.
func (c *call) dispatch() {
	if !c.info.IsResourceRequest {
		c.s.serveOther(c.w, c.req)
		return
	}
	if c.info.APIGroup == usageVersion.Group {
		if err := c.s.usage.serve(c.w, c.req, c.info); err != nil {
			c.fail(err)
		}
		return
	}
	r, ok := c.s.find(c.info)
	if !ok && asksForCRDs(c.info) {
		writeJSON(c.w, noCRDs)
		return
	}
	if !ok || c.strange(r) {
		c.fail(errNoRoute())
		return
	}
	c.handle(r)
}

// find is the resource, or subresource, that a request names.
func (s *Server) find(i *request.RequestInfo) (*resource, bool) {
	if !i.IsResourceRequest {
		return nil, false
	}
	gvr := schema.GroupVersionResource{Group: i.APIGroup, Version: i.APIVersion, Resource: i.Resource}
	r := s.resources[gvr]
	if i.Subresource != "" {
		r = s.subs[subKey{gvr, i.Subresource}]
	}
	return r, r != nil
}

// strange is a path that parses but names nothing: a namespace before a cluster's resource,
// or none before a namespaced object.
func (c *call) strange(r *resource) bool {
	if r.gvr.Resource == "namespaces" {
		return false
	}
	if !r.namespaced {
		return c.info.Namespace != ""
	}
	return c.info.Namespace == "" && (c.info.Name != "" && c.info.Verb != "watch" && c.info.Verb != "list" || c.info.Verb == "create")
}

func errNoRoute() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
	}}
}

func (c *call) handle(r *resource) {
	if h, ok := r.verbs["connect"]; ok {
		h.ServeHTTP(c.w, c.req)
		return
	}
	verb := c.info.Verb
	var err error
	switch {
	case r.kind != nil && verb == "get":
		err = c.s.reader.get(c.w, c.req, r)
	case r.kind != nil && verb == "list":
		err = c.s.reader.list(c.w, c.req, r)
	case r.kind != nil && verb == "watch":
		err = c.s.reader.watch(c.w, c.req, r)
	default:
		h, ok := r.verbs[verb]
		if !ok || c.misplaced(r) {
			err = apierrors.NewMethodNotSupported(r.gvr.GroupResource(), verb)
			break
		}
		h.ServeHTTP(c.w, c.req)
	}
	if err != nil {
		r.fail(c.w, c.req, err)
	}
}

// misplaced is a verb on a collection that belongs on an object, or the other way round.
func (c *call) misplaced(r *resource) bool {
	if r.subresource != "" {
		return false
	}
	return (c.info.Verb == "create") == (c.info.Name != "") && c.info.Verb != "deletecollection"
}

func (c *call) fail(err error) {
	responsewriters.ErrorNegotiated(err, legacyscheme.Codecs, schema.GroupVersion{Version: "v1"}, c.w, c.req)
}

// record writes the audit line. Successful reads, and heartbeats, are left out: they would be
// all of the log.
func (c *call) record(id string, began time.Time) {
	if c.s.opts.Audit == nil || c.info == nil {
		return
	}
	if c.w.code < 400 && c.s.unremarkable(c.info) {
		return
	}
	host, _, err := net.SplitHostPort(c.req.RemoteAddr)
	if err != nil {
		host = ""
	}
	c.s.opts.Audit.Write(auth.AuditRecord{
		ID: id, User: c.user, Impersonated: c.as, Info: c.info, Verb: c.info.Verb, URI: c.req.URL.RequestURI(), Source: host,
		UserAgent: c.req.UserAgent(), Code: c.w.code, Reason: c.why, Received: began,
	})
}

func (s *Server) unremarkable(i *request.RequestInfo) bool {
	switch {
	case i.Resource == "secrets" || i.Subresource == "exec" || i.Subresource == "attach" || i.Subresource == "portforward" || i.Subresource == "token":
		return false
	case i.Verb == "get" || i.Verb == "list" || i.Verb == "watch":
		return true
	}
	return i.Resource == "events" || i.Resource == "leases"
}

// recorder remembers the code of a response. It passes on what streams need.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Flush sends what has been written: upstream's log stream asks for it.
func (r *recorder) Flush() { http.NewResponseController(r.ResponseWriter).Flush() }

// Hijack takes the connection over: exec, attach and port-forward do.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.code = http.StatusSwitchingProtocols
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// CloseNotify is what upstream's older stream code asks for.
func (r *recorder) CloseNotify() <-chan bool {
	//nolint:staticcheck // upstream's wsstream still asks for it
	if n, ok := r.ResponseWriter.(http.CloseNotifier); ok {
		return n.CloseNotify()
	}
	return nil
}
