package warden

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Options configure a Client. All but Log are required; RootDir may be empty when no Rootfs is ever mounted.
type Options struct {
	Socket     string // R/warden.sock
	Executable string // slipway-warden, started when no warden answers
	StateDir   string // the warden's records; on a tmpfs
	RootDir    string // below it root file systems are mounted, unseen by the host
	// Cgroup, absolute within each hierarchy, becomes the warden's own: outside the daemon's unit or session, whose end
	// would otherwise kill it under systemd. It is removed when the warden ends. Empty: it stays in the daemon's.
	Cgroup string
	Log    *slog.Logger
}

// Client is a daemon's connection to its warden. It reconnects by itself, and when the warden is dead it starts another
// and gives it all the descriptors. A call that is under way then is repeated if it can be; Start, Exec and Attach
// cannot, and return an error that is errdefs.ErrUnavailable.
//
// All methods may be called concurrently.
type Client struct {
	opts   Options
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup

	mu       sync.Mutex    // guards what follows
	wire     *Conn         // nil while there is none
	ready    chan struct{} // closed while requests may be sent
	lastID   uint64
	pending  map[uint64]*waiter
	hello    HelloReply
	held     map[Key]*holding
	attached map[uint64]*Attachment
	subs     map[*subscription]struct{}
	leaving  bool // Shutdown: do not start another warden
}

// waiter is a request that waits for its reply.
type waiter struct {
	reply chan *Message // of size one; closed when the connection is lost
	// take, if not nil, is called with a good reply before anything else is read from the connection: what it registers is
	// there when the connection breaks and everything is handed over.
	take func(*Message)
}

// errLost ends a call whose connection broke.
var errLost = errors.New("the connection to the warden was lost")

// errUnsent is errLost of a request that no warden has got, or not as a whole: it may be sent again whatever it asks for.
var errUnsent = fmt.Errorf("%w before it had the request", errLost)

// errClosed is the cause of everything that ends with Close.
var errClosed = errors.New("the warden client is closed")

// errShutDown is the cause after Shutdown.
var errShutDown = errors.New("the warden was shut down")

// Connect dials the warden, and starts it when there is none. Afterwards all that it holds is held here, too.
func Connect(ctx context.Context, opts Options) (*Client, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		opts: opts, log: opts.Log, ready: make(chan struct{}), pending: map[uint64]*waiter{},
		held: map[Key]*holding{}, attached: map[uint64]*Attachment{}, subs: map[*subscription]struct{}{},
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	lost, err := c.establish(ctx)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to the warden at %s: %w", opts.Socket, err)
	}
	c.tasks.Go(func() { c.keepConnected(lost) })
	return c, nil
}

// Close ends the connection. Kept processes go on; Tied ones are killed.
func (c *Client) Close() error {
	c.cancel(errClosed)
	c.disconnect()
	c.tasks.Wait()
	c.mu.Lock()
	attached := c.attached
	c.attached = map[uint64]*Attachment{}
	for _, h := range c.held {
		h.close()
	}
	c.held = map[Key]*holding{}
	c.mu.Unlock()
	for _, a := range attached {
		a.Close()
	}
	return nil
}

// Pid is the warden's process id.
func (c *Client) Pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hello.Pid
}

// keepConnected restores the connection whenever it is lost.
func (c *Client) keepConnected(lost <-chan struct{}) {
	for {
		select {
		case <-lost:
		case <-c.ctx.Done():
			return
		}
		if c.isLeaving() || c.ctx.Err() != nil {
			return
		}
		c.log.Warn("the connection to the warden was lost: restoring it")
		if lost = c.reestablish(); lost == nil {
			return
		}
	}
}

// reestablish tries until it succeeds or the client is closed.
func (c *Client) reestablish() <-chan struct{} {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		lost, err := c.establish(c.ctx)
		if err == nil {
			c.log.Info("the connection to the warden is restored", "pid", c.Pid())
			return lost
		}
		if c.ctx.Err() != nil {
			return nil
		}
		c.log.Error("the warden cannot be reached", "error", err)
		select {
		case <-time.After(wait):
		case <-c.ctx.Done():
			return nil
		}
	}
}

