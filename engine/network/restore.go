package network

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// restore makes memory and kernel equal to the records. What the kernel lost by itself
// (a namespace that died with its container, everything after a reboot) is forgotten.
func (m *Manager) restore(ctx context.Context) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	if err := m.ports.restore(ctx); err != nil {
		return err
	}
	if err := m.startNode(); err != nil {
		return err
	}
	existing, err := m.links.named("sw" + m.opts.Instance + "-")
	if err != nil {
		return err
	}
	endpoints, err := load[Endpoint](m.rec, kindEndpoint)
	if err != nil {
		return err
	}
	attached := map[string]bool{}
	for _, ep := range endpoints {
		attached[ep.NetworkID] = attached[ep.NetworkID] || existing[ep.HostIf] != nil
	}
	if err := m.restoreNetworks(ctx, attached); err != nil {
		return err
	}
	if err := m.restoreEndpoints(ctx, endpoints, existing); err != nil {
		return err
	}
	if err := m.restorePods(existing); err != nil {
		return err
	}
	m.sweep(existing)
	m.restored = true
	if err := m.table.rebuild(m.want); err != nil {
		return err
	}
	for _, s := range m.networks {
		if s.resolver != nil {
			s.resolver.serve()
		}
	}
	for _, mine := range m.endpoints {
		for _, ep := range mine {
			if err := m.startRelays(ep); err != nil {
				m.log.Error("published port is not relayed", "container", ep.ContainerID, "error", err)
			}
		}
	}
	return nil
}

// restoreNetworks brings the recorded networks back; attached says which have containers that ran on.
func (m *Manager) restoreNetworks(ctx context.Context, attached map[string]bool) error {
	recorded, err := load[Network](m.rec, kindNetwork)
	if err != nil {
		return err
	}
	others, err := m.links.foreign("sw" + m.opts.Instance + "-")
	if err != nil {
		return err
	}
	have, movable := map[string]bool{}, []Network{}
	for _, n := range recorded {
		have[n.Name] = true
		if m.hasToMove(n, others, attached) {
			movable = append(movable, n) // when all others have shown what is theirs
			continue
		}
		if err := m.adopt(ctx, n, false); err != nil {
			return fmt.Errorf("restore network %s: %w", n.Name, err)
		}
	}
	for _, n := range movable {
		if err := m.move(ctx, n); err != nil {
			return fmt.Errorf("restore network %s: choose another subnet than %s, which another program has taken: %w", n.Name, n.Subnet, err)
		}
	}
	for _, spec := range []Spec{{Name: DefaultBridge}, {Name: HostNetwork, Driver: DriverHost}, {Name: NoneNetwork, Driver: DriverNone}} {
		if have[spec.Name] {
			continue
		}
		if _, err := m.create(ctx, spec); err != nil {
			return fmt.Errorf("create network %s: %w", spec.Name, err)
		}
	}
	return nil
}

// hasToMove says whether a network is to get another subnet, because another program has taken its own while no interface
// showed it. It does if nobody chose the subnet and nobody has an address of it; else the user is told.
func (m *Manager) hasToMove(n Network, others []foreign, attached map[string]bool) bool {
	if n.Driver != DriverBridge {
		return false
	}
	other, taken := takenFrom(n.Subnet, others)
	if !taken || !n.UserSubnet && !attached[n.ID] {
		return taken
	}
	warning := fmt.Sprintf("network %s has the subnet %s, and interface %s of another program has taken %s while the network did not show: containers reach one of the two; "+
		"give the other program another range, or remove the network and create it with another subnet", n.Name, n.Subnet, other.link, other.prefix)
	m.log.Warn(warning)
	m.stolen = append(m.stolen, warning)
	return false
}

// move gives a network that nobody uses a free subnet.
func (m *Manager) move(ctx context.Context, n Network) error {
	unlock, err := lockRanges()
	if err != nil {
		return err
	}
	defer unlock()
	was := n.Subnet
	if err := m.links.remove(n.Bridge); err != nil { // it has an address of the old one
		return err
	}
	if err := m.chooseRange(&n, Spec{}); err != nil {
		return err
	}
	m.log.Warn("the subnet of a network was taken by another program, and the network got another", "network", n.Name, "was", was, "is", n.Subnet)
	return m.adopt(ctx, n, true)
}

func (m *Manager) restoreEndpoints(ctx context.Context, recorded map[string]Endpoint, existing map[string]netlink.Link) error {
	for id, ep := range recorded {
		s := m.networks[ep.NetworkID]
		link := existing[ep.HostIf]
		if s == nil || ep.Addr.IsValid() && link == nil {
			if err := m.rec.remove(kindEndpoint, id, false); err != nil {
				return err
			}
			continue
		}
		if link != nil {
			if err := m.links.enslave(link, s.Bridge); err != nil {
				m.log.Error("container has lost its network", "container", ep.ContainerID, "error", err)
			}
			s.alloc.claim(ep.Addr.Addr())
		}
		m.claimPorts(ctx, &ep)
		m.enterLocked(s, &ep)
	}
	return nil
}

// claimPorts takes over the sockets of published ports, or binds them again.
func (m *Manager) claimPorts(ctx context.Context, ep *Endpoint) {
	var got []PortMapping
	for _, p := range ep.Ports {
		one, err := m.ports.publishOne(ctx, ep.ContainerID, p)
		if err != nil {
			m.log.Error("published port was lost", "container", ep.ContainerID, "error", err)
			continue
		}
		got = append(got, one)
	}
	ep.Ports = got
}

func (m *Manager) restorePods(existing map[string]netlink.Link) error {
	recorded, err := load[podRecord](m.rec, kindPod)
	if err != nil {
		return err
	}
	for id, p := range recorded {
		if existing[p.HostIf] == nil || !m.podPool.claim(p.Addr) {
			if err := m.rec.remove(kindPod, id, false); err != nil {
				return err
			}
			continue
		}
		m.pods[id] = p
	}
	return nil
}

// sweep has the interfaces deleted that no record knows.
func (m *Manager) sweep(existing map[string]netlink.Link) {
	known := map[string]bool{m.nodeBridge(): true}
	for _, s := range m.networks {
		known[s.Bridge] = true
	}
	for _, mine := range m.endpoints {
		for _, ep := range mine {
			known[ep.HostIf] = true
		}
	}
	for _, p := range m.pods {
		known[p.HostIf] = true
	}
	for name := range existing {
		if !known[name] {
			m.reap.delete(name)
		}
	}
}
