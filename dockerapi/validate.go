package dockerapi

import (
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"
)

// minMemory is what Docker demands: with less, the process that starts the container is killed itself.
const minMemory = 6 << 20

// validateCreate refuses contradictions in Docker's words. What concerns the state of the machine, such as a missing
// image or a taken name, is the engine's to refuse.
func validateCreate(c *containertypes.Config, h *containertypes.HostConfig, n *networktypes.NetworkingConfig) (warnings []string, err error) {
	for _, check := range []func(*containertypes.Config, *containertypes.HostConfig) error{
		checkProcess, checkNamespaces, checkUnsupported,
	} {
		if err := check(c, h); err != nil {
			return nil, err
		}
	}
	if err := checkNetworking(c, h, n); err != nil {
		return nil, err
	}
	warnings, err = validateResources(h.Resources)
	if h.NetworkMode.IsHost() && len(h.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	return warnings, err
}

func checkProcess(c *containertypes.Config, h *containertypes.HostConfig) error {
	if err := containertypes.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	}
	if h.ShmSize < 0 {
		return invalid("SHM size can not be less than 0")
	}
	for _, e := range c.Env {
		if name, _, _ := strings.Cut(e, "="); name == "" {
			return invalid("invalid environment variable: %s", e)
		}
	}
	if _, empty := h.Annotations[""]; empty {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	for target := range c.Volumes {
		if !path.IsAbs(target) || path.Clean(target) == "/" {
			return invalid("invalid volume specification: '%s': the path in the container must be absolute and not '/'", target)
		}
	}
	return checkHealth(c.Healthcheck)
}

func checkHealth(h *containertypes.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value int64
	}{
		{"Interval", int64(h.Interval)}, {"Timeout", int64(h.Timeout)}, {"StartPeriod", int64(h.StartPeriod)}, {"StartInterval", int64(h.StartInterval)},
	} {
		if d.value != 0 && d.value < int64(containertypes.MinimumDuration) {
			return invalid("%s in Healthcheck cannot be less than %s", d.name, containertypes.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	return nil
}

func checkNamespaces(_ *containertypes.Config, h *containertypes.HostConfig) error {
	switch {
	case !h.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return invalid("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", h.UTSMode)
	case !h.UsernsMode.Valid():
		return invalid("invalid user namespace mode: %v", h.UsernsMode)
	case !h.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case !h.Isolation.IsDefault():
		return invalid("invalid isolation '%s' on linux", h.Isolation)
	}
	return nil
}

func checkUnsupported(_ *containertypes.Config, h *containertypes.HostConfig) error {
	switch {
	case h.Runtime != "" && h.Runtime != "runc":
		return invalid("unknown or invalid runtime name: %s", h.Runtime)
	case len(h.StorageOpt) > 0:
		return invalid("--storage-opt is not supported: container layers have no size limit of their own")
	case h.Cgroup != "":
		return invalid("cgroup mode %q is not supported", h.Cgroup)
	case len(h.DeviceRequests) > 0:
		d := h.DeviceRequests[0]
		return invalid("could not select device driver %q with capabilities: %v", d.Driver, d.Capabilities)
	case h.VolumeDriver != "" && h.VolumeDriver != "local":
		return notFound("error looking up volume plugin %s: plugin %q not found", h.VolumeDriver, h.VolumeDriver)
	case h.CPURealtimePeriod != 0 || h.CPURealtimeRuntime != 0:
		return invalid("Your kernel does not support CPU real-time scheduler")
	case h.CPUCount != 0 || h.CPUPercent != 0 || h.IOMaximumIOps != 0 || h.IOMaximumBandwidth != 0:
		return invalid("invalid option: CPU count, CPU percent and IO maximum are for Windows containers")
	case h.Umask != nil:
		return invalid("a umask for the container is not supported: set it in the container's command")
	}
	return nil
}

func checkNetworking(c *containertypes.Config, h *containertypes.HostConfig, n *networktypes.NetworkingConfig) error {
	mode := h.NetworkMode
	if mode.IsContainer() {
		switch {
		case mode.ConnectedContainer() == "":
			return invalid("Invalid network mode: invalid container format container:<name|id>")
		case c.Hostname != "":
			return invalid("conflicting options: hostname and the network mode")
		case hasMAC(n):
			return invalid("conflicting options: mac-address and the network mode")
		case len(h.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(h.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		case len(h.ExtraHosts) > 0:
			return invalid("conflicting options: custom host-to-IP mapping and the network mode")
		case len(h.PortBindings) > 0 || h.PublishAllPorts:
			return invalid("conflicting options: port publishing and the container type network mode")
		case len(c.ExposedPorts) > 0:
			return invalid("conflicting options: port exposing and the container type network mode")
		}
	}
	if mode == "container" {
		return invalid("invalid network mode: invalid container format container:<name|id>")
	}
	if h.UTSMode.IsHost() && c.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if mode.IsHost() && len(h.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	if (mode.IsHost() || mode.IsNone() || mode.IsContainer()) && len(n.EndpointsConfig) > 1 {
		return invalid("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	for name, e := range n.EndpointsConfig {
		if e != nil && e.IPAMConfig != nil && (e.IPAMConfig.IPv4Address.IsValid() || e.IPAMConfig.IPv6Address.IsValid()) &&
			(name == networktypes.NetworkBridge || name == networktypes.NetworkDefault || name == networktypes.NetworkHost || name == networktypes.NetworkNone) {
			return invalid("user specified IP address is supported on user defined networks only")
		}
		if e != nil && len(e.Aliases) > 0 && !containertypes.NetworkMode(name).IsUserDefined() {
			return invalid("network-scoped aliases are only supported for user-defined networks")
		}
	}
	return nil
}

func hasMAC(n *networktypes.NetworkingConfig) bool {
	for _, e := range n.EndpointsConfig {
		if e != nil && len(e.MacAddress) > 0 {
			return true
		}
	}
	return false
}

// validateResources checks limits and drops none; warnings are for what the kernel will round or ignore.
func validateResources(r containertypes.Resources) (warnings []string, err error) {
	if err := checkMemory(r); err != nil {
		return nil, err
	}
	if err := checkCPU(r); err != nil {
		return nil, err
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return nil, invalid("Range of blkio weight is from 10 to 1000")
	}
	for _, u := range r.Ulimits {
		if u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			return nil, invalid("ulimit %s: soft limit %d is above the hard limit %d", u.Name, u.Soft, u.Hard)
		}
	}
	return []string{}, nil
}

func checkMemory(r containertypes.Resources) error {
	switch {
	case r.Memory < 0 || r.Memory > 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwappiness != nil && *r.MemorySwappiness != -1 && (*r.MemorySwappiness < 0 || *r.MemorySwappiness > 100):
		return invalid("Invalid value: %v, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	return nil
}

func checkCPU(r containertypes.Resources) error {
	n := runtime.NumCPU()
	switch {
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(n)*1e9:
		return invalid("Range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", n, n)
	case r.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if err := checkSet(r.CpusetCpus, "CPUs", "/sys/devices/system/cpu/online"); err != nil {
		return err
	}
	return checkSet(r.CpusetMems, "memory nodes", "/sys/devices/system/node/online")
}

// checkSet refuses processors or memory nodes that this machine does not have. The kernel would as well, but in words
// that say nothing.
func checkSet(set, what, onlineFile string) error {
	if set == "" {
		return nil
	}
	raw, err := os.ReadFile(onlineFile)
	online := strings.TrimSpace(string(raw))
	if err != nil || online == "" {
		return nil // the kernel decides
	}
	has, err := parseSet(online)
	if err != nil {
		return nil
	}
	want, err := parseSet(set)
	if err != nil {
		return invalid("Invalid value %s for a set of %s: %v", set, what, err)
	}
	for _, w := range want {
		if !slices.ContainsFunc(has, func(h interval) bool { return h.first <= w.first && w.last <= h.last }) {
			return invalid("Requested %s are not available - requested %s, available: %s", what, set, online)
		}
	}
	return nil
}

type interval struct{ first, last uint64 }

// parseSet reads the kernel's form of a set, "0-3,7". It is not expanded: "0-4294967295" is short to write.
func parseSet(s string) (set []interval, err error) {
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		var i interval
		if i.first, err = strconv.ParseUint(from, 10, 32); err != nil {
			return nil, err
		}
		if i.last, err = strconv.ParseUint(to, 10, 32); err != nil {
			return nil, err
		}
		set = append(set, i)
	}
	return set, nil
}
