package service

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/engine/network/nft"
)

// policies writes network policies into the table's model. A packet from or to a pod of
// this node takes three steps: both pods must be admitted; a pod with egress policies
// leads to its own chain, where one of them has to accept the packet; then the same with
// ingress at the other end. Server.mu covers it.
type policies struct {
	model *nft.Model
	local netip.Prefix // the node's pods
	glob  string       // the instance's interfaces
	ifs   string       // the pods' interfaces

	admitted *nftables.Set // pods whose policies are in place
	self     *nftables.Set // (pod, pod): itself
	outOf    *nftables.Set // pod -> its egress chain
	into     *nftables.Set // pod -> its ingress chain

	pods       map[string]*podInfo // by namespace/name
	byAddr     map[netip.Addr]*podInfo
	namespaces map[string]labels.Set
	plans      map[string]policyPlan // by namespace/name
	groups     map[string]*group     // by peer.key
	ports      map[string]*namedPort // by protocol and name
}

// podInfo is what policies know of a pod with an address.
type podInfo struct {
	key       string
	uid       types.UID
	namespace string
	labels    labels.Set
	addr      netip.Addr
	ports     map[string]uint16 // by protocol and name
}

// group is the set of addresses of the pods that a peer selects.
type group struct {
	peer peer
	set  *nftables.Set
	uses int
}

// namedPort is the set of (address, protocol, port) of the containers' ports of that name.
type namedPort struct {
	set  *nftables.Set
	uses int
}

func newPolicies(m *nft.Model, instance string, local netip.Prefix) *policies {
	return &policies{
		model: m, local: local, glob: "sw" + instance + "-*", ifs: "sw" + instance + "-p*",
		admitted:   m.Set(nftables.Set{Name: "admitted", KeyType: nft.Addr}),
		self:       m.Set(nftables.Set{Name: "self", KeyType: nft.Concat(nft.Addr, nft.Addr)}),
		outOf:      m.Set(nftables.Set{Name: "egress", IsMap: true, KeyType: nft.Addr, DataType: nft.Verdict}),
		into:       m.Set(nftables.Set{Name: "ingress", IsMap: true, KeyType: nft.Addr, DataType: nft.Verdict}),
		pods:       map[string]*podInfo{},
		byAddr:     map[netip.Addr]*podInfo{},
		namespaces: map[string]labels.Set{},
		plans:      map[string]policyPlan{},
		groups:     map[string]*group{},
		ports:      map[string]*namedPort{},
	}
}

// chains are the rules that never change. The node's own packets (probes, the daemon) do
// not cross the forward hook, and are always allowed.
//
// Leaving and arriving are two base chains, so that "accept" in the first only ends the
// first. One chain that goes on to the other would let the kernel, which checks every
// path at every commit, walk the product of all policies of both ends.
func (p *policies) chains(services netip.Prefix) {
	hook := func(priority int) *nft.Hook {
		return &nft.Hook{Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: priority}
	}
	p.model.Chain("leave", hook(-6),
		nft.If(nft.IIfNot(p.glob), nft.OIfNot(p.glob), nft.Accept()),
		nft.If(nft.Established(), nft.Accept()),
		nft.If(nft.Daddr(services), nft.Jump("refuse")),
		nft.If(nft.IIf(p.ifs), nft.NotIn(p.admitted, nft.KeySaddr()), nft.Drop()),
		nft.If(nft.OIf(p.ifs), nft.NotIn(p.admitted, nft.KeyDaddr()), nft.Drop()),
		nft.If(nft.In(p.self, nft.KeySaddr(), nft.KeyDaddr()), nft.Accept()),
		nft.If(nft.IIf(p.ifs), nft.Vmap(p.outOf, nft.KeySaddr())),
	)
	p.model.Chain("arrive", hook(-5),
		nft.If(nft.OIfNot(p.ifs), nft.Accept()),
		nft.If(nft.Established(), nft.Accept()),
		nft.If(nft.In(p.self, nft.KeySaddr(), nft.KeyDaddr()), nft.Accept()),
		nft.Vmap(p.into, nft.KeyDaddr()),
	)
}

func portKey(proto corev1.Protocol, name string) string { return string(proto) + " " + name }

// newPodInfo is nil for pods without an address of their own.
func newPodInfo(pod *corev1.Pod, addr netip.Addr) *podInfo {
	if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil
	}
	if !addr.IsValid() {
		var err error
		if addr, err = netip.ParseAddr(pod.Status.PodIP); err != nil {
			return nil
		}
	}
	info := &podInfo{key: pod.Namespace + "/" + pod.Name, uid: pod.UID, namespace: pod.Namespace, labels: pod.Labels, addr: addr, ports: map[string]uint16{}}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			for _, cp := range list[i].Ports {
				if cp.Name != "" {
					info.ports[portKey(cmp.Or(cp.Protocol, corev1.ProtocolTCP), cp.Name)] = uint16(cp.ContainerPort)
				}
			}
		}
	}
	return info
}

