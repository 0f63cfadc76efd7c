package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/network/nft"
)

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// packets is this instance's nftables table. The rules refer to sets only, so that
// a change of networks or containers is a change of elements. Whoever calls holds
// the desired state; when an incremental change fails, rebuild makes the kernel
// equal to it again.
type packets struct {
	conn *nft.Conn
	name string
	all  string // matches every interface of the instance
	pods string // matches every pod's interface

	node      *nftables.Set // the ranges of pods and services: for other daemons to read, see claimedBy
	masq      *nftables.Set // ranges whose packets leave with the host's address
	same      *nftables.Set // (bridge, bridge): traffic within a network whose containers may reach each other
	home      *nftables.Set // (bridge, its addresses)
	internal  *nftables.Set // bridges with no way out
	resolvers *nftables.Set // (address, protocol, port) where containers ask for names
	portsAny  *nftables.Set // (protocol, port) -> container, on every address of the host
	portsAddr *nftables.Set // (address, protocol, port) -> container
}

// rangesAndPorts is everything the table is made from.
type rangesAndPorts struct {
	networks []Network
	node     node
	ports    []published
}

// published is one host port and where it leads.
type published struct {
	PortMapping
	to netip.Addr
}

func newPackets(conn *nft.Conn, instance string) *packets {
	p := &packets{conn: conn, name: "slipway-" + instance, all: "sw" + instance + "-*", pods: "sw" + instance + "-p*"}
	t := &nftables.Table{Name: p.name, Family: nftables.TableFamilyIPv4}
	target := nft.Concat(nft.Addr, nft.Service)
	p.node = &nftables.Set{Table: t, Name: "node", KeyType: nft.Addr, Interval: true}
	p.masq = &nftables.Set{Table: t, Name: "masquerade", KeyType: nft.Addr, Interval: true}
	p.same = &nftables.Set{Table: t, Name: "same", KeyType: nft.Concat(nft.IfName, nft.IfName)}
	p.home = &nftables.Set{Table: t, Name: "home", KeyType: nft.Concat(nft.IfName, nft.Addr), Interval: true}
	p.internal = &nftables.Set{Table: t, Name: "internal", KeyType: nft.IfName}
	p.resolvers = &nftables.Set{Table: t, Name: "resolvers", KeyType: nft.Concat(nft.Addr, nft.Proto, nft.Service)}
	p.portsAny = &nftables.Set{Table: t, Name: "ports_any", IsMap: true, KeyType: nft.Concat(nft.Proto, nft.Service), DataType: target}
	p.portsAddr = &nftables.Set{Table: t, Name: "ports_addr", IsMap: true, KeyType: nft.Concat(nft.Addr, nft.Proto, nft.Service), DataType: target}
	return p
}

// rebuild replaces the table, in one transaction: there is no moment without rules. It asks
// what is wanted when no other transaction can come in between, which would be lost.
func (p *packets) rebuild(wanted func() rangesAndPorts) error {
	err := p.conn.Do(func(b *nft.Batch) {
		want := wanted()
		t := b.NewTable(p.name)
		all := elements{masq: nft.Range(want.node.Pods)}
		for _, n := range want.networks {
			all = all.and(networkElements(n))
		}
		anyAddr, oneAddr := portElements(want.ports)
		b.Set(p.node, slices.Concat(nft.Range(want.node.Pods), nft.Range(want.node.Services)))
		b.Set(p.masq, all.masq)
		b.Set(p.same, all.same)
		b.Set(p.home, all.home)
		b.Set(p.internal, all.internal)
		b.Set(p.resolvers, all.resolvers)
		b.Set(p.portsAny, anyAddr)
		b.Set(p.portsAddr, oneAddr)
		p.chains(b, t, want.node.Pods)
	})
	if err != nil {
		return fmt.Errorf("write nftables table %s: %w", p.name, err)
	}
	return nil
}

