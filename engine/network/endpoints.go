package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/network/nft"
)

// Attach connects a container: interface, address, routes, names and ports are in
// place when it returns, or nothing is. netns is the container's network namespace;
// it may be nil for the networks "host" and "none".
func (m *Manager) Attach(ctx context.Context, netns *os.File, spec AttachSpec) (Endpoint, error) {
	s, ep, err := m.reserve(spec)
	if err != nil {
		return Endpoint{}, err
	}
	if err := m.connect(ctx, netns, s, ep); err != nil {
		m.forget(ctx, ep)
		if ep.HostIf != "" {
			m.reap.delete(ep.HostIf)
		}
		return Endpoint{}, fmt.Errorf("connect %s to network %s: %w", cmp.Or(ep.Name, ep.ContainerID), s.Name, err)
	}
	m.publish("connect", s.Network, map[string]string{"container": ep.ContainerID})
	return m.snapshot(ep), nil
}

func (m *Manager) snapshot(ep *Endpoint) Endpoint {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return *ep
}

// reserve enters the endpoint into the tables, with its address.
func (m *Manager) reserve(spec AttachSpec) (*segment, *Endpoint, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.findLocked(spec.Network)
	if err != nil {
		return nil, nil, err
	}
	if spec.ContainerID == "" {
		return nil, nil, invalid("connect to network %s: the container id is missing", s.Name)
	}
	mine := m.endpoints[spec.ContainerID]
	if mine[s.ID] != nil {
		return nil, nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint with name %s already exists in network %s", cmp.Or(spec.Name, spec.ContainerID), s.Name))
	}
	ep := &Endpoint{
		ID: newID(), NetworkID: s.ID, NetworkName: s.Name, ContainerID: spec.ContainerID, Name: spec.Name,
		Aliases: slices.Clone(spec.Aliases), Links: linkNames(spec.Links), DNS: slices.Clone(spec.DNS), WantPorts: slices.Clone(spec.Ports), GwPriority: spec.GwPriority,
		Seq: nextSeq(mine),
	}
	if s.Driver == DriverBridge {
		if err := m.placeLocked(s, ep, spec); err != nil {
			return nil, nil, err
		}
	}
	m.enterLocked(s, ep)
	return s, ep, nil
}

// linkNames folds the case of names, as DNS does.
func linkNames(links map[string]string) map[string]string {
	if len(links) == 0 {
		return nil
	}
	folded := make(map[string]string, len(links))
	for alias, name := range links {
		folded[strings.ToLower(alias)] = strings.ToLower(name)
	}
	return folded
}

func nextSeq(mine map[string]*Endpoint) int {
	next := 0
	for _, ep := range mine {
		next = max(next, ep.Seq+1)
	}
	return next
}

// placeLocked chooses address and interface names.
func (m *Manager) placeLocked(s *segment, ep *Endpoint, spec AttachSpec) error {
	addr := spec.IPv4
	switch {
	case !addr.IsValid():
		var ok bool
		if addr, ok = s.alloc.take(); !ok {
			return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("no available IPv4 addresses on network %s (%s): disconnect containers, or create a network with a wider subnet", s.Name, s.Range))
		}
	case !s.Subnet.Contains(addr):
		return invalid("invalid config for network %s: no configured subnet contains IP address %s (subnet %s)", s.Name, addr, s.Subnet)
	case !s.alloc.claim(addr):
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("Address already in use: %s on network %s", addr, s.Name))
	}
	ep.Addr = netip.PrefixFrom(addr, s.Subnet.Bits())
	ep.MAC = spec.MAC
	if ep.MAC == nil {
		ep.MAC = macFor(addr)
	}
	if !s.Internal {
		ep.Gateway = s.Gateway
	}
	ep.HostIf = m.ifName("v", ep.ID)
	ep.IfName = spec.IfName
	if ep.IfName == "" {
		ep.IfName = freeIfName(m.endpoints[ep.ContainerID])
	}
	return nil
}

func freeIfName(mine map[string]*Endpoint) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		used := false
		for _, ep := range mine {
			used = used || ep.IfName == name
		}
		if !used {
			return name
		}
	}
}

