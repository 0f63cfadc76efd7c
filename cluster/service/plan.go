package service

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Annotations on services that Slipway honours.
const (
	AllPorts   = "slipway.dev/all-ports"   // "true": the cluster address forwards every port, declared or not
	HostIP     = "slipway.dev/host-ip"     // addresses of the node, separated by commas, that a LoadBalancer binds instead of all
	DNSAliases = "slipway.dev/dns-aliases" // more names in the namespace, separated by commas
)

// front is an address and port that clients call. The zero addr stands for every
// address of the node, the zero port (with the zero proto) for every port.
type front struct {
	addr  netip.Addr
	proto corev1.Protocol
	port  uint16
}

// backend is where calls go: one of the targets, at random. It lives in one chain.
type backend struct {
	targets  []netip.AddrPort // sorted; ports are 0 when keepPort
	keepPort bool
	affinity time.Duration  // a client stays with its target for so long; 0: each call anew
	sources  []netip.Prefix // who may call; empty: everybody
}

// hold is a host port that a front needs.
type hold struct {
	proto corev1.Protocol
	addr  netip.Addr // invalid: every address of the node
	port  uint16
}

// program is everything that one service needs in the kernel and on the node.
type program struct {
	backends map[string]backend // by chain
	fronts   map[front]string   // to chain
	holds    []hold
	ingress  []netip.Addr // for status.loadBalancer
}

// where is what a plan has to know about the node.
type where struct {
	name string
	addr netip.Addr
	own  []netip.Prefix // the cluster's own addresses: of pods and of services
}

// planService works out a service's program from its endpoint slices.
func planService(svc *corev1.Service, slices []*discoveryv1.EndpointSlice, node where) (program, error) {
	p := program{backends: map[string]backend{}, fronts: map[front]string{}}
	if svc.DeletionTimestamp != nil && len(svc.Finalizers) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return p, nil
	}
	vips := virtual(svc)
	binds, err := hostAddresses(svc)
	if err != nil {
		return p, err
	}
	outside, err := externals(svc, node)
	for i := range svc.Spec.Ports {
		p.addPort(svc, &svc.Spec.Ports[i], vips, outside, binds, slices, node)
	}
	if svc.Annotations[AllPorts] == "true" && len(vips) > 0 {
		name := "svc/" + svc.Namespace + "/" + svc.Name + "/all"
		p.backends[name] = backend{targets: everyTarget(slices, localOnly(svc.Spec.InternalTrafficPolicy), node), keepPort: true}
		for _, a := range vips {
			p.fronts[front{addr: a}] = name
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		p.ingress = []netip.Addr{node.addr}
		if binds[0].IsValid() {
			p.ingress = binds
		}
	}
	return p, err
}

// externals lists the addresses outside of the cluster under which a service is called. One of the cluster's own would take
// from another service, or pod, what is sent there.
func externals(svc *corev1.Service, node where) (all []netip.Addr, err error) {
	for _, s := range svc.Spec.ExternalIPs {
		a, parseErr := netip.ParseAddr(s)
		switch {
		case parseErr != nil || !a.Is4():
		case slices.ContainsFunc(node.own, func(p netip.Prefix) bool { return p.Contains(a) }):
			err = errors.Join(err, fmt.Errorf("spec.externalIPs of service %s/%s: %s is one of the cluster's own addresses", svc.Namespace, svc.Name, a))
		default:
			all = append(all, a)
		}
	}
	return all, err
}

// virtual lists the cluster addresses of a service.
func virtual(svc *corev1.Service) []netip.Addr {
	var all []netip.Addr
	for _, s := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
			all = append(all, a)
		}
	}
	return all
}

