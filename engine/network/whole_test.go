package network

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestWhole: a list that something changed under is taken again, and another failure is told.
func TestWhole(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name  string
		after error // of the tries after the first two
		want  error
	}{{"changes for a while", nil, nil}, {"changes for ever", netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted}, {"fails", broken, broken}} {
		tries := 0
		_, err := whole(func() ([]int, error) {
			if tries++; tries < 3 {
				return nil, netlink.ErrDumpInterrupted
			}
			return nil, tt.after
		})
		if !errors.Is(err, tt.want) || tries < 3 {
			t.Errorf("a list that %s: %v after %d tries; want %v", tt.name, err, tries, tt.want)
		}
	}
}
