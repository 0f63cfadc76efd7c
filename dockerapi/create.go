package dockerapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/strslice"

	"slipway.dev/slipway/engine/container"
)

// requestAnnotation is where a container keeps the request that it was created from, for inspect.
const requestAnnotation = "slipway.docker.request"

// createRequest is a creation with the spellings that older clients use.
type createRequest struct {
	containertypes.CreateRequest
	Cmd        strslice.StrSlice // a plain string is one argument
	Entrypoint strslice.StrSlice
	MacAddress string `json:",omitempty"` // until 1.43; an endpoint's since
}

func (s *Server) createContainer(w *reply, r *request) error {
	var req createRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if req.Config == nil {
		return invalid("config cannot be empty in order to create a container")
	}
	req.normalize()
	if names := slices.Sorted(maps.Keys(req.NetworkingConfig.EndpointsConfig)); len(names) > 1 && r.version.less(apiVersion{1, 44}) {
		return invalid("Container cannot be created with multiple network endpoints: %s", strings.Join(names, ", "))
	}
	if err := s.checkPlatform(r, req.Config.Image); err != nil {
		return err
	}
	spec, warnings, err := s.containerSpec(&req)
	if err != nil {
		return err
	}
	spec.Name = strings.TrimPrefix(r.query.Get("name"), "/")
	info, err := s.containers.Create(r.Context(), spec)
	if err != nil {
		return err
	}
	if warnings == nil {
		warnings = []string{}
	}
	return writeJSON(w, http.StatusCreated, containertypes.CreateResponse{ID: info.ID, Warnings: warnings})
}

// normalize folds old spellings into the current ones and fills in what may be absent.
func (req *createRequest) normalize() {
	if req.HostConfig == nil {
		req.HostConfig = &containertypes.HostConfig{}
	}
	if req.NetworkingConfig == nil {
		req.NetworkingConfig = &networktypes.NetworkingConfig{}
	}
	req.Config.Cmd, req.Config.Entrypoint = req.Cmd, req.Entrypoint
	h := req.HostConfig
	if h.NetworkMode == "" {
		h.NetworkMode = networktypes.NetworkDefault
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = containertypes.RestartPolicyDisabled
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.IpcMode == "" {
		h.IpcMode = containertypes.IPCModePrivate
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
}

// checkPlatform refuses a platform that the image at hand does not have, in the words that make the
// docker command pull the right one.
func (s *Server) checkPlatform(r *request, image string) error {
	want := r.query.Get("platform")
	if want == "" {
		return nil
	}
	p, err := parsePlatform(want)
	if err != nil {
		return err
	}
	img, err := s.images.Get(r.Context(), image)
	if err != nil {
		return err
	}
	if img.Platform.OS != p.OS || p.Architecture != "" && img.Platform.Architecture != p.Architecture {
		return notFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			image, formatPlatform(img.Platform), formatPlatform(p))
	}
	return nil
}

// containerSpec translates a creation. It is all of Docker's request that the engine knows; what it cannot
// do is an error here, never silence.
func (s *Server) containerSpec(req *createRequest) (container.Spec, []string, error) {
	c, h := req.Config, req.HostConfig
	warnings, err := validateCreate(c, h, req.NetworkingConfig)
	if err != nil {
		return container.Spec{}, nil, err
	}
	spec := container.Spec{
		Owner: container.OwnerDocker, Image: c.Image,
		Hostname: c.Hostname, Domainname: c.Domainname, User: c.User, WorkingDir: c.WorkingDir,
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env,
		Tty: c.Tty, OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce,
		StopSignal: c.StopSignal, StopTimeout: c.StopTimeout, Healthcheck: healthSpec(c.Healthcheck),
		Labels: c.Labels, Exposed: exposedPorts(c.ExposedPorts), Volumes: slices.Sorted(maps.Keys(c.Volumes)),
		Resources:  resourceSpec(h),
		Restart:    container.RestartPolicy{Policy: string(h.RestartPolicy.Name), MaxRetries: h.RestartPolicy.MaximumRetryCount},
		AutoRemove: h.AutoRemove, Privileged: h.Privileged, ReadOnly: h.ReadonlyRootfs, Init: h.Init != nil && *h.Init,
		CapAdd: h.CapAdd, CapDrop: h.CapDrop, SecurityOpt: h.SecurityOpt, GroupAdd: h.GroupAdd, Sysctls: h.Sysctls,
		MaskedPaths: h.MaskedPaths, ReadonlyPaths: h.ReadonlyPaths, DeviceRules: h.DeviceCgroupRules,
		NetworkMode: string(h.NetworkMode), PublishAll: h.PublishAllPorts,
		ExtraHosts: h.ExtraHosts, DNSSearch: h.DNSSearch, DNSOptions: h.DNSOptions, Links: h.Links,
		PidMode: string(h.PidMode), IpcMode: string(h.IpcMode), UTSMode: string(h.UTSMode), CgroupnsMode: string(h.CgroupnsMode),
		CgroupParent: h.CgroupParent,
	}
	if c.Tty {
		spec.Rows, spec.Cols = uint16(h.ConsoleSize[0]), uint16(h.ConsoleSize[1])
	}
	if c.NetworkDisabled {
		spec.NetworkMode = networktypes.NetworkNone
	}
	for _, d := range h.Devices {
		spec.Devices = append(spec.Devices, container.Device{Source: d.PathOnHost, Target: d.PathInContainer, Permissions: d.CgroupPermissions})
	}
	for _, a := range h.DNS {
		spec.DNS = append(spec.DNS, a.String())
	}
	if !h.NetworkMode.IsUserDefined() { // elsewhere links are names that may come later
		if err := s.checkLinks(h.Links); err != nil {
			return spec, nil, err
		}
	}
	if spec.Log, err = logSpec(h.LogConfig); err != nil {
		return spec, nil, err
	}
	if spec.Mounts, err = s.mountSpecs(h, &spec); err != nil {
		return spec, nil, err
	}
	if spec.Ports, err = portSpecs(h.PortBindings); err != nil {
		return spec, nil, err
	}
	for _, p := range spec.Ports { // publishing a port exposes it
		if name := fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto); !slices.Contains(spec.Exposed, name) {
			spec.Exposed = append(spec.Exposed, name)
		}
	}
	spec.Endpoints = endpointSpecs(req)
	spec.Annotations, err = keepRequest(req)
	return spec, warnings, err
}

