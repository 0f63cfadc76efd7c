package dockerapi

import (
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	networktypes "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"slipway.dev/slipway/engine/container"
)

func (s *Server) inspectContainer(w *reply, r *request) error {
	info, err := s.containers.Get(r.vars["id"])
	if err != nil {
		return err
	}
	answer, err := containerJSON(info)
	if err != nil {
		return err
	}
	answer.Driver = s.host.driver()
	answer.GraphDriver = &storage.DriverData{Name: s.host.driver(), Data: nil}
	answer.ExecIDs = s.runningExecs(info.ExecIDs)
	if r.flag("size") {
		rw, rootfs, err := s.containers.Size(r.Context(), info.ID)
		if err != nil {
			return err
		}
		answer.SizeRw, answer.SizeRootFs = &rw, &rootfs
	}
	settings, err := withFields(answer.NetworkSettings, legacyAddresses(answer.NetworkSettings.Networks))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		containertypes.InspectResponse
		NetworkSettings json.RawMessage
	}{answer, settings})
}

// runningExecs leaves out those that have ended, which the engine keeps for a while for their exit codes. None is null.
func (s *Server) runningExecs(ids []string) (running []string) {
	for _, id := range ids {
		if e, err := s.containers.ExecInspect(id); err == nil && e.Running {
			running = append(running, id)
		}
	}
	return running
}

// containerJSON is a container as `docker inspect` shows it.
func containerJSON(info container.Info) (containertypes.InspectResponse, error) {
	req, err := originalRequest(info.Spec)
	if err != nil {
		return containertypes.InspectResponse{}, fmt.Errorf("inspect container %s: %w", info.Name, err)
	}
	return containertypes.InspectResponse{
		ID: info.ID, Name: "/" + info.Name, Created: rfc3339(info.Created),
		Path: info.Path, Args: nonNil(info.Args), Image: info.ImageID, Platform: "linux",
		State:        stateJSON(info.State),
		RestartCount: info.RestartCount, ExecIDs: info.ExecIDs,
		ResolvConfPath: info.ResolvConfPath, HostnamePath: info.HostnamePath, HostsPath: info.HostsPath, LogPath: info.LogPath,
		HostConfig:      hostConfigJSON(info, req.HostConfig),
		Config:          configJSON(info, req.Config),
		Mounts:          mountPoints(info.Mounts),
		NetworkSettings: networkSettings(info),
	}, nil
}

// originalRequest is the creation that a container came from, or an empty one where it did not come through this door.
func originalRequest(spec *container.Spec) (containertypes.CreateRequest, error) {
	req := containertypes.CreateRequest{}
	if raw, ok := spec.Annotations[requestAnnotation]; ok {
		if err := json.Unmarshal([]byte(raw), &req); err != nil {
			return req, fmt.Errorf("read the create request that it keeps: %w", err)
		}
	}
	if req.Config == nil {
		req.Config = &containertypes.Config{}
	}
	if req.HostConfig == nil {
		req.HostConfig = hostConfigOf(spec)
	}
	return req, nil
}

