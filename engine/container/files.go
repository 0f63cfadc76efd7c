package container

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/network"
)

const hostsHeader = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
ff00::	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// systemFiles writes hosts, resolv.conf and hostname for a run and returns the mounts
// that show them in the container.
func (m *Manager) systemFiles(c *instance, conn *connection, hostname string) ([]specs.Mount, error) {
	spec := c.spec()
	if spec.Sandbox != "" {
		return fileMounts(spec, spec.HostsFile, spec.ResolvConf, spec.HostnameFile), nil
	}
	dir := c.dir
	if conn.of != nil { // files of the container whose network is shared
		dir = m.networkOwner(conn.of).dir
		return fileMounts(spec, dir+"/hosts", dir+"/resolv.conf", dir+"/hostname"), nil
	}
	if err := os.WriteFile(filepath.Join(dir, "hostname"), []byte(hostname+"\n"), 0o644); err != nil {
		return nil, err
	}
	hosts, err := m.hosts(spec, conn, hostname)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts"), []byte(hosts), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(resolvConf(spec, conn)), 0o644); err != nil {
		return nil, err
	}
	return fileMounts(spec, dir+"/hosts", dir+"/resolv.conf", dir+"/hostname"), nil
}

// networkOwner is the container whose network c shares in the end.
func (m *Manager) networkOwner(c *instance) *instance {
	for range maxLinks {
		kind, ref := networkKind(c.spec())
		if kind != "container" {
			break
		}
		next, err := m.find(ref)
		if err != nil {
			break
		}
		c = next
	}
	return c
}

// fileMounts are as writable as the root that they are in.
func fileMounts(spec *Spec, hosts, resolv, hostname string) []specs.Mount {
	options := []string{"rbind", "rprivate"}
	if spec.ReadOnly && spec.Sandbox == "" {
		options = append(options, "ro")
	}
	var out []specs.Mount
	for _, f := range []struct{ source, target string }{
		{resolv, "/etc/resolv.conf"}, {hostname, "/etc/hostname"}, {hosts, "/etc/hosts"},
	} {
		if f.source != "" {
			out = append(out, specs.Mount{Destination: f.target, Type: "bind", Source: f.source, Options: options})
		}
	}
	return out
}

func (m *Manager) hosts(spec *Spec, conn *connection, hostname string) (string, error) {
	var b strings.Builder
	if conn.path == hostNamespace {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil && !os.IsNotExist(err) {
			return "", err
		}
		b.Write(own)
	} else {
		b.WriteString(hostsHeader)
	}
	for _, h := range spec.ExtraHosts {
		name, addr, _ := splitHost(h)
		if addr == "host-gateway" {
			gw := m.gateway(conn)
			if !gw.IsValid() {
				return "", fmt.Errorf("unable to derive the IP value for host-gateway: the container has no network with a gateway")
			}
			addr = gw.String()
		}
		fmt.Fprintf(&b, "%s\t%s\n", addr, name)
	}
	if err := m.writeLinks(&b, spec); err != nil {
		return "", err
	}
	if conn.first != nil {
		names := hostname
		if spec.Domainname != "" {
			names = hostname + "." + spec.Domainname + " " + hostname
		} else if short, _, qualified := strings.Cut(hostname, "."); qualified {
			names += " " + short
		}
		fmt.Fprintf(&b, "%s\t%s\n", conn.first.Addr.Addr(), names)
	}
	return b.String(), nil
}

// writeLinks resolves legacy links once, as Docker does on the default bridge. On other networks they are names
// that only this container knows, and that follow their container.
func (m *Manager) writeLinks(b *strings.Builder, spec *Spec) error {
	if primaryNetwork(spec) != network.DefaultBridge {
		return nil
	}
	for _, l := range spec.Links {
		ref, alias := splitLink(l)
		other, err := m.find(ref)
		if err != nil {
			return err
		}
		if other.runningPid() == 0 {
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Cannot link to a non running container: /%s AS /%s/%s", other.spec().Name, spec.Name, alias))
		}
		for _, e := range other.saved().Endpoints {
			if e.Addr.IsValid() {
				fmt.Fprintf(b, "%s\t%s %s %s\n", e.Addr.Addr(), alias, other.id[:12], other.spec().Name)
				break
			}
		}
	}
	return nil
}

// splitLink reads "container[:alias]"; the alias of old may be a path.
func splitLink(l string) (ref, alias string) {
	ref, alias, ok := strings.Cut(l, ":")
	if !ok {
		alias = ref
	}
	return strings.TrimPrefix(ref, "/"), alias[strings.LastIndexByte(alias, '/')+1:]
}

func (m *Manager) gateway(conn *connection) netip.Addr {
	if m.HostGateway.IsValid() || conn.first == nil {
		return m.HostGateway
	}
	return conn.first.Gateway
}

// resolvConf points containers on a network at its resolver and leaves those on the
// host's network (or on none) with the host's servers.
func resolvConf(spec *Spec, conn *connection) string {
	search, options, servers := resolvDirectives()
	if conn.path != hostNamespace && len(conn.endpoints) > 0 && conn.first != nil {
		servers = []string{"127.0.0.11"}
	} else if len(spec.DNS) > 0 {
		servers = spec.DNS
	}
	if len(spec.DNSSearch) > 0 {
		search = strings.Join(spec.DNSSearch, " ")
	}
	if len(spec.DNSOptions) > 0 {
		options = strings.Join(spec.DNSOptions, " ")
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if search != "" && search != "." {
		fmt.Fprintf(&b, "search %s\n", search)
	}
	if options != "" {
		fmt.Fprintf(&b, "options %s\n", options)
	}
	return b.String()
}
