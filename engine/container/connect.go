package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

const sandboxPrefix = "ctr-"

func sandboxID(id string, run int) string { return sandboxPrefix + id + "-" + strconv.Itoa(run) }

// networkKind tells what a network mode means for the namespace.
func networkKind(spec *Spec) (kind, ref string) {
	switch {
	case spec.Sandbox != "":
		return "sandbox", spec.Sandbox
	case spec.NetworkMode == network.HostNetwork:
		return "host", ""
	case spec.NetworkMode == network.NoneNetwork:
		return "none", ""
	case strings.HasPrefix(spec.NetworkMode, "container:"):
		return "container", strings.TrimPrefix(spec.NetworkMode, "container:")
	}
	return "network", primaryNetwork(spec)
}

func primaryNetwork(spec *Spec) string {
	if spec.NetworkMode == "" || spec.NetworkMode == "default" {
		return network.DefaultBridge
	}
	return spec.NetworkMode
}

// wantedNetworks are the networks to be on, by the name they were asked for. Networks
// connected or disconnected later (edited) win over the specification.
func wantedNetworks(spec *Spec, edited map[string]EndpointSpec) map[string]EndpointSpec {
	if edited != nil {
		return edited
	}
	kind, ref := networkKind(spec)
	out := map[string]EndpointSpec{}
	switch kind {
	case "host", "none":
		out[spec.NetworkMode] = EndpointSpec{}
		return out
	case "container", "sandbox":
		return out
	}
	maps.Copy(out, spec.Endpoints)
	if e, ok := out["default"]; ok {
		delete(out, "default")
		out[network.DefaultBridge] = e
	}
	if _, ok := out[ref]; !ok {
		out[ref] = EndpointSpec{}
	}
	return out
}

// connection is what a start has of the network.
type connection struct {
	path      string // of the network namespace, for the specification
	sandbox   string // of the warden; empty: none of our own
	endpoints map[string]Endpoint
	ports     []PortMapping
	first     *Endpoint // carries the name in /etc/hosts
	of        *instance // whose network is shared
}

// connect gives the container its network namespace and its place on its networks.
func (m *Manager) connect(ctx context.Context, c *instance, run int) (*connection, error) {
	spec := c.spec()
	kind, ref := networkKind(spec)
	switch kind {
	case "sandbox":
		path := warden.SandboxPath
		if spec.NetworkMode == network.HostNetwork {
			path = hostNamespace // a sandbox for the rest only
		}
		return &connection{path: path, sandbox: ref}, nil
	case "host":
		endpoints, err := m.nominal(spec)
		return &connection{path: hostNamespace, endpoints: endpoints}, err
	case "container":
		other, pid, err := m.runningPeer(ref, "network", "network of")
		if err != nil {
			return nil, err
		}
		return &connection{path: fmt.Sprintf("/proc/%d/ns/net", pid), of: other}, nil
	}
	id := sandboxID(c.id, run)
	// Noted before it is there: when the answer of the warden is lost, there may be one all the same.
	conn := &connection{path: warden.SandboxPath, sandbox: id, endpoints: map[string]Endpoint{}}
	netns, err := m.Warden.CreateSandbox(ctx, warden.SandboxSpec{ID: id, Net: true})
	if err != nil {
		return conn, fmt.Errorf("create network namespace: %w", err)
	}
	defer netns.Close()
	for _, name := range attachOrder(spec, c.saved().Networks) {
		if err := m.attach(ctx, c, conn, netns, name); err != nil {
			return conn, fmt.Errorf("failed to set up container networking: %w", err)
		}
	}
	return conn, nil
}

// attachOrder: the network of the mode first, because it becomes eth0, then by name.
func attachOrder(spec *Spec, edited map[string]EndpointSpec) []string {
	names := slices.Sorted(maps.Keys(wantedNetworks(spec, edited)))
	if i := slices.Index(names, primaryNetwork(spec)); i > 0 {
		names = slices.Insert(slices.Delete(names, i, i+1), 0, primaryNetwork(spec))
	}
	return names
}

