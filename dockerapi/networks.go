package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	networktypes "github.com/moby/moby/api/types/network"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/network"
)

// Networks is what this package needs of engine/network.
type Networks interface {
	Create(ctx context.Context, spec network.Spec) (network.Network, error)
	Get(ref string) (network.Network, error)
	List() []network.Network
	Remove(ctx context.Context, ref string) error
	Prune(ctx context.Context, owner string, keep func(network.Network) bool) ([]network.Network, error)
	NetworkEndpoints(ref string) ([]network.Endpoint, error)
}

var networkFilters = []string{"dangling", "driver", "id", "label", "name", "scope", "type"}

func (s *Server) networkRoutes(t *router) {
	t.add("GET", "/networks", s.listNetworks)
	t.add("GET", "/networks/", s.listNetworks)
	t.add("POST", "/networks/create", s.createNetwork)
	t.add("POST", "/networks/prune", s.pruneNetworks)
	t.add("GET", "/networks/{id}", s.inspectNetwork)
	t.add("DELETE", "/networks/{id}", s.removeNetwork)
	t.add("POST", "/networks/{id}/connect", s.connectNetwork)
	t.add("POST", "/networks/{id}/disconnect", s.disconnectNetwork)
}

func (s *Server) listNetworks(w *reply, r *request) error {
	f, err := parseFilters(r, networkFilters...)
	if err != nil {
		return err
	}
	for _, kind := range f["type"] {
		if kind != "builtin" && kind != "custom" {
			return invalid("invalid filter: 'type'='%s'", kind)
		}
	}
	dangling, filtered, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	list := []networktypes.Inspect{}
	for _, n := range s.networks.List() {
		if n.Owner == container.OwnerNode || !networkFits(f, n) {
			continue
		}
		if filtered && dangling != (s.isUnused(n) && !isBuiltin(n)) {
			continue
		}
		list = append(list, networktypes.Inspect{Network: networkJSON(n), Containers: map[string]networktypes.EndpointResource{}})
	}
	return writeJSON(w, http.StatusOK, list)
}

func networkFits(f filters, n network.Network) bool {
	kind := "custom"
	if isBuiltin(n) {
		kind = "builtin"
	}
	return f.exact("driver", n.Driver) && f.exact("scope", "local") && f.exact("type", kind) &&
		f.name("name", n.Name) && f.name("id", n.ID) && f.labels(n.Labels)
}

func isBuiltin(n network.Network) bool {
	return n.Name == network.DefaultBridge || n.Name == network.HostNetwork || n.Name == network.NoneNetwork
}

// isUnused is true when no container, running or not, is to be on the network.
func (s *Server) isUnused(n network.Network) bool {
	for _, c := range s.dockerContainers(nil) {
		for _, e := range c.Endpoints {
			if e.NetworkID == n.ID {
				return false
			}
		}
	}
	endpoints, err := s.networks.NetworkEndpoints(n.ID)
	return err == nil && len(endpoints) == 0
}

