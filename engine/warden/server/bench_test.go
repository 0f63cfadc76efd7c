package server

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"slipway.dev/slipway/engine/warden"
)

// BenchmarkContainerLife is one container from Start to Delete: five namespaces, cgroup, overlay root, output read, exit
// reported.
func BenchmarkContainerLife(b *testing.B) {
	h := newHouse(b)
	var start, exit, del time.Duration
	for b.Loop() {
		b.StopTimer()
		spec := h.spec("true", attached)
		spec.Bundle.Process.Args = []string{"/bin/true"}
		b.StartTimer()
		t0 := time.Now()
		st, a, err := h.client.Start(h.ctx, spec)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		output(b, a)
		if _, err := h.client.Wait(h.ctx, st.ContainerID, ""); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		h.delete(st.ContainerID)
		start, exit, del = start+t1.Sub(t0), exit+t2.Sub(t1), del+time.Since(t2)
	}
	n := float64(b.N) * 1e6
	b.ReportMetric(float64(start)/n, "ms-start/op")
	b.ReportMetric(float64(exit)/n, "ms-exit/op")
	b.ReportMetric(float64(del)/n, "ms-delete/op")
}

// BenchmarkExec is a probe: one command in a running container, with its output and exit code.
func BenchmarkExec(b *testing.B) {
	h := newHouse(b)
	st, _ := h.run("sleep 1000")
	p := *h.spec("").Bundle.Process
	p.Args = []string{"/bin/true"}
	for b.Loop() {
		_, a, err := h.client.Exec(h.ctx, warden.ExecSpec{ContainerID: st.ContainerID, ID: "e", Process: &p, Attach: true, Lifetime: warden.Tied})
		if err != nil {
			b.Fatal(err)
		}
		output(b, a)
		if err := h.client.DeleteExec(h.ctx, st.ContainerID, "e"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOutput is throughput to the log and an attached client.
func BenchmarkOutput(b *testing.B) {
	h := newHouse(b)
	st, a := h.run("cat /dev/zero | tr '\\0' '\\n'", attached, logTo(h.dir+"/log"), func(s *warden.ContainerSpec) {
		s.Log.MaxSize, s.Log.MaxFiles = 10<<20, 2
		s.Bundle.Process.Args[2] = "yes 0123456789012345678901234567890123456789012345678901234567890123456789"
	})
	for b.Loop() {
		_, p, err := a.Next()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(p)))
	}
	a.Close()
	h.delete(st.ContainerID)
}

// BenchmarkFootprint is what a warden costs while its containers do nothing.
func BenchmarkFootprint(b *testing.B) {
	h := newHouse(b)
	const n = 50
	idleRSS, idleAnon := footprint(b, h.client.Pid())
	for range n {
		h.run("sleep 100000", logTo(h.dir+"/log"))
	}
	for b.Loop() {
		if _, err := h.client.List(h.ctx); err != nil {
			b.Fatal(err)
		}
	}
	rss, anon := footprint(b, h.client.Pid())
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.client.Pid()))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(idleRSS, "MB-rss-idle")
	b.ReportMetric(idleAnon, "MB-anon-idle")
	b.ReportMetric(rss, "MB-rss-50")
	b.ReportMetric(anon, "MB-anon-50")
	b.ReportMetric(float64(len(fds))/n, "fds/container")
}

// footprint reads a process's resident and anonymous memory, in MB.
func footprint(b *testing.B, pid int) (rss, anon float64) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			rss = kb / 1024
		}
		if n, _ := fmt.Sscanf(line, "RssAnon: %f kB", &kb); n == 1 {
			anon = kb / 1024
		}
	}
	return rss, anon
}
