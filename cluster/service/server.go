package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/network/nft"
)

// PortReserver holds ports of the host, so that nobody else binds them.
type PortReserver interface {
	ReservePort(ctx context.Context, owner, proto string, addr netip.Addr, port uint16) (uint16, error)
	ReleasePort(ctx context.Context, owner, proto string, addr netip.Addr, port uint16)
}

// Upstream answers names outside of the cluster.
type Upstream interface {
	Exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error)
}

// Options wires a Server. All fields are required unless they say otherwise.
type Options struct {
	Reader store.Reader
	Writer store.Writer // writes status.loadBalancer; nil: nobody learns of it

	Instance     string // of the data directory, for the table's name
	NodeName     string
	NodeAddr     netip.Addr
	PodRange     netip.Prefix // of this node
	ServiceRange netip.Prefix
	DNSAddr      netip.Addr
	Ports        PortReserver

	Domain   string         // of the cluster; empty: cluster.local
	DNSUDP   net.PacketConn // the Server closes both; nil: no DNS
	DNSTCP   net.Listener
	Upstream Upstream // nil: other names are not resolved
	Log      *slog.Logger
}

// Server keeps the kernel and the DNS in step with the store.
type Server struct {
	opts  Options
	log   *slog.Logger
	conn  *nft.Conn
	flows *flowCleaner
	ready chan struct{} // closed when the first table is in place

	mu       sync.Mutex // guards what the table is made from
	model    *nft.Model
	balancer *balancer
	policies *policies
	admitted map[string]admission            // by namespace/name, until the pod's status has the address
	stale    []netlink.CustomConntrackFilter // flows to be forgotten when the table is written

	ports portKeeper // of the loop alone
	names nameIndex
	dirty dirtySet
}

type admission struct {
	uid  string
	addr netip.Addr
}

// New makes a Server; Run starts it.
func New(opts Options) (*Server, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Domain == "" {
		opts.Domain = "cluster.local"
	}
	conn, err := nft.Dial(0)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: opts, log: opts.Log.With("room", "service"), conn: conn, flows: newFlowCleaner(opts.Log),
		ready: make(chan struct{}), admitted: map[string]admission{}, ports: newPortKeeper(opts.Ports), dirty: newDirtySet(),
	}
	s.model = nft.NewModel(conn, "slipway-"+opts.Instance+"-svc")
	s.balancer = newBalancer(s.model)
	s.policies = newPolicies(s.model, opts.Instance, opts.PodRange)
	s.balancer.chains(s.policies.glob, opts.ServiceRange, opts.DNSAddr, s.policies.self)
	s.policies.chains(opts.ServiceRange)
	s.names.reset()
	return s, nil
}

// Ready is closed when services and policies of the store are in the kernel for the
// first time.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run programs the kernel from the store and follows it until ctx ends. The rules stay:
// services go on working while no daemon runs.
func (s *Server) Run(ctx context.Context) error {
	defer s.conn.Close()
	watch, err := nft.Watch()
	if err != nil {
		return errors.Join(err, s.closeDNS())
	}
	defer watch.Close()
	s.everything()
	if err := s.sync(ctx); err != nil {
		return errors.Join(fmt.Errorf("program services: %w", err), s.closeDNS())
	}
	s.flows.forget(s.balancer.astray(s.opts.PodRange))
	close(s.ready)
	stopDNS := s.serveDNS()
	defer stopDNS()

	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	for gr, mark := range s.marks() {
		running.Go(func() {
			if err := store.Follow(ctx, s.opts.Reader, gr, mark); ctx.Err() == nil {
				cancel(fmt.Errorf("follow %s: %w", gr, err))
			}
		})
	}
	running.Go(func() { s.guard(ctx, watch) })
	running.Go(func() { s.flows.run(ctx) })
	s.loop(ctx)
	cancel(nil)
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// Teardown removes the table and gives the host ports back. Run must have returned.
func (s *Server) Teardown(ctx context.Context) error {
	s.ports.releaseAll(ctx)
	return RemoveTable(s.opts.Instance)
}

// RemoveTable removes what servers of an instance left in the kernel; none may run.
func RemoveTable(instance string) error {
	conn, err := nft.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.DropTable("slipway-" + instance + "-svc")
}

// marks says what each kind of event makes necessary.
func (s *Server) marks() map[schema.GroupResource]func(store.Event) {
	return map[schema.GroupResource]func(store.Event){
		kinds.Services: func(e store.Event) { s.mark(kindService, e) },
		kinds.EndpointSlices: func(e store.Event) {
			for _, o := range []store.Object{e.Object, e.Prev} {
				if o != nil {
					s.dirty.add(kindService, store.Key(o.GetNamespace(), o.GetLabels()[discoveryv1.LabelServiceName]))
				}
			}
		},
		kinds.Pods: func(e store.Event) {
			s.mark(kindPod, e)
			if pod, ok := e.Object.(*corev1.Pod); ok && hasHostPorts(pod) {
				s.mark(kindHostPorts, e)
			}
		},
		kinds.Namespaces:      func(e store.Event) { s.mark(kindNamespace, e) },
		kinds.NetworkPolicies: func(e store.Event) { s.mark(kindPolicy, e) },
	}
}

func (s *Server) mark(kind string, e store.Event) {
	if e.Object != nil {
		s.dirty.add(kind, store.KeyOf(e.Object))
	}
}

func (s *Server) everything() {
	for kind, gr := range map[string]schema.GroupResource{kindService: kinds.Services, kindPod: kinds.Pods, kindNamespace: kinds.Namespaces, kindPolicy: kinds.NetworkPolicies} {
		for o := range s.opts.Reader.Snapshot(gr).All("") {
			s.dirty.add(kind, store.KeyOf(o))
			if pod, ok := o.(*corev1.Pod); ok && hasHostPorts(pod) {
				s.dirty.add(kindHostPorts, store.KeyOf(o))
			}
		}
	}
}

// portRetry is how often a port that another program holds is tried again: its release
// is no event we could hear.
const portRetry = 3 * time.Second

func (s *Server) loop(ctx context.Context) {
	var retry <-chan time.Time // nil: nobody waits for a port
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty.wake:
		case <-retry:
			retry = nil
			s.retryPorts()
		}
		err := s.sync(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Error("services and policies are not up to date", "error", err)
		}
		// One that is set stays: where something happens all the time, a new one would never be due.
		if retry == nil && (err != nil || len(s.ports.wanting()) > 0) {
			retry = time.After(portRetry)
		}
	}
}

