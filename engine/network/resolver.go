package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// answerTTL is short: a container that comes back has another address.
const answerTTL = 5

// resolver answers the containers of one network. It knows a client by its address,
// and answers with names of all networks that the client is on.
type resolver struct {
	m    *Manager
	seg  *segment
	addr netip.AddrPort
	udp  net.PacketConn
	tcp  net.Listener
	stop func() // nil until serve
}

// openResolver makes the resolver of a network, on its gateway, without answering yet.
func (m *Manager) openResolver(ctx context.Context, s *segment) (*resolver, error) {
	udp, tcp, err := m.dnsSocks.open(ctx, s.ID, s.Gateway, s.DNSPort)
	if err != nil {
		return nil, fmt.Errorf("open resolver of network %s: %w", s.Name, err)
	}
	addr := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	s.DNSPort = addr.Port()
	return &resolver{m: m, seg: s, addr: netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), udp: udp, tcp: tcp}, nil
}

// serve starts to answer: when all containers are known, or those that queried while
// no daemon ran would be refused as strangers.
func (r *resolver) serve() {
	r.stop = serveDNS(r.udp, r.tcp, r, func(err error) {
		r.m.log.Error("resolver stopped", "network", r.seg.Name, "error", err)
	})
}

func (r *resolver) close() {
	if r.stop == nil {
		r.udp.Close()
		r.tcp.Close()
		return
	}
	r.stop()
}

// serveDNS answers on both sockets until the returned function is called, which
// closes them and waits.
func serveDNS(udp net.PacketConn, tcp net.Listener, h dns.Handler, failed func(error)) func() {
	servers := []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}}
	var running sync.WaitGroup
	var stopping sync.Once
	stopped := make(chan struct{})
	for _, s := range servers {
		ready := make(chan struct{})
		s.NotifyStartedFunc = func() { close(ready) }
		ended := make(chan struct{})
		running.Go(func() {
			defer close(ended)
			err := s.ActivateAndServe()
			select {
			case <-stopped:
			default:
				if err != nil {
					failed(err)
				}
			}
		})
		select { // a server that has not started cannot be shut down
		case <-ready:
		case <-ended:
		}
	}
	return func() {
		stopping.Do(func() {
			close(stopped)
			for _, s := range servers {
				_ = s.Shutdown() // only says that it was not running
			}
			running.Wait()
		})
	}
}

// ServeDNS implements dns.Handler.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	reply := r.answer(clientOf(w), q)
	if w.RemoteAddr().Network() == "udp" {
		size := dns.MinMsgSize
		if opt := q.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		reply.Truncate(size)
	}
	_ = w.WriteMsg(reply) // the client is gone, or will ask again
}

func clientOf(w dns.ResponseWriter) netip.Addr {
	ap, _ := netip.ParseAddrPort(w.RemoteAddr().String())
	return ap.Addr().Unmap()
}

func failure(q *dns.Msg, rcode int) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetRcode(q, rcode)
	reply.RecursionAvailable = true
	return reply
}

func (r *resolver) answer(client netip.Addr, q *dns.Msg) *dns.Msg {
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return failure(q, dns.RcodeNotImplemented)
	}
	view, ok := r.m.viewOf(r.seg, client)
	if !ok {
		return failure(q, dns.RcodeRefused) // not an open resolver for the neighbourhood
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	if question.Qclass == dns.ClassINET {
		if reply := view.local(q, question, name); reply != nil {
			return reply
		}
	}
	if !view.forward {
		return failure(q, dns.RcodeServerFailure)
	}
	reply, err := r.m.up.exchange(context.Background(), q, view.servers)
	if err != nil {
		r.m.log.Debug("query was not answered", "network", r.seg.Name, "error", err)
		return failure(q, dns.RcodeServerFailure)
	}
	return reply
}

// view is what one client may know.
type view struct {
	m        *Manager
	segments []*segment
	forward  bool
	servers  []netip.AddrPort
	links    map[string]string // what only this client calls others
}

// viewOf finds the client; false when it is not one of ours.
func (m *Manager) viewOf(s *segment, client netip.Addr) (view, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ep := s.byAddr[client]
	if ep == nil {
		return view{m: m, segments: []*segment{s}}, client == s.Gateway // the host asks: names only
	}
	v := view{m: m}
	for id, e := range m.endpoints[ep.ContainerID] {
		seg := m.networks[id]
		v.segments = append(v.segments, seg)
		v.forward = v.forward || !seg.Internal && e.Addr.IsValid()
		for alias, name := range e.Links {
			if v.links == nil {
				v.links = map[string]string{}
			}
			v.links[alias] = name
		}
		if len(v.servers) == 0 {
			for _, a := range e.DNS {
				v.servers = append(v.servers, netip.AddrPortFrom(a, 53))
			}
		}
	}
	return v, true
}

// local answers what we know ourselves; nil: ask upstream.
func (v view) local(q *dns.Msg, question dns.Question, name string) *dns.Msg {
	if question.Qtype == dns.TypePTR {
		return v.reverse(q, question, name)
	}
	if other, linked := v.links[name]; linked {
		name = other
	}
	addrs := v.addresses(name)
	if len(addrs) == 0 {
		return nil
	}
	reply := failure(q, dns.RcodeSuccess)
	if question.Qtype == dns.TypeA || question.Qtype == dns.TypeANY {
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		for _, a := range addrs {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: header(question.Name, dns.TypeA), A: a.AsSlice()})
		}
	}
	return reply
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: answerTTL}
}

// addresses of a name, or of name.network, on the client's networks. On the default
// bridge only what was asked for by alias has a name, as with Docker.
func (v view) addresses(name string) []netip.Addr {
	v.m.mu.RLock()
	defer v.m.mu.RUnlock()
	var addrs []netip.Addr
	for _, s := range v.segments {
		found := s.byName[name]
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(s.Name)); ok && len(found) == 0 {
			found = s.byName[short]
		}
		for _, ep := range found {
			if ep.Addr.IsValid() && (s.Name != DefaultBridge || containsFold(ep.Aliases, name)) {
				addrs = append(addrs, ep.Addr.Addr())
			}
		}
	}
	return addrs
}

func containsFold(list []string, name string) bool {
	for _, s := range list {
		if strings.EqualFold(s, name) {
			return true
		}
	}
	return false
}

// reverse answers for the client's networks; other addresses are upstream's business.
func (v view) reverse(q *dns.Msg, question dns.Question, name string) *dns.Msg {
	addr, ok := addrOfReverse(name)
	if !ok {
		return nil
	}
	v.m.mu.RLock()
	defer v.m.mu.RUnlock()
	for _, s := range v.segments {
		if s.Driver != DriverBridge || !s.Subnet.Contains(addr) {
			continue
		}
		ep := s.byAddr[addr]
		if ep == nil || ep.Name == "" {
			return failure(q, dns.RcodeNameError)
		}
		reply := failure(q, dns.RcodeSuccess)
		reply.Answer = []dns.RR{&dns.PTR{Hdr: header(question.Name, dns.TypePTR), Ptr: dns.Fqdn(ep.Name + "." + s.Name)}}
		return reply
	}
	return nil
}

// addrOfReverse reads 4.3.2.1.in-addr.arpa.
func addrOfReverse(name string) (netip.Addr, bool) {
	labels, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(labels, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return addr, err == nil
}
