package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/network/nft"
)

// balancer writes programs into the table's model. Server.mu covers it.
type balancer struct {
	model *nft.Model

	services  *nftables.Set // (address, protocol, port) -> chain
	everyPort *nftables.Set // address -> chain
	nodePorts *nftables.Set // (protocol, port) -> chain, on every address of the node
	closed    *nftables.Set // (protocol, port): held for services; a packet that gets there found no endpoint
	closedAt  *nftables.Set // the same with an address

	programs map[string]program // by service
}

// maxAffinityClients bounds a service's memory of its clients.
const maxAffinityClients = 65535

var loopback = netip.MustParsePrefix("127.0.0.0/8")

func newBalancer(m *nft.Model) *balancer {
	at := nft.Concat(nft.Addr, nft.Proto, nft.Service)
	onNode := nft.Concat(nft.Proto, nft.Service)
	return &balancer{
		model:     m,
		services:  m.Set(nftables.Set{Name: "services", IsMap: true, KeyType: at, DataType: nft.Verdict}),
		everyPort: m.Set(nftables.Set{Name: "every_port", IsMap: true, KeyType: nft.Addr, DataType: nft.Verdict}),
		nodePorts: m.Set(nftables.Set{Name: "node_ports", IsMap: true, KeyType: onNode, DataType: nft.Verdict}),
		closed:    m.Set(nftables.Set{Name: "held", KeyType: onNode}),
		closedAt:  m.Set(nftables.Set{Name: "held_at", KeyType: at}),
		programs:  map[string]program{},
	}
}

// chains are the rules that never change.
func (b *balancer) chains(glob string, services netip.Prefix, dns netip.Addr, self *nftables.Set) {
	m := b.model
	m.Chain("balance", nil,
		nft.Vmap(b.services, nft.KeyDaddr(), nft.KeyProto(), nft.KeyDport()),
		nft.Vmap(b.everyPort, nft.KeyDaddr()),
		nft.If(nft.DaddrLocal(), nft.Vmap(b.nodePorts, nft.KeyProto(), nft.KeyDport())),
	)
	nat := func(hook *nftables.ChainHook, prio int) *nft.Hook {
		return &nft.Hook{Type: nftables.ChainTypeNAT, Hook: hook, Priority: prio}
	}
	filter := func(hook *nftables.ChainHook) *nft.Hook {
		return &nft.Hook{Type: nftables.ChainTypeFilter, Hook: hook, Priority: -5}
	}
	// What this machine calls at 127.0.0.1 was translated on its way out. From a wire nobody has a claim to it, and the
	// kernel would drop it only after the translation.
	m.Chain("prerouting", nat(nftables.ChainHookPrerouting, -102), nft.If(nft.DaddrNot(loopback), nft.Jump("balance")))
	m.Chain("output", nat(nftables.ChainHookOutput, -102), nft.Jump("balance"))
	m.Chain("postrouting", nat(nftables.ChainHookPostrouting, 98),
		// A pod that reaches itself by a service would answer itself directly.
		nft.If(nft.DNATed(), nft.In(self, nft.KeySaddr(), nft.KeyDaddr()), nft.Masquerade()),
	)
	// A service address that is still there after translation has nobody behind it.
	m.Chain("refuse", nil,
		nft.If(nft.L4(unix.IPPROTO_TCP), nft.RejectTCP()),
		nft.RejectICMP(),
	)
	server := netip.PrefixFrom(dns, 32)
	m.Chain("sent", filter(nftables.ChainHookOutput),
		nft.If(nft.Daddr(services), nft.DaddrNot(server), nft.Jump("refuse")),
	)
	m.Chain("received", filter(nftables.ChainHookInput),
		// The DNS server is for this machine and its containers, not for the neighbourhood.
		nft.If(nft.Daddr(services), nft.IIfNot(glob), nft.IIfNot("lo"), nft.Drop()),
		nft.If(nft.In(b.closed, nft.KeyProto(), nft.KeyDport()), nft.Jump("refuse")),
		nft.If(nft.In(b.closedAt, nft.KeyDaddr(), nft.KeyProto(), nft.KeyDport()), nft.Jump("refuse")),
	)
}