// retryPorts looks again at those that lack a port of the host.
func (s *Server) retryPorts() {
	for _, owner := range s.ports.wanting() {
		if key, ok := strings.CutPrefix(owner, podOwner); ok {
			s.dirty.add(kindHostPorts, key)
		} else {
			s.dirty.add(kindService, strings.TrimPrefix(owner, serviceOwner))
		}
	}
}

// outcome is what the rest of the world hears of a service after it was programmed.
type outcome struct {
	svc     *corev1.Service
	ingress []netip.Addr
	problem error
}

// sync works off what is dirty, in one transaction.
func (s *Server) sync(ctx context.Context) error {
	todo := s.dirty.take()
	var outcomes []outcome
	programs := map[string]program{} // by owner
	for key := range todo[kindHostPorts] {
		programs[podOwner+key] = s.plannedPod(ctx, key)
	}
	for key := range todo[kindService] {
		p, out := s.planned(ctx, key)
		programs[serviceOwner+key] = p
		if out.svc != nil {
			outcomes = append(outcomes, out)
		}
	}
	err := s.program(todo, programs)
	if err != nil {
		s.dirty.putBack(todo)
		return err
	}
	released := false
	for owner := range programs {
		released = s.ports.settle(ctx, owner) || released
	}
	if released {
		s.retryPorts() // what one gives up another may be waiting for
	}
	for _, out := range outcomes {
		s.report(ctx, out)
	}
	return nil
}

// planned works out a service's program and takes the host ports that it needs; fronts
// whose port is not to be had are left out.
func (s *Server) planned(ctx context.Context, key string) (program, outcome) {
	namespace, name := split(key)
	svc, ok := store.Get[*corev1.Service](s.opts.Reader, kinds.Services, namespace, name)
	if !ok {
		s.ports.want(ctx, serviceOwner+key, nil)
		s.names.set(key, nil)
		return program{}, outcome{}
	}
	s.names.set(key, svc)
	slices := store.Indexed[*discoveryv1.EndpointSlice](s.opts.Reader, kinds.EndpointSlices, kinds.ByService, key)
	p, err := planService(svc, slices, where{s.opts.NodeName, s.opts.NodeAddr, []netip.Prefix{s.opts.ServiceRange, s.opts.PodRange}})
	portErr := s.take(ctx, serviceOwner+key, &p)
	return p, outcome{svc, p.ingress, errors.Join(err, portErr)}
}

// Owners of host ports, by what comes before the key.
const (
	serviceOwner = "service "
	podOwner     = "pod "
)

// take reserves the host ports of a program; fronts without one are left out of it.
func (s *Server) take(ctx context.Context, owner string, p *program) error {
	refused, err := s.ports.want(ctx, owner, p.holds)
	for _, h := range refused {
		delete(p.fronts, front{h.addr, h.proto, h.port})
		p.holds = without(p.holds, h)
		p.ingress = nil
	}
	return err
}