// establish makes a connection ready for requests. The channel it returns is closed when the connection is lost.
func (c *Client) establish(ctx context.Context) (lost <-chan struct{}, err error) {
	sock, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	wire := NewConn(sock)
	done := make(chan struct{})
	c.mu.Lock()
	c.wire = wire
	for _, h := range c.held {
		h.stale = true
	}
	c.mu.Unlock()
	c.tasks.Go(func() {
		defer close(done)
		c.read(wire)
	})
	if err := c.greet(ctx); err != nil {
		c.disconnect()
		<-done
		return nil, err
	}
	return done, nil
}

// greet introduces us, hands over what a dead warden left behind, and opens the connection for requests.
func (c *Client) greet(ctx context.Context) error {
	var reply HelloReply
	if err := c.request(ctx, MethodHello, Hello{Version: Version}, nil, &reply); err != nil {
		return err
	}
	if reply.Fresh {
		if err := c.handOver(ctx); err != nil {
			return fmt.Errorf("hand over to a new warden: %w", err)
		}
	}
	var states []ProcessState
	if err := c.request(ctx, MethodList, Target{}, nil, &states); err != nil {
		return err
	}
	c.mu.Lock()
	if c.wire == nil { // lost behind the last reply: nothing is ready
		c.mu.Unlock()
		return unavailable(errLost)
	}
	c.hello = reply
	for key, h := range c.held {
		if h.stale {
			h.close()
			delete(c.held, key)
		}
	}
	close(c.ready)
	subs := c.subscriptionsLocked()
	orphans := c.orphansLocked(states)
	c.mu.Unlock()
	for _, a := range orphans {
		a.Close()
	}
	for _, s := range subs {
		s.replay(states)
	}
	return nil
}

// orphansLocked finds attachments to processes that no longer are: they would wait for an end that nobody sends.
func (c *Client) orphansLocked(states []ProcessState) []*Attachment {
	known := map[Key]bool{}
	for _, st := range states {
		known[keyOf(st)] = true
	}
	var orphans []*Attachment
	for _, a := range c.attached {
		if !known[a.key] {
			orphans = append(orphans, a)
		}
	}
	return orphans
}

func keyOf(st ProcessState) Key {
	return Key{Kind: HoldProcess, ID: st.ContainerID, Exec: st.ExecID}
}

// disconnect closes the connection and fails what waits for replies.
func (c *Client) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wire == nil {
		return
	}
	c.wire.Close()
	c.wire = nil
	select {
	case <-c.ready:
		c.ready = make(chan struct{})
	default:
	}
	for id, w := range c.pending {
		close(w.reply)
		delete(c.pending, id)
	}
}

// read handles what the warden sends until the connection ends.
func (c *Client) read(wire *Conn) {
	for {
		m, err := wire.Receive()
		if err != nil {
			if errors.Is(err, ErrFrame) {
				c.log.Error("the warden's messages cannot be read", "error", err)
			}
			break
		}
		c.handle(m)
	}
	c.mu.Lock()
	current := c.wire == wire
	c.mu.Unlock()
	if current {
		c.disconnect()
	}
}

func (c *Client) handle(m *Message) {
	switch m.Method {
	case "":
		c.mu.Lock()
		w := c.pending[m.ID]
		delete(c.pending, m.ID)
		c.mu.Unlock()
		if w == nil {
			m.Discard() // whoever asked has given up
			return
		}
		if w.take != nil && m.Error == nil {
			w.take(m)
		}
		w.reply <- m
	case PushHold:
		c.takeHold(m)
	case PushRelease:
		c.releaseHold(m)
	case PushEvent:
		var e Event
		if err := Decode(m.Body, &e); err != nil {
			c.log.Error("an event of the warden cannot be read", "error", err)
			return
		}
		c.distribute(e)
	default:
		m.Discard() // a newer warden's
	}
}

// call sends a request when the connection is ready, and repeats it when the connection breaks and the method allows.
func (c *Client) call(ctx context.Context, method string, body any, fds []int, reply any) error {
	for {
		if err := c.await(ctx); err != nil {
			return err
		}
		err := c.request(ctx, method, body, fds, reply)
		if !errors.Is(err, errUnsent) && !(errors.Is(err, errLost) && repeatable[method]) {
			return err
		}
	}
}

