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
	if err := m.restoreNetworks(ctx); err != nil {
		return err
	}
	existing, err := m.links.named("sw" + m.opts.Instance + "-")
	if err != nil {
		return err
	}
	if err := m.restoreEndpoints(ctx, existing); err != nil {
		return err
	}
	if err := m.restorePods(existing); err != nil {
		return err
	}
	m.sweep(existing)
	m.restored = true
	if err := m.table.rebuild(m.want()); err != nil {
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

func (m *Manager) restoreNetworks(ctx context.Context) error {
	recorded, err := load[Network](m.rec, kindNetwork)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, n := range recorded {
		if err := m.adopt(ctx, n, false); err != nil {
			return fmt.Errorf("restore network %s: %w", n.Name, err)
		}
		have[n.Name] = true
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

func (m *Manager) restoreEndpoints(ctx context.Context, existing map[string]netlink.Link) error {
	recorded, err := load[Endpoint](m.rec, kindEndpoint)
	if err != nil {
		return err
	}
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
