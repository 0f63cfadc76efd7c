package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// links is what this package asks of the kernel's routing socket, in the namespace
// that the process had when it was opened.
type links struct {
	h      *netlink.Handle
	hostNS *os.File
}

func openLinks() (*links, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open routing netlink socket: %w", err)
	}
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	return &links{h: h, hostNS: ns}, nil
}

func (l *links) close() { l.h.Close(); l.hostNS.Close() }

// inside runs fn on a thread that has joined the namespace. fn must not start
// goroutines that rely on it: they would run elsewhere.
func (l *links) inside(netns *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err := fn()
		// A thread that cannot return stays locked, and dies with this goroutine.
		if back := unix.Setns(int(l.hostNS.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP.To4())
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a, ones), ok
}

// ensureBridge makes the bridge, gives it addr and brings it up; whatever exists already stays.
func (l *links) ensureBridge(name string, addr netip.Prefix, mtu int) error {
	link, err := l.h.LinkByName(name)
	if isNotFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		attrs.MTU = mtu
		// An explicit address: otherwise the bridge takes that of its lowest port, and
		// changes it when the port goes, which stalls everyone's ARP cache.
		attrs.HardwareAddr = macFor(addr.Addr())
		err = l.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		if err == nil {
			link, err = l.h.LinkByName(name)
		}
	}
	if err != nil {
		return fmt.Errorf("create bridge %s: %w", name, err)
	}
	if err := l.h.AddrReplace(link, &netlink.Addr{IPNet: toIPNet(addr)}); err != nil {
		return fmt.Errorf("give bridge %s address %s: %w", name, addr, err)
	}
	// Published ports on 127.0.0.1 are routed out of the bridge; the raw chain keeps
	// everybody else's 127/8 packets out (CVE-2020-8558).
	if err := writeSysctl("net/ipv4/conf/"+name+"/route_localnet", "1"); err != nil {
		return err
	}
	if err := l.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up bridge %s: %w", name, err)
	}
	return nil
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf) || errors.Is(err, unix.ENODEV)
}

