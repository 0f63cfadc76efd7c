package container

import (
	"syscall"
	"testing"
)

func TestBlocks(t *testing.T) {
	const before = "Name:\tsh\nSigQ:\t0/95904\nSigPnd:\t0000000000000000\n"
	for _, tt := range []struct {
		status string
		want   bool
	}{
		{before + "SigBlk:\tfffffffe7ffbeaf7\nSigIgn:\t0000000000000000\n", true},
		{before + "SigBlk:\t0000000000004000\n", true},
		{before + "SigBlk:\t0000000000000000\nSigCgt:\t0000000000004000\n", false},
		{before + "SigBlk:\tnonsense\n", false},
		{before, false},
	} {
		if got := blocks(tt.status, syscall.SIGTERM); got != tt.want {
			t.Errorf("SIGTERM is blocked according to %q: %v; want %v", tt.status, got, tt.want)
		}
	}
}
