package dockerapi

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	containertypes "github.com/moby/moby/api/types/container"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/warden"
)

// statsInterval is how often a stream of stats has a new reading; Docker's clients count on a second.
const statsInterval = time.Second

func (s *Server) containerStats(w *reply, r *request) error {
	info, err := s.containers.Get(r.vars["id"])
	if err != nil {
		return err
	}
	stream, oneShot := r.flagOr("stream", true), r.flag("one-shot")
	if stream && oneShot {
		return invalid("cannot have stream=true and one-shot=true")
	}
	feed := &statsFeed{server: s, id: info.ID}
	if !stream {
		answer, err := feed.once(r.Context(), oneShot || !info.State.Running)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, answer)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	w.Flush()
	return feed.run(r.Context(), w)
}

// statsFeed turns readings into Docker's answers, each of which holds the reading before it too.
type statsFeed struct {
	server *Server
	id     string
	last   *containertypes.StatsResponse
}

// once answers with two readings a second apart, or with one and no past.
func (f *statsFeed) once(ctx context.Context, oneShot bool) (containertypes.StatsResponse, error) {
	answer, err := f.next(ctx)
	if err != nil || oneShot {
		return answer, err
	}
	select {
	case <-ctx.Done():
		return answer, ctx.Err()
	case <-time.After(statsInterval):
	}
	return f.next(ctx)
}

func (f *statsFeed) run(ctx context.Context, w *reply) error {
	tick := time.NewTicker(statsInterval)
	defer tick.Stop()
	for {
		answer, err := f.next(ctx)
		if err != nil {
			return err // the container is gone
		}
		line, err := json.Marshal(answer)
		if err != nil {
			return err
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return nil
		}
		w.Flush()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// next takes a reading; a container that does not run has an empty one, as in Docker.
func (f *statsFeed) next(ctx context.Context) (containertypes.StatsResponse, error) {
	reading, err := f.server.containers.Stats(ctx, f.id)
	if err != nil {
		return containertypes.StatsResponse{}, err
	}
	answer := containertypes.StatsResponse{ID: f.id, Name: "/" + reading.Name, OSType: "linux"}
	if !reading.Read.IsZero() {
		fillStats(&answer, reading)
	}
	if f.last != nil {
		answer.PreRead, answer.PreCPUStats = f.last.Read, f.last.CPUStats
	}
	f.last = &answer
	return answer, nil
}

func fillStats(answer *containertypes.StatsResponse, s container.Stats) {
	answer.Read = s.Read
	answer.CPUStats = containertypes.CPUStats{
		CPUUsage: containertypes.CPUUsage{
			TotalUsage: s.CPU.Total, UsageInUsermode: s.CPU.User, UsageInKernelmode: s.CPU.Kernel, PercpuUsage: s.CPU.PerCPU,
		},
		SystemUsage: s.SystemCPU, OnlineCPUs: uint32(s.NumCPU),
		ThrottlingData: containertypes.ThrottlingData{
			Periods: s.CPU.Periods, ThrottledPeriods: s.CPU.ThrottledPeriods, ThrottledTime: s.CPU.ThrottledTime,
		},
	}
	answer.MemoryStats = containertypes.MemoryStats{
		Usage: s.Memory.Usage, MaxUsage: s.Memory.MaxUsage, Failcnt: s.Memory.Failcnt, Limit: memoryLimit(s.Memory.Limit, s.HostMem),
		Stats: memoryStat(s.Memory),
	}
	answer.PidsStats = containertypes.PidsStats{Current: s.Pids.Current, Limit: s.Pids.Limit}
	for _, b := range s.Blkio {
		answer.BlkioStats.IoServiceBytesRecursive = append(answer.BlkioStats.IoServiceBytesRecursive,
			containertypes.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: b.Op, Value: b.Bytes})
		answer.BlkioStats.IoServicedRecursive = append(answer.BlkioStats.IoServicedRecursive,
			containertypes.BlkioStatEntry{Major: b.Major, Minor: b.Minor, Op: b.Op, Value: b.IOs})
	}
	for name, n := range s.Networks {
		if answer.Networks == nil {
			answer.Networks = map[string]containertypes.NetworkStats{}
		}
		answer.Networks[name] = containertypes.NetworkStats{
			RxBytes: n.RxBytes, RxPackets: n.RxPackets, RxErrors: n.RxErrors, RxDropped: n.RxDropped,
			TxBytes: n.TxBytes, TxPackets: n.TxPackets, TxErrors: n.TxErrors, TxDropped: n.TxDropped,
		}
	}
}

// memoryStat makes sure that clients find what they subtract from the usage: total_inactive_file on cgroup v1, inactive_file on v2.
func memoryStat(m warden.MemoryStats) map[string]uint64 {
	stat := map[string]uint64{}
	for key, value := range m.Stat {
		stat[key] = value
	}
	if _, ok := stat["inactive_file"]; !ok {
		stat["inactive_file"] = m.InactiveFile
	}
	return stat
}

// memoryLimit is the machine's memory where the kernel reports no limit.
func memoryLimit(limit, host uint64) uint64 {
	if limit == 0 || limit > host {
		return host
	}
	return limit
}