// setPod enters a pod as it is now; nil with a key removes it.
func (p *policies) setPod(key string, now *podInfo) {
	if old := p.pods[key]; old != nil {
		p.leave(old)
	}
	if now == nil {
		return
	}
	if other := p.byAddr[now.addr]; other != nil {
		p.leave(other) // a dead pod that the API still lists
	}
	p.pods[key], p.byAddr[now.addr] = now, now
	for _, g := range p.groups {
		p.enterGroup(g, now)
	}
	for name, np := range p.ports {
		p.enterPort(name, np, now)
	}
	if p.local.Contains(now.addr) {
		p.police(now)
		p.model.Put(p.self, nftables.SetElement{Key: nft.Pad(nft.AddrBytes(now.addr), nft.AddrBytes(now.addr))})
		p.model.Put(p.admitted, nftables.SetElement{Key: nft.AddrBytes(now.addr)})
	}
}

func (p *policies) leave(old *podInfo) {
	delete(p.pods, old.key)
	delete(p.byAddr, old.addr)
	a := nft.AddrBytes(old.addr)
	for _, g := range p.groups {
		p.model.Delete(g.set, a)
	}
	for name, np := range p.ports {
		if port, ok := old.ports[name]; ok {
			p.model.Delete(np.set, portElement(old.addr, name, port).Key)
		}
	}
	p.model.Delete(p.admitted, a)
	p.model.Delete(p.self, nft.Pad(a, a))
	p.unpolice(old.addr)
}

func (p *policies) enterGroup(g *group, info *podInfo) {
	a := nft.AddrBytes(info.addr)
	if g.peer.matches(info.namespace, p.namespaces[info.namespace], info.labels) {
		p.model.Put(g.set, nftables.SetElement{Key: a})
		return
	}
	p.model.Delete(g.set, a)
}

func (p *policies) enterPort(name string, np *namedPort, info *podInfo) {
	if port, ok := info.ports[name]; ok {
		p.model.Put(np.set, portElement(info.addr, name, port))
	}
}

func portElement(a netip.Addr, name string, port uint16) nftables.SetElement {
	proto := byte(unix.IPPROTO_TCP)
	if name[:3] == "UDP" {
		proto = unix.IPPROTO_UDP
	}
	return nftables.SetElement{Key: nft.Pad(nft.AddrBytes(a), []byte{proto}, nft.PortBytes(port))}
}

func chainInto(a netip.Addr) string  { return "into/" + a.String() }
func chainOutOf(a netip.Addr) string { return "out/" + a.String() }

// police gives a local pod its chains: the policies that select it, one after the other,
// and a drop at the end.
func (p *policies) police(info *podInfo) {
	var in, out []nft.Rule
	for _, key := range slices.Sorted(maps.Keys(p.plans)) {
		plan := p.plans[key]
		if plan.namespace != info.namespace || !plan.selector.Matches(info.labels) {
			continue
		}
		if plan.ingress != nil {
			in = append(in, nft.Jump(policyChain(key, "in")))
		}
		if plan.egress != nil {
			out = append(out, nft.Jump(policyChain(key, "out")))
		}
	}
	p.isolate(p.into, info.addr, chainInto(info.addr), in)
	p.isolate(p.outOf, info.addr, chainOutOf(info.addr), out)
}

func (p *policies) isolate(set *nftables.Set, a netip.Addr, chain string, jumps []nft.Rule) {
	if len(jumps) == 0 {
		p.model.Delete(set, nft.AddrBytes(a))
		p.model.DropChain(chain)
		return
	}
	p.model.Chain(chain, nil, append(jumps, nft.Drop())...)
	p.model.Put(set, nft.GotoElement(nft.AddrBytes(a), chain))
}

func (p *policies) unpolice(a netip.Addr) {
	p.isolate(p.into, a, chainInto(a), nil)
	p.isolate(p.outOf, a, chainOutOf(a), nil)
}

// policyChain names a policy's chain. The kernel takes 255 bytes, a policy's name alone
// may have 253.
func policyChain(key, way string) string {
	if len(key) > 200 {
		key = setName(key[:150], key)
	}
	return "policy/" + key + "/" + way
}

// setNamespace enters a namespace's labels; nil removes it.
func (p *policies) setNamespace(name string, now labels.Set) {
	if now != nil && labels.Equals(p.namespaces[name], now) {
		return
	}
	p.namespaces[name] = now
	if now == nil {
		delete(p.namespaces, name)
	}
	for _, g := range p.groups {
		if g.peer.namespaces == nil {
			continue
		}
		for _, info := range p.pods {
			if info.namespace == name {
				p.enterGroup(g, info)
			}
		}
	}
}