func (m *Manager) attach(ctx context.Context, c *instance, conn *connection, netns *os.File, name string) error {
	want := wantedNetworks(c.spec(), c.saved().Networks)[name]
	e, ports, err := m.attachOne(ctx, c, netns, name, want)
	if err != nil {
		return err
	}
	conn.endpoints[e.Network] = e
	conn.ports = append(conn.ports, ports...)
	if conn.first == nil && e.Addr.IsValid() {
		conn.first = &e
	}
	return nil
}

func (m *Manager) attachOne(ctx context.Context, c *instance, netns *os.File, name string, want EndpointSpec) (Endpoint, []PortMapping, error) {
	spec := c.spec()
	mac, err := parseMAC(want.MAC)
	if err != nil {
		return Endpoint{}, nil, err
	}
	dns, err := parseServers(spec.DNS)
	if err != nil {
		return Endpoint{}, nil, err
	}
	var ports []network.PortMapping
	for _, p := range publishedPorts(spec) {
		ports = append(ports, network.PortMapping{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPortEnd, ContainerPort: p.ContainerPort})
	}
	aliases, links := want.Aliases, map[string]string{}
	if name != network.DefaultBridge {
		if spec.Hostname != "" { // a name that was chosen is a name for others, too
			aliases = append(slices.Clone(aliases), spec.Hostname)
		}
		wanted := want.Links
		if name == primaryNetwork(spec) {
			wanted = append(slices.Clone(wanted), spec.Links...)
		}
		for _, l := range wanted {
			ref, alias := splitLink(l)
			links[alias] = ref
		}
	}
	got, err := m.Networks.Attach(ctx, netns, network.AttachSpec{
		Network: name, ContainerID: c.id, Name: spec.Name, Aliases: aliases, Links: links, IPv4: want.IPv4, MAC: mac, Ports: ports,
		IfName: want.IfName, DNS: dns, GwPriority: want.GwPriority, DriverOpts: want.DriverOpts,
	})
	if err != nil {
		return Endpoint{}, nil, err
	}
	e, mapped := fromNetwork(got, want)
	return e, mapped, nil
}

func fromNetwork(got network.Endpoint, want EndpointSpec) (Endpoint, []PortMapping) {
	e := Endpoint{
		EndpointSpec: want, Network: got.NetworkName, NetworkID: got.NetworkID, ID: got.ID, Addr: got.Addr, Gateway: got.Gateway,
		MAC: got.MAC.String(), DNSNames: got.Names(),
	}
	var ports []PortMapping
	for _, p := range got.Ports {
		ports = append(ports, PortMapping{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort})
	}
	return e, ports
}

// publishedPorts are the ports asked for, and with PublishAll the exposed ones as well.
func publishedPorts(spec *Spec) []PortMapping {
	out := slices.Clone(spec.Ports)
	if !spec.PublishAll {
		return out
	}
	for _, e := range spec.Exposed {
		port, proto, _ := strings.Cut(e, "/")
		if proto == "" {
			proto = "tcp"
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || slices.ContainsFunc(out, func(p PortMapping) bool { return uint64(p.ContainerPort) == n && p.Proto == proto }) {
			continue
		}
		out = append(out, PortMapping{Proto: proto, ContainerPort: uint16(n)})
	}
	return out
}

// nominal is the entry that Docker shows for the host network.
func (m *Manager) nominal(spec *Spec) (map[string]Endpoint, error) {
	n, err := m.Networks.Get(spec.NetworkMode)
	if err != nil {
		return nil, err
	}
	return map[string]Endpoint{n.Name: {Network: n.Name, NetworkID: n.ID}}, nil
}

// runningPeer finds the container of a "container:REF" mode.
func (m *Manager) runningPeer(ref, what, of string) (*instance, int, error) {
	other, err := m.find(ref)
	if err != nil {
		return nil, 0, err
	}
	pid := other.runningPid()
	if pid == 0 {
		return nil, 0, errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot join %s a non running container: %s", of, other.id))
	}
	return other, pid, nil
}

func parseMAC(s string) (net.HardwareAddr, error) {
	if s == "" {
		return nil, nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid MAC address: %q", s))
	}
	return mac, nil
}

func parseServers(in []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range in {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("bad nameserver address: %q is not an ip address", s))
		}
		out = append(out, a)
	}
	return out, nil
}

