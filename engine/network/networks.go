package network

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Create makes a network and its bridge. It is on disk when Create returns.
func (m *Manager) Create(ctx context.Context, spec Spec) (Network, error) {
	if !networkName.MatchString(spec.Name) {
		return Network{}, invalid("invalid network name %q: use letters, digits, '_', '.' and '-', starting with a letter or digit", spec.Name)
	}
	m.setup.Lock()
	defer m.setup.Unlock()
	if err := m.nameIsFree(spec.Name); err != nil {
		return Network{}, err
	}
	if spec.Driver == DriverHost || spec.Driver == DriverNone {
		return Network{}, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("only one instance of %q network is allowed", spec.Driver))
	}
	n, err := m.create(ctx, spec)
	if err != nil {
		return Network{}, fmt.Errorf("create network %s: %w", spec.Name, err)
	}
	m.publish("create", n, nil)
	return n, nil
}

func (m *Manager) nameIsFree(name string) error {
	if name == DefaultBridge || name == HostNetwork || name == NoneNetwork || name == "default" {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("operation is not permitted on predefined %s network", name))
	}
	for _, s := range m.segments() {
		if s.Name == name {
			return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("network with name %s already exists", name))
		}
	}
	return nil
}

// create is Create without the rules about names. The caller holds setup.
func (m *Manager) create(ctx context.Context, spec Spec) (Network, error) {
	n := Network{
		ID: newID(), Name: spec.Name, Driver: cmp.Or(spec.Driver, DriverBridge), Internal: spec.Internal, Attachable: spec.Attachable,
		Labels: maps.Clone(spec.Labels), Options: maps.Clone(spec.Options), Owner: cmp.Or(spec.Owner, "docker"), Created: time.Now().UTC(),
	}
	switch {
	case spec.EnableIPv6:
		return n, invalid("IPv6 networks are not supported: leave out --ipv6 (enable_ipv6)")
	case n.Driver == DriverHost, n.Driver == DriverNone:
		return n, m.adopt(ctx, n, true)
	case n.Driver != DriverBridge:
		return n, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("could not find plugin %s in v1 plugin registry: plugin not found (drivers: bridge, host, null)", n.Driver))
	}
	if _, err := mtu(n); err != nil {
		return n, err
	}
	if name := n.Options[OptionBridgeName]; name != "" {
		return n, invalid("option %s=%q is not supported: Slipway names its bridges itself (inspect shows the name)", OptionBridgeName, name)
	}
	unlock, err := lockRanges()
	if err != nil {
		return n, err
	}
	defer unlock()
	if err := m.chooseRange(&n, spec); err != nil {
		return n, err
	}
	n.Bridge = m.ifName("b", n.ID)
	return n, m.adopt(ctx, n, true)
}

// lockRanges keeps two daemons of one machine from choosing the same range at the same
// moment. An abstract socket is a lock that needs no file and dies with its holder.
func lockRanges() (func(), error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("lock address ranges: %w", err)
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@slipway-ranges"})
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		unix.Close(fd)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return nil, fmt.Errorf("lock address ranges: %w", err)
		}
	}
}

func (m *Manager) chooseRange(n *Network, spec Spec) error {
	taken, err := m.taken()
	if err != nil {
		return err
	}
	taken = append(taken, m.node.Pods, m.node.Services)
	n.Subnet, n.UserSubnet = spec.Subnet.Masked(), spec.Subnet.IsValid()
	if !n.UserSubnet {
		if n.Subnet, err = freeSubnet(m.opts.Pools, taken); err != nil {
			return err
		}
	} else if err := m.checkSubnet(n.Subnet); err != nil {
		return err
	}
	n.Range = n.Subnet
	if spec.Range.IsValid() {
		n.Range = spec.Range.Masked()
	}
	n.Gateway = spec.Gateway
	if !n.Gateway.IsValid() {
		n.Gateway = address(max(number(n.Range.Addr()), number(n.Subnet.Addr())+1))
	}
	n.Reserved = spec.Reserved
	return checkAddresses(*n)
}

// checkSubnet refuses what would cut off something else on this machine.
func (m *Manager) checkSubnet(p netip.Prefix) error {
	if !p.Addr().Is4() || p.Bits() > 30 {
		return invalid("invalid subnet %s: an IPv4 range of at least four addresses (/30 or wider) is needed", p)
	}
	taken, err := m.links.taken()
	if err != nil {
		return err
	}
	if overlapsAny(p, append(taken, m.node.Pods, m.node.Services)) {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("invalid pool request: Pool overlaps with other one on this address space: %s is in use by a route or network of this machine", p))
	}
	return nil
}

func checkAddresses(n Network) error {
	if !n.Subnet.Contains(n.Range.Addr()) || n.Range.Bits() < n.Subnet.Bits() {
		return invalid("no matching subnet for range %s: it is not inside %s", n.Range, n.Subnet)
	}
	if !n.Subnet.Contains(n.Gateway) {
		return invalid("no matching subnet for gateway %s: it is not inside %s", n.Gateway, n.Subnet)
	}
	for name, a := range n.Reserved {
		if !n.Subnet.Contains(a) {
			return invalid("no matching subnet for aux-address %s (%s): it is not inside %s", a, name, n.Subnet)
		}
	}
	return nil
}

func mtu(n Network) (int, error) {
	v := n.Options[OptionMTU]
	if v == "" {
		return 0, nil
	}
	i, err := strconv.Atoi(v)
	if err != nil || i < 68 || i > 65535 {
		return 0, invalid("option %s=%q of network %s: a number from 68 to 65535 is needed", OptionMTU, v, n.Name)
	}
	return i, nil
}