// setPolicy enters a policy as it is now; nil removes it.
func (p *policies) setPolicy(key string, now *policyPlan) {
	old, had := p.plans[key]
	if now != nil {
		p.plans[key] = *now
		p.policyChains(key, now)
	} else {
		delete(p.plans, key)
	}
	for _, info := range p.pods {
		selects := had && old.namespace == info.namespace && old.selector.Matches(info.labels) ||
			now != nil && now.namespace == info.namespace && now.selector.Matches(info.labels)
		if selects && p.local.Contains(info.addr) {
			p.police(info)
		}
	}
	if had {
		p.dropUnwanted(key, old, now)
	}
}

func (p *policies) policyChains(key string, plan *policyPlan) {
	if d := plan.ingress; d != nil {
		p.model.Chain(policyChain(key, "in"), nil, p.rules(d, nft.KeySaddr, nft.Saddr, nft.SaddrNot)...)
	}
	if d := plan.egress; d != nil {
		p.model.Chain(policyChain(key, "out"), nil, p.rules(d, nft.KeyDaddr, nft.Daddr, nft.DaddrNot)...)
	}
}

// dropUnwanted removes what only the old plan used. New users were counted before.
func (p *policies) dropUnwanted(key string, old policyPlan, now *policyPlan) {
	if old.ingress != nil && (now == nil || now.ingress == nil) {
		p.model.DropChain(policyChain(key, "in"))
	}
	if old.egress != nil && (now == nil || now.egress == nil) {
		p.model.DropChain(policyChain(key, "out"))
	}
	for _, d := range []*direction{old.ingress, old.egress} {
		if d == nil {
			continue
		}
		for _, a := range d.allow {
			p.release(a)
		}
	}
}

// rules of one direction: for each allowance, every peer with every port.
func (p *policies) rules(d *direction, other func() nft.Key, within, without func(netip.Prefix) nft.Rule) []nft.Rule {
	var out []nft.Rule
	for _, a := range d.allow {
		var who []nft.Rule
		if a.everyone {
			who = append(who, nil)
		}
		for _, pe := range a.peers {
			who = append(who, nft.In(p.groupOf(pe).set, other()))
		}
		for _, b := range a.blocks {
			match := within(b.in)
			for _, e := range b.except {
				match = nft.If(match, without(e))
			}
			who = append(who, match)
		}
		what := p.portMatches(a.ports)
		for _, w := range who {
			for _, port := range what {
				out = append(out, nft.If(w, port, nft.Accept()))
			}
		}
	}
	return out
}

func (p *policies) portMatches(ports []portRange) []nft.Rule {
	if len(ports) == 0 {
		return []nft.Rule{nil}
	}
	var out []nft.Rule
	for _, r := range ports {
		proto := byte(unix.IPPROTO_TCP)
		switch r.proto {
		case corev1.ProtocolUDP:
			proto = unix.IPPROTO_UDP
		case corev1.ProtocolSCTP:
			proto = unix.IPPROTO_SCTP
		}
		switch {
		case r.name != "":
			out = append(out, nft.In(p.portOf(r).set, nft.KeyDaddr(), nft.KeyProto(), nft.KeyDport()))
		case r.first == 0:
			out = append(out, nft.L4(proto))
		case r.first == r.last:
			out = append(out, nft.If(nft.L4(proto), nft.Dport(r.first)))
		default:
			out = append(out, nft.If(nft.L4(proto), nft.DportRange(r.first, r.last)))
		}
	}
	return out
}

// groupOf counts one more user of a peer's set, and makes it when it is new.
func (p *policies) groupOf(pe peer) *group {
	g := p.groups[pe.key]
	if g == nil {
		g = &group{peer: pe, set: p.model.Set(nftables.Set{Name: setName("pods", pe.key), KeyType: nft.Addr})}
		p.groups[pe.key] = g
		for _, info := range p.pods {
			p.enterGroup(g, info)
		}
	}
	g.uses++
	return g
}

func (p *policies) portOf(r portRange) *namedPort {
	key := portKey(r.proto, r.name)
	np := p.ports[key]
	if np == nil {
		np = &namedPort{set: p.model.Set(nftables.Set{Name: setName("port", key), KeyType: nft.Concat(nft.Addr, nft.Proto, nft.Service)})}
		p.ports[key] = np
		for _, info := range p.pods {
			p.enterPort(key, np, info)
		}
	}
	np.uses++
	return np
}

func (p *policies) release(a allowance) {
	for _, pe := range a.peers {
		if g := p.groups[pe.key]; g != nil {
			if g.uses--; g.uses == 0 {
				delete(p.groups, pe.key)
				p.model.DropSet(g.set.Name)
			}
		}
	}
	for _, r := range a.ports {
		if r.name == "" {
			continue
		}
		key := portKey(r.proto, r.name)
		if np := p.ports[key]; np != nil {
			// One use was counted per port match.
			if np.uses--; np.uses == 0 {
				delete(p.ports, key)
				p.model.DropSet(np.set.Name)
			}
		}
	}
}

// setName fits any key into the kernel's limit for names, and stays the same for it.
func setName(kind, key string) string {
	sum := sha256.Sum256([]byte(key))
	return kind + "/" + hex.EncodeToString(sum[:10])
}
