package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// reserver holds host ports. A port is held by a socket that is bound to it and
// never read: the translation takes the packets before they reach it, and until
// then nobody else can bind the port. Without it a published port would silently
// rob a web server that the host runs on it.
type reserver struct {
	fds FDStore

	mu   sync.Mutex
	held map[hostPort]*holding
}

type hostPort struct {
	proto string
	addr  netip.Addr // never invalid: 0.0.0.0 or :: for every address of the family
	port  uint16
}

type holding struct {
	owner string
	sock  *os.File
}

const portPrefix = "net/port/"

func (h hostPort) String() string {
	return net.JoinHostPort(h.addr.String(), strconv.Itoa(int(h.port)))
}

func (h hostPort) fdName() string {
	return fmt.Sprintf("%s%s/%s/%d", portPrefix, h.proto, h.addr, h.port)
}

func parseFDName(name string) (hostPort, bool) {
	parts := strings.Split(strings.TrimPrefix(name, portPrefix), "/")
	if len(parts) != 3 {
		return hostPort{}, false
	}
	addr, err := netip.ParseAddr(parts[1])
	port, err2 := strconv.ParseUint(parts[2], 10, 16)
	return hostPort{parts[0], addr, uint16(port)}, err == nil && err2 == nil
}

// PortError says that a host port cannot be had.
type PortError struct {
	Proto  string
	Addr   netip.Addr
	Port   uint16
	Holder string // who of ours holds it; empty: another program
	Err    error
}

// Error uses Docker's words, which scripts look for.
func (e *PortError) Error() string {
	at := net.JoinHostPort(e.Addr.String(), strconv.Itoa(int(e.Port)))
	if e.Holder != "" {
		return fmt.Sprintf("Bind for %s failed: port is already allocated", at)
	}
	return fmt.Sprintf("failed to bind host port %s/%s: %v", at, e.Proto, e.Err)
}

// Unwrap gives the kind and the cause.
func (e *PortError) Unwrap() []error { return []error{errdefs.ErrUnknown, e.Err} }

func newReserver(fds FDStore) *reserver {
	return &reserver{fds: fds, held: map[hostPort]*holding{}}
}

// restore takes back the sockets that survived the last daemon.
func (r *reserver) restore(ctx context.Context) error {
	if r.fds == nil {
		return nil
	}
	files, err := r.fds.Fetch(ctx, portPrefix)
	if err != nil {
		return fmt.Errorf("fetch reserved ports: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, f := range files {
		hp, ok := parseFDName(name)
		if !ok {
			f.Close()
			continue
		}
		r.held[hp] = &holding{sock: f}
	}
	return nil
}

// dropUnowned releases restored sockets that no endpoint or service claimed.
func (r *reserver) dropUnowned(ctx context.Context) {
	r.mu.Lock()
	var idle []hostPort
	for hp, h := range r.held {
		if h.owner == "" {
			idle = append(idle, hp)
		}
	}
	r.mu.Unlock()
	for _, hp := range idle {
		r.release(ctx, "", hp)
	}
}

// reserve binds a port for owner; port 0 takes any. Reserving what the same owner
// holds, or what was restored and is nobody's yet, succeeds.
func (r *reserver) reserve(ctx context.Context, owner string, hp hostPort) (hostPort, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.held[hp]; h != nil && (h.owner == "" || h.owner == owner) {
		h.owner = owner
		return hp, nil
	}
	if holder := r.conflictLocked(hp); holder != "" {
		return hp, &PortError{hp.proto, hp.addr, hp.port, holder, syscall.EADDRINUSE}
	}
	sock, port, err := bindPort(hp)
	if err != nil {
		return hp, &PortError{hp.proto, hp.addr, hp.port, "", err}
	}
	hp.port = port
	if r.fds != nil {
		if err := r.fds.Keep(ctx, hp.fdName(), sock); err != nil {
			sock.Close()
			return hp, fmt.Errorf("keep reserved port %s: %w", hp, err)
		}
	}
	r.held[hp] = &holding{owner: owner, sock: sock}
	return hp, nil
}

// conflictLocked finds who of ours holds the port on an overlapping address.
func (r *reserver) conflictLocked(hp hostPort) string {
	if hp.port == 0 {
		return ""
	}
	for other, h := range r.held {
		if other.proto != hp.proto || other.port != hp.port || other.addr.Is4() != hp.addr.Is4() {
			continue
		}
		if other.addr == hp.addr || other.addr.IsUnspecified() || hp.addr.IsUnspecified() {
			return cmp.Or(h.owner, "unclaimed")
		}
	}
	return ""
}

func (r *reserver) release(ctx context.Context, owner string, hp hostPort) {
	r.mu.Lock()
	h := r.held[hp]
	if h == nil || h.owner != owner {
		r.mu.Unlock()
		return
	}
	delete(r.held, hp)
	h.sock.Close()
	r.mu.Unlock()
	if r.fds != nil {
		_ = r.fds.Drop(ctx, hp.fdName()) // a leftover is found unowned at the next start
	}
}

func (r *reserver) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.held {
		h.sock.Close()
	}
	clear(r.held)
}