// configJSON overlays what is in effect on what was asked for.
func configJSON(info container.Info, c *containertypes.Config) *containertypes.Config {
	spec := info.Spec
	c.Hostname = spec.Hostname
	switch {
	case c.Hostname != "":
	case spec.NetworkMode == networktypes.NetworkHost || spec.UTSMode == "host":
		c.Hostname = readMachine().hostname
	case !strings.HasPrefix(spec.NetworkMode, "container:") && len(info.ID) >= 12:
		c.Hostname = info.ID[:12]
	}
	c.Domainname, c.User, c.WorkingDir, c.Image = spec.Domainname, spec.User, spec.WorkingDir, spec.Image
	c.Tty, c.OpenStdin, c.StdinOnce = spec.Tty, spec.OpenStdin, spec.StdinOnce
	c.Env, c.Cmd, c.Entrypoint = nonNil(spec.Env), spec.Cmd, spec.Entrypoint
	c.Labels = spec.Labels
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	c.StopSignal, c.StopTimeout = spec.StopSignal, spec.StopTimeout
	c.ExposedPorts = nil
	for _, p := range spec.Exposed {
		if port, err := networktypes.ParsePort(p); err == nil {
			if c.ExposedPorts == nil {
				c.ExposedPorts = networktypes.PortSet{}
			}
			c.ExposedPorts[port] = struct{}{}
		}
	}
	for _, target := range spec.Volumes {
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		c.Volumes[target] = struct{}{}
	}
	if h := spec.Healthcheck; h != nil {
		c.Healthcheck = &containertypes.HealthConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	return c
}

// hostConfigJSON is the host configuration asked for, with what can change since brought up to date and defaults filled in.
func hostConfigJSON(info container.Info, h *containertypes.HostConfig) *containertypes.HostConfig {
	overlayResources(h, info.Spec.Resources)
	h.RestartPolicy = containertypes.RestartPolicy{
		Name: containertypes.RestartPolicyMode(info.Spec.Restart.Policy), MaximumRetryCount: info.Spec.Restart.MaxRetries,
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = containertypes.RestartPolicyDisabled
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = containertypes.CgroupnsModeHost
		if readMachine().cgroupVersion == "2" {
			h.CgroupnsMode = containertypes.CgroupnsModePrivate
		}
	}
	h.NetworkMode = containertypes.NetworkMode(info.Spec.NetworkMode)
	if h.NetworkMode == "" || h.NetworkMode == networktypes.NetworkDefault {
		h.NetworkMode = networktypes.NetworkBridge
	}
	if h.PortBindings == nil {
		h.PortBindings = networktypes.PortMap{}
	}
	if h.Runtime == "" {
		h.Runtime = "runc"
	}
	if !h.Privileged {
		masked, readonly := container.DefaultPaths()
		if h.MaskedPaths == nil {
			h.MaskedPaths = masked
		}
		if h.ReadonlyPaths == nil {
			h.ReadonlyPaths = readonly
		}
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	for _, list := range []*[]string{&h.DNSOptions, &h.DNSSearch} {
		*list = nonNil(*list)
	}
	if h.DNS == nil {
		h.DNS = []netip.Addr{}
	}
	return h
}

func overlayResources(h *containertypes.HostConfig, r container.Resources) {
	h.Memory, h.MemorySwap, h.MemoryReservation, h.MemorySwappiness = r.Memory, r.MemorySwap, r.MemoryReservation, r.MemorySwappiness
	h.NanoCPUs, h.CPUShares, h.CPUQuota, h.CPUPeriod = r.NanoCPUs, r.CPUShares, r.CPUQuota, r.CPUPeriod
	h.CpusetCpus, h.CpusetMems, h.PidsLimit, h.BlkioWeight = r.CpusetCpus, r.CpusetMems, r.PidsLimit, r.BlkioWeight
	if r.ShmSize != 0 {
		h.ShmSize = r.ShmSize
	}
}

// hostConfigOf shows a container that was not created through this door.
func hostConfigOf(spec *container.Spec) *containertypes.HostConfig {
	h := &containertypes.HostConfig{
		AutoRemove: spec.AutoRemove, Privileged: spec.Privileged, ReadonlyRootfs: spec.ReadOnly,
		CapAdd: spec.CapAdd, CapDrop: spec.CapDrop, SecurityOpt: spec.SecurityOpt, GroupAdd: spec.GroupAdd, Sysctls: spec.Sysctls,
		ExtraHosts: spec.ExtraHosts, DNSSearch: spec.DNSSearch, DNSOptions: spec.DNSOptions,
		PidMode: containertypes.PidMode(spec.PidMode), IpcMode: containertypes.IpcMode(spec.IpcMode), UTSMode: containertypes.UTSMode(spec.UTSMode),
		LogConfig: containertypes.LogConfig{Type: spec.Log.Driver, Config: spec.Log.Options},
	}
	h.CgroupParent = spec.CgroupParent
	for _, m := range spec.Mounts {
		if m.Type != container.MountBind {
			continue
		}
		bind := m.Source + ":" + m.Target
		if m.ReadOnly {
			bind += ":ro"
		}
		h.Binds = append(h.Binds, bind)
	}
	return h
}

func stateJSON(st container.State) *containertypes.State {
	return &containertypes.State{
		Status: containertypes.ContainerState(st.Status), Running: st.Running, Paused: st.Paused, Restarting: st.Restarting,
		OOMKilled: st.OOMKilled, Dead: st.Dead, Pid: st.Pid, ExitCode: st.ExitCode, Error: st.Error,
		StartedAt: rfc3339(st.StartedAt), FinishedAt: rfc3339(st.FinishedAt), Health: healthJSON(st.Health),
	}
}

func healthJSON(h *container.HealthState) *containertypes.Health {
	if h == nil || h.Status == "" {
		return nil
	}
	health := &containertypes.Health{
		Status: containertypes.HealthStatus(h.Status), FailingStreak: h.FailingStreak, Log: []*containertypes.HealthcheckResult{},
	}
	for _, r := range h.Log {
		health.Log = append(health.Log, &containertypes.HealthcheckResult{Start: r.Start, End: r.End, ExitCode: r.ExitCode, Output: r.Output})
	}
	return health
}

func mountPoints(points []container.MountPoint) []containertypes.MountPoint {
	list := make([]containertypes.MountPoint, 0, len(points))
	for _, p := range points {
		if p.Type == container.MountVolume && p.Mode == "" {
			p.Mode = "z" // what Docker has there when nothing was said
		}
		list = append(list, containertypes.MountPoint{
			Type: mount.Type(p.Type), Name: p.Name, Source: p.Source, Destination: p.Target, Driver: p.Driver,
			Mode: p.Mode, RW: !p.ReadOnly, Propagation: mount.Propagation(p.Propagation),
		})
	}
	return list
}

func networkSettings(info container.Info) *containertypes.NetworkSettings {
	settings := &containertypes.NetworkSettings{
		SandboxKey: info.SandboxKey, Ports: networktypes.PortMap{}, Networks: endpointsJSON(info),
	}
	if info.State.Running {
		settings.SandboxID = info.ID // one sandbox per container, so its id does
		for _, p := range info.Spec.Exposed {
			if port, err := networktypes.ParsePort(p); err == nil {
				settings.Ports[port] = nil
			}
		}
		for _, p := range info.Ports {
			port, ok := networktypes.PortFrom(p.ContainerPort, networktypes.IPProtocol(p.Proto))
			if !ok || p.HostPort == 0 {
				continue
			}
			settings.Ports[port] = append(settings.Ports[port], networktypes.PortBinding{HostIP: hostIP(p.HostIP), HostPort: strconv.Itoa(int(p.HostPort))})
		}
	}
	return settings
}

// hostIP is where a port is published, which for no address is every IPv4 address.
func hostIP(a netip.Addr) netip.Addr {
	if !a.IsValid() {
		return netip.IPv4Unspecified()
	}
	return a
}

func endpointsJSON(info container.Info) map[string]*networktypes.EndpointSettings {
	endpoints := map[string]*networktypes.EndpointSettings{}
	for name, e := range info.Endpoints {
		endpoints[name] = endpointJSON(e)
	}
	return endpoints
}

func endpointJSON(e container.Endpoint) *networktypes.EndpointSettings {
	mac, _ := net.ParseMAC(e.MAC)
	settings := &networktypes.EndpointSettings{
		Links: e.Links, Aliases: e.Aliases, DriverOpts: e.DriverOpts, GwPriority: e.GwPriority,
		NetworkID: e.NetworkID, EndpointID: e.ID, Gateway: e.Gateway, MacAddress: networktypes.HardwareAddr(mac), DNSNames: e.DNSNames,
	}
	if e.Addr.IsValid() {
		settings.IPAddress, settings.IPPrefixLen = e.Addr.Addr(), e.Addr.Bits()
	}
	if e.Addr6.IsValid() {
		settings.IPv6Gateway, settings.GlobalIPv6Address, settings.GlobalIPv6PrefixLen = e.Gateway6, e.Addr6.Addr(), e.Addr6.Bits()
	}
	if e.IPv4.IsValid() || e.IPv6.IsValid() {
		settings.IPAMConfig = &networktypes.EndpointIPAMConfig{IPv4Address: e.IPv4, IPv6Address: e.IPv6}
	}
	return settings
}

// legacyAddresses are the default bridge's figures at the top of NetworkSettings, where `docker inspect -f
// {{.NetworkSettings.IPAddress}}` has looked since before there were networks. They went away in 1.52.
func legacyAddresses(endpoints map[string]*networktypes.EndpointSettings) map[string]any {
	e := endpoints[networktypes.NetworkBridge]
	if e == nil {
		e = &networktypes.EndpointSettings{}
	}
	return map[string]any{
		"Bridge": "", "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
		"SecondaryIPAddresses": nil, "SecondaryIPv6Addresses": nil,
		"EndpointID": e.EndpointID, "Gateway": e.Gateway, "GlobalIPv6Address": e.GlobalIPv6Address, "GlobalIPv6PrefixLen": e.GlobalIPv6PrefixLen,
		"IPAddress": e.IPAddress, "IPPrefixLen": e.IPPrefixLen, "IPv6Gateway": e.IPv6Gateway, "MacAddress": e.MacAddress,
	}
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func sortedPorts(ports iter.Seq[networktypes.Port]) []networktypes.Port {
	return slices.SortedFunc(ports, func(a, b networktypes.Port) int {
		if a.Num() != b.Num() {
			return int(a.Num()) - int(b.Num())
		}
		return strings.Compare(string(a.Proto()), string(b.Proto()))
	})
}
