package server

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

func (s *Server) signal(t warden.Target) error {
	p, err := s.process(t)
	if err != nil {
		return err
	}
	if t.Signal <= 0 || t.Signal > 64 {
		return fmt.Errorf("signal %d: there is no such signal: %w", int(t.Signal), errdefs.ErrInvalidArgument)
	}
	if err := p.signal(t.Signal); err != nil {
		return err
	}
	if t.Signal == unix.SIGKILL && p.key.Exec == "" {
		p.container.thaw() // a frozen process on cgroup v1 does not even die
	}
	return nil
}

func (s *Server) resize(t warden.Target) error {
	p, err := s.process(t)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdio.terminal == nil || p.gone {
		return fmt.Errorf("%s has no terminal, or has ended: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	raw, err := p.stdio.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: t.Rows, Col: t.Cols})
	})
	if err != nil {
		return err
	}
	return ierr
}

// running finds a container that runs.
func (s *Server) running(id string) (*container, error) {
	p, err := s.process(warden.Target{ID: id})
	if err != nil {
		return nil, err
	}
	if !p.alive() || p.container.lc == nil {
		return nil, fmt.Errorf("%s is not running: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	return p.container, nil
}

func (s *Server) pause(t warden.Target) error {
	c, err := s.running(t.ID)
	if err != nil {
		return err
	}
	if c.paused.Load() {
		return fmt.Errorf("container %q is already paused: %w", t.ID, errdefs.ErrFailedPrecondition)
	}
	if err := c.lc.Pause(); err != nil {
		return fmt.Errorf("pause container %q: %w", t.ID, err)
	}
	c.paused.Store(true)
	return nil
}

func (s *Server) resume(t warden.Target) error {
	c, err := s.running(t.ID)
	if err != nil {
		return err
	}
	if !c.paused.Load() {
		return fmt.Errorf("container %q is not paused: %w", t.ID, errdefs.ErrFailedPrecondition)
	}
	if err := c.lc.Resume(); err != nil {
		return fmt.Errorf("resume container %q: %w", t.ID, err)
	}
	c.paused.Store(false)
	return nil
}

func (c *container) thaw() {
	if c.paused.Swap(false) {
		c.cgroups.thaw()
	}
}

// update answers MethodUpdate: what Resources does not mention stays as it is.
func (s *Server) update(t warden.Target) error {
	c, err := s.running(t.ID)
	if err != nil {
		return err
	}
	c.updating.Lock()
	defer c.updating.Unlock()
	config := c.lc.Config()
	cg, res := *config.Cgroups, *config.Cgroups.Resources
	cg.Resources, config.Cgroups = &res, &cg
	applyResources(&res, t.Resources)
	res.SkipDevices = true // they do not change, and writing them again would open a gap
	err = c.lc.Set(config)
	res.SkipDevices = false // or libcontainer refuses to exec
	if err != nil {
		return fmt.Errorf("update container %q: %w", t.ID, err)
	}
	return nil
}

// applyResources lays what r mentions over res.
func applyResources(res *cgroups.Resources, r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if m := r.Memory; m != nil {
		setIf(&res.Memory, m.Limit)
		setIf(&res.MemoryReservation, m.Reservation)
		setIf(&res.MemorySwap, m.Swap)
		if m.Swappiness != nil {
			res.MemorySwappiness = m.Swappiness
		}
		if m.DisableOOMKiller != nil {
			res.OomKillDisable = *m.DisableOOMKiller
		}
	}
	if c := r.CPU; c != nil {
		setIf(&res.CpuShares, c.Shares)
		if c.Shares != nil {
			res.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		setIf(&res.CpuQuota, c.Quota)
		setIf(&res.CpuPeriod, c.Period)
		setIf(&res.CpuRtRuntime, c.RealtimeRuntime)
		setIf(&res.CpuRtPeriod, c.RealtimePeriod)
		if c.Cpus != "" {
			res.CpusetCpus = c.Cpus
		}
		if c.Mems != "" {
			res.CpusetMems = c.Mems
		}
	}
	if p := r.Pids; p != nil && p.Limit != nil {
		res.PidsLimit = p.Limit
	}
	if b := r.BlockIO; b != nil && b.Weight != nil {
		res.BlkioWeight = *b.Weight
	}
	if r.Unified != nil && cgroups.IsCgroup2UnifiedMode() {
		res.Unified = r.Unified
	}
}

func setIf[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

func memoryLimit(r *specs.LinuxResources) int64 {
	if r == nil || r.Memory == nil || r.Memory.Limit == nil {
		return 0
	}
	return *r.Memory.Limit
}

func (s *Server) processes(t warden.Target) ([]int, error) {
	c, err := s.running(t.ID)
	if err != nil {
		return nil, err
	}
	return c.cgroups.pids(), nil
}

func (s *Server) stats(t warden.Target) (*warden.Stats, error) {
	c, err := s.running(t.ID)
	if err != nil {
		return nil, err
	}
	ls, err := c.lc.Stats()
	if err != nil {
		if isGone(err) {
			return nil, fmt.Errorf("container %q ended: %w", t.ID, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("stats of container %q: %w", t.ID, err)
	}
	kills, _ := c.oomKills()
	return statsOf(ls.CgroupStats, kills, time.Now().UTC()), nil
}

func statsOf(cs *cgroups.Stats, oomKills uint64, now time.Time) *warden.Stats {
	cpu, mem := cs.CpuStats, cs.MemoryStats
	st := &warden.Stats{
		Read: now,
		CPU: warden.CPUStats{
			Total: cpu.CpuUsage.TotalUsage, User: cpu.CpuUsage.UsageInUsermode, Kernel: cpu.CpuUsage.UsageInKernelmode,
			PerCPU: cpu.CpuUsage.PercpuUsage, Periods: cpu.ThrottlingData.Periods,
			ThrottledPeriods: cpu.ThrottlingData.ThrottledPeriods, ThrottledTime: cpu.ThrottlingData.ThrottledTime,
		},
		Memory: warden.MemoryStats{
			Usage: mem.Usage.Usage, MaxUsage: mem.Usage.MaxUsage, Limit: mem.Usage.Limit, Failcnt: mem.Usage.Failcnt,
			OOMKills: oomKills, Stat: mem.Stats,
		},
		Pids: warden.PidsStats{Current: cs.PidsStats.Current, Limit: cs.PidsStats.Limit},
	}
	st.Memory.InactiveFile = mem.Stats["total_inactive_file"]
	if st.Memory.InactiveFile == 0 {
		st.Memory.InactiveFile = mem.Stats["inactive_file"]
	}
	st.Blkio = blkioOf(&cs.BlkioStats)
	return st
}

// blkioOf joins the two lists of bytes and of operations.
func blkioOf(b *cgroups.BlkioStats) []warden.BlkioStat {
	var all []warden.BlkioStat
	for _, e := range b.IoServiceBytesRecursive {
		all = append(all, warden.BlkioStat{Major: e.Major, Minor: e.Minor, Op: e.Op, Bytes: e.Value})
	}
	for _, e := range b.IoServicedRecursive {
		for i := range all {
			if all[i].Major == e.Major && all[i].Minor == e.Minor && all[i].Op == e.Op {
				all[i].IOs = e.Value
			}
		}
	}
	return all
}
