package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// relays carry TCP connections that come in by IPv6 to containers, whose addresses are
// IPv4. No rule can do it: the kernel does not translate between the two, and IPv6 has no
// route_localnet, so ::1 needs a program in any case. `localhost` is ::1 first for many
// clients, and not all of them try 127.0.0.1 next.
//
// The listening sockets are the reserver's: while no daemon runs they wait in the
// descriptor store, and new connections wait in them. Established ones end with the daemon.
// As with Docker's proxy, the container sees the host as its peer.
type relays struct {
	log   *slog.Logger
	slots chan struct{} // one for each connection

	mu   sync.Mutex
	open map[hostPort]*relay
}

// maxRelayed bounds the connections of all relays together: two descriptors each, of the
// twenty thousand that a process may have on many machines. More wait in their sockets.
const maxRelayed = 4096

// acceptAgain is how long a relay waits when the system has no descriptor for a connection.
const acceptAgain = 100 * time.Millisecond

// relayDial is how long a container that does not answer may keep a client waiting.
const relayDial = 10 * time.Second

func newRelays(log *slog.Logger) *relays {
	return &relays{log: log, slots: make(chan struct{}, maxRelayed), open: map[hostPort]*relay{}}
}

// relay is one published port.
type relay struct {
	all    *relays
	in     net.Listener
	to     netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // to be closed with the relay; nil when it is
}

// start relays what connects to sock, which stays the caller's.
func (r *relays) start(hp hostPort, sock *os.File, to netip.AddrPort) error {
	in, err := net.FileListener(sock)
	if err != nil {
		return fmt.Errorf("relay %s: %w", hp, err)
	}
	one := &relay{all: r, in: in, to: to, conns: map[net.Conn]struct{}{}}
	one.ctx, one.cancel = context.WithCancel(context.Background())
	r.mu.Lock()
	old := r.open[hp]
	r.open[hp] = one
	r.mu.Unlock()
	if old != nil {
		old.close()
	}
	one.tasks.Go(one.accept)
	return nil
}

// stop ends a relay and its connections; none is no error.
func (r *relays) stop(hp hostPort) {
	r.mu.Lock()
	one := r.open[hp]
	delete(r.open, hp)
	r.mu.Unlock()
	if one != nil {
		one.close()
	}
}

func (r *relays) close() {
	r.mu.Lock()
	open := r.open
	r.open = map[hostPort]*relay{}
	r.mu.Unlock()
	for _, one := range open {
		one.close()
	}
}

func (r *relay) close() {
	r.cancel()
	r.in.Close()
	r.mu.Lock()
	for c := range r.conns {
		c.Close()
	}
	r.conns = nil
	r.mu.Unlock()
	r.tasks.Wait()
}

func (r *relay) accept() {
	for {
		c, err := r.in.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors, most likely: they come back when connections end.
			r.all.log.Warn("relay accepts no connection", "port", r.in.Addr().String(), "error", err)
			select {
			case <-time.After(acceptAgain):
			case <-r.ctx.Done():
				return
			}
			continue
		}
		select {
		case r.all.slots <- struct{}{}:
		case <-r.ctx.Done():
			c.Close()
			return
		}
		r.tasks.Go(func() {
			defer func() { <-r.all.slots }()
			r.carry(c)
		})
	}
}

// hold notes a connection to be closed with the relay; false when that has happened.
func (r *relay) hold(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *relay) release(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// carry connects a client to the container until both have said all they had to say.
func (r *relay) carry(client net.Conn) {
	defer r.release(client)
	if !r.hold(client) {
		return
	}
	dialer := net.Dialer{Timeout: relayDial}
	server, err := dialer.DialContext(r.ctx, "tcp4", r.to.String())
	if err != nil {
		// A reset says what a refused connection says: nobody is there.
		_ = client.(*net.TCPConn).SetLinger(0)
		return
	}
	defer r.release(server)
	if !r.hold(server) {
		return
	}
	var answers sync.WaitGroup
	answers.Go(func() { pipe(client, server) })
	pipe(server, client)
	answers.Wait()
}

// pipe copies one direction. Its end is passed on, so that half-closed connections work; an
// error ends both directions.
func pipe(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.(*net.TCPConn).CloseWrite() // it may be gone already
}