// file is the socket that holds a port; nil when nobody holds it.
func (r *reserver) file(hp hostPort) *os.File {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.held[hp]; h != nil {
		return h.sock
	}
	return nil
}

// relayBacklog is how many connections wait while no daemon runs to relay them.
const relayBacklog = 1024

// bindPort binds (and for tcp listens) without Go's poller: nothing reads it, except for an
// IPv6 one, which a relay takes over.
func bindPort(hp hostPort) (*os.File, uint16, error) {
	kind := unix.SOCK_STREAM
	if hp.proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	family := unix.AF_INET
	if hp.addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, err
	}
	port, err := bindFD(fd, hp)
	if err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), hp.fdName()), port, nil
}

func bindFD(fd int, hp hostPort) (uint16, error) {
	if hp.proto == "tcp" {
		// Connections of an earlier owner in TIME_WAIT must not keep the port.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return 0, err
		}
	}
	if err := bindAddr(fd, hp); err != nil {
		return 0, err
	}
	if hp.proto == "tcp" {
		// Bound alone is not enough: another SO_REUSEADDR socket could bind beside it.
		backlog := relayBacklog
		if hp.addr.Is4() {
			if err := acceptNothing(fd); err != nil {
				return 0, err
			}
			backlog = 1
		}
		if err := unix.Listen(fd, backlog); err != nil {
			return 0, err
		}
	} else if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		return 0, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	if six, ok := sa.(*unix.SockaddrInet6); ok {
		return uint16(six.Port), nil
	}
	return uint16(sa.(*unix.SockaddrInet4).Port), nil
}

// acceptNothing has the kernel drop whatever gets as far as a socket. A connection that comes between the reservation
// of a port and its rule would be taken by a socket that nobody accepts from, and hang; dropped, the client's next
// try, a second later, finds the rule.
func acceptNothing(fd int) error {
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
}

func bindAddr(fd int, hp hostPort) error {
	if hp.addr.Is4() {
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(hp.port), Addr: hp.addr.As4()})
	}
	// The same port by IPv4 is a socket of its own.
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrInet6{Port: int(hp.port), Addr: hp.addr.As16()})
}

// hasIPv6 tells whether this machine has IPv6 addresses at all.
func hasIPv6() bool {
	b, err := os.ReadFile("/proc/self/net/if_inet6")
	return err == nil && len(b) > 0
}

