package main

import (
	"encoding/csv"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// setNetworks reads --network, short or long (name=…,alias=…), and the flags that say more about the only one.
func (f *createFlags) setNetworks(_ *pflag.FlagSet, req *container.CreateRequest) error {
	req.HostConfig.ExtraHosts = nil
	for _, h := range f.addHosts {
		host, ip, ok := strings.Cut(h, "=")
		if !ok {
			host, ip, ok = strings.Cut(h, ":")
		}
		if !ok || host == "" {
			return fmt.Errorf("--add-host %q: want NAME:IP", h)
		}
		ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
		if _, err := netip.ParseAddr(ip); err != nil && ip != "host-gateway" {
			return fmt.Errorf("--add-host %q: %q is no IP address", h, ip)
		}
		req.HostConfig.ExtraHosts = append(req.HostConfig.ExtraHosts, host+":"+ip)
	}
	for _, d := range f.dns {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return fmt.Errorf("--dns %q: not an IP address", d)
		}
		req.HostConfig.DNS = append(req.HostConfig.DNS, a)
	}
	endpoints := map[string]*network.EndpointSettings{}
	for i, n := range f.networks {
		name, e, err := parseNetwork(n)
		if err != nil {
			return fmt.Errorf("--network %q: %w", n, err)
		}
		if _, twice := endpoints[name]; twice {
			return fmt.Errorf("network %q is specified multiple times", name)
		}
		if i == 0 {
			req.HostConfig.NetworkMode = container.NetworkMode(name)
			if err := f.refine(e); err != nil {
				return err
			}
		}
		endpoints[name] = e
	}
	if len(f.networks) == 0 && (len(f.aliases) > 0 || f.ip != "" || f.ip6 != "" || f.mac != "" || len(f.linkLocal) > 0) {
		e := &network.EndpointSettings{}
		if err := f.refine(e); err != nil {
			return err
		}
		endpoints[network.NetworkDefault] = e
	}
	mode := req.HostConfig.NetworkMode
	if len(endpoints) == 1 && (mode.IsHost() || mode.IsNone() || mode.IsContainer()) {
		return nil
	}
	if len(endpoints) > 0 {
		req.NetworkingConfig.EndpointsConfig = endpoints
	}
	return nil
}

// refine applies --network-alias, --ip and so on.
func (f *createFlags) refine(e *network.EndpointSettings) (err error) {
	e.Aliases = append(e.Aliases, f.aliases...)
	if f.mac != "" {
		mac, err := net.ParseMAC(f.mac)
		if err != nil {
			return fmt.Errorf("%s is not a valid mac address", f.mac)
		}
		e.MacAddress = network.HardwareAddr(mac)
	}
	for _, a := range []struct{ flag, value string }{{"ip", f.ip}, {"ip6", f.ip6}} {
		if a.value == "" {
			continue
		}
		if err := setAddress(e, a.flag, a.value); err != nil {
			return err
		}
	}
	for _, l := range f.linkLocal {
		if err := setAddress(e, "link-local-ip", l); err != nil {
			return err
		}
	}
	return nil
}

func setAddress(e *network.EndpointSettings, key, value string) error {
	a, err := netip.ParseAddr(value)
	if err != nil {
		return fmt.Errorf("%s %q is no IP address", key, value)
	}
	if e.IPAMConfig == nil {
		e.IPAMConfig = &network.EndpointIPAMConfig{}
	}
	switch key {
	case "ip":
		e.IPAMConfig.IPv4Address = a
	case "ip6":
		e.IPAMConfig.IPv6Address = a
	default:
		e.IPAMConfig.LinkLocalIPs = append(e.IPAMConfig.LinkLocalIPs, a)
	}
	return nil
}

func parseNetwork(s string) (name string, e *network.EndpointSettings, err error) {
	e = &network.EndpointSettings{}
	if !strings.Contains(s, "=") {
		return s, e, nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return "", nil, err
	}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok || value == "" {
			return "", nil, fmt.Errorf("invalid field %q: want KEY=VALUE", field)
		}
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "name":
			name = value
		case "alias":
			e.Aliases = append(e.Aliases, value)
		case "ip", "ip6", "link-local-ip":
			err = setAddress(e, key, value)
		case "mac-address":
			var mac net.HardwareAddr
			mac, err = net.ParseMAC(value)
			e.MacAddress = network.HardwareAddr(mac)
		case "driver-opt":
			k, v, _ := strings.Cut(value, "=")
			if e.DriverOpts == nil {
				e.DriverOpts = map[string]string{}
			}
			e.DriverOpts[k] = v
		case "gw-priority":
			e.GwPriority, err = strconv.Atoi(value)
		default:
			err = fmt.Errorf("invalid key %s", key)
		}
		if err != nil {
			return "", nil, err
		}
	}
	if name == "" {
		return "", nil, fmt.Errorf("network name is required")
	}
	return name, e, nil
}

// setSecurity reads devices and security options; a seccomp profile is sent as its content.
func (f *createFlags) setSecurity(_ *pflag.FlagSet, req *container.CreateRequest) error {
	h := req.HostConfig
	h.DeviceCgroupRules = f.deviceRules
	for _, d := range f.devices {
		device, err := parseDevice(d)
		if err != nil {
			return fmt.Errorf("--device %q: %w", d, err)
		}
		h.Devices = append(h.Devices, device)
	}
	for _, o := range f.securityOpt {
		key, value, valued := strings.Cut(o, "=")
		if !valued && key != "no-new-privileges" {
			if key, value, valued = strings.Cut(o, ":"); !valued {
				return fmt.Errorf("--security-opt %q: want KEY=VALUE", o)
			}
			o = key + "=" + value
		}
		if key == "seccomp" && value != "unconfined" && value != "builtin" {
			raw, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("--security-opt: opening seccomp profile (%s) failed: %w", value, err)
			}
			o = "seccomp=" + string(raw)
		}
		if o == "systempaths=unconfined" {
			h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
			continue
		}
		h.SecurityOpt = append(h.SecurityOpt, o)
	}
	return nil
}

func parseDevice(s string) (container.DeviceMapping, error) {
	parts := strings.Split(s, ":")
	d := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
	switch len(parts) {
	case 1:
	case 2:
		if isPermissions(parts[1]) {
			d.CgroupPermissions = parts[1]
		} else {
			d.PathInContainer = parts[1]
		}
	case 3:
		d.PathInContainer, d.CgroupPermissions = parts[1], parts[2]
		if !isPermissions(d.CgroupPermissions) {
			return d, fmt.Errorf("bad mode specified: %s", d.CgroupPermissions)
		}
	default:
		return d, fmt.Errorf("invalid device specification")
	}
	if !strings.HasPrefix(d.PathInContainer, "/") {
		return d, fmt.Errorf("%s is not an absolute path", d.PathInContainer)
	}
	return d, nil
}

func isPermissions(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
