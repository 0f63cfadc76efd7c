package container

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cpuPeriod = 100_000 // microseconds, the kernel's default
	minMemory = 6 << 20 // below this not even the first process starts
	noLimit   = -1
)

func setResources(s *specs.Spec, b *bundle) error {
	r, err := linuxResources(&b.Spec.Resources, b.Host)
	if err != nil {
		return err
	}
	s.Linux.Devices = b.Devices
	if b.Spec.Privileged {
		s.Linux.Devices = append(append([]specs.LinuxDevice(nil), b.Host.AllDevices...), b.Devices...)
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		r.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, b.Rules...)
	}
	s.Linux.Resources = r
	return nil
}

// linuxResources translates limits. It is used for new containers and for updates.
func linuxResources(r *Resources, host hostFacts) (*specs.LinuxResources, error) {
	if err := checkResources(r); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{Memory: memoryLimits(r, host), CPU: cpuLimits(r), Unified: r.Unified}
	if r.PidsLimit != nil {
		limit := *r.PidsLimit
		if limit <= 0 { // said, because an update has to lift the limit that was
			limit = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	blkio, err := blkioLimits(r)
	if err != nil {
		return nil, err
	}
	out.BlockIO = blkio
	for size, limit := range r.HugePage {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
	}
	if !host.CgroupV2 {
		out.Unified = nil // an error on v1; limits there have other names
	}
	return out, nil
}

func checkResources(r *Resources) error {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return bad("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < -1 || *r.MemorySwappiness > 100):
		return bad("Invalid value: %v, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.NanoCPUs != 0 && (r.CPUQuota != 0 || r.CPUPeriod != 0):
		return bad("Conflicting options: Nano CPUs and CPU quota or period cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > 0 && r.NanoCPUs < 1e7:
		return bad("Range of CPUs is from 0.01 upwards, as NanoCPUs=%d is less", r.NanoCPUs)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return bad("shares must not be negative, got %d", r.CPUShares)
	case r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return bad("Range of blkio weight is from 10 to 1000")
	case r.OomScoreAdj != nil && (*r.OomScoreAdj < -1000 || *r.OomScoreAdj > 1000):
		return bad("Invalid value %d, range for oom score adj is [-1000, 1000]", *r.OomScoreAdj)
	case r.ShmSize < 0:
		return bad("SHM size can not be less than 0")
	}
	return nil
}

func memoryLimits(r *Resources, host hostFacts) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if host.Swap && r.MemorySwap != 0 {
		m.Swap = &r.MemorySwap
	} else if host.Swap && r.Memory > 0 {
		double := 2 * r.Memory
		m.Swap = &double
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 && !host.CgroupV2 {
		v := uint64(*r.MemorySwappiness)
		m.Swappiness = &v
	}
	if r.OomKillDisable && !host.CgroupV2 {
		m.DisableOOMKiller = &r.OomKillDisable
	}
	return m
}

func cpuLimits(r *Resources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		v := uint64(r.CPUShares)
		c.Shares = &v
	}
	quota, period := r.CPUQuota, uint64(r.CPUPeriod)
	if r.NanoCPUs > 0 {
		period = cpuPeriod
		quota = r.NanoCPUs * cpuPeriod / 1e9
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if period != 0 {
		c.Period = &period
	}
	return c
}

func blkioLimits(r *Resources) (*specs.LinuxBlockIO, error) {
	out := &specs.LinuxBlockIO{}
	empty := true
	if r.BlkioWeight != 0 {
		out.Weight, empty = &r.BlkioWeight, false
	}
	for _, w := range r.BlkioWeightDevice {
		major, minor, err := blockDevice(w.Path)
		if err != nil {
			return nil, err
		}
		d := specs.LinuxWeightDevice{Weight: &w.Weight}
		d.Major, d.Minor = major, minor
		out.WeightDevice, empty = append(out.WeightDevice, d), false
	}
	for _, t := range []struct {
		in  []ThrottleDevice
		out *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &out.ThrottleReadBpsDevice}, {r.BlkioDeviceWriteBps, &out.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &out.ThrottleReadIOPSDevice}, {r.BlkioDeviceWriteIOps, &out.ThrottleWriteIOPSDevice},
	} {
		for _, in := range t.in {
			major, minor, err := blockDevice(in.Path)
			if err != nil {
				return nil, err
			}
			d := specs.LinuxThrottleDevice{Rate: in.Rate}
			d.Major, d.Minor = major, minor
			*t.out, empty = append(*t.out, d), false
		}
	}
	if empty {
		return nil, nil
	}
	return out, nil
}

func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("block device %s: %v", path, err))
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// parseDeviceRule reads "c 10:200 rwm", with "*" for any number.
func parseDeviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	bad := errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid device cgroup rule format: '%s' (want \"TYPE MAJOR:MINOR PERMISSIONS\", such as \"c 10:200 rwm\")", rule))
	fields := strings.Fields(rule)
	if len(fields) != 3 || !strings.Contains("abc", fields[0]) || len(fields[0]) != 1 || strings.Trim(fields[2], "rwm") != "" {
		return specs.LinuxDeviceCgroup{}, bad
	}
	major, minor, ok := strings.Cut(fields[1], ":")
	if !ok {
		return specs.LinuxDeviceCgroup{}, bad
	}
	out := specs.LinuxDeviceCgroup{Allow: true, Type: fields[0], Access: fields[2]}
	for _, n := range []struct {
		text string
		to   **int64
	}{{major, &out.Major}, {minor, &out.Minor}} {
		v := int64(noLimit)
		if n.text != "*" {
			parsed, err := strconv.ParseInt(n.text, 10, 64)
			if err != nil || parsed < 0 {
				return specs.LinuxDeviceCgroup{}, bad
			}
			v = parsed
		}
		*n.to = &v
	}
	return out, nil
}
