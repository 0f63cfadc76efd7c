package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dnsOffset: the cluster's DNS server is the tenth address of the service range, as
// everywhere.
const dnsOffset = 10

// podGateway is the next hop of every pod. Nobody has the address: a permanent
// neighbour entry leads to the host's side of the veth.
var podGateway = netip.MustParseAddr("169.254.1.1")

const podCursor = "pods"

func (m *Manager) nodeBridge() string { return "sw" + m.opts.Instance + "-node" }

// PodRange is where this machine's pods have their addresses.
func (m *Manager) PodRange() netip.Prefix { return m.node.Pods }

// ServiceRange is where services have theirs.
func (m *Manager) ServiceRange() netip.Prefix { return m.node.Services }

// NodeAddr is the machine's own address as pods see it: on a bridge of ours without
// ports, so that it does not change when a laptop changes networks.
func (m *Manager) NodeAddr() netip.Addr { return m.nodeAddr }

// DNSAddr is the address of the cluster's DNS server.
func (m *Manager) DNSAddr() netip.Addr {
	return address(number(m.node.Services.Addr()) + dnsOffset)
}

// ListenDNS opens the cluster DNS server's sockets on DNSAddr, or takes back those that
// the descriptor store kept.
func (m *Manager) ListenDNS(ctx context.Context) (net.PacketConn, net.Listener, error) {
	udp, tcp, err := m.dnsSocks.open(ctx, clusterDNS, m.DNSAddr(), 53)
	if err != nil {
		return nil, nil, fmt.Errorf("open cluster DNS sockets: %w", err)
	}
	if port := udp.LocalAddr().(*net.UDPAddr).Port; port != 53 {
		m.dnsSocks.drop(ctx, clusterDNS)
		return nil, nil, errors.Join(fmt.Errorf("open cluster DNS sockets: port 53 of %s is taken: a DNS server of this machine listens on every address; bind it to its own addresses only", m.DNSAddr()), udp.Close(), tcp.Close())
	}
	return udp, tcp, nil
}

// ensureNode makes the node's bridge, its addresses and the routes of both ranges.
func (l *links) ensureNode(name string, node, dns netip.Addr, r node) error {
	if err := l.ensureBridge(name, netip.PrefixFrom(node, 32), 0); err != nil {
		return err
	}
	link, err := l.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", name, err)
	}
	if err := l.h.AddrReplace(link, &netlink.Addr{IPNet: toIPNet(netip.PrefixFrom(dns, 32))}); err != nil {
		return fmt.Errorf("give bridge %s address %s: %w", name, dns, err)
	}
	// A process of the host that calls a service needs some route before the packet
	// reaches the rule that translates it.
	services := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: toIPNet(r.Services), Src: node.AsSlice(), Scope: unix.RT_SCOPE_LINK}
	if err := l.h.RouteReplace(services); err != nil {
		return fmt.Errorf("route services %s: %w", r.Services, err)
	}
	// Packets to a pod that is gone must not leave by the default route; and other
	// instances see that the range is taken.
	if err := l.h.RouteReplace(unreachable(r)); err != nil {
		return fmt.Errorf("route pods %s: %w", r.Pods, err)
	}
	return nil
}

func unreachable(r node) *netlink.Route {
	return &netlink.Route{Dst: toIPNet(r.Pods), Type: unix.RTN_UNREACHABLE, Priority: 1 << 20}
}

// unrouteNode removes the one route that does not go with the node's bridge.
func (l *links) unrouteNode(r node) error {
	if err := l.h.RouteDel(unreachable(r)); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("remove route of pods %s: %w", r.Pods, err)
	}
	return nil
}

// AttachPod gives a pod its interface and address. A pod that has one already, and
// whose interface is there, keeps it.
func (m *Manager) AttachPod(_ context.Context, netns *os.File, pod PodAttach) (netip.Addr, error) {
	p, fresh, err := m.reservePod(pod.ID)
	if err != nil || !fresh {
		return p.Addr, err
	}
	if err := m.plugPod(netns, p); err != nil {
		m.forgetPod(p)
		m.reap.delete(p.HostIf)
		return netip.Addr{}, fmt.Errorf("connect pod %s: %w", pod.ID, err)
	}
	return p.Addr, nil
}

func (m *Manager) reservePod(id string) (p podRecord, fresh bool, err error) {
	if id == "" {
		return p, false, invalid("connect a pod: its id is missing")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p, ok := m.pods[id]; ok {
		return p, false, nil
	}
	addr, ok := m.podPool.take()
	if !ok {
		return p, false, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("no free pod address in %s", m.node.Pods))
	}
	p = podRecord{ID: id, Addr: addr, HostIf: m.ifName("p", newID())}
	m.pods[id] = p
	return p, true, nil
}

