package api

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/capabilities"

	"slipway.dev/slipway/cluster/api/openapi"
	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/store"
)

// Options wire a Server. Store, Authority and ServiceRange are required.
type Options struct {
	Store     *store.Store
	Authority *auth.Authority
	Audit     *auth.Audit // nil: nothing is recorded
	Log       *slog.Logger

	// ServiceRange is where service addresses come from; its first address is the API's own.
	ServiceRange netip.Prefix
	// NodePorts is where node ports come from; zero means 30000-32767.
	NodePorts utilnet.PortRange
	// Endpoint is where pods reach this server: the endpoint of the kubernetes service. It
	// must not be a loopback address. Zero: that service has no endpoint.
	Endpoint netip.AddrPort

	// DialNode reaches the kubelet API of a node: see Loopback for the local one. nil: logs,
	// exec, attach and port-forward answer that there is no way.
	DialNode DialNode
	// PodTransport reaches pods and nodes for the proxy subresources; nil means directly.
	PodTransport http.RoundTripper
}

// Server serves the Kubernetes API of one store.
type Server struct {
	opts       Options
	log        *slog.Logger
	objects    objects
	authn      *auth.Authenticator
	authz      *auth.Authorizer
	resolver   *request.RequestInfoFactory
	resources  map[schema.GroupVersionResource]*resource
	subs       map[subKey]*resource
	reader     *reader
	discovery  *discoveryDocs
	openapi    http.Handler
	kubelets   *kubelets
	usage      *usage
	admission  *admissionChain
	metrics    *metrics
	load       load
	keys       keyDocs
	ready      chan struct{}
	close      context.CancelCauseFunc
	background sync.WaitGroup
	servers    serverSet
}

type subKey struct {
	gvr schema.GroupVersionResource
	sub string
}

var errClosing = errors.New("the API server is closing")

// New makes a server and starts filling in what every cluster has (its namespaces, roles,
// priority classes, its own service). Ready tells when that is done; requests are served
// before.
func New(ctx context.Context, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.NodePorts.Size == 0 {
		o.NodePorts = utilnet.PortRange{Base: 30000, Size: 2768}
	}
	run, stop := context.WithCancelCause(context.Background())
	s := &Server{
		opts: o, log: o.Log, objects: o.Store, close: stop, ready: make(chan struct{}),
		resolver: &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")},
		reader:   &reader{objects: o.Store, closing: run, watches: 30 * time.Minute, patience: watchPatience},
	}
	s.metrics = newMetrics(s)
	if err := s.assemble(); err != nil {
		stop(err)
		return nil, fmt.Errorf("api server: %w", err)
	}
	if err := s.repair(ctx); err != nil {
		stop(err)
		return nil, fmt.Errorf("api server: %w", err)
	}
	s.background.Go(func() { s.bootstrap(run) })
	return s, nil
}

// assemble makes every part and connects them; it starts nothing.
func (s *Server) assemble() error {
	// Privileged pods are a matter of each namespace's pod security level. Upstream's older switch, which is for the whole
	// process and off until somebody says otherwise, would refuse them everywhere.
	capabilities.Setup(true, 0)
	o := s.opts
	var err error
	if s.authn, err = auth.NewAuthenticator(o.Authority, o.Store); err != nil {
		return err
	}
	s.authz = auth.NewAuthorizer(o.Store)
	if s.keys.config, s.keys.jwks, err = o.Authority.Keys(); err != nil {
		return err
	}
	tokens, err := o.Authority.Tokens()
	if err != nil {
		return err
	}
	s.kubelets = &kubelets{dial: o.DialNode, objs: o.Store, transports: map[string]*http.Transport{}}
	s.usage = newUsage(s.kubelets, o.Store)
	addresses, err := newAddresses(o.Store, o.ServiceRange)
	if err != nil {
		return err
	}
	kinds := map[schema.GroupResource]store.Kind{}
	for _, k := range o.Store.Kinds() {
		kinds[k.Resource] = k
	}
	proxy := o.PodTransport
	if proxy == nil {
		// Who asks for an https port of a pod trusts the address that the cluster gave it, as
		// upstream: pods' certificates are nobody's business but theirs.
		proxy = &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	}
	reg := &registry{
		storages:      &storages{objects: o.Store, kinds: kinds},
		authorizer:    s.authz,
		rules:         s.authz.Rules(),
		authenticator: authenticator.RequestFunc(s.authn.AuthenticateRequest),
		audiences:     auth.Audiences(),
		tokens:        tokens,
		kubelets:      s.kubelets,
		addresses:     addresses,
		ports:         newPorts(o.Store, o.NodePorts),
		endpoints:     &endpointReader{o.Store},
		budgets:       &budgetClient{objects: o.Store},
		proxy:         proxy,
	}
	groups, err := reg.groups()
	if err != nil {
		return err
	}
	s.admission = newAdmission(o.Store)
	b := &builder{
		kinds: kinds, admit: s.admission, types: newTypes(), authorizer: s.authz,
		equivalent: runtime.NewEquivalentResourceRegistry(),
	}
	return s.install(b, groups)
}