func protoNumber(p corev1.Protocol) byte {
	if p == corev1.ProtocolUDP {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// place finds the set and key of a front.
func (b *balancer) place(f front) (*nftables.Set, []byte) {
	switch {
	case f.port == 0:
		return b.everyPort, nft.AddrBytes(f.addr)
	case !f.addr.IsValid():
		return b.nodePorts, nft.Pad([]byte{protoNumber(f.proto)}, nft.PortBytes(f.port))
	}
	return b.services, nft.Pad(nft.AddrBytes(f.addr), []byte{protoNumber(f.proto)}, nft.PortBytes(f.port))
}

func (b *balancer) placeHold(h hold) (*nftables.Set, []byte) {
	set, key := b.place(front{h.addr, h.proto, h.port})
	if set == b.nodePorts {
		return b.closed, key
	}
	return b.closedAt, key
}

// set replaces the program of a service; the zero program removes it. It returns which UDP
// flows the kernel has to forget afterwards.
func (b *balancer) set(key string, want program) []netlink.CustomConntrackFilter {
	old := b.programs[key]
	for f := range old.fronts {
		if _, stays := want.fronts[f]; !stays {
			set, k := b.place(f)
			b.model.Delete(set, k)
		}
	}
	for _, h := range old.holds {
		if !slices.Contains(want.holds, h) {
			set, k := b.placeHold(h)
			b.model.Delete(set, k)
		}
	}
	for name, be := range want.backends {
		if had := old.backends[name].affinity; had != be.affinity {
			b.forgetClients(name, had)
		}
		b.write(name, be)
	}
	for f, chain := range want.fronts {
		set, k := b.place(f)
		b.model.Put(set, nft.GotoElement(k, chain))
	}
	for _, h := range want.holds {
		set, k := b.placeHold(h)
		b.model.Put(set, nftables.SetElement{Key: k})
	}
	for name, be := range old.backends {
		if _, stays := want.backends[name]; !stays {
			b.drop(name, be)
		}
	}
	b.programs[key] = want
	if len(want.fronts) == 0 && len(want.backends) == 0 {
		delete(b.programs, key)
	}
	return staleUDP(old, want)
}

// write makes a chain choose among the targets of a backend.
func (b *balancer) write(chain string, be backend) {
	data := nft.Concat(nft.Addr, nft.Service)
	if be.keepPort {
		data = nft.Addr
	}
	to := b.model.Set(nftables.Set{Name: "to/" + chain, IsMap: true, KeyType: nft.Integer, DataType: data, KeyByteOrder: binaryutil.NativeEndian})
	var elems, live []nftables.SetElement
	for i, t := range be.targets {
		val := nft.AddrBytes(t.Addr())
		if !be.keepPort {
			val = nft.Pad(val, nft.PortBytes(t.Port()))
		}
		elems = append(elems, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: val})
		live = append(live, nftables.SetElement{Key: val})
	}
	b.model.Fill(to, elems)
	random := nft.KeyRandom(uint32(max(len(elems), 1)))
	var rules []nft.Rule
	switch {
	case len(elems) == 0:
	case be.keepPort:
		rules = []nft.Rule{nft.DNATAddrBy(to, random)}
	case be.affinity > 0:
		memory, alive := b.memory(chain, be.affinity)
		b.model.Fill(alive, live)
		// The last is for whom a full memory has no room: a rule ends where it cannot remember.
		rules = []nft.Rule{nft.Sticky(memory, alive), nft.StickTo(memory, to, random), nft.DNATBy(to, random)}
	default:
		rules = []nft.Rule{nft.DNATBy(to, random)}
	}
	b.model.Chain(chain, nil, restrict(be.sources, rules)...)
}

// restrict makes rules apply to packets from the sources only.
func restrict(sources []netip.Prefix, rules []nft.Rule) []nft.Rule {
	if len(sources) == 0 {
		return rules
	}
	var out []nft.Rule
	for _, src := range sources {
		for _, r := range rules {
			out = append(out, nft.If(nft.Saddr(src), r))
		}
	}
	return out
}

// memory is where a chain remembers which client went where.
func (b *balancer) memory(chain string, timeout time.Duration) (memory, live *nftables.Set) {
	target := nft.Concat(nft.Addr, nft.Service)
	memory = b.model.Set(nftables.Set{
		Name: clientsOf(chain, timeout), IsMap: true, Dynamic: true, HasTimeout: true, Timeout: timeout, Size: maxAffinityClients,
		KeyType: nft.Addr, DataType: target,
	})
	live = b.model.Set(nftables.Set{Name: "live/" + chain, KeyType: target})
	return memory, live
}

// clientsOf names the memory: one per time-out, because a set cannot change its own.
func clientsOf(chain string, timeout time.Duration) string {
	return fmt.Sprintf("clients/%d/%s", timeout/time.Second, chain)
}

func (b *balancer) forgetClients(chain string, timeout time.Duration) {
	if timeout == 0 {
		return
	}
	b.model.DropSet(clientsOf(chain, timeout))
	b.model.DropSet("live/" + chain)
}

func (b *balancer) drop(chain string, be backend) {
	b.model.DropChain(chain)
	b.model.DropSet("to/" + chain)
	b.forgetClients(chain, be.affinity)
}

// staleUDP lists what makes UDP flows stale: targets that are in old and not in now, and fronts that led nowhere.
func staleUDP(old, now program) []netlink.CustomConntrackFilter {
	var stale []netlink.CustomConntrackFilter
	seen := map[netip.AddrPort]bool{}
	for name, be := range old.backends {
		if !carriesUDP(name, be) {
			continue
		}
		for _, t := range be.targets {
			if !slices.Contains(now.backends[name].targets, t) && !seen[t] {
				seen[t] = true
				stale = append(stale, lost(t))
			}
		}
	}
	for f, chain := range now.fronts {
		if f.proto == corev1.ProtocolUDP && len(old.backends[old.fronts[f]].targets) == 0 && len(now.backends[chain].targets) > 0 {
			stale = append(stale, opened(f))
		}
	}
	return stale
}

func carriesUDP(chain string, be backend) bool {
	return be.keepPort || strings.Contains(chain, "/udp/")
}

// astray tells the flows of before this process from those to targets that are still there.
func (b *balancer) astray(pods netip.Prefix) astray {
	a := astray{pods: pods, targets: map[netip.AddrPort]bool{}}
	for _, p := range b.programs {
		for name, be := range p.backends {
			if carriesUDP(name, be) {
				for _, t := range be.targets {
					a.targets[t] = true
				}
			}
		}
	}
	return a
}