func (m *Manager) plugPod(netns *os.File, p podRecord) error {
	if err := errors.Join(m.saveCursor(podCursor, m.podPool, false), m.rec.put(kindPod, p.ID, p, false)); err != nil {
		return err
	}
	hostMAC, podMAC := net.HardwareAddr{0x02, 0x53, 0x57, 0, 0, 1}, macFor(p.Addr)
	if err := m.links.create(veth{host: p.HostIf, peer: "eth0", mac: podMAC, hostMAC: hostMAC}, netns); err != nil {
		return err
	}
	err := m.links.guest(netns, func(g guest) error {
		link, err := g.setup("eth0", netip.PrefixFrom(p.Addr, 32))
		if err != nil {
			return err
		}
		return g.routePod(link, hostMAC)
	})
	if err != nil {
		return err
	}
	// Service ports on 127.0.0.1 of the host lead to pods, see ensureBridge.
	if err := writeSysctl("net/ipv4/conf/"+p.HostIf+"/route_localnet", "1"); err != nil {
		return err
	}
	if err := m.links.routeToPod(p, podMAC, m.nodeAddr); err != nil {
		return err
	}
	return m.links.awaitUp(p.HostIf)
}

// routePod sends everything to the host, without asking who has which address.
func (g guest) routePod(link netlink.Link, hostMAC net.HardwareAddr) error {
	index := link.Attrs().Index
	neigh := &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: podGateway.AsSlice(), HardwareAddr: hostMAC}
	if err := g.h.NeighSet(neigh); err != nil {
		return fmt.Errorf("set neighbour %s: %w", podGateway, err)
	}
	hop := &netlink.Route{LinkIndex: index, Dst: toIPNet(netip.PrefixFrom(podGateway, 32)), Scope: unix.RT_SCOPE_LINK}
	if err := g.h.RouteReplace(hop); err != nil {
		return fmt.Errorf("route to %s: %w", podGateway, err)
	}
	return g.defaultRoute(link, podGateway)
}

func (l *links) routeToPod(p podRecord, mac net.HardwareAddr, node netip.Addr) error {
	link, err := l.h.LinkByName(p.HostIf)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.HostIf, err)
	}
	index := link.Attrs().Index
	neigh := &netlink.Neigh{LinkIndex: index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: p.Addr.AsSlice(), HardwareAddr: mac}
	if err := l.h.NeighSet(neigh); err != nil {
		return fmt.Errorf("set neighbour %s: %w", p.Addr, err)
	}
	route := &netlink.Route{LinkIndex: index, Dst: toIPNet(netip.PrefixFrom(p.Addr, 32)), Src: node.AsSlice(), Scope: unix.RT_SCOPE_LINK}
	// An earlier pod's interface may still be dying with its route.
	if err := l.h.RouteReplace(route); err != nil {
		return fmt.Errorf("route to pod %s: %w", p.Addr, err)
	}
	return nil
}

func (m *Manager) forgetPod(p podRecord) {
	m.mu.Lock()
	delete(m.pods, p.ID)
	m.podPool.release(p.Addr)
	m.mu.Unlock()
	if err := m.rec.remove(kindPod, p.ID, false); err != nil {
		m.log.Warn("pod record stays until the next start", "pod", p.ID, "error", err)
	}
}

// DetachPod releases a pod's address; its namespace is being dropped. A pod that is not
// attached is no error.
func (m *Manager) DetachPod(_ context.Context, id string) error {
	m.mu.RLock()
	p, ok := m.pods[id]
	m.mu.RUnlock()
	if !ok {
		return nil
	}
	m.forgetPod(p)
	m.reap.deleteLater(p.HostIf)
	return nil
}

// Pods lists the addresses of attached pods by id.
func (m *Manager) Pods() map[string]netip.Addr {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make(map[string]netip.Addr, len(m.pods))
	for p := range maps.Values(m.pods) {
		all[p.ID] = p.Addr
	}
	return all
}

// ReservePort holds a host port for owner, who adds rules of its own for it; port 0
// takes any. The same owner may ask again.
func (m *Manager) ReservePort(ctx context.Context, owner, proto string, addr netip.Addr, port uint16) (uint16, error) {
	hp, err := normalHostPort(proto, addr, port)
	if err != nil {
		return 0, err
	}
	hp, err = m.ports.reserve(ctx, owner, hp)
	return hp.port, err
}

// ReleasePort gives a port back that owner holds.
func (m *Manager) ReleasePort(ctx context.Context, owner, proto string, addr netip.Addr, port uint16) {
	if hp, err := normalHostPort(proto, addr, port); err == nil {
		m.ports.release(ctx, owner, hp)
	}
}

func normalHostPort(proto string, addr netip.Addr, port uint16) (hostPort, error) {
	p, err := normalPort(PortMapping{Proto: proto, HostIP: addr, HostPort: port, ContainerPort: 1})
	if err == nil && p.HostIP.Is6() {
		err = fmt.Errorf("IPv6 host address %s is not supported here, use an IPv4 address: %w", p.HostIP, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return hostPort{}, fmt.Errorf("reserve host port %d: %w", port, err)
	}
	return hostPort{p.Proto, p.HostIP, p.HostPort}, nil
}

// SettlePorts releases kept ports that nobody has claimed since Open. Call it once,
// when containers and services have taken theirs.
func (m *Manager) SettlePorts(ctx context.Context) { m.ports.dropUnowned(ctx) }