func (p *packets) chains(b *nft.Batch, t *nftables.Table, pods netip.Prefix) {
	// With route_localnet the kernel no longer drops loopback addresses that come
	// from a container: the table has to (CVE-2020-8558).
	b.Chain(t, "guard", &nft.Hook{Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: -300},
		nft.If(nft.IIf(p.all), nft.Saddr(loopback), nft.Drop()),
		nft.If(nft.IIf(p.all), nft.Daddr(loopback), nft.Drop()),
		// Network policies go by addresses: a pod cannot choose another, and nobody else can choose a pod's.
		nft.If(nft.IIf(p.pods), nft.NoWayBack(), nft.Drop()),
		nft.If(nft.Saddr(pods), nft.NoWayBack(), nft.Drop()),
	)
	// They may go by other machines' addresses, too, which a container could claim. What leads to a pod is known after
	// the translation. Answers may come from anywhere: a container on two networks answers by one what it was asked by
	// the other. And with a route of the host to it, a container may forward what comes from a network behind it.
	b.Chain(t, "guard_pods", &nft.Hook{Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: -99},
		nft.If(nft.IIf(p.all), nft.Daddr(pods), nft.New(), nft.NoWayBack(), nft.Drop()),
	)
	b.Chain(t, "publish", nil,
		nft.DNATBy(p.portsAddr, nft.KeyDaddr(), nft.KeyProto(), nft.KeyDport()),
		nft.DNATBy(p.portsAny, nft.KeyProto(), nft.KeyDport()),
	)
	// Just before other tools' dstnat: the first translation wins, and the port is
	// ours, because we hold the socket that is bound to it.
	toHost := nft.If(nft.DaddrLocal(), nft.Jump("publish"))
	// The kernel drops 127.0.0.1 from a wire when it routes, which is after the translation: a neighbour would get to
	// what is published for this machine alone.
	b.Chain(t, "prerouting", &nft.Hook{Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: -101}, nft.If(nft.DaddrNot(loopback), toHost))
	b.Chain(t, "output", &nft.Hook{Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: -101}, toHost)
	b.Chain(t, "postrouting", &nft.Hook{Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: 99},
		nft.If(nft.OIf(p.all), nft.Saddr(loopback), nft.Masquerade()),
		// A container that calls a published port of its own network: the answer
		// would go straight to the caller, untranslated. (The input interface is not
		// known here when br_netfilter translates a bridged frame.)
		nft.If(nft.DNATed(), nft.In(p.home, nft.KeyOIf(), nft.KeySaddr()), nft.Masquerade()),
		// Not on lo: there this machine talks to itself at a bridge's address, which is in the range, too.
		nft.If(nft.In(p.masq, nft.KeySaddr()), nft.OIfNot(p.all), nft.OIfNot("lo"), nft.Masquerade()),
	)
	// Resolvers are for this machine and its containers. A neighbour that routes to a bridge's address is not even
	// refused: it could hold as many connections open as it likes.
	b.Chain(t, "received", &nft.Hook{Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookInput, Priority: 0},
		nft.If(nft.IIfNot(p.all), nft.IIfNot("lo"), nft.In(p.resolvers, nft.KeyDaddr(), nft.KeyProto(), nft.KeyDport()), nft.Drop()),
	)
	b.Chain(t, "ours", nil,
		nft.If(nft.Established(), nft.Accept()),
		nft.If(nft.In(p.same, nft.KeyIIf(), nft.KeyOIf()), nft.Accept()),
		nft.If(nft.In(p.internal, nft.KeyIIf()), nft.Drop()),
		nft.If(nft.In(p.internal, nft.KeyOIf()), nft.Drop()),
		nft.If(nft.DNATed(), nft.Accept()),
		nft.If(nft.IIf(p.pods), nft.OIf(p.pods), nft.Accept()),
		nft.If(nft.OIf(p.all), nft.Drop()), // another network's containers, or a neighbour that routes to us
	)
	b.Chain(t, "forward", &nft.Hook{Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: 0},
		nft.If(nft.IIf(p.all), nft.Goto("ours")),
		nft.If(nft.OIf(p.all), nft.Goto("ours")),
	)
}

// elements are what networks have in the sets.
type elements struct{ same, home, internal, resolvers, masq []nftables.SetElement }

func (e elements) and(o elements) elements {
	return elements{
		slices.Concat(e.same, o.same), slices.Concat(e.home, o.home), slices.Concat(e.internal, o.internal),
		slices.Concat(e.resolvers, o.resolvers), slices.Concat(e.masq, o.masq),
	}
}

