package network

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/network/nft"
)

// Manager owns the networks of one data directory. Open makes one.
type Manager struct {
	opts  Options
	log   *slog.Logger
	rec   records
	links *links
	nft   *nft.Conn
	table *packets
	ports *reserver
	relay *relays
	up    *upstreams
	wall  *hostFirewall
	reap  *reaper

	node     node
	nodeAddr netip.Addr

	// setup serialises what creates and removes networks: choosing a range and making
	// its bridge must not interleave. It is taken before mu.
	setup    sync.Mutex
	restored bool     // the packet table is there; setup covers it
	stolen   []string // warnings of subnets that others have; not changed after Open

	mu        sync.RWMutex
	networks  map[string]*segment
	endpoints map[string]map[string]*Endpoint // container -> network id -> endpoint
	pods      map[string]podRecord
	podPool   *allocator
	closed    bool
	dnsSocks  *dnsSockets
}

// segment is a network with what it needs while it runs. Manager.mu covers its maps.
type segment struct {
	Network
	alloc    *allocator
	byAddr   map[netip.Addr]*Endpoint
	byName   map[string][]*Endpoint // lower case
	resolver *resolver
}

var instancePattern = regexp.MustCompile(`^[0-9a-f]{6}$`)

// Open restores the networks of a data directory, or starts with the three that
// always exist. On error it leaves the kernel as it found it, as far as it can.
func Open(ctx context.Context, opts Options) (*Manager, error) {
	if !instancePattern.MatchString(opts.Instance) {
		return nil, fmt.Errorf("open networks: instance %q must be six hexadecimal characters", opts.Instance)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if len(opts.Pools) == 0 {
		opts.Pools = defaultPools()
	}
	m := &Manager{
		opts:      opts,
		log:       opts.Log.With("room", "network"),
		ports:     newReserver(opts.FDs),
		networks:  map[string]*segment{},
		endpoints: map[string]map[string]*Endpoint{},
		pods:      map[string]podRecord{},
	}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open networks in %s: %w", opts.Dir, err), m.Close())
	}
	return m, nil
}

func (m *Manager) open(ctx context.Context) (err error) {
	if m.rec, err = openRecords(m.opts.Dir); err != nil {
		return err
	}
	if m.links, err = openLinks(); err != nil {
		return err
	}
	if m.nft, err = nft.Dial(0); err != nil {
		return err
	}
	m.table = newPackets(m.nft, m.opts.Instance)
	m.up = newUpstreams(m.opts.DNSUpstreams)
	m.reap = newReaper(m.links, m.log)
	m.dnsSocks = newDNSSockets(m.opts.FDs)
	m.relay = newRelays(m.log)
	if err := writeSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := m.restore(ctx); err != nil {
		return err
	}
	m.wall = newHostFirewall(m)
	return m.wall.start(ctx)
}

// Close stops answering and watching. Bridges, rules, endpoints and the sockets in
// the descriptor store stay: containers go on.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	var errs []error
	var resolvers []*resolver
	for _, s := range m.networks {
		if s.resolver != nil {
			resolvers = append(resolvers, s.resolver)
		}
	}
	m.mu.Unlock()
	if m.wall != nil {
		m.wall.close()
	}
	for _, r := range resolvers {
		r.close()
	}
	if m.dnsSocks != nil {
		m.dnsSocks.close()
	}
	if m.reap != nil {
		m.reap.drain()
	}
	if m.up != nil {
		m.up.close()
	}
	if m.relay != nil {
		m.relay.close()
	}
	m.ports.close()
	if m.restored {
		errs = append(errs, m.saveCursors())
	}
	if m.nft != nil {
		errs = append(errs, m.nft.Close())
	}
	if m.links != nil {
		m.links.close()
	}
	return errors.Join(errs...)
}

func (m *Manager) saveCursors() error {
	if _, err := os.Stat(m.opts.Dir); err != nil {
		return nil // torn down
	}
	errs := []error{m.saveCursor(podCursor, m.podPool, true)}
	for _, s := range m.segments() {
		if s.alloc != nil {
			errs = append(errs, m.saveCursor(s.ID, s.alloc, true))
		}
	}
	return errors.Join(errs...)
}

