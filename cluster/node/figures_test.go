package node

import "testing"

func TestBusyTime(t *testing.T) {
	for _, tt := range []struct {
		stat string
		want uint64
		ok   bool
	}{
		{"cpu  100 2 30 9000 50 6 7 8 90 9\ncpu0 1 1 1 1 1 1 1 1 1 1", 1_530_000_000, true}, // without idle, iowait and the guests
		{"cpu  100 2 30", 0, false},
		{"cpu  100 2 x 9000 50 6 7 8 90 9", 0, false},
		{"", 0, false},
	} {
		if got, ok := busyTime(tt.stat); got != tt.want || ok != tt.ok {
			t.Errorf("busyTime(%q) = %d, %v; want %d, %v", tt.stat, got, ok, tt.want, tt.ok)
		}
	}
}

func TestMemoryInfo(t *testing.T) {
	got := memoryInfo("MemTotal:       24576 kB\nMemAvailable:      12 kB\nHugePages_Total:       0\nbroken\n")
	if got["MemTotal"] != 24576<<10 || got["MemAvailable"] != 12<<10 || len(got) != 3 {
		t.Errorf("memoryInfo reads %v; want MemTotal, MemAvailable and HugePages_Total in bytes", got)
	}
}