func normalPort(p PortMapping) (PortMapping, error) {
	if p.Proto == "" {
		p.Proto = "tcp"
	}
	if !p.HostIP.IsValid() {
		p.HostIP = netip.IPv4Unspecified()
	}
	p.HostIP = p.HostIP.Unmap()
	switch {
	case p.Proto != "tcp" && p.Proto != "udp":
		return p, fmt.Errorf("publish port %d/%s: protocol %q is not supported, use tcp or udp: %w", p.ContainerPort, p.Proto, p.Proto, errdefs.ErrInvalidArgument)
	case p.ContainerPort == 0:
		return p, fmt.Errorf("publish host port %d: the container port is missing: %w", p.HostPort, errdefs.ErrInvalidArgument)
	case p.HostIP.Is6() && p.Proto != "tcp":
		return p, fmt.Errorf("publish port %d/%s on %s: only tcp is published on IPv6 addresses, use an IPv4 address: %w", p.ContainerPort, p.Proto, p.HostIP, errdefs.ErrInvalidArgument)
	case p.HostIP.Zone() != "":
		return p, fmt.Errorf("publish port %d/%s on %s: an address with a zone is not supported: %w", p.ContainerPort, p.Proto, p.HostIP, errdefs.ErrInvalidArgument)
	case p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort:
		return p, fmt.Errorf("publish port %d/%s: host port range %d-%d is empty: %w", p.ContainerPort, p.Proto, p.HostPort, p.HostPortEnd, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// publish reserves the host ports of an endpoint; all or none.
func (r *reserver) publish(ctx context.Context, owner string, want []PortMapping) ([]PortMapping, error) {
	var got []PortMapping
	for _, p := range want {
		both := !p.HostIP.IsValid() && hasIPv6()
		p, err := normalPort(p)
		var more []PortMapping
		switch {
		case err != nil:
		case both && p.Proto == "tcp":
			more, err = r.publishBoth(ctx, owner, p)
		default:
			more = make([]PortMapping, 1)
			more[0], err = r.publishOne(ctx, owner, p)
		}
		if err != nil {
			r.unpublish(ctx, owner, got)
			return nil, err
		}
		got = append(got, more...)
	}
	return got, nil
}

// publishBoth reserves the same port by IPv4 and by IPv6.
func (r *reserver) publishBoth(ctx context.Context, owner string, p PortMapping) ([]PortMapping, error) {
	anyPort := p.HostPort == 0
	for range maxPortTries {
		four, err := r.publishOne(ctx, owner, p)
		if err != nil {
			return nil, err
		}
		six := four
		six.HostIP = netip.IPv6Unspecified()
		if six, err = r.publishOne(ctx, owner, six); err == nil {
			return []PortMapping{four, six}, nil
		}
		r.unpublish(ctx, owner, []PortMapping{four})
		if !errors.Is(err, syscall.EADDRINUSE) || !anyPort && four.HostPort >= p.HostPortEnd {
			return nil, err
		}
		if !anyPort {
			p.HostPort = four.HostPort + 1
		}
	}
	return nil, fmt.Errorf("publish port %d/%s: no host port is free by IPv4 and by IPv6", p.ContainerPort, p.Proto)
}

// maxPortTries is more than any range that somebody would write, and an end.
const maxPortTries = 1 << 16

func (r *reserver) publishOne(ctx context.Context, owner string, p PortMapping) (PortMapping, error) {
	last := max(p.HostPort, p.HostPortEnd)
	for port := uint32(p.HostPort); ; port++ {
		hp, err := r.reserve(ctx, owner+mappingKey(p), hostPort{p.Proto, p.HostIP, uint16(port)})
		if err == nil {
			p.HostPort, p.HostPortEnd = hp.port, 0
			return p, nil
		}
		if port >= uint32(last) || !errors.Is(err, syscall.EADDRINUSE) {
			return p, err
		}
	}
}

// mappingKey tells mappings of one container apart: the same host port twice is a conflict even there.
func mappingKey(p PortMapping) string { return fmt.Sprintf(":%d/%s", p.ContainerPort, p.Proto) }

func (r *reserver) unpublish(ctx context.Context, owner string, ports []PortMapping) {
	for _, p := range ports {
		r.release(ctx, owner+mappingKey(p), hostPort{p.Proto, p.HostIP, p.HostPort})
	}
}

// HeldBy says who of ours holds the port; empty: another program.
func (e *PortError) HeldBy() string { return e.Holder }
