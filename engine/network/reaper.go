package network

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// reaper does what nobody should wait for. Deleting one veth takes some 30 ms under
// the kernel's global network lock; when a namespace goes, the kernel deletes its
// interfaces itself, in batches. So interfaces of released containers are looked at
// again after a while, and usually there is nothing left to do.
type reaper struct {
	links *links
	log   *slog.Logger

	mu      sync.Mutex
	now     []string // delete as soon as possible
	later   map[string]time.Time
	udp     []published
	stopped bool

	wake chan struct{}
	done chan struct{}
}

// namespaceGrace is how long the kernel gets to remove a dropped namespace.
const namespaceGrace = 3 * time.Second

func newReaper(l *links, log *slog.Logger) *reaper {
	r := &reaper{links: l, log: log, later: map[string]time.Time{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go r.run()
	return r
}

func (r *reaper) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// delete removes an interface soon.
func (r *reaper) delete(name string) {
	r.mu.Lock()
	r.now = append(r.now, name)
	r.mu.Unlock()
	r.poke()
}

// deleteLater removes an interface if the kernel has not done so after the grace time.
func (r *reaper) deleteLater(name string) {
	r.mu.Lock()
	r.later[name] = time.Now().Add(namespaceGrace)
	r.mu.Unlock()
	r.poke()
}

// flows forgets the connections that the kernel tracks to published UDP ports. TCP
// flows end by themselves; a UDP client that keeps sending would keep its old
// translation, or the lack of one, for ever.
func (r *reaper) flows(ports []published) {
	r.mu.Lock()
	for _, p := range ports {
		if p.Proto == "udp" {
			r.udp = append(r.udp, p)
		}
	}
	any := len(r.udp) > 0
	r.mu.Unlock()
	if any {
		r.poke()
	}
}

func (r *reaper) run() {
	defer close(r.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next, stopped := r.work()
		if stopped {
			return
		}
		timer.Reset(next)
		select {
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// work does everything that is due and says when to look again.
func (r *reaper) work() (next time.Duration, stopped bool) {
	r.mu.Lock()
	names, udp := r.now, r.udp
	r.now, r.udp = nil, nil
	next, stopped = time.Hour, r.stopped
	now := time.Now()
	for name, due := range r.later {
		if wait := due.Sub(now); wait > 0 && !stopped {
			next = min(next, wait)
			continue
		}
		names = append(names, name)
		delete(r.later, name)
	}
	r.mu.Unlock()
	for _, name := range names {
		if err := r.links.remove(name); err != nil {
			r.log.Warn("interface was left behind", "error", err)
		}
	}
	if err := forgetFlows(udp); err != nil {
		r.log.Warn("old UDP flows keep their translation", "error", err)
	}
	return next, stopped
}

// drain does all outstanding work at once and stops. It may be called again.
func (r *reaper) drain() {
	r.mu.Lock()
	r.stopped = true
	r.mu.Unlock()
	r.poke()
	<-r.done
	r.work() // what came in after the last round
}

// staleFlows matches the flows to a set of published ports: translated to the
// container, or sent to the host port before there was a translation.
type staleFlows []published

func (s staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	src, _ := netip.AddrFromSlice(f.Reverse.SrcIP)
	dst, _ := netip.AddrFromSlice(f.Forward.DstIP)
	src, dst = src.Unmap(), dst.Unmap()
	for _, p := range s {
		if src == p.to && f.Reverse.SrcPort == p.ContainerPort {
			return true
		}
		if f.Forward.DstPort == p.HostPort && src == dst && (everyAddress(p.HostIP) || dst == p.HostIP) {
			return true
		}
	}
	return false
}

func forgetFlows(udp []published) error {
	if len(udp) == 0 {
		return nil
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, staleFlows(udp))
	return err
}
