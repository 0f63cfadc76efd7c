package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
)

// dnsSockets makes and keeps the resolvers' sockets. While no daemon runs they wait in
// the descriptor store, and queries wait in them.
type dnsSockets struct {
	fds FDStore

	mu   sync.Mutex
	held map[string]*os.File // as fetched at start, until somebody wants them
	read bool
}

const (
	dnsPrefix  = "net/dns/"
	clusterDNS = "cluster"
)

func newDNSSockets(fds FDStore) *dnsSockets {
	return &dnsSockets{fds: fds, held: map[string]*os.File{}}
}

// open returns the pair of sockets of a resolver: the ones that were kept, if they are
// bound to addr, else new ones on port (53 when 0) or, where that is taken, on any.
func (d *dnsSockets) open(ctx context.Context, name string, addr netip.Addr, port uint16) (net.PacketConn, net.Listener, error) {
	if err := d.fetch(ctx); err != nil {
		return nil, nil, err
	}
	if udp, tcp, ok := d.kept(name, addr); ok {
		return udp, tcp, nil
	}
	d.drop(ctx, name) // a kept socket of another address, or half a pair
	if port == 0 {
		port = 53
	}
	udp, tcp, err := listenBoth(ctx, addr, port)
	if errors.Is(err, syscall.EADDRINUSE) {
		// A DNS server of the host may own port 53 on every address. Containers do not
		// see the port: 127.0.0.11 is translated to whatever it is.
		udp, tcp, err = listenBoth(ctx, addr, 0)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := d.keep(ctx, name, udp, tcp); err != nil {
		return nil, nil, errors.Join(err, udp.Close(), tcp.Close())
	}
	return udp, tcp, nil
}

func (d *dnsSockets) fetch(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.read || d.fds == nil {
		return nil
	}
	files, err := d.fds.Fetch(ctx, dnsPrefix)
	if err != nil {
		return fmt.Errorf("fetch DNS sockets: %w", err)
	}
	d.held, d.read = files, true
	return nil
}

func (d *dnsSockets) kept(name string, addr netip.Addr) (net.PacketConn, net.Listener, bool) {
	d.mu.Lock()
	u, t := d.held[dnsPrefix+name+"/udp"], d.held[dnsPrefix+name+"/tcp"]
	delete(d.held, dnsPrefix+name+"/udp")
	delete(d.held, dnsPrefix+name+"/tcp")
	d.mu.Unlock()
	defer closeFiles(u, t) // the connections below are copies
	if u == nil || t == nil {
		return nil, nil, false
	}
	udp, err := net.FilePacketConn(u)
	if err != nil {
		return nil, nil, false
	}
	tcp, err := net.FileListener(t)
	if err != nil {
		udp.Close()
		return nil, nil, false
	}
	if at := udp.LocalAddr().(*net.UDPAddr).AddrPort(); at.Addr().Unmap() != addr {
		udp.Close()
		tcp.Close()
		return nil, nil, false
	}
	return udp, tcp, true
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func listenBoth(ctx context.Context, addr netip.Addr, port uint16) (*net.UDPConn, *net.TCPListener, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(addr, port).String())
	if err != nil {
		return nil, nil, err
	}
	udp := pc.(*net.UDPConn)
	l, err := lc.Listen(ctx, "tcp4", udp.LocalAddr().String())
	if err != nil {
		return nil, nil, errors.Join(err, udp.Close())
	}
	return udp, l.(*net.TCPListener), nil
}

func (d *dnsSockets) keep(ctx context.Context, name string, udp *net.UDPConn, tcp *net.TCPListener) error {
	if d.fds == nil {
		return nil
	}
	if err := d.keepOne(ctx, dnsPrefix+name+"/udp", udp); err != nil {
		return err
	}
	return d.keepOne(ctx, dnsPrefix+name+"/tcp", tcp)
}

type socket interface {
	syscall.Conn
	File() (*os.File, error)
}

func (d *dnsSockets) keepOne(ctx context.Context, name string, sock socket) error {
	f, err := sock.File()
	if err != nil {
		return fmt.Errorf("keep DNS socket %s: %w", name, err)
	}
	err = errors.Join(d.fds.Keep(ctx, name, f), f.Close(), nonblocking(sock))
	if err != nil {
		return fmt.Errorf("keep DNS socket %s: %w", name, err)
	}
	return nil
}

// nonblocking repairs what os.File.Fd does on the way to the store: it makes the
// socket blocking for everyone who shares it, and then no deadline and no Close ends
// a read.
func nonblocking(sock syscall.Conn) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = syscall.SetNonblock(int(fd), true) })
	return errors.Join(err, failed)
}

// drop takes a resolver's sockets out of the store.
func (d *dnsSockets) drop(ctx context.Context, name string) {
	if d.fds == nil {
		return
	}
	for _, proto := range []string{"/udp", "/tcp"} {
		_ = d.fds.Drop(ctx, dnsPrefix+name+proto) // at worst it waits there, bound to an address that is gone
	}
}

func (d *dnsSockets) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, f := range d.held {
		f.Close()
		delete(d.held, name)
	}
}