// Connect puts a container on one more network, at once when it runs.
func (m *Manager) Connect(ctx context.Context, ref, networkRef string, want EndpointSpec) error {
	c, n, unlock, err := m.connectTarget(ctx, ref, networkRef)
	if err != nil {
		return err
	}
	defer unlock()
	kind, _ := networkKind(c.spec())
	if kind == "host" || n.Driver == network.DriverHost {
		return errdefs.ErrPermissionDenied.WithMessage("container cannot be disconnected from host network or connected to host network")
	}
	if kind != "network" && kind != "none" {
		return errdefs.ErrConflict.WithMessage("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	edited := maps.Clone(wantedNetworks(c.spec(), c.saved().Networks))
	if _, on := edited[network.NoneNetwork]; on || n.Driver == network.DriverNone && len(edited) > 0 {
		return errdefs.ErrInvalidArgument.WithMessage("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if _, on := edited[n.Name]; on && c.runningPid() != 0 {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint with name %s already exists in network %s", c.spec().Name, n.Name))
	}
	delete(edited, network.NoneNetwork)
	edited[n.Name] = want
	if c.runningPid() == 0 {
		return c.change(func(s *saved) { s.Networks = edited; s.Endpoints = nil })
	}
	netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.runningPid()))
	if err != nil {
		return fmt.Errorf("connect container %s: %w", c.spec().Name, err)
	}
	defer netns.Close()
	e, ports, err := m.attachOne(ctx, c, netns, n.Name, want)
	if err != nil {
		return err
	}
	return c.change(func(s *saved) {
		s.Networks = edited
		s.Endpoints = maps.Clone(s.Endpoints)
		if s.Endpoints == nil {
			s.Endpoints = map[string]Endpoint{}
		}
		delete(s.Endpoints, network.NoneNetwork)
		s.Endpoints[e.Network] = e
		s.Ports = append(slices.Clone(s.Ports), ports...)
	})
}

// Disconnect takes a container off a network. One that is not on it is an error unless
// force.
func (m *Manager) Disconnect(ctx context.Context, ref, networkRef string, force bool) error {
	c, n, unlock, err := m.connectTarget(ctx, ref, networkRef)
	if err != nil {
		return err
	}
	defer unlock()
	if n.Driver == network.DriverHost {
		return errdefs.ErrPermissionDenied.WithMessage("container cannot be disconnected from host network or connected to host network")
	}
	edited := maps.Clone(wantedNetworks(c.spec(), c.saved().Networks))
	name, on := n.Name, false
	for key := range edited {
		if key == n.Name || key == n.ID || len(key) >= 12 && strings.HasPrefix(n.ID, key) {
			name, on = key, true
		}
	}
	if !on {
		if force {
			return nil
		}
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("container %s is not connected to network %s", c.id, n.Name))
	}
	delete(edited, name)
	if pid := c.runningPid(); pid != 0 {
		netns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil {
			return fmt.Errorf("disconnect container %s: %w", c.spec().Name, err)
		}
		defer netns.Close()
		if err := m.Networks.Detach(ctx, netns, c.id, n.Name); err != nil && !(force && errdefs.IsNotFound(err)) {
			return err
		}
	}
	running := c.runningPid() != 0
	return c.change(func(s *saved) {
		s.Networks = edited
		if running { // published ports may have moved to another network, or ended
			m.adoptEndpointsLocked(c)
			return
		}
		s.Endpoints = maps.Clone(s.Endpoints)
		delete(s.Endpoints, n.Name)
	})
}

func (m *Manager) connectTarget(ctx context.Context, ref, networkRef string) (*instance, network.Network, func(), error) {
	n, err := m.Networks.Get(networkRef)
	if err != nil {
		return nil, n, nil, err
	}
	c, unlock, err := m.hold(ctx, ref)
	if err == nil && c.spec().Sandbox != "" {
		unlock()
		err = errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("container %s belongs to a pod: its networks are the node's", c.spec().Name))
	}
	return c, n, unlock, err
}

// disconnectAll gives back addresses, names and ports of a run that has ended.
func (m *Manager) disconnectAll(ctx context.Context, c *instance) {
	if kind, _ := networkKind(c.spec()); kind != "network" && kind != "none" {
		return
	}
	if err := m.Networks.Release(ctx, c.id); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		m.Log.Warn("network endpoints are not all released", "container", c.id, "error", err)
	}
}