// Teardown removes everything of this instance from the machine, and the records of
// it. Containers should be stopped; those that are not lose their network. The
// Manager is closed afterwards.
func (m *Manager) Teardown(ctx context.Context) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	m.wall.close() // first: it would put the table back
	errs := []error{m.wall.remove(ctx)}
	for _, s := range m.segments() {
		if s.resolver != nil {
			s.resolver.close()
			m.dnsSocks.drop(ctx, s.ID)
		}
	}
	m.dnsSocks.drop(ctx, clusterDNS)
	m.relay.close()
	m.releaseAllPorts(ctx)
	m.reap.drain()
	errs = append(errs, m.dropTables())
	left, err := m.links.named("sw" + m.opts.Instance + "-")
	errs = append(errs, err)
	for name := range left {
		errs = append(errs, m.links.remove(name))
	}
	errs = append(errs, m.links.unrouteNode(m.node), os.RemoveAll(m.opts.Dir), m.Close())
	return errors.Join(errs...)
}

// dropTables removes every table of the instance: also those of rooms above this one,
// which have nobody left to serve.
func (m *Manager) dropTables() error {
	names, err := m.nft.Tables()
	errs := []error{err}
	for _, name := range names {
		if name == m.table.name || strings.HasPrefix(name, m.table.name+"-") {
			errs = append(errs, m.nft.DropTable(name))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) segments() []*segment {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*segment, 0, len(m.networks))
	for _, s := range m.networks {
		all = append(all, s)
	}
	return all
}

func (m *Manager) releaseAllPorts(ctx context.Context) {
	m.ports.mu.Lock()
	held := make(map[hostPort]string, len(m.ports.held))
	for hp, h := range m.ports.held {
		held[hp] = h.owner
	}
	m.ports.mu.Unlock()
	for hp, owner := range held {
		m.ports.release(ctx, owner, hp)
	}
}

// want is the packet table as it should be.
func (m *Manager) want() rangesAndPorts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	w := rangesAndPorts{node: m.node}
	for _, s := range m.networks {
		w.networks = append(w.networks, s.Network)
	}
	for _, eps := range m.endpoints {
		for _, ep := range eps {
			w.ports = append(w.ports, publishedBy(ep)...)
		}
	}
	return w
}

// apply makes an incremental change of the table, and the whole table when that fails:
// somebody may have touched it.
func (m *Manager) apply(change error) error {
	if change == nil {
		return nil
	}
	m.log.Warn("packet table was not as expected, rewriting it", "error", change)
	return m.table.rebuild(m.want)
}

// publishedBy are the ports that packet rules translate; those of IPv6 are relayed.
func publishedBy(ep *Endpoint) []published {
	all := make([]published, 0, len(ep.Ports))
	for _, p := range ep.Ports {
		if p.HostIP.Is4() {
			all = append(all, published{p, ep.Addr.Addr()})
		}
	}
	return all
}

// startRelays makes the IPv6 ports of an endpoint work.
func (m *Manager) startRelays(ep *Endpoint) error {
	for _, p := range ep.Ports {
		hp := hostPort{p.Proto, p.HostIP, p.HostPort}
		if !p.HostIP.Is6() {
			continue
		}
		sock := m.ports.file(hp)
		if sock == nil {
			return fmt.Errorf("relay %s: the port is not reserved", hp)
		}
		if err := m.relay.start(hp, sock, netip.AddrPortFrom(ep.Addr.Addr(), p.ContainerPort)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) stopRelays(ports []PortMapping) {
	for _, p := range ports {
		if p.HostIP.Is6() {
			m.relay.stop(hostPort{p.Proto, p.HostIP, p.HostPort})
		}
	}
}

func (m *Manager) publish(action string, n Network, attrs map[string]string) {
	if m.opts.Events == nil {
		return
	}
	all := map[string]string{"name": n.Name, "type": n.Driver}
	for k, v := range attrs {
		all[k] = v
	}
	if n.Owner != "" && n.Owner != "docker" {
		all[event.OwnerAttribute] = n.Owner
	}
	m.opts.Events.Publish(event.Event{Type: event.Network, Action: action, Actor: event.Actor{ID: n.ID, Attributes: all}, Time: time.Now()})
}

// ifName is a name for one of our interfaces: kind is b (bridge), v (container) or
// p (pod), and the rest is a digest of id. Fifteen characters is all the kernel takes.
func (m *Manager) ifName(kind, id string) string {
	sum := fnv.New64a()
	_, _ = sum.Write([]byte(id)) // never fails
	short := strconv.FormatUint(sum.Sum64(), 36)
	return "sw" + m.opts.Instance + "-" + kind + short[:5]
}