// adopt makes a network exist: in the kernel, on disk (when fresh) and in memory.
func (m *Manager) adopt(ctx context.Context, n Network, fresh bool) error {
	s := &segment{Network: n, byAddr: map[netip.Addr]*Endpoint{}, byName: map[string][]*Endpoint{}}
	if n.Driver == DriverBridge {
		if err := m.startBridge(ctx, s, fresh); err != nil {
			return err
		}
	}
	if fresh {
		if err := m.rec.put(kindNetwork, n.ID, s.Network, true); err != nil {
			return errors.Join(err, m.stopBridge(ctx, s))
		}
	}
	m.mu.Lock()
	m.networks[n.ID] = s
	m.mu.Unlock()
	if !m.restored || n.Driver != DriverBridge {
		return nil // restore does the rest for all networks at once
	}
	s.resolver.serve()
	return m.apply(m.table.addNetwork(s.Network)) // which has the resolver's port by now
}

func (m *Manager) startBridge(ctx context.Context, s *segment, fresh bool) error {
	mtu, err := mtu(s.Network)
	if err != nil {
		return err
	}
	s.alloc = newAllocator(s.Subnet, s.Range)
	s.alloc.claim(s.Gateway)
	for _, a := range s.Reserved {
		s.alloc.claim(a)
	}
	if last, err := loadOne[netip.Addr](m.rec, kindCursor, s.ID); err == nil {
		s.alloc.resume(last)
	}
	if err := m.links.ensureBridge(s.Bridge, netip.PrefixFrom(s.Gateway, s.Subnet.Bits()), mtu); err != nil {
		if fresh {
			err = errors.Join(err, m.links.remove(s.Bridge))
		}
		return err
	}
	if s.resolver, err = m.openResolver(ctx, s); err != nil && fresh {
		err = errors.Join(err, m.links.remove(s.Bridge))
	}
	return err
}

func (m *Manager) stopBridge(ctx context.Context, s *segment) error {
	if s.Driver != DriverBridge {
		return nil
	}
	if s.resolver != nil {
		s.resolver.close()
		m.dnsSocks.drop(ctx, s.ID)
	}
	m.reap.delete(s.Bridge)
	return nil
}

// find looks a network up by id, name or unique beginning of its id.
func (m *Manager) find(ref string) (*segment, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.findLocked(ref)
}

func (m *Manager) findLocked(ref string) (*segment, error) {
	if ref == "default" {
		ref = DefaultBridge
	}
	if s := m.networks[ref]; s != nil {
		return s, nil
	}
	var byPrefix []*segment
	for id, s := range m.networks {
		if s.Name == ref {
			return s, nil
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			byPrefix = append(byPrefix, s)
		}
	}
	switch len(byPrefix) {
	case 1:
		return byPrefix[0], nil
	case 0:
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
	}
	return nil, invalid("network %s is ambiguous (%d matches found based on ID prefix)", ref, len(byPrefix))
}

// Get returns a network by id, name or unique beginning of its id.
func (m *Manager) Get(ref string) (Network, error) {
	s, err := m.find(ref)
	if err != nil {
		return Network{}, err
	}
	return s.Network, nil
}

// List returns all networks, oldest first.
func (m *Manager) List() []Network {
	var all []Network
	for _, s := range m.segments() {
		all = append(all, s.Network)
	}
	slices.SortFunc(all, func(a, b Network) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return all
}

// Remove deletes a network without endpoints.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	s, err := m.detachSegment(ref)
	if err != nil {
		return err
	}
	err = m.apply(m.table.removeNetwork(s.Network))
	err = errors.Join(err, m.stopBridge(ctx, s), m.rec.remove(kindCursor, s.ID, false), m.rec.remove(kindNetwork, s.ID, true))
	if err != nil {
		return fmt.Errorf("remove network %s: %w", s.Name, err)
	}
	m.publish("destroy", s.Network, nil)
	return nil
}

// detachSegment takes a network that may go out of the tables.
func (m *Manager) detachSegment(ref string) (*segment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, err := m.findLocked(ref)
	if err != nil {
		return nil, err
	}
	if s.Name == DefaultBridge || s.Name == HostNetwork || s.Name == NoneNetwork {
		return nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("%s is a pre-defined network and cannot be removed", s.Name))
	}
	if active := m.activeLocked(s); len(active) > 0 {
		return nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("error while removing network: network %s has active endpoints (%s)", s.Name, strings.Join(active, ", ")))
	}
	delete(m.networks, s.ID)
	return s, nil
}

func (m *Manager) activeLocked(s *segment) []string {
	var active []string
	for _, ep := range s.byAddr {
		active = append(active, fmt.Sprintf("name:%q id:%q", ep.Name, ep.ContainerID[:min(12, len(ep.ContainerID))]))
	}
	slices.Sort(active)
	return active
}

// Prune removes the networks of one owner that have no endpoints and that keep does not want.
func (m *Manager) Prune(ctx context.Context, owner string, keep func(Network) bool) ([]Network, error) {
	var removed []Network
	var errs []error
	for _, n := range m.List() {
		if n.Owner != owner || n.Name == DefaultBridge || n.Driver != DriverBridge || keep != nil && keep(n) {
			continue
		}
		if eps, err := m.NetworkEndpoints(n.ID); err != nil || len(eps) > 0 {
			continue
		}
		if err := m.Remove(ctx, n.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, n)
	}
	return removed, errors.Join(errs...)
}
