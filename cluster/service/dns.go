package service

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	answerTTL    = 5       // as upstream's CoreDNS: endpoints move
	schema110    = "1.1.0" // the version of the naming scheme that this implements
	maxAddresses = 1000    // of one answer; a headless service can have more pods than a message holds
)

// serveDNS answers on the given sockets until the returned function is called.
func (s *Server) serveDNS() (stop func()) {
	if s.opts.DNSUDP == nil || s.opts.DNSTCP == nil {
		return func() {}
	}
	handler := dns.HandlerFunc(s.handle)
	servers := []*dns.Server{{PacketConn: s.opts.DNSUDP, Handler: handler}, {Listener: s.opts.DNSTCP, Handler: handler}}
	var running sync.WaitGroup
	stopping := make(chan struct{})
	for _, srv := range servers {
		started, ended := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		running.Go(func() {
			defer close(ended)
			err := srv.ActivateAndServe()
			select {
			case <-stopping:
			default:
				s.log.Error("cluster DNS stopped answering", "error", err)
			}
		})
		select { // a server that has not started cannot be shut down
		case <-started:
		case <-ended:
		}
	}
	return func() {
		close(stopping)
		for _, srv := range servers {
			_ = srv.Shutdown() // only says that it was not running
		}
		running.Wait()
	}
}

func (s *Server) closeDNS() error {
	if s.opts.DNSUDP == nil || s.opts.DNSTCP == nil {
		return nil
	}
	return errors.Join(s.opts.DNSUDP.Close(), s.opts.DNSTCP.Close())
}

func (s *Server) handle(w dns.ResponseWriter, q *dns.Msg) {
	reply := s.answer(context.Background(), q)
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply) // the client is gone, or will ask again
}

// answer is the whole DNS server, without sockets.
func (s *Server) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 || q.Question[0].Qclass != dns.ClassINET {
		return reply(q, dns.RcodeNotImplemented)
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	if question.Qtype == dns.TypePTR {
		if r := s.reverse(q, name); r != nil {
			return r
		}
	}
	labels, inside := strings.CutSuffix(name, s.opts.Domain)
	if !inside || labels != "" && !strings.HasSuffix(labels, ".") {
		return s.forward(ctx, q)
	}
	r := s.zone(ctx, q, strings.TrimSuffix(labels, "."))
	if len(r.Answer) == 0 {
		r.Ns = []dns.RR{s.soa()}
	}
	return r
}

func reply(q *dns.Msg, rcode int) *dns.Msg {
	r := new(dns.Msg)
	r.SetRcode(q, rcode)
	r.Authoritative = rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError
	r.RecursionAvailable = true
	return r
}

func (s *Server) forward(ctx context.Context, q *dns.Msg) *dns.Msg {
	if s.opts.Upstream == nil {
		return reply(q, dns.RcodeRefused)
	}
	r, err := s.opts.Upstream.Exchange(ctx, q)
	if err != nil {
		s.log.Debug("query was not answered", "error", err)
		r = reply(q, dns.RcodeServerFailure)
		r.Authoritative = false
	}
	return r
}

// soa makes "no such name" worth remembering for as long as a positive answer.
func (s *Server) soa() dns.RR {
	zone := s.opts.Domain + "."
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: "ns.dns." + zone, Mbox: "hostmaster." + zone, Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: answerTTL}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: answerTTL}
}

// zone answers names below the cluster's domain; labels is what stands before it.
func (s *Server) zone(ctx context.Context, q *dns.Msg, labels string) *dns.Msg {
	question := q.Question[0]
	if labels == "dns-version" {
		r := reply(q, dns.RcodeSuccess)
		if question.Qtype == dns.TypeTXT || question.Qtype == dns.TypeANY {
			r.Answer = []dns.RR{&dns.TXT{Hdr: header(question.Name, dns.TypeTXT), Txt: []string{schema110}}}
		}
		return r
	}
	if rest, ok := cutZone(labels, "svc"); ok {
		return s.serviceZone(ctx, q, rest)
	}
	if rest, ok := cutZone(labels, "pod"); ok {
		return s.podZone(q, rest)
	}
	if labels == "" {
		return reply(q, dns.RcodeSuccess)
	}
	return reply(q, dns.RcodeNameError)
}

func cutZone(labels, zone string) (rest string, ok bool) {
	if labels == zone {
		return "", true
	}
	return strings.CutSuffix(labels, "."+zone)
}

func cutLast(labels string) (rest, last string) {
	i := strings.LastIndexByte(labels, '.')
	if i < 0 {
		return "", labels
	}
	return labels[:i], labels[i+1:]
}

// podZone answers 10-0-0-1.namespace.pod.
func (s *Server) podZone(q *dns.Msg, labels string) *dns.Msg {
	host, namespace := cutLast(labels)
	if !s.hasNamespace(namespace) {
		return reply(q, dns.RcodeNameError)
	}
	if host == "" {
		return reply(q, dns.RcodeSuccess)
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(host, "-", "."))
	if err != nil {
		return reply(q, dns.RcodeNameError)
	}
	return addresses(q, []netip.Addr{a})
}