// repeatable are the methods that do no harm when done twice.
var repeatable = map[string]bool{
	MethodSignal: true, MethodResize: true, MethodUpdate: true, MethodStats: true, MethodProcesses: true, MethodDelete: true,
	MethodList: true, MethodWait: true, MethodRemoveSandbox: true, MethodSetCgroup: true, MethodRemoveCgroup: true,
	MethodKeep: true, MethodDrop: true,
}

// await waits until requests may be sent.
func (c *Client) await(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return unavailable(context.Cause(c.ctx))
	}
	c.mu.Lock()
	ready := c.ready
	c.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ctx.Done():
		return unavailable(context.Cause(c.ctx))
	}
}

func unavailable(err error) error { return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable) }

// request sends one request, with copies of fds, and waits for its reply. reply is what to decode it into, nil, or a *launched.
func (c *Client) request(ctx context.Context, method string, body any, fds []int, reply any) error {
	m := &Message{Method: method, Body: Encode(body)}
	for _, fd := range fds {
		d, err := dupFD(fd)
		if err != nil {
			m.Discard()
			return err
		}
		m.FDs = append(m.FDs, d)
	}
	w := &waiter{reply: make(chan *Message, 1)}
	if l, ok := reply.(*launched); ok {
		w.take = func(m *Message) { l.take(c, m) }
	}
	c.mu.Lock()
	wire := c.wire
	if wire == nil {
		c.mu.Unlock()
		m.Discard()
		return unavailable(errUnsent)
	}
	c.lastID++
	m.ID = c.lastID
	c.pending[m.ID] = w
	c.mu.Unlock()
	if err := wire.Send(m); err != nil {
		c.giveUp(m.ID, w, reply)
		if errors.Is(err, ErrFrame) {
			return err
		}
		return unavailable(errUnsent)
	}
	select {
	case r, ok := <-w.reply:
		if !ok {
			return unavailable(errLost)
		}
		return unpack(r, reply)
	case <-ctx.Done():
		c.giveUp(m.ID, w, reply)
		return context.Cause(ctx)
	}
}

// giveUp forgets a request; its reply may have come already.
func (c *Client) giveUp(id uint64, w *waiter, reply any) {
	c.mu.Lock()
	_, waiting := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if waiting {
		return
	}
	if r, ok := <-w.reply; ok {
		r.Discard()
	}
	if l, ok := reply.(*launched); ok && l.attachment != nil {
		l.attachment.Close()
	}
}

func unpack(r *Message, reply any) error {
	if r.Error != nil {
		r.Discard()
		return r.Error.Unpack()
	}
	r.Discard()
	if l, ok := reply.(*launched); ok {
		return l.err
	}
	if reply == nil {
		return nil
	}
	return Decode(r.Body, reply)
}

// dial connects to the warden, or starts one.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	addr := &net.UnixAddr{Name: c.opts.Socket, Net: "unix"}
	sock, err := net.DialUnix("unix", nil, addr)
	if err == nil || c.isLeaving() {
		return sock, err
	}
	lerr := launch(ctx, c.opts)
	if sock, err = net.DialUnix("unix", nil, addr); err == nil { // ours, or somebody else was quicker
		return sock, nil
	}
	return nil, errors.Join(lerr, err)
}

func (c *Client) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// Shutdown ends an idle warden, and returns when its process has ended. One that still has containers refuses. Afterwards
// the client can only be closed: every other call is errdefs.ErrUnavailable.
func (c *Client) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	c.leaving = true
	pid := c.hello.Pid
	c.mu.Unlock()
	end, err := watchEnd(pid) // before it may end, and its number become another's
	if err == nil {
		defer end.Close()
		err = c.call(ctx, MethodShutdown, Target{}, nil, nil)
	}
	if err != nil && !errors.Is(err, errLost) {
		c.mu.Lock()
		c.leaving = false
		c.mu.Unlock()
		return fmt.Errorf("shut down the warden: %w", err)
	}
	c.cancel(errShutDown) // a later call would wait for a warden that nobody starts
	c.disconnect()
	if err := end.wait(ctx); err != nil {
		return fmt.Errorf("shut down the warden: process %d has not ended: %w", pid, err)
	}
	if err := os.Remove(c.opts.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("shut down the warden: %w", err)
	}
	return nil
}
