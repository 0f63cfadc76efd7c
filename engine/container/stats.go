package container

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/warden"
)

// Stats is one reading of a running container's figures.
type Stats struct {
	warden.Stats
	ID, Name  string
	Networks  map[string]NetworkStats // by interface name; nil on the host's network
	SystemCPU uint64                  // nanoseconds that all processors of the host spent since boot
	NumCPU    int
	HostMem   uint64 // bytes; the limit of a container that has none
}

// NetworkStats counts what passed one interface.
type NetworkStats struct {
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Stats reads a container's figures. One that does not run gives zeroes, as in Docker.
func (m *Manager) Stats(ctx context.Context, ref string) (Stats, error) {
	c, err := m.find(ref)
	if err != nil {
		return Stats{}, err
	}
	out := Stats{ID: c.id, Name: c.spec().Name, NumCPU: m.host.NumCPU}
	pid := c.runningPid()
	if pid == 0 {
		return out, nil
	}
	st, err := m.Warden.Stats(ctx, c.id)
	if errdefs.IsNotFound(err) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("stats of container %s: %w", out.Name, err)
	}
	out.Stats = *st
	out.SystemCPU, out.HostMem = hostCPU(), hostMemory()
	if kind, _ := networkKind(c.spec()); kind != "host" {
		out.Networks = interfaces(pid)
	}
	return out, nil
}

// hostCPU adds up the first line of /proc/stat, in nanoseconds.
func hostCPU() uint64 {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if len(fields) < 8 {
		return 0
	}
	var ticks uint64
	for _, v := range fields[1:8] { // guest time is in user time already
		n, _ := strconv.ParseUint(v, 10, 64)
		ticks += n
	}
	return ticks * (1e9 / clockTicks)
}

// clockTicks is USER_HZ, 100 on every architecture that Linux has containers on.
const clockTicks = 100

func hostMemory() uint64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	line, _ := bufio.NewReader(f).ReadString('\n')
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return 0
	}
	kb, _ := strconv.ParseUint(fields[1], 10, 64)
	return kb << 10
}

// interfaces reads the counters of a process's network namespace.
func interfaces(pid int) map[string]NetworkStats {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return nil
	}
	out := map[string]NetworkStats{}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := make([]uint64, len(f))
		for i := range f {
			n[i], _ = strconv.ParseUint(f[i], 10, 64)
		}
		out[name] = NetworkStats{
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
	}
	return out
}