// checkLinks refuses links to nobody, while the client can still see which.
func (s *Server) checkLinks(links []string) error {
	for _, l := range links {
		name, _, _ := strings.Cut(l, ":")
		if _, err := s.containers.Get(name); err != nil {
			return invalid("could not get container for %s: %v", name, err)
		}
	}
	return nil
}

func keepRequest(req *createRequest) (map[string]string, error) {
	raw, err := json.Marshal(req.CreateRequest)
	if err != nil {
		return nil, fmt.Errorf("keep the create request: %w", err)
	}
	return map[string]string{requestAnnotation: string(raw)}, nil
}

func healthSpec(h *containertypes.HealthConfig) *container.Health {
	if h == nil {
		return nil
	}
	return &container.Health{
		Test: h.Test, Interval: h.Interval, Timeout: h.Timeout,
		StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
	}
}

func exposedPorts(ports networktypes.PortSet) []string {
	var names []string
	for p := range ports {
		names = append(names, p.String())
	}
	slices.Sort(names)
	return names
}

func resourceSpec(h *containertypes.HostConfig) container.Resources {
	r, _ := updatedResources(h.Resources)
	r.ShmSize = h.ShmSize
	r.OomScoreAdj = &h.OomScoreAdj
	return r
}

// updatedResources translates limits and tells whether there are any.
func updatedResources(h containertypes.Resources) (container.Resources, bool) {
	r := container.Resources{
		Memory: h.Memory, MemorySwap: h.MemorySwap, MemoryReservation: h.MemoryReservation, MemorySwappiness: h.MemorySwappiness,
		OomKillDisable: h.OomKillDisable != nil && *h.OomKillDisable,
		NanoCPUs:       h.NanoCPUs, CPUShares: h.CPUShares, CPUQuota: h.CPUQuota, CPUPeriod: h.CPUPeriod,
		CpusetCpus: h.CpusetCpus, CpusetMems: h.CpusetMems, PidsLimit: h.PidsLimit, BlkioWeight: h.BlkioWeight,
	}
	for _, u := range h.Ulimits {
		r.Ulimits = append(r.Ulimits, container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, d := range h.BlkioWeightDevice {
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, container.WeightDevice{Path: d.Path, Weight: d.Weight})
	}
	r.BlkioDeviceReadBps = throttles(h.BlkioDeviceReadBps)
	r.BlkioDeviceWriteBps = throttles(h.BlkioDeviceWriteBps)
	r.BlkioDeviceReadIOps = throttles(h.BlkioDeviceReadIOps)
	r.BlkioDeviceWriteIOps = throttles(h.BlkioDeviceWriteIOps)
	raw, err := json.Marshal(r)
	return r, err != nil || string(raw) != "{}"
}

var logOptions = []string{"max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size"}

func logSpec(c containertypes.LogConfig) (container.LogConfig, error) {
	spec := container.LogConfig{Driver: c.Type, Options: c.Config}
	if !slices.Contains([]string{"json-file", "local", "none"}, c.Type) {
		return spec, invalid("logger: no log driver named '%s' is registered: use json-file, local or none", c.Type)
	}
	for _, key := range slices.Sorted(maps.Keys(c.Config)) {
		value := c.Config[key]
		var err error
		switch {
		case !slices.Contains(logOptions, key):
			return spec, invalid("unknown log opt '%s' for %s log driver", key, c.Type)
		case key == "max-size" && value == "-1":
			spec.MaxSize = -1
		case key == "max-size":
			spec.MaxSize, err = units.FromHumanSize(value)
		case key == "max-file":
			spec.MaxFiles, err = strconv.Atoi(value)
			if err == nil && spec.MaxFiles < 1 {
				err = fmt.Errorf("max-file cannot be less than 1")
			}
		case key == "labels-regex" || key == "env-regex":
			_, err = regexp.Compile(value)
		case key == "tag":
			_, err = parseTag(value)
		}
		if err != nil {
			return spec, invalid("invalid value %q for log opt %s: %v", value, key, err)
		}
	}
	return spec, nil
}

func portSpecs(bindings networktypes.PortMap) ([]container.PortMapping, error) {
	var ports []container.PortMapping
	for _, p := range sortedPorts(maps.Keys(bindings)) {
		for _, b := range bindings[p] {
			first, last, err := parsePortRange(b.HostPort)
			if err != nil {
				return nil, invalid("invalid port specification: %q", b.HostPort)
			}
			ports = append(ports, container.PortMapping{
				Proto: string(p.Proto()), ContainerPort: p.Num(), HostIP: b.HostIP,
				HostPort: first, HostPortEnd: last,
			})
		}
	}
	return ports, nil
}

// parsePortRange reads "", "80" or "8000-8010"; an empty one is any port, a last of 0 no range.
func parsePortRange(s string) (first, last uint16, err error) {
	if s == "" {
		return 0, 0, nil
	}
	from, to, ranged := strings.Cut(s, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil || !ranged {
		return uint16(a), 0, err
	}
	b, err := strconv.ParseUint(to, 10, 16)
	if err == nil && b < a {
		err = fmt.Errorf("range %s ends before it begins", s)
	}
	return uint16(a), uint16(b), err
}

// endpointSpecs lists the networks to join and how. The legacy MAC address belongs to the first.
func endpointSpecs(req *createRequest) map[string]container.EndpointSpec {
	endpoints := map[string]container.EndpointSpec{}
	for name, e := range req.NetworkingConfig.EndpointsConfig {
		if name == networktypes.NetworkDefault {
			name = networktypes.NetworkBridge
		}
		endpoints[name] = endpointSpec(e)
	}
	if req.MacAddress != "" {
		name := req.HostConfig.NetworkMode.NetworkName()
		if name == networktypes.NetworkDefault {
			name = networktypes.NetworkBridge
		}
		e := endpoints[name]
		if e.MAC == "" {
			e.MAC = req.MacAddress
		}
		endpoints[name] = e
	}
	if len(endpoints) == 0 {
		return nil
	}
	return endpoints
}

func endpointSpec(e *networktypes.EndpointSettings) container.EndpointSpec {
	if e == nil {
		return container.EndpointSpec{}
	}
	spec := container.EndpointSpec{
		Aliases: e.Aliases, MAC: e.MacAddress.String(), DriverOpts: e.DriverOpts, GwPriority: e.GwPriority, Links: e.Links,
		IfName: e.DriverOpts["com.docker.network.endpoint.ifname"],
	}
	if e.IPAMConfig != nil {
		spec.IPv4, spec.IPv6 = e.IPAMConfig.IPv4Address, e.IPAMConfig.IPv6Address
	}
	return spec
}

func throttles(devices []*blkiodev.ThrottleDevice) []container.ThrottleDevice {
	var list []container.ThrottleDevice
	for _, d := range devices {
		list = append(list, container.ThrottleDevice{Path: d.Path, Rate: d.Rate})
	}
	return list
}