// plannedPod works out what leads from host ports to a pod.
func (s *Server) plannedPod(ctx context.Context, key string) program {
	namespace, name := split(key)
	var p program
	if pod, ok := store.Get[*corev1.Pod](s.opts.Reader, kinds.Pods, namespace, name); ok {
		p = planPod(pod, s.opts.NodeName)
	}
	if err := s.take(ctx, podOwner+key, &p); err != nil {
		s.log.Warn("a pod lacks a port of the host", "pod", key, "error", err)
	}
	return p
}

func without(list []hold, h hold) []hold {
	var out []hold
	for _, x := range list {
		if x != h {
			out = append(out, x)
		}
	}
	return out
}

func (s *Server) program(todo map[string]map[string]bool, programs map[string]program) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range todo[kindNamespace] {
		s.setNamespace(name)
	}
	for key := range todo[kindPod] {
		s.setPod(key)
	}
	for key := range todo[kindPolicy] {
		s.setPolicy(key)
	}
	for key, p := range programs {
		s.stale = append(s.stale, s.balancer.set(key, p)...)
	}
	err := s.model.Commit()
	if err == nil {
		s.flows.forget(s.stale...)
		s.stale = nil
	}
	return err
}

func (s *Server) setNamespace(name string) {
	ns, ok := store.Get[*corev1.Namespace](s.opts.Reader, kinds.Namespaces, "", name)
	if !ok {
		s.policies.setNamespace(name, nil)
		return
	}
	set := labels.Set{}
	for k, v := range ns.Labels {
		set[k] = v
	}
	s.policies.setNamespace(name, set)
}

func (s *Server) setPod(key string) {
	namespace, name := split(key)
	pod, ok := store.Get[*corev1.Pod](s.opts.Reader, kinds.Pods, namespace, name)
	was := s.admitted[key]
	if !ok {
		delete(s.admitted, key)
		s.policies.setPod(key, nil)
		return
	}
	if was.uid != string(pod.UID) {
		delete(s.admitted, key)
		was = admission{}
	}
	s.policies.setPod(key, newPodInfo(pod, was.addr))
}

func (s *Server) setPolicy(key string) {
	namespace, name := split(key)
	np, ok := store.Get[*networkingv1.NetworkPolicy](s.opts.Reader, kinds.NetworkPolicies, namespace, name)
	if !ok {
		s.policies.setPolicy(key, nil)
		return
	}
	plan, err := compilePolicy(np)
	if err != nil {
		// Rather too little than too much: what it selects gets nothing.
		s.log.Error("network policy is not understood, it allows nothing", "error", err)
	}
	s.policies.setPolicy(key, &plan)
}

// Admit lets a pod onto the network: when it returns, the policies that concern it are
// in the kernel, and its packets pass. Until then everything from and to its address is
// dropped.
func (s *Server) Admit(ctx context.Context, pod *corev1.Pod, addr netip.Addr) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return fmt.Errorf("admit pod %s/%s to the network: services are not ready: %w", pod.Namespace, pod.Name, context.Cause(ctx))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := store.KeyOf(pod)
	s.setNamespace(pod.Namespace)
	for np := range s.opts.Reader.Snapshot(kinds.NetworkPolicies).All(pod.Namespace) {
		if k := store.KeyOf(np); !s.knows(k) {
			s.setPolicy(k) // it was there before the pod, and its event is still on its way
		}
	}
	s.admitted[key] = admission{string(pod.UID), addr}
	s.policies.setPod(key, newPodInfo(pod, addr))
	if err := s.model.Commit(); err != nil {
		return fmt.Errorf("admit pod %s to the network: %w", key, err)
	}
	return nil
}

func (s *Server) knows(policy string) bool {
	_, ok := s.policies.plans[policy]
	return ok
}

// guard writes the table again when somebody flushed it.
func (s *Server) guard(ctx context.Context, watch *nft.Watcher) {
	for {
		changes, err := watch.Next(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Error("removal of the packet table is no longer noticed", "error", err)
			}
			return
		}
		for _, c := range changes {
			if c.Deleted && c.Table == "slipway-"+s.opts.Instance+"-svc" || c.Table == "" {
				s.restore()
				break
			}
		}
	}
}

func (s *Server) restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	tables, err := s.conn.Tables()
	for _, name := range tables {
		if name == "slipway-"+s.opts.Instance+"-svc" {
			return // our own rewrite
		}
	}
	s.log.Warn("packet table was removed by somebody, restoring it")
	s.model.Invalidate()
	if err = errors.Join(err, s.model.Commit()); err != nil {
		s.log.Error("packet table could not be restored", "error", err)
	}
}
