package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

// connect gives the step its namespaces, its network, and the files that go with it.
func (s *step) connect(ctx context.Context, b *specs.Spec, hostname string) error {
	for _, t := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: t})
	}
	resolv, err := hostResolvConf(s.p.Network == pb.NetMode_HOST)
	if err != nil {
		return err
	}
	addr := "127.0.0.1"
	switch s.p.Network {
	case pb.NetMode_HOST:
	case pb.NetMode_NONE:
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	default:
		ep, err := s.bridge(ctx)
		if err != nil {
			return err
		}
		b.Linux.Namespaces = append(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: warden.SandboxPath})
		if ep.Addr.IsValid() {
			addr = ep.Addr.Addr().String()
			resolv = viaResolver(resolv)
		}
	}
	return s.netFiles(b, resolv, hosts(addr, hostname, s.p.ExtraHosts))
}

// bridge puts the step on the default network.
func (s *step) bridge(ctx context.Context) (network.Endpoint, error) {
	s.sandbox = prefix + s.id
	// Registered before it is there: when the answer of the warden is lost, there may be one all the same.
	s.undo = append(s.undo, func(ctx context.Context) error { return s.r.o.Warden.RemoveSandbox(ctx, s.sandbox) })
	netns, err := s.r.o.Warden.CreateSandbox(ctx, warden.SandboxSpec{ID: s.sandbox, Net: true})
	if err != nil {
		return network.Endpoint{}, fmt.Errorf("make network namespace: %w", err)
	}
	defer netns.Close()
	if s.r.o.Networks == nil {
		return network.Endpoint{}, nil
	}
	// Released before the namespace goes: what is registered first is undone last.
	s.undo = append(s.undo, func(ctx context.Context) error { return s.r.o.Networks.Release(ctx, s.id) })
	ep, err := s.r.o.Networks.Attach(ctx, netns, network.AttachSpec{Network: network.DefaultBridge, ContainerID: s.id})
	if err != nil {
		return network.Endpoint{}, fmt.Errorf("connect step to network: %w", err)
	}
	return ep, nil
}

// hostResolvConf reads the host's resolver configuration. systemd's stub is of no use in
// another network namespace: there the real servers are wanted.
func hostResolvConf(hostNetwork bool) ([]byte, error) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's resolver configuration: %w", err)
	}
	if !hostNetwork && bytes.Contains(data, []byte("nameserver 127.0.0.53")) {
		if real, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
			return real, nil
		}
	}
	return data, nil
}

// viaResolver names the network's resolver and keeps the host's search list and options.
func viaResolver(host []byte) []byte {
	out := []byte("nameserver 127.0.0.11\n")
	for line := range strings.Lines(string(host)) {
		if f := strings.Fields(line); len(f) > 0 && (f[0] == "search" || f[0] == "options") {
			out = append(out, strings.Join(f, " ")+"\n"...)
		}
	}
	return out
}

func hosts(addr, hostname string, extra []*pb.HostIP) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
	for _, h := range extra {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Host)
	}
	return b.Bytes()
}

func (s *step) netFiles(b *specs.Spec, resolv, hosts []byte) error {
	for _, f := range []struct {
		name, dest string
		content    []byte
	}{{"resolv.conf", "/etc/resolv.conf", resolv}, {"hosts", "/etc/hosts", hosts}} {
		p := filepath.Join(s.dir, f.name)
		if err := os.WriteFile(p, f.content, 0o644); err != nil {
			return fmt.Errorf("prepare step: %w", err)
		}
		b.Mounts = append(b.Mounts, specs.Mount{Destination: f.dest, Type: "bind", Source: p, Options: []string{"bind", "ro"}})
	}
	return nil
}