func networkJSON(n network.Network) networktypes.Network {
	v := networktypes.Network{
		ID: n.ID, Name: n.Name, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true,
		IPAM:     networktypes.IPAM{Driver: "default", Config: []networktypes.IPAMConfig{}},
		Internal: n.Internal, Attachable: n.Attachable, Options: n.Options, Labels: n.Labels,
	}
	if v.Options == nil {
		v.Options = map[string]string{}
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	if n.Subnet.IsValid() {
		c := networktypes.IPAMConfig{Subnet: n.Subnet, Gateway: n.Gateway, AuxAddress: n.Reserved}
		if n.Range.IsValid() && n.Range != n.Subnet {
			c.IPRange = n.Range
		}
		v.IPAM.Config = append(v.IPAM.Config, c)
	}
	return v
}

func (s *Server) inspectNetwork(w *reply, r *request) error {
	n, err := s.networks.Get(r.vars["id"])
	if err != nil {
		return err
	}
	if scope := r.query.Get("scope"); scope != "" && scope != "local" {
		return notFound("network %s not found", r.vars["id"])
	}
	endpoints, err := s.networks.NetworkEndpoints(n.ID)
	if err != nil {
		return err
	}
	containers := map[string]networktypes.EndpointResource{}
	for _, e := range endpoints {
		containers[e.ContainerID] = networktypes.EndpointResource{
			Name: e.Name, EndpointID: e.ID, MacAddress: networktypes.HardwareAddr(e.MAC), IPv4Address: e.Addr,
		}
	}
	return writeJSON(w, http.StatusOK, networktypes.Inspect{Network: networkJSON(n), Containers: containers})
}

func (s *Server) createNetwork(w *reply, r *request) error {
	var req struct {
		networktypes.CreateRequest
		CheckDuplicate bool // always checked since 1.44
	}
	if err := readJSON(r, &req); err != nil {
		return err
	}
	spec, err := networkSpec(&req.CreateRequest)
	if err != nil {
		return err
	}
	n, err := s.networks.Create(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, networktypes.CreateResponse{ID: n.ID})
}

func networkSpec(req *networktypes.CreateRequest) (network.Spec, error) {
	spec := network.Spec{
		Name: req.Name, Driver: req.Driver, Internal: req.Internal, Attachable: req.Attachable,
		EnableIPv6: req.EnableIPv6 != nil && *req.EnableIPv6, Labels: req.Labels, Options: req.Options, Owner: container.OwnerDocker,
	}
	switch {
	case req.Name == "":
		return spec, invalid("network name cannot be empty")
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return spec, invalid("networks without IPv4 are not supported")
	case req.Ingress || req.Scope == "swarm" || req.Scope == "global":
		return spec, invalid("%s", notManager)
	case req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return spec, invalid("config-only networks are not supported")
	}
	if req.IPAM == nil {
		return spec, nil
	}
	if d := req.IPAM.Driver; d != "" && d != "default" {
		return spec, invalid("ipam driver %q is not supported: use default", d)
	}
	return spec, addressSpec(&spec, req.IPAM.Config)
}

// addressSpec takes the one IPv4 subnet that a network can have.
func addressSpec(spec *network.Spec, configs []networktypes.IPAMConfig) error {
	for _, c := range configs {
		if !c.Subnet.IsValid() && !c.IPRange.IsValid() && !c.Gateway.IsValid() && len(c.AuxAddress) == 0 {
			continue
		}
		if c.Subnet.IsValid() && c.Subnet.Addr().Is6() {
			return invalid("subnet %s: IPv6 is not supported", c.Subnet)
		}
		if spec.Subnet.IsValid() {
			return invalid("bridge driver doesn't support multiple subnets")
		}
		if err := checkSubnet(c); err != nil {
			return err
		}
		spec.Subnet, spec.Range, spec.Gateway, spec.Reserved = c.Subnet, c.IPRange, c.Gateway, c.AuxAddress
	}
	return nil
}

func checkSubnet(c networktypes.IPAMConfig) error {
	if !c.Subnet.IsValid() {
		return invalid("no configured subnet or ip-range contain the IP address %s", firstValid(c.Gateway, c.IPRange.Addr()))
	}
	if c.Subnet != c.Subnet.Masked() {
		return invalid("invalid network config: invalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
	}
	if c.IPRange.IsValid() && (!c.Subnet.Contains(c.IPRange.Addr()) || c.IPRange.Bits() < c.Subnet.Bits()) {
		return invalid("invalid network config: invalid ip-range %s: it should be part of subnet %s", c.IPRange, c.Subnet)
	}
	if c.Gateway.IsValid() && !c.Subnet.Contains(c.Gateway) {
		return invalid("invalid network config: invalid gateway %s: parent subnet %s doesn't contain this address", c.Gateway, c.Subnet)
	}
	for name, a := range c.AuxAddress {
		if !c.Subnet.Contains(a) {
			return invalid("invalid network config: invalid auxiliary address %s (%s): parent subnet %s doesn't contain this address", a, name, c.Subnet)
		}
	}
	return nil
}

func firstValid(addrs ...netip.Addr) netip.Addr {
	i := slices.IndexFunc(addrs, netip.Addr.IsValid)
	return addrs[max(i, 0)]
}

func (s *Server) removeNetwork(w *reply, r *request) error {
	if err := s.networks.Remove(r.Context(), r.vars["id"]); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) connectNetwork(w *reply, r *request) error {
	var req networktypes.ConnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	n, err := s.networks.Get(r.vars["id"])
	if err != nil {
		return err
	}
	if e := req.EndpointConfig; e != nil && len(e.Aliases) > 0 && isBuiltin(n) {
		return invalid("network-scoped aliases are only supported for user-defined networks")
	}
	if err := s.containers.Connect(r.Context(), req.Container, n.Name, endpointSpec(req.EndpointConfig)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) disconnectNetwork(w *reply, r *request) error {
	var req networktypes.DisconnectRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	n, err := s.networks.Get(r.vars["id"])
	if err != nil {
		return err
	}
	if err := s.containers.Disconnect(r.Context(), req.Container, n.Name, req.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) pruneNetworks(w *reply, r *request) error {
	f, err := parseFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	removed, err := s.networks.Prune(r.Context(), container.OwnerDocker, func(n network.Network) bool {
		return !f.labels(n.Labels) || !until.IsZero() && n.Created.After(until) || !s.isUnused(n)
	})
	if err != nil {
		return fmt.Errorf("prune networks: %w", err)
	}
	report := networktypes.PruneReport{NetworksDeleted: []string{}}
	for _, n := range removed {
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	s.publishPrune("network", 0)
	return writeJSON(w, http.StatusOK, report)
}
