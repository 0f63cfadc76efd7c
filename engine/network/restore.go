package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

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
	var err error
	m.node, err = loadOne[node](m.rec, "", "node")
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unlock, err := lockRanges()
	if err != nil {
		return err
	}
	defer unlock()
	taken, err := m.links.taken()
	if err != nil {
		return err
	}
	if m.node.Pods, err = firstFree("pod", m.opts.PodPool, defaultPodPool(), taken); err != nil {
		return err
	}
	if m.node.Services, err = firstFree("service", m.opts.ServicePool, defaultServicePool(), append(taken, m.node.Pods)); err != nil {
		return err
	}
	// The routes are what others see: set before the lock is released.
	dns := address(number(m.node.Services.Addr()) + dnsOffset)
	if err := m.links.ensureNode(m.nodeBridge(), address(number(m.node.Pods.Addr())+1), dns, m.node); err != nil {
		return err
	}
	return m.rec.put("", "node", m.node, true)
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
	return netip.Prefix{}, fmt.Errorf("choose the %s range: each of the %d candidates from %s on overlaps a route of this machine; name a free one", what, len(asked), asked[0])
}