func (s *Server) hasNamespace(name string) bool {
	_, ok := s.opts.Reader.Snapshot(kinds.Namespaces).Get("", name)
	return ok
}

func addresses(q *dns.Msg, all []netip.Addr) *dns.Msg {
	r := reply(q, dns.RcodeSuccess)
	question := q.Question[0]
	if question.Qtype != dns.TypeA && question.Qtype != dns.TypeANY {
		return r
	}
	for _, a := range all {
		if a.Is4() {
			r.Answer = append(r.Answer, &dns.A{Hdr: header(question.Name, dns.TypeA), A: a.AsSlice()})
		}
	}
	return r
}

// target is a service as a query names it.
type target struct {
	svc   *corev1.Service
	host  string // an endpoint of it
	port  string // _http
	proto string // _tcp
}

// serviceZone answers [host.|_port._proto.]service.namespace.svc.
func (s *Server) serviceZone(ctx context.Context, q *dns.Msg, labels string) *dns.Msg {
	before, namespace := cutLast(labels)
	if before == "" {
		if namespace == "" || s.hasNamespace(namespace) {
			return reply(q, dns.RcodeSuccess)
		}
		return reply(q, dns.RcodeNameError)
	}
	t, ok := s.find(before, namespace)
	switch {
	case !ok:
		return reply(q, dns.RcodeNameError)
	case t.svc.Spec.Type == corev1.ServiceTypeExternalName:
		return s.external(ctx, q, t)
	case t.port != "":
		return s.portRecords(q, t)
	case t.svc.Spec.ClusterIP == corev1.ClusterIPNone:
		return s.headless(q, t)
	case t.host != "":
		return reply(q, dns.RcodeNameError)
	case q.Question[0].Qtype == dns.TypeSRV:
		return s.portRecords(q, t)
	}
	return addresses(q, virtual(t.svc))
}

func (s *Server) find(labels, namespace string) (target, bool) {
	if name, ok := s.names.byAlias(namespace, labels); ok {
		svc, ok := s.service(namespace, name)
		return target{svc: svc}, ok
	}
	rest, name := cutLast(labels)
	svc, ok := s.service(namespace, name)
	if !ok {
		if alias, found := s.names.byAlias(namespace, name); found {
			svc, ok = s.service(namespace, alias)
		}
	}
	t := target{svc: svc, host: rest}
	if port, proto, two := strings.Cut(rest, "."); two && strings.HasPrefix(port, "_") && strings.HasPrefix(proto, "_") {
		t.host, t.port, t.proto = "", port[1:], proto[1:]
	}
	return t, ok
}

func (s *Server) service(namespace, name string) (*corev1.Service, bool) {
	return store.Get[*corev1.Service](s.opts.Reader, kinds.Services, namespace, name)
}

// external answers with the other name, and with its addresses when they are to be had.
func (s *Server) external(ctx context.Context, q *dns.Msg, t target) *dns.Msg {
	question := q.Question[0]
	if t.host != "" || t.port != "" {
		return reply(q, dns.RcodeNameError)
	}
	r := reply(q, dns.RcodeSuccess)
	other := dns.Fqdn(t.svc.Spec.ExternalName)
	r.Answer = []dns.RR{&dns.CNAME{Hdr: header(question.Name, dns.TypeCNAME), Target: other}}
	if question.Qtype == dns.TypeCNAME {
		return r
	}
	chase := q.Copy()
	chase.Question[0].Name = other
	if strings.HasSuffix(strings.ToLower(other), "."+s.opts.Domain+".") {
		if t2, ok := strings.CutSuffix(strings.ToLower(other), ".svc."+s.opts.Domain+"."); ok && !s.isExternal(t2) {
			r.Answer = append(r.Answer, s.answer(ctx, chase).Answer...)
		}
		return r
	}
	r.Answer = append(r.Answer, s.forward(ctx, chase).Answer...)
	return r
}

// isExternal guards against names that lead to each other.
func (s *Server) isExternal(labels string) bool {
	before, namespace := cutLast(labels)
	t, ok := s.find(before, namespace)
	return ok && t.svc.Spec.Type == corev1.ServiceTypeExternalName
}

// place is one endpoint of a headless service.
type place struct {
	host string
	addr netip.Addr
	port int32
}

// places lists ready endpoints; port and proto, when not empty, choose among the slices.
func (s *Server) places(t target) []place {
	var all []place
	for _, slice := range store.Indexed[*discoveryv1.EndpointSlice](s.opts.Reader, kinds.EndpointSlices, kinds.ByService, store.KeyOf(t.svc)) {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		port, ok := portOf(slice, t)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			a, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			host := strings.ToLower(deref(e.Hostname))
			if host == "" {
				host = strings.ReplaceAll(a.String(), ".", "-")
			}
			if t.host == "" || t.host == host {
				all = append(all, place{host, a, port})
			}
		}
	}
	return all
}

