package service

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowCleaner makes the kernel forget UDP flows to targets that went away. A TCP client
// notices that its peer is gone; a UDP client that keeps sending would keep its old
// translation for ever. Reading the table of flows is slow, so it happens beside the
// loop, for everything that has gathered.
type flowCleaner struct {
	log  *slog.Logger
	mu   sync.Mutex
	gone []netip.AddrPort
	wake chan struct{}
}

func newFlowCleaner(log *slog.Logger) *flowCleaner {
	return &flowCleaner{log: log, wake: make(chan struct{}, 1)}
}

func (c *flowCleaner) forget(targets []netip.AddrPort) {
	if len(targets) == 0 {
		return
	}
	c.mu.Lock()
	c.gone = append(c.gone, targets...)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *flowCleaner) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		gone := c.gone
		c.gone = nil
		c.mu.Unlock()
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, flowsTo(gone)); err != nil {
			c.log.Warn("UDP flows to pods that are gone were not removed", "error", err)
		}
	}
}

// flowsTo matches UDP flows that were translated to one of the targets.
type flowsTo []netip.AddrPort

func (t flowsTo) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	src, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	for _, target := range t {
		if src.Unmap() == target.Addr() && f.Reverse.SrcPort == target.Port() {
			return true
		}
	}
	return false
}