func (m *Manager) enterLocked(s *segment, ep *Endpoint) {
	if m.endpoints[ep.ContainerID] == nil {
		m.endpoints[ep.ContainerID] = map[string]*Endpoint{}
	}
	m.endpoints[ep.ContainerID][s.ID] = ep
	if ep.Addr.IsValid() {
		s.byAddr[ep.Addr.Addr()] = ep
	}
	for _, name := range ep.Names() {
		key := strings.ToLower(name)
		s.byName[key] = append(s.byName[key], ep)
	}
}

func (m *Manager) leaveLocked(s *segment, ep *Endpoint) {
	mine := m.endpoints[ep.ContainerID]
	delete(mine, s.ID)
	if len(mine) == 0 {
		delete(m.endpoints, ep.ContainerID)
	}
	if ep.Addr.IsValid() {
		delete(s.byAddr, ep.Addr.Addr())
		s.alloc.release(ep.Addr.Addr())
	}
	m.unnameLocked(s, ep)
}

func (m *Manager) unnameLocked(s *segment, ep *Endpoint) {
	for _, name := range ep.Names() {
		key := strings.ToLower(name)
		s.byName[key] = slices.DeleteFunc(s.byName[key], func(e *Endpoint) bool { return e == ep })
		if len(s.byName[key]) == 0 {
			delete(s.byName, key)
		}
	}
}

// connect makes the endpoint real. The record comes first: after a crash in the
// middle the next Open finds it and cleans up.
func (m *Manager) connect(ctx context.Context, netns *os.File, s *segment, ep *Endpoint) error {
	if s.Driver != DriverBridge {
		if netns != nil && s.Driver == DriverNone {
			if err := m.links.guest(netns, func(g guest) error { return g.loUp() }); err != nil {
				return err
			}
		}
		return m.rec.put(kindEndpoint, ep.ID, ep, false)
	}
	if netns == nil {
		return errors.New("the container has no network namespace of its own")
	}
	if err := m.saveCursor(s.ID, s.alloc, false); err != nil {
		return err
	}
	if err := m.publishPorts(ctx, s, ep); err != nil {
		return err
	}
	if err := m.rec.put(kindEndpoint, ep.ID, m.snapshot(ep), false); err != nil {
		return err
	}
	if err := m.plug(netns, s, ep); err != nil {
		return err
	}
	if err := m.translate(ep); err != nil {
		return err
	}
	return m.links.awaitUp(ep.HostIf, s.Bridge)
}

// translate makes the published ports of a connected endpoint work.
func (m *Manager) translate(ep *Endpoint) error {
	if len(ep.Ports) == 0 {
		return nil
	}
	if err := m.links.hairpin(ep.HostIf); err != nil {
		return err
	}
	ports := publishedBy(ep)
	err := m.apply(m.table.addPorts(ports))
	m.reap.flows(ports)
	return errors.Join(err, m.startRelays(ep))
}

// saveCursor remembers where an allocator goes on after a restart: seldom, and ahead of
// where it is, so that most containers cost no write.
func (m *Manager) saveCursor(name string, a *allocator, exact bool) error {
	m.mu.Lock()
	at, due := a.mark(exact)
	m.mu.Unlock()
	if !due {
		return nil
	}
	return m.rec.put(kindCursor, name, at, false)
}

// publishPorts reserves the host ports, if this is the network that carries them.
func (m *Manager) publishPorts(ctx context.Context, s *segment, ep *Endpoint) error {
	if s.Internal || len(ep.WantPorts) == 0 || m.carrier(ep.ContainerID) != nil {
		return nil
	}
	want := slices.Clone(ep.WantPorts)
	if def, err := netip.ParseAddr(s.Options[OptionHostIP]); err == nil {
		for i := range want {
			if !want[i].HostIP.IsValid() {
				want[i].HostIP = def
			}
		}
	}
	got, err := m.ports.publish(ctx, ep.ContainerID, want)
	if err != nil {
		return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", ep.Name, ep.ID, err)
	}
	m.mu.Lock()
	ep.Ports = got
	m.mu.Unlock()
	return nil
}

// carrier is the container's endpoint that publishes its ports.
func (m *Manager) carrier(containerID string) *Endpoint {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, ep := range m.endpoints[containerID] {
		if len(ep.Ports) > 0 {
			return ep
		}
	}
	return nil
}

