package container

import (
	"context"
	"testing"
	"time"
)

// BenchmarkRun measures one whole life of an --rm container on the default bridge, as the
// engine sees it, and its parts.
func BenchmarkRun(b *testing.B) {
	m := newMachine(b)
	var create, start, wait time.Duration
	ctx := context.Background()
	for b.Loop() {
		t0 := time.Now()
		i, err := m.Create(ctx, Spec{Image: "busybox", Cmd: []string{"true"}, AutoRemove: true})
		if err != nil {
			b.Fatal(err)
		}
		removed, err := m.Wait(ctx, i.ID, WaitRemoved)
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := m.Start(ctx, i.ID); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		<-removed
		create, start, wait = create+t1.Sub(t0), start+t2.Sub(t1), wait+time.Since(t2)
	}
	for _, r := range []struct {
		name string
		d    time.Duration
	}{{"create-ms", create}, {"start-ms", start}, {"exit+rm-ms", wait}} {
		b.ReportMetric(float64(r.d.Microseconds())/1000/float64(b.N), r.name)
	}
	m.Drain()
}