func (s *Server) install(b *builder, groups map[schema.GroupVersion]group) error {
	s.resources = map[schema.GroupVersionResource]*resource{}
	s.subs = map[subKey]*resource{}
	byGroup := map[schema.GroupVersion]map[string]*resource{}
	for gv, g := range groups {
		built, err := b.build(gv, g)
		if err != nil {
			return err
		}
		byGroup[gv] = built
		for _, r := range built {
			if r.subresource == "" {
				s.resources[r.gvr] = r
			} else {
				s.subs[subKey{r.gvr, r.subresource}] = r
			}
		}
	}
	byGroup[usageVersion] = usageResources()
	var err error
	s.discovery, err = newDiscovery(byGroup)
	s.openapi = openapi.NewHandler()
	return err
}

// Ready is closed when what every cluster has is in the store.
func (s *Server) Ready() <-chan struct{} { return s.ready }

func (s *Server) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// Serve accepts connections until the server or the listener closes, and closes the listener. It
// is no error when Close came first: who closes a server may not know whether it serves yet.
func (s *Server) Serve(l net.Listener) error {
	hs := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         s.opts.Authority.TLS(),
		ReadHeaderTimeout: 32 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          slog.NewLogLogger(quiet{s.log.Handler()}, slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000},
	}
	hs.ConnState = s.servers.note
	if !s.servers.add(hs) {
		return l.Close()
	}
	defer s.servers.remove(hs)
	err := hs.Serve(tls.NewListener(l, hs.TLSConfig))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the API: %w", err)
}

// quiet demotes what clients do wrong in TLS: anybody can make those lines.
type quiet struct{ slog.Handler }

// Close ends watches, lets other requests finish for as long as ctx allows, and stops.
func (s *Server) Close(ctx context.Context) error {
	s.close(errClosing)
	err := s.servers.shutdown(ctx)
	s.kubelets.close()
	s.background.Wait()
	s.reader.lists.clear()
	return err
}

// serverSet are the HTTP servers that Serve runs.
type serverSet struct {
	mu     sync.Mutex
	open   map[*http.Server]struct{}
	unused map[net.Conn]struct{} // connections without a request so far
	closed bool
}

// add notes a server that is about to serve, and tells whether it may.
func (t *serverSet) add(hs *http.Server) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.open == nil {
		t.open = map[*http.Server]struct{}{}
	}
	t.open[hs] = struct{}{}
	return true
}

func (t *serverSet) remove(hs *http.Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, hs)
}

// note keeps track of connections that were opened and not used: http.Server.Shutdown would
// wait five seconds for the request of each.
func (t *serverSet) note(c net.Conn, state http.ConnState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if state != http.StateNew {
		delete(t.unused, c)
		return
	}
	if t.closed { // it was accepted while shutdown began
		c.Close()
		return
	}
	if t.unused == nil {
		t.unused = map[net.Conn]struct{}{}
	}
	t.unused[c] = struct{}{}
}

func (t *serverSet) shutdown(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	open, unused := t.open, t.unused
	t.open, t.unused = nil, nil
	t.mu.Unlock()
	for c := range unused {
		c.Close()
	}
	var errs []error
	for hs := range open {
		if err := hs.Shutdown(ctx); err != nil {
			errs = append(errs, err, hs.Close())
		}
	}
	return errors.Join(errs...)
}

// newID is a random id for a request.
func newID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