func networkElements(n Network) elements {
	var e elements
	if n.Driver != DriverBridge {
		return e
	}
	name := nft.IfNameBytes(n.Bridge)
	if n.Options[OptionICC] != "false" {
		e.same = []nftables.SetElement{{Key: slices.Concat(name, name)}} // else the gateway would carry what the isolated ports do not
	}
	e.home = []nftables.SetElement{{
		Key:    slices.Concat(name, nft.AddrBytes(n.Subnet.Addr())),
		KeyEnd: slices.Concat(name, nft.AddrBytes(lastOf(n.Subnet))),
	}}
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		e.resolvers = append(e.resolvers, nftables.SetElement{Key: nft.Pad(nft.AddrBytes(n.Gateway), []byte{proto}, nft.PortBytes(n.DNSPort))})
	}
	switch {
	case n.Internal:
		e.internal = []nftables.SetElement{{Key: name}}
	case n.Options[OptionMasquerade] != "false":
		e.masq = nft.Range(n.Subnet)
	}
	return e
}

func portElements(ports []published) (anyAddr, oneAddr []nftables.SetElement) {
	for _, p := range ports {
		proto := byte(unix.IPPROTO_TCP)
		if p.Proto == "udp" {
			proto = unix.IPPROTO_UDP
		}
		to := nft.Pad(nft.AddrBytes(p.to), nft.PortBytes(p.ContainerPort))
		key := nft.Pad([]byte{proto}, nft.PortBytes(p.HostPort))
		if everyAddress(p.HostIP) {
			anyAddr = append(anyAddr, nftables.SetElement{Key: key, Val: to})
			continue
		}
		oneAddr = append(oneAddr, nftables.SetElement{Key: nft.Pad(nft.AddrBytes(p.HostIP), key), Val: to})
	}
	return anyAddr, oneAddr
}

// claimedBy reads from another instance's table which ranges are that one's.
func (p *packets) claimedBy(table string) ([]netip.Prefix, error) {
	node, err := p.conn.Ranges(table, p.node.Name)
	if err != nil {
		return nil, err
	}
	networks, err := p.conn.Ranges(table, p.masq.Name)
	return slices.Concat(node, networks), err
}

func everyAddress(a netip.Addr) bool { return !a.IsValid() || a.IsUnspecified() }

func (p *packets) addNetwork(n Network) error {
	return p.conn.Do(func(b *nft.Batch) {
		e := networkElements(n)
		b.Add(p.same, e.same)
		b.Add(p.home, e.home)
		b.Add(p.internal, e.internal)
		b.Add(p.resolvers, e.resolvers)
		b.Add(p.masq, e.masq)
	})
}

func (p *packets) removeNetwork(n Network) error {
	return p.conn.Do(func(b *nft.Batch) {
		e := networkElements(n)
		b.Delete(p.same, e.same)
		b.Delete(p.home, e.home)
		b.Delete(p.internal, e.internal)
		b.Delete(p.resolvers, e.resolvers)
		b.Delete(p.masq, e.masq)
	})
}

func (p *packets) addPorts(ports []published) error {
	if len(ports) == 0 {
		return nil
	}
	return p.conn.Do(func(b *nft.Batch) {
		anyAddr, oneAddr := portElements(ports)
		b.Add(p.portsAny, anyAddr)
		b.Add(p.portsAddr, oneAddr)
	})
}

func (p *packets) removePorts(ports []published) error {
	if len(ports) == 0 {
		return nil
	}
	return p.conn.Do(func(b *nft.Batch) {
		anyAddr, oneAddr := portElements(ports)
		b.Delete(p.portsAny, anyAddr)
		b.Delete(p.portsAddr, oneAddr)
	})
}

// guestTable is the name of the table inside containers.
const guestTable = "slipway"

// translateDNS makes 127.0.0.11:53 lead to the resolver, inside the namespace that
// conn talks to. A socket there instead would keep the container from running a DNS
// server of its own.
// again says that the table exists.
func translateDNS(conn *nft.Conn, resolver netip.AddrPort, again bool) error {
	stub := nft.Daddr(netip.MustParsePrefix("127.0.0.11/32"))
	err := conn.Do(func(b *nft.Batch) {
		start := b.FreshTable
		if again {
			start = b.NewTable
		}
		t := start(guestTable)
		b.Chain(t, "output", &nft.Hook{Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: -100},
			nft.If(stub, nft.L4(unix.IPPROTO_UDP), nft.Dport(53), nft.DNAT(resolver)),
			nft.If(stub, nft.L4(unix.IPPROTO_TCP), nft.Dport(53), nft.DNAT(resolver)),
		)
		b.Chain(t, "postrouting", &nft.Hook{Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: 100},
			nft.If(nft.Saddr(loopback), nft.OIfNot("lo"), nft.Masquerade()),
		)
	})
	if err != nil {
		return fmt.Errorf("translate 127.0.0.11 in the container: %w", err)
	}
	return nil
}
