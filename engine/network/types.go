package network

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"slipway.dev/slipway/engine/event"
)

// Drivers, and the names of the networks that always exist.
const (
	DriverBridge = "bridge"
	DriverHost   = "host"
	DriverNone   = "null" // what Docker calls the driver of network "none"

	DefaultBridge = "bridge"
	HostNetwork   = "host"
	NoneNetwork   = "none"
)

// Options of a bridge network that are obeyed, in Docker's spelling.
const (
	OptionICC        = "com.docker.network.bridge.enable_icc"           // "false": its containers cannot reach each other
	OptionMasquerade = "com.docker.network.bridge.enable_ip_masquerade" // "false": keeps source addresses
	OptionMTU        = "com.docker.network.driver.mtu"
	OptionHostIP     = "com.docker.network.bridge.host_binding_ipv4" // default host address of published ports
	OptionBridgeName = "com.docker.network.bridge.name"
)

// FDStore keeps open descriptors while this process is not running. The warden is one.
type FDStore interface {
	Keep(ctx context.Context, name string, f *os.File) error
	Fetch(ctx context.Context, prefix string) (map[string]*os.File, error)
	Drop(ctx context.Context, name string) error
}

// Publisher hears of networks created, removed, connected and disconnected.
type Publisher interface{ Publish(event.Event) }

// Pool is a range from which subnets of Bits length are taken for networks that name none.
type Pool struct {
	Base netip.Prefix
	Bits int
}

// Options wires a Manager. Dir and Instance are required.
type Options struct {
	Dir      string // private directory for records; made when absent
	Instance string // six hexadecimal characters, in the name of everything the host can see

	FDs          FDStore          // nil: listening sockets die with the process
	Log          *slog.Logger     // nil: discarded
	Events       Publisher        // nil: nobody listens
	DNSUpstreams []netip.AddrPort // empty: those of the host's resolv.conf, followed as it changes
	Pools        []Pool           // empty: Docker's
	PodPool      []netip.Prefix   // candidates for the pod range, first free one wins; empty: the built-in ones
	ServicePool  []netip.Prefix   // candidates for the service range
	HostPolicy   bool             // true: never ask another tool's firewall to let our traffic through
}

// Spec asks for a network.
type Spec struct {
	Name       string
	Driver     string       // empty: bridge
	Subnet     netip.Prefix // invalid: taken from the pools
	Range      netip.Prefix // part of Subnet to take addresses from; invalid: all of it
	Gateway    netip.Addr   // invalid: the first address
	Reserved   map[string]netip.Addr
	Internal   bool // no way out and no published ports
	Attachable bool
	EnableIPv6 bool // refused: not supported
	Labels     map[string]string
	Options    map[string]string
	Owner      string // "docker" when empty; Prune touches one owner's networks
}

// Network is one network; a value, never changed after it was returned.
type Network struct {
	ID         string                `json:"id"`
	Name       string                `json:"name"`
	Driver     string                `json:"driver"`
	Bridge     string                `json:"bridge,omitempty"` // interface name
	Subnet     netip.Prefix          `json:"subnet"`
	Range      netip.Prefix          `json:"range"`
	Gateway    netip.Addr            `json:"gateway"`
	Reserved   map[string]netip.Addr `json:"reserved,omitempty"`
	Internal   bool                  `json:"internal,omitempty"`
	Attachable bool                  `json:"attachable,omitempty"`
	Labels     map[string]string     `json:"labels,omitempty"`
	Options    map[string]string     `json:"options,omitempty"`
	Owner      string                `json:"owner,omitempty"`
	Created    time.Time             `json:"created"`
	UserSubnet bool                  `json:"userSubnet,omitempty"` // Subnet was asked for
	DNSPort    uint16                `json:"dnsPort,omitempty"`    // where the resolver listens on Gateway; not always 53
}

// PortMapping publishes one container port on the host. In a request a zero
// HostPort takes any free port, HostPortEnd a free one of a range; in an Endpoint
// HostPort is the real one.
type PortMapping struct {
	Proto         string     `json:"proto"`  // tcp or udp; empty: tcp
	HostIP        netip.Addr `json:"hostIP"` // invalid: every address of the host
	HostPort      uint16     `json:"hostPort"`
	HostPortEnd   uint16     `json:"hostPortEnd,omitempty"`
	ContainerPort uint16     `json:"containerPort"`
}

// AttachSpec connects one container to one network.
type AttachSpec struct {
	Network     string // name, id or unique id prefix
	ContainerID string // 64 hexadecimal characters; its first 12 are a name on the network
	Name        string // container name
	Aliases     []string
	Links       map[string]string // names that only this container knows -> names on the network
	IPv4        netip.Addr        // invalid: any free address
	MAC         net.HardwareAddr  // nil: derived from the address
	Ports       []PortMapping     // pass the same to every Attach of a container: the first network that can carries them
	IfName      string            // empty: eth0, eth1, ...
	DNS         []netip.Addr      // upstream servers of this container instead of the host's
	GwPriority  int               // the endpoint with the highest carries the default route; ties: the first network by name
	DriverOpts  map[string]string
}

// Endpoint is a container's (or pod's) place on a network.
type Endpoint struct {
	ID          string            `json:"id"`
	NetworkID   string            `json:"networkID"`
	NetworkName string            `json:"networkName"`
	ContainerID string            `json:"containerID"`
	Name        string            `json:"name"`
	Aliases     []string          `json:"aliases,omitempty"`
	Links       map[string]string `json:"links,omitempty"`
	Addr        netip.Prefix      `json:"addr"`    // with the subnet's length; invalid on host and none
	Gateway     netip.Addr        `json:"gateway"` // invalid where there is no way out
	MAC         net.HardwareAddr  `json:"mac,omitempty"`
	IfName      string            `json:"ifName,omitempty"`
	HostIf      string            `json:"hostIf,omitempty"`
	DNS         []netip.Addr      `json:"dns,omitempty"`
	Ports       []PortMapping     `json:"ports,omitempty"` // published here, with real host ports
	WantPorts   []PortMapping     `json:"wantPorts,omitempty"`
	GwPriority  int               `json:"gwPriority,omitempty"`
	Seq         int               `json:"seq"` // order of attachment within the container
}

// Names are all the names this endpoint answers to, each once.
func (e Endpoint) Names() []string {
	var names []string
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	add(e.Name)
	if len(e.ContainerID) >= 12 {
		add(e.ContainerID[:12])
	}
	for _, a := range e.Aliases {
		add(a)
	}
	return names
}

// PodAttach connects one pod.
type PodAttach struct {
	ID       string // the pod's uid
	Hostname string
}
