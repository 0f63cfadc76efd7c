package daemon

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// TestHearCollections: every collection is heard of, not only the first.
func TestHearCollections(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan struct{}, 1)
	hearCollections(ctx, heard)
	for range 3 {
		runtime.GC()
		<-heard
	}
}

func TestLabour(t *testing.T) {
	start := time.Now()
	for _, tt := range []struct {
		what  string
		every time.Duration
		want  bool
	}{{"a load", 200 * time.Millisecond, true}, {"probes", 4 * time.Second, false}} {
		var l labour
		for n := range 10 {
			busy := l.collected(start.Add(time.Duration(n) * tt.every))
			if n < burst-1 && busy || n >= burst-1 && busy != tt.want {
				t.Errorf("%s: collection %d is work: %v", tt.what, n, busy)
			}
		}
	}
}

func TestParseMapping(t *testing.T) {
	tests := []struct {
		line string
		want mapping
		ok   bool
	}{
		{"00400000-02500000 r-xp 00000000 fe:00 1 /usr/local/bin/slipwayd", mapping{0x400000, 0x2500000, false, "/usr/local/bin/slipwayd"}, true},
		{"7f00-7f10 rw-p 00000000 fe:00 1 /lib/x.so", mapping{0x7f00, 0x7f10, true, "/lib/x.so"}, true},
		{"7f00-7f10 r--s 00000000 fe:00 1 /data dir/db", mapping{0x7f00, 0x7f10, false, "/data dir/db"}, true},
		{"c000000000-c000400000 rw-p 00000000 00:00 0", mapping{}, false},
		{"7ffc0000-7ffd0000 rw-p 00000000 00:00 0 [stack]", mapping{}, false},
		{"garbage", mapping{}, false},
		{"x-y r--p 0 0 0 /f", mapping{}, false},
	}
	for _, tt := range tests {
		if got, ok := parseMapping(tt.line); got != tt.want || ok != tt.ok {
			t.Errorf("parseMapping(%q) = %+v, %v; want %+v, %v", tt.line, got, ok, tt.want, tt.ok)
		}
	}
}