// hostAddresses lists where a LoadBalancer is bound; one invalid address means everywhere.
func hostAddresses(svc *corev1.Service) ([]netip.Addr, error) {
	text := svc.Annotations[HostIP]
	if text == "" {
		return []netip.Addr{{}}, nil
	}
	var all []netip.Addr
	for s := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil || !a.Is4() {
			return nil, fmt.Errorf("annotation %s of service %s/%s: %q is not an IPv4 address of the node", HostIP, svc.Namespace, svc.Name, s)
		}
		if a.IsUnspecified() {
			return []netip.Addr{{}}, nil
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, nil
}

func localOnly[P ~string](policy *P) bool { return policy != nil && *policy == "Local" }

func (p *program) addPort(svc *corev1.Service, sp *corev1.ServicePort, vips, outside, binds []netip.Addr, all []*discoveryv1.EndpointSlice, node where) {
	proto := cmp.Or(sp.Protocol, corev1.ProtocolTCP)
	if proto != corev1.ProtocolTCP && proto != corev1.ProtocolUDP {
		return // the kernels we run on may lack SCTP, and nobody has asked
	}
	name := fmt.Sprintf("svc/%s/%s/%s/%d", svc.Namespace, svc.Name, strings.ToLower(string(proto)), sp.Port)
	inner := backend{targets: targets(sp, proto, all, localOnly(svc.Spec.InternalTrafficPolicy), node), affinity: affinity(svc)}
	p.backends[name] = inner
	for _, a := range vips {
		p.fronts[front{a, proto, uint16(sp.Port)}] = name
	}
	outer, outerName := inner, name
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal || localOnly(svc.Spec.InternalTrafficPolicy) {
		outerName = name + "/outside"
		outer.targets = targets(sp, proto, all, svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal, node)
	}
	used := false
	use := func(f front, b backend, chain string) {
		p.backends[chain], p.fronts[f] = b, chain
		used = true
	}
	for _, a := range outside {
		use(front{a, proto, uint16(sp.Port)}, outer, outerName)
	}
	if sp.NodePort != 0 {
		use(front{netip.Addr{}, proto, uint16(sp.NodePort)}, outer, outerName)
		p.holds = append(p.holds, hold{proto, netip.Addr{}, uint16(sp.NodePort)})
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		balanced, chain := outer, outerName
		if ranges := svc.Spec.LoadBalancerSourceRanges; len(ranges) > 0 {
			chain = name + "/restricted"
			if balanced.sources = prefixes(ranges); len(balanced.sources) == 0 {
				balanced.targets = nil // all ranges are of IPv6, and nobody comes by that
			}
		}
		for _, a := range binds {
			use(front{a, proto, uint16(sp.Port)}, balanced, chain)
			p.holds = append(p.holds, hold{proto, a, uint16(sp.Port)})
		}
	}
	if !used && outerName != name {
		delete(p.backends, outerName)
	}
}

func prefixes(list []string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil && p.Addr().Is4() {
			all = append(all, p.Masked())
		}
	}
	return all
}

func affinity(svc *corev1.Service) time.Duration {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		return time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	return time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
}

// targets are the endpoints of one port: the ready ones or, while there are none, those
// that still serve although they are terminating.
func targets(sp *corev1.ServicePort, proto corev1.Protocol, all []*discoveryv1.EndpointSlice, local bool, node where) []netip.AddrPort {
	return choose(all, local, node, func(s *discoveryv1.EndpointSlice) (uint16, bool) {
		for _, p := range s.Ports {
			if deref(p.Name) == sp.Name && cmp.Or(deref(p.Protocol), corev1.ProtocolTCP) == proto && p.Port != nil {
				return uint16(*p.Port), true
			}
		}
		return 0, false
	})
}

func everyTarget(all []*discoveryv1.EndpointSlice, local bool, node where) []netip.AddrPort {
	return choose(all, local, node, func(*discoveryv1.EndpointSlice) (uint16, bool) { return 0, true })
}

func choose(all []*discoveryv1.EndpointSlice, local bool, node where, port func(*discoveryv1.EndpointSlice) (uint16, bool)) []netip.AddrPort {
	ready, draining := map[netip.AddrPort]bool{}, map[netip.AddrPort]bool{}
	for _, s := range all {
		n, ok := port(s)
		if !ok || s.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if len(e.Addresses) == 0 || local && deref(e.NodeName) != node.name {
				continue
			}
			a, err := netip.ParseAddr(e.Addresses[0])
			if err != nil {
				continue
			}
			switch {
			case e.Conditions.Ready == nil || *e.Conditions.Ready:
				ready[netip.AddrPortFrom(a, n)] = true
			case deref(e.Conditions.Serving) && deref(e.Conditions.Terminating):
				draining[netip.AddrPortFrom(a, n)] = true
			}
		}
	}
	if len(ready) == 0 {
		ready = draining
	}
	return slices.SortedFunc(maps.Keys(ready), netip.AddrPort.Compare)
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}