// remove deletes an interface; one that is gone is no error. It takes tens of
// milliseconds under the kernel's global network lock: never on a reply path.
func (l *links) remove(name string) error {
	link, err := l.h.LinkByName(name)
	if err == nil {
		err = l.h.LinkDel(link)
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// whole lists until nothing has changed meanwhile. The kernel says when something has, and on a machine where containers come
// and go something often does.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// named lists interfaces whose name starts with prefix.
func (l *links) named(prefix string) (map[string]netlink.Link, error) {
	all, err := whole(l.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := map[string]netlink.Link{}
	for _, link := range all {
		if name := link.Attrs().Name; strings.HasPrefix(name, prefix) {
			found[name] = link
		}
	}
	return found, nil
}

// taken lists every range that this machine routes or owns an address in. A default route is none, also not in the
// two halves that VPNs make it of.
func (l *links) taken() ([]netip.Prefix, error) {
	routes, err := whole(func() ([]netlink.Route, error) {
		return l.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var all []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, ok := fromIPNet(r.Dst); ok && p.Bits() > 1 {
			all = append(all, p)
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return l.h.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok {
			all = append(all, p.Masked())
		}
	}
	return all, nil
}

// veth is one pair: its host side, and its peer inside a namespace.
type veth struct {
	host, peer string
	master     string // bridge; empty: none
	mac        net.HardwareAddr
	hostMAC    net.HardwareAddr
	mtu        int
	isolated   bool // bridge port that cannot reach other isolated ports
}

// create makes the pair with the peer already inside netns, and the host side up: then
// the peer has carrier from the moment it is brought up, and only the host side has to
// be waited for, see awaitUp.
func (l *links) create(v veth, netns *os.File) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Flags, attrs.HardwareAddr = v.host, v.mtu, net.FlagUp, v.hostMAC
	if v.master != "" {
		master, err := l.h.LinkByName(v.master)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", v.master, err)
		}
		attrs.MasterIndex = master.Attrs().Index
	}
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr = v.peer, v.mac
	pair.PeerNamespace = netlink.NsFd(int(netns.Fd()))
	if err := l.h.LinkAdd(pair); err != nil {
		if errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("create interface %s (%s in the container): a device of that name exists", v.host, v.peer)
		}
		return fmt.Errorf("create interface %s: %w", v.host, err)
	}
	if v.isolated {
		return l.port(v.host, l.h.LinkSetIsolated)
	}
	return nil
}

// hairpin lets a container reach itself by a port it publishes, also where
// br_netfilter translates the frame without it ever leaving the bridge.
func (l *links) hairpin(port string) error { return l.port(port, l.h.LinkSetHairpin) }

func (l *links) port(name string, set func(netlink.Link, bool) error) error {
	link, err := l.h.LinkByName(name)
	if err == nil {
		err = set(link, true)
	}
	if err != nil {
		return fmt.Errorf("set up bridge port %s: %w", name, err)
	}
	return nil
}

// patience bounds awaitUp. A container without its first packets is better than none.
const patience = 2 * time.Second

// awaitUp waits until the kernel has noticed that interfaces have carrier, which it does
// beside us and after whoever holds its network lock. Until then it drops what it should
// send, and a lost ARP request costs a container its first second.
func (l *links) awaitUp(names ...string) error {
	if up, err := l.allUp(names); up || err != nil {
		return err
	}
	done := make(chan struct{})
	events := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(events, done); err != nil {
		return fmt.Errorf("listen for interfaces: %w", err)
	}
	defer func() {
		close(done)
		for range events { // until the subscription has ended
		}
	}()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		if up, err := l.allUp(names); up || err != nil {
			return err
		}
		select {
		case <-events:
		case <-timeout.C:
			return nil
		}
	}
}

func (l *links) allUp(names []string) (bool, error) {
	for _, name := range names {
		link, err := l.h.LinkByName(name)
		if err != nil {
			return false, fmt.Errorf("find %s: %w", name, err)
		}
		if link.Attrs().OperState != netlink.OperUp {
			return false, nil
		}
	}
	return true, nil
}

// enslave puts a host side back on its bridge, after someone deleted the bridge.
func (l *links) enslave(port netlink.Link, bridge string) error {
	master, err := l.h.LinkByName(bridge)
	if err == nil && port.Attrs().MasterIndex != master.Attrs().Index {
		err = l.h.LinkSetMasterByIndex(port, master.Attrs().Index)
	}
	if err != nil {
		return fmt.Errorf("put %s on bridge %s: %w", port.Attrs().Name, bridge, err)
	}
	return nil
}

// guest is the view from inside a container's namespace; only valid in links.inside.
type guest struct{ h *netlink.Handle }

// setup brings up lo and the interface with its address.
func (g guest) setup(name string, addr netip.Prefix) (netlink.Link, error) {
	if err := g.loUp(); err != nil {
		return nil, err
	}
	link, err := g.h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	// No IPv6 on these networks: without this the kernel would still run duplicate
	// address detection and router solicitation on every start.
	_ = writeSysctl("net/ipv6/conf/"+name+"/disable_ipv6", "1") // absent where the kernel has no IPv6
	if err := g.h.AddrAdd(link, &netlink.Addr{IPNet: toIPNet(addr)}); err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, fmt.Errorf("give %s address %s: %w", name, addr, err)
	}
	if err := g.h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	return link, nil
}

func (g guest) loUp() error {
	lo, err := g.h.LinkByName("lo")
	if err == nil {
		err = g.h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

// unplug takes an interface out of use at once; deleting it is the reaper's work.
func (g guest) unplug(name string) error {
	link, err := g.h.LinkByName(name)
	if err == nil {
		err = g.h.LinkSetDown(link)
	}
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("take down %s: %w", name, err)
	}
	return nil
}

// defaultRoute points the default route at gw.
func (g guest) defaultRoute(link netlink.Link, gw netip.Addr) error {
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	err := g.h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything, Gw: gw.AsSlice()})
	if err != nil {
		return fmt.Errorf("set default route via %s: %w", gw, err)
	}
	return nil
}

// guest runs fn with a routing socket inside the namespace.
func (l *links) guest(netns *os.File, fn func(guest) error) error {
	return l.inside(netns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open routing netlink socket in the container: %w", err)
		}
		defer h.Close()
		return fn(guest{h})
	})
}

// macFor derives a hardware address from an IPv4 address, as Docker did: neighbours
// that still remember an old owner of the address then reach the new one.
func macFor(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// writeSysctl writes below /proc/sys of the calling thread's network namespace.
func writeSysctl(name, value string) error {
	path := "/proc/sys/" + name
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
