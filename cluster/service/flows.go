package service

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flowCleaner makes the kernel forget UDP flows that go where they no longer should. A TCP
// client notices that its peer is gone; a UDP client that keeps sending would keep its old
// translation, or the lack of one, for ever. Reading the table of flows is slow, so it
// happens beside the loop, for everything that has gathered.
type flowCleaner struct {
	log  *slog.Logger
	mu   sync.Mutex
	old  []netlink.CustomConntrackFilter
	wake chan struct{}
}

func newFlowCleaner(log *slog.Logger) *flowCleaner {
	return &flowCleaner{log: log, wake: make(chan struct{}, 1)}
}

func (c *flowCleaner) forget(old ...netlink.CustomConntrackFilter) {
	if len(old) == 0 {
		return
	}
	c.mu.Lock()
	c.old = append(c.old, old...)
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
		old := c.old
		c.old = nil
		c.mu.Unlock()
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, old...); err != nil {
			c.log.Warn("UDP flows keep the translation they had", "error", err)
		}
	}
}

// ends reads a UDP flow: whom the client called, and who answers it.
func ends(f *netlink.ConntrackFlow) (called, answers netip.AddrPort, ok bool) {
	to, _ := netip.AddrFromSlice(f.Forward.DstIP)
	from, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	return netip.AddrPortFrom(to.Unmap(), f.Forward.DstPort), netip.AddrPortFrom(from.Unmap(), f.Reverse.SrcPort), f.Forward.Protocol == unix.IPPROTO_UDP
}

// lost is a target that a backend no longer has; with port 0, on every port.
type lost netip.AddrPort

// MatchConntrackFlow matches flows that were translated to the target.
func (t lost) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	called, answers, ok := ends(f)
	target := netip.AddrPort(t)
	return ok && called != answers && answers.Addr() == target.Addr() && (target.Port() == 0 || answers.Port() == target.Port())
}

// opened is a front on an address of the node that had nobody behind it until now.
type opened front

// MatchConntrackFlow matches flows that called it meanwhile.
func (o opened) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	called, answers, ok := ends(f)
	return ok && called == answers && called.Port() == o.port && (!o.addr.IsValid() || called.Addr() == o.addr)
}

// astray is what happened to the targets while nobody followed it.
type astray struct {
	pods    netip.Prefix
	targets map[netip.AddrPort]bool // that there are now; with port 0, on every port
}

// MatchConntrackFlow matches flows that were translated to pods that are no target.
func (a astray) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	called, answers, ok := ends(f)
	return ok && called != answers && a.pods.Contains(answers.Addr()) && !a.targets[answers] && !a.targets[netip.AddrPortFrom(answers.Addr(), 0)]
}
