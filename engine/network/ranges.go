package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The node's two ranges, of pods and of services, are chosen once, when the data directory is new, and recorded:
// the addresses of services are objects of the cluster. So other daemons' ranges have to be avoided for good, also
// of those that do not run now:
//
//   - One that runs, or ran since the machine's start, shows by its routes and addresses.
//   - One that died and whose interfaces somebody deleted shows by its packet tables: they still translate.
//   - One that rests while the machine was restarted does not show at all. Each starts its search somewhere
//     else, so that two rarely have the same; when they do, checkRanges says so.

// startNode brings up what belongs to the machine and to no container: the ranges of
// pods and services, and the bridge without ports that carries the node's address.
func (m *Manager) startNode() error {
	if err := m.chooseRanges(); err != nil {
		return err
	}
	m.podPool = newAllocator(m.node.Pods, m.node.Pods)
	m.nodeAddr, _ = m.podPool.take()
	if last, err := loadOne[netip.Addr](m.rec, kindCursor, podCursor); err == nil {
		m.podPool.resume(last)
	}
	return m.links.ensureNode(m.nodeBridge(), m.nodeAddr, m.DNSAddr(), m.node)
}

func (m *Manager) chooseRanges() error {
	recorded, err := loadOne[node](m.rec, "", "node")
	if err == nil {
		m.node = recorded
		return m.checkRanges()
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unlock, err := lockRanges()
	if err != nil {
		return err
	}
	defer unlock()
	taken, err := m.taken()
	if err != nil {
		return err
	}
	if m.node.Pods, err = firstFree("pod", m.opts.PodPool, m.spread(defaultPodPool()), taken); err != nil {
		return err
	}
	if m.node.Services, err = firstFree("service", m.opts.ServicePool, m.spread(defaultServicePool()), append(taken, m.node.Pods)); err != nil {
		return err
	}
	// The routes are what others see: set before the lock is released.
	dns := address(number(m.node.Services.Addr()) + dnsOffset)
	if err := m.links.ensureNode(m.nodeBridge(), address(number(m.node.Pods.Addr())+1), dns, m.node); err != nil {
		return err
	}
	return m.rec.put("", "node", m.node, true)
}

// taken is what no new range of ours may touch: what this machine routes, and what the tables of other daemons
// translate, which outlive their daemons and interfaces.
func (m *Manager) taken() ([]netip.Prefix, error) {
	all, err := m.links.taken()
	if err != nil {
		return nil, err
	}
	tables, err := m.nft.Tables()
	if err != nil {
		return nil, err
	}
	for _, name := range tables {
		instance, ok := strings.CutPrefix(name, "slipway-")
		if !ok || !instancePattern.MatchString(instance) || instance == m.opts.Instance {
			continue
		}
		claimed, err := m.table.claimedBy(name)
		if err != nil {
			return nil, err
		}
		all = append(all, claimed...)
	}
	return all, nil
}

// spread has the candidates of each pool begin where the instance's number says.
func (m *Manager) spread(pools ...[]netip.Prefix) []netip.Prefix {
	n, _ := strconv.ParseUint(m.opts.Instance, 16, 32) // Open has checked it
	var all []netip.Prefix
	for _, pool := range pools {
		at := int(n) % len(pool)
		all = slices.Concat(all, pool[at:], pool[:at])
	}
	return all
}

func firstFree(what string, asked, builtIn, taken []netip.Prefix) (netip.Prefix, error) {
	if len(asked) == 0 {
		asked = builtIn
	}
	for _, p := range asked {
		if !overlapsAny(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("choose the %s range: each of the %d candidates from %s on overlaps a route of this machine; name a free one with --%s-range", what, len(asked), asked[0], what)
}

// foreign is a range that an interface of somebody else has by now.
type foreign struct {
	prefix netip.Prefix
	link   string
}

var ourLinks = regexp.MustCompile(`^sw[0-9a-f]{6}-`)

// checkRanges looks whether somebody has taken the recorded ranges, or parts of them, while no interface showed them.
func (m *Manager) checkRanges() error {
	others, err := m.links.foreign("sw" + m.opts.Instance + "-")
	if err != nil {
		return err
	}
	for what, mine := range map[string]netip.Prefix{"pods": m.node.Pods, "services": m.node.Services} {
		o, taken := takenFrom(mine, others)
		switch {
		case !taken:
		case ourLinks.MatchString(o.link):
			return fmt.Errorf("the range of %s, %s, is in use by another Slipway daemon on this machine (interface %s), which chose it while this one was not running: "+
				"end that one with `slipway down --all`, or start this one on a new data directory", what, mine, o.link)
		default:
			m.log.Warn("part of a range has been taken by another program", "range", mine, "of", what, "taken", o.prefix, "interface", o.link)
		}
	}
	return nil
}

// takenFrom finds who of others has taken a range of ours, or a part of it: another daemon before any other program. A
// wider route, such as a VPN's, yields to ours and takes nothing.
func takenFrom(mine netip.Prefix, others []foreign) (by foreign, taken bool) {
	for _, o := range others {
		if o.prefix.Overlaps(mine) && o.prefix.Bits() >= mine.Bits() && (!taken || ourLinks.MatchString(o.link)) {
			by, taken = o, true
		}
	}
	return by, taken
}

// foreign lists what is routed to, or owned by, interfaces whose name does not begin with mine.
func (l *links) foreign(mine string) ([]foreign, error) {
	all, err := whole(l.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, link := range all {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	var found []foreign
	add := func(index int, p netip.Prefix, ok bool) {
		if name := names[index]; ok && name != "" && !strings.HasPrefix(name, mine) {
			found = append(found, foreign{p.Masked(), name})
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return l.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil {
			p, ok := fromIPNet(r.Dst)
			add(r.LinkIndex, p, ok)
		}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return l.h.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		p, ok := fromIPNet(a.IPNet)
		add(a.LinkIndex, p, ok)
	}
	return found, nil
}

// ranges cuts base into ranges of bits length.
func ranges(base string, bits int) []netip.Prefix {
	b := netip.MustParsePrefix(base)
	n := 1 << (bits - b.Bits())
	all := make([]netip.Prefix, 0, n)
	for i := range n {
		all = append(all, netip.PrefixFrom(address(number(b.Addr())+uint32(i)<<(32-bits)), bits))
	}
	return all
}

// Ranges of pods and services of one machine: far from Docker's pools and from what home and office networks like to
// use. Where all of 10.0.0.0/8 is routed, as company networks do, they come from the carriers' range.
func defaultPodPool() (private, carrier []netip.Prefix) {
	return ranges("10.160.0.0/12", 18), ranges("100.80.0.0/12", 18)
}

func defaultServicePool() (private, carrier []netip.Prefix) {
	return ranges("10.96.0.0/12", 18), ranges("100.112.0.0/12", 18)
}
