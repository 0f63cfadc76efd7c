package main

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func (c *cli) statsCommand() *cobra.Command {
	var output outputFlags
	var all, once, noTrunc bool
	cmd := &cobra.Command{
		Use: "stats [CONTAINER...]", Short: "Show how much processor, memory, network and disk containers use", GroupID: groupContainers,
		ValidArgsFunction: c.completeContainers(true, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			for {
				rows, err := c.readStats(cmd.Context(), args, all)
				if cmd.Context().Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				if !once && c.outIsTerminal() {
					fmt.Fprint(c.out, "\x1b[H\x1b[2J") // from the top of an empty screen
				}
				if err := statsListing(rows, !noTrunc).print(c.out, output); err != nil || once {
					return err
				}
			}
		},
	}
	output.register(cmd, "")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also containers that do not run")
	cmd.Flags().BoolVar(&once, "no-stream", false, "show them once")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	return checked(cmd, &output)
}

// readStats takes a reading of each container; each takes about a second, so all are taken at once.
func (c *cli) readStats(ctx context.Context, names []string, all bool) ([]container.StatsResponse, error) {
	if len(names) == 0 {
		q := url.Values{}
		if all {
			q.Set("all", "1")
		}
		var list []container.Summary
		if err := c.client.get(ctx, "/containers/json", q, &list); err != nil {
			return nil, err
		}
		for _, s := range list {
			names = append(names, s.ID)
		}
	}
	rows := make([]container.StatsResponse, len(names))
	errs := make([]error, len(names))
	var done sync.WaitGroup
	for i, name := range names {
		done.Go(func() {
			errs[i] = c.client.get(ctx, containerPath(name, "/stats"), url.Values{"stream": {"0"}}, &rows[i])
		})
	}
	done.Wait()
	var found []container.StatsResponse
	for i, err := range errs {
		if err != nil && !(isStatus(err, 404) && len(names) > 1) { // one may have been removed meanwhile
			return nil, err
		}
		if err == nil {
			found = append(found, rows[i])
		}
	}
	return found, nil
}

func statsListing(rows []container.StatsResponse, short bool) *listing {
	l := &listing{raw: rows, columns: []column{
		{name: "ID", title: "CONTAINER ID"}, {name: "Name", title: "NAME"}, {name: "CPUPerc", title: "CPU %"},
		{name: "MemUsage", title: "MEM USAGE / LIMIT"}, {name: "MemPerc", title: "MEM %"},
		{name: "NetIO", title: "NET I/O"}, {name: "BlockIO", title: "BLOCK I/O"}, {name: "PIDs", title: "PIDS"},
	}}
	for _, s := range rows {
		id := s.ID
		if short {
			id = shortID(id)
		}
		used, limit := memoryUsed(s.MemoryStats), s.MemoryStats.Limit
		percent := 0.0
		if limit > 0 {
			percent = float64(used) / float64(limit) * 100
		}
		rx, tx := networkBytes(s.Networks)
		read, written := blockBytes(s.BlkioStats)
		l.add(id, id, strings.TrimPrefix(s.Name, "/"), fmt.Sprintf("%.2f%%", cpuPercent(s)),
			size(int64(used))+" / "+size(int64(limit)), fmt.Sprintf("%.2f%%", percent),
			size(int64(rx))+" / "+size(int64(tx)), size(int64(read))+" / "+size(int64(written)), fmt.Sprint(s.PidsStats.Current))
	}
	return l
}

// cpuPercent is in percent of one processor.
func cpuPercent(s container.StatsResponse) float64 {
	used := float64(s.CPUStats.CPUUsage.TotalUsage) - float64(s.PreCPUStats.CPUUsage.TotalUsage)
	passed := float64(s.CPUStats.SystemUsage) - float64(s.PreCPUStats.SystemUsage)
	if used <= 0 || passed <= 0 {
		return 0
	}
	return used / passed * float64(s.CPUStats.OnlineCPUs) * 100
}

// memoryUsed leaves out page cache that the kernel would give back at once.
func memoryUsed(m container.MemoryStats) uint64 {
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := m.Stats[key]; ok && cache < m.Usage {
			return m.Usage - cache
		}
	}
	return m.Usage
}

func networkBytes(networks map[string]container.NetworkStats) (rx, tx uint64) {
	for _, n := range networks {
		rx += n.RxBytes
		tx += n.TxBytes
	}
	return rx, tx
}

func blockBytes(b container.BlkioStats) (read, written uint64) {
	for _, e := range b.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += e.Value
		case "write":
			written += e.Value
		}
	}
	return read, written
}