func portOf(slice *discoveryv1.EndpointSlice, t target) (int32, bool) {
	if t.port == "" {
		return 0, true
	}
	for _, p := range slice.Ports {
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if strings.EqualFold(deref(p.Name), t.port) && strings.EqualFold(string(proto), t.proto) {
			return deref(p.Port), true
		}
	}
	return 0, false
}

func (s *Server) headless(q *dns.Msg, t target) *dns.Msg {
	if q.Question[0].Qtype == dns.TypeSRV && t.host == "" {
		return s.portRecords(q, t)
	}
	places := s.places(t)
	if len(places) == 0 && t.host != "" {
		return reply(q, dns.RcodeNameError)
	}
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	var all []netip.Addr
	for _, p := range places[:min(len(places), maxAddresses)] {
		all = append(all, p.addr)
	}
	return addresses(q, all)
}

// portRecords answers SRV, for one port of a service or for all.
func (s *Server) portRecords(q *dns.Msg, t target) *dns.Msg {
	question := q.Question[0]
	r := reply(q, dns.RcodeSuccess)
	domain := t.svc.Name + "." + t.svc.Namespace + ".svc." + s.opts.Domain + "."
	found := t.port == ""
	for _, sp := range t.svc.Spec.Ports {
		proto := strings.ToLower(string(sp.Protocol))
		if proto == "" {
			proto = "tcp"
		}
		if t.port != "" && (!strings.EqualFold(sp.Name, t.port) || proto != t.proto) {
			continue
		}
		found = true
		if question.Qtype != dns.TypeSRV && question.Qtype != dns.TypeANY {
			continue
		}
		if t.svc.Spec.ClusterIP != corev1.ClusterIPNone {
			addSRV(r, question.Name, domain, uint16(sp.Port), virtual(t.svc))
			continue
		}
		one := t
		one.port, one.proto = sp.Name, proto
		for _, p := range s.places(one) {
			addSRV(r, question.Name, p.host+"."+domain, uint16(p.port), []netip.Addr{p.addr})
		}
	}
	if !found {
		return reply(q, dns.RcodeNameError)
	}
	return r
}

// addSRV adds a record, and the addresses that its reader will want next.
func addSRV(r *dns.Msg, name, host string, port uint16, addrs []netip.Addr) {
	if len(r.Answer) >= maxAddresses {
		return
	}
	r.Answer = append(r.Answer, &dns.SRV{Hdr: header(name, dns.TypeSRV), Weight: 100, Port: port, Target: host})
	for _, a := range addrs {
		r.Extra = append(r.Extra, &dns.A{Hdr: header(host, dns.TypeA), A: a.AsSlice()})
	}
}

// reverse answers for addresses of services and of named endpoints; nil: not ours.
func (s *Server) reverse(q *dns.Msg, name string) *dns.Msg {
	a, ok := addrOfReverse(name)
	if !ok {
		return nil
	}
	if key, ok := s.names.byAddr(a); ok {
		namespace, svc := split(key)
		return pointer(q, svc+"."+namespace+".svc."+s.opts.Domain+".")
	}
	if s.opts.ServiceRange.Contains(a) {
		return reply(q, dns.RcodeNameError)
	}
	if !s.opts.PodRange.Contains(a) {
		return nil
	}
	if name, ok := s.endpointName(a); ok {
		return pointer(q, name+".svc."+s.opts.Domain+".")
	}
	return reply(q, dns.RcodeNameError)
}

// endpointName finds host.service.namespace of a pod that has a name in a headless service.
func (s *Server) endpointName(a netip.Addr) (string, bool) {
	text := a.String()
	for o := range s.opts.Reader.Snapshot(kinds.EndpointSlices).All("") {
		slice := o.(*discoveryv1.EndpointSlice)
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if deref(e.Hostname) != "" && len(e.Addresses) > 0 && e.Addresses[0] == text {
				return deref(e.Hostname) + "." + slice.Labels[discoveryv1.LabelServiceName] + "." + slice.Namespace, true
			}
		}
	}
	return "", false
}

func pointer(q *dns.Msg, name string) *dns.Msg {
	r := reply(q, dns.RcodeSuccess)
	r.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Question[0].Name, dns.TypePTR), Ptr: name}}
	return r
}

// addrOfReverse reads 4.3.2.1.in-addr.arpa.
func addrOfReverse(name string) (netip.Addr, bool) {
	labels, ok := strings.CutSuffix(name, ".in-addr.arpa")
	parts := strings.Split(labels, ".")
	if !ok || len(parts) != 4 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return netip.Addr{}, false
		}
		b[3-i] = byte(n)
	}
	return netip.AddrFrom4(b), true
}