// plug makes the interface and everything inside the namespace.
func (m *Manager) plug(netns *os.File, s *segment, ep *Endpoint) error {
	mtu, err := mtu(s.Network)
	if err != nil {
		return err
	}
	pair := veth{host: ep.HostIf, peer: ep.IfName, master: s.Bridge, mac: ep.MAC, mtu: mtu, isolated: s.Options[OptionICC] == "false"}
	if err := m.links.create(pair, netns); err != nil {
		return err
	}
	carriesDefault := m.gatewayEndpoint(ep.ContainerID) == ep
	err = m.links.guest(netns, func(g guest) error {
		link, err := g.setup(ep.IfName, ep.Addr)
		if err != nil {
			return err
		}
		if carriesDefault {
			if err := g.defaultRoute(link, ep.Gateway); err != nil {
				return err
			}
		}
		// Without it a query to 127.0.0.11 fails before any rule sees it.
		return writeSysctl("net/ipv4/conf/"+ep.IfName+"/route_localnet", "1")
	})
	if err != nil || m.dnsEndpoint(ep.ContainerID) != ep {
		return err
	}
	return m.pointDNS(netns, s, false)
}

func (m *Manager) pointDNS(netns *os.File, s *segment, again bool) error {
	conn, err := nft.Dial(int(netns.Fd()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return translateDNS(conn, s.resolver.addr, again)
}

// mineSorted lists a container's endpoints on bridges in order of attachment.
func (m *Manager) mineSorted(containerID string) []*Endpoint {
	m.mu.RLock()
	defer m.mu.RUnlock()
	mine := slices.Collect(maps.Values(m.endpoints[containerID]))
	mine = slices.DeleteFunc(mine, func(ep *Endpoint) bool { return !ep.Addr.IsValid() })
	slices.SortFunc(mine, func(a, b *Endpoint) int { return cmp.Compare(a.Seq, b.Seq) })
	return mine
}

// gatewayEndpoint carries the container's default route; nil when it has no way out.
func (m *Manager) gatewayEndpoint(containerID string) *Endpoint {
	var best *Endpoint
	for _, ep := range m.mineSorted(containerID) {
		if !ep.Gateway.IsValid() {
			continue
		}
		if best == nil || ep.GwPriority > best.GwPriority || ep.GwPriority == best.GwPriority && ep.NetworkName < best.NetworkName {
			best = ep
		}
	}
	return best
}

// dnsEndpoint is the one whose network's resolver the container asks.
func (m *Manager) dnsEndpoint(containerID string) *Endpoint {
	if mine := m.mineSorted(containerID); len(mine) > 0 {
		return mine[0]
	}
	return nil
}

// forget takes an endpoint out of the tables, releases its ports and its record. It
// does not touch interfaces.
func (m *Manager) forget(ctx context.Context, ep *Endpoint) {
	m.mu.Lock()
	if s := m.networks[ep.NetworkID]; s != nil {
		m.leaveLocked(s, ep)
	}
	ports := publishedBy(ep)
	mappings := ep.Ports
	ep.Ports = nil
	m.mu.Unlock()
	if err := m.apply(m.table.removePorts(ports)); err != nil {
		m.log.Error("published ports are still translated", "container", ep.ContainerID, "error", err)
	}
	m.stopRelays(mappings)
	m.ports.unpublish(ctx, ep.ContainerID, mappings)
	m.reap.flows(ports)
	if err := m.rec.remove(kindEndpoint, ep.ID, false); err != nil {
		m.log.Warn("endpoint record stays until the next start", "endpoint", ep.ID, "error", err)
	}
}

// Detach disconnects a container from one network. netns is its namespace while it
// runs, nil when the namespace is going away.
func (m *Manager) Detach(ctx context.Context, netns *os.File, containerID, networkRef string) error {
	s, err := m.find(networkRef)
	if err != nil {
		return err
	}
	m.mu.RLock()
	ep := m.endpoints[containerID][s.ID]
	m.mu.RUnlock()
	if ep == nil {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("container %s is not connected to network %s", containerID[:min(12, len(containerID))], s.Name))
	}
	hadPorts := len(ep.Ports) > 0
	m.forget(ctx, ep)
	if netns != nil && ep.HostIf != "" {
		m.reap.delete(ep.HostIf)
		err = m.repoint(ctx, netns, containerID, ep, hadPorts)
	}
	m.publish("disconnect", s.Network, map[string]string{"container": containerID})
	return err
}

// repoint gives the tasks of a lost endpoint to those that remain.
func (m *Manager) repoint(ctx context.Context, netns *os.File, containerID string, lost *Endpoint, hadPorts bool) error {
	err := m.links.guest(netns, func(g guest) error {
		if err := g.unplug(lost.IfName); err != nil {
			return err
		}
		gw := m.gatewayEndpoint(containerID)
		if gw == nil {
			return nil
		}
		link, err := g.h.LinkByName(gw.IfName)
		if err != nil {
			return fmt.Errorf("find %s: %w", gw.IfName, err)
		}
		return g.defaultRoute(link, gw.Gateway)
	})
	if err != nil {
		return fmt.Errorf("disconnect %s: %w", containerID, err)
	}
	if ep := m.dnsEndpoint(containerID); ep != nil {
		if s, err := m.find(ep.NetworkID); err == nil {
			if err := m.pointDNS(netns, s, true); err != nil {
				return err
			}
		}
	}
	if hadPorts {
		return m.movePorts(ctx, containerID)
	}
	return nil
}

// movePorts publishes a container's ports on the next network that can carry them.
func (m *Manager) movePorts(ctx context.Context, containerID string) error {
	for _, ep := range m.mineSorted(containerID) {
		s, err := m.find(ep.NetworkID)
		if err != nil || s.Internal || len(ep.WantPorts) == 0 {
			continue
		}
		if err := m.publishPorts(ctx, s, ep); err != nil {
			return err
		}
		if err := m.rec.put(kindEndpoint, ep.ID, m.snapshot(ep), false); err != nil {
			return err
		}
		return m.translate(ep)
	}
	return nil
}

// Release forgets all endpoints of a container whose namespace is being dropped. The
// kernel deletes the interfaces with the namespace; what it leaves, the reaper takes.
// A container without endpoints is no error.
func (m *Manager) Release(ctx context.Context, containerID string) error {
	m.mu.RLock()
	mine := slices.Collect(maps.Values(m.endpoints[containerID]))
	m.mu.RUnlock()
	for _, ep := range mine {
		m.forget(ctx, ep)
		if ep.HostIf != "" {
			m.reap.deleteLater(ep.HostIf)
		}
		if s, err := m.find(ep.NetworkID); err == nil {
			m.publish("disconnect", s.Network, map[string]string{"container": containerID})
		}
	}
	return nil
}

// Retain releases the endpoints of containers that are no longer there. Call it once
// after Open, when it is known what survived.
func (m *Manager) Retain(ctx context.Context, alive func(containerID string) bool) error {
	m.mu.RLock()
	ids := slices.Collect(maps.Keys(m.endpoints))
	m.mu.RUnlock()
	var errs []error
	for _, id := range ids {
		if !alive(id) {
			errs = append(errs, m.Release(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// Rename changes the container's name on all its networks.
func (m *Manager) Rename(_ context.Context, containerID, name string) error {
	m.mu.Lock()
	var changed []Endpoint
	for _, ep := range m.endpoints[containerID] {
		s := m.networks[ep.NetworkID]
		m.unnameLocked(s, ep)
		ep.Name = name
		for _, n := range ep.Names() {
			key := strings.ToLower(n)
			s.byName[key] = append(s.byName[key], ep)
		}
		changed = append(changed, *ep)
	}
	m.mu.Unlock()
	var errs []error
	for _, ep := range changed {
		errs = append(errs, m.rec.put(kindEndpoint, ep.ID, ep, false))
	}
	return errors.Join(errs...)
}

// Endpoints lists a container's endpoints in order of attachment.
func (m *Manager) Endpoints(containerID string) []Endpoint {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []Endpoint
	for _, ep := range m.endpoints[containerID] {
		all = append(all, *ep)
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return cmp.Compare(a.Seq, b.Seq) })
	return all
}

// NetworkEndpoints lists the endpoints on a network, by address.
func (m *Manager) NetworkEndpoints(ref string) ([]Endpoint, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	s, err := m.findLocked(ref)
	if err != nil {
		return nil, err
	}
	var all []Endpoint
	for _, mine := range m.endpoints {
		if ep := mine[s.ID]; ep != nil {
			all = append(all, *ep)
		}
	}
	slices.SortFunc(all, func(a, b Endpoint) int { return a.Addr.Addr().Compare(b.Addr.Addr()) })
	return all, nil
}
