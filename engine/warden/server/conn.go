package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/warden"
)

const (
	queueLength = 4096 // messages waiting for a daemon that does not read; then it is disconnected and must look anew
	maxInFlight = 256  // requests of one daemon at work at once
)

// conn is one connected daemon.
type conn struct {
	srv    *Server
	wire   *warden.Conn
	out    chan *warden.Message
	slots  chan struct{}
	done   chan struct{}
	once   sync.Once
	tasks  sync.WaitGroup // requests at work, and the writer
	cancel context.CancelFunc
	ctx    context.Context
}

func newConn(s *Server, sock *net.UnixConn) *conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &conn{
		srv: s, wire: warden.NewConn(sock), ctx: ctx, cancel: cancel,
		out: make(chan *warden.Message, queueLength), slots: make(chan struct{}, maxInFlight), done: make(chan struct{}),
	}
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.cancel()
		c.wire.Close()
	})
}

func (c *conn) closed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// serve reads requests until the daemon goes away.
func (c *conn) serve() {
	c.tasks.Go(c.write)
	for {
		m, err := c.wire.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !c.closed() {
				c.srv.log.Warn("the connection of a daemon broke", "error", err)
			}
			break
		}
		select {
		case c.slots <- struct{}{}:
		case <-c.done:
			m.Discard()
			continue
		}
		release := sync.OnceFunc(func() { <-c.slots })
		if handlers[m.Method].long {
			release()
		}
		c.tasks.Go(func() {
			defer release()
			c.answer(m)
		})
	}
	c.close()
	c.tasks.Wait()
	c.drain()
	c.srv.forget(c)
}

// write sends what is queued.
func (c *conn) write() {
	for {
		select {
		case <-c.done:
			return
		case m := <-c.out:
			if err := c.wire.Send(m); err != nil {
				c.close()
				return
			}
		}
	}
}

// drain closes the descriptors of what was never sent.
func (c *conn) drain() {
	for {
		select {
		case m := <-c.out:
			m.Discard()
		default:
			return
		}
	}
}

// send queues m and waits for room: for replies, of which there are at most maxInFlight.
func (c *conn) send(m *warden.Message) {
	select {
	case c.out <- m:
	case <-c.done:
		m.Discard()
	}
}

// push queues m without waiting. A daemon that does not read is disconnected: nothing is lost, for it asks again.
func (c *conn) push(m *warden.Message) {
	select {
	case c.out <- m:
	case <-c.done:
		m.Discard()
	default:
		c.srv.log.Warn("a daemon does not read its messages: disconnecting it")
		m.Discard()
		c.close()
	}
}

// answer runs one request.
func (c *conn) answer(m *warden.Message) {
	reply := &warden.Message{ID: m.ID}
	body, fds, err := c.run(m)
	m.Discard() // what the handler did not take
	if err != nil {
		reply.Error = warden.ToWire(err)
	} else if body != nil {
		reply.Body, reply.FDs = warden.Encode(body), fds
	}
	c.send(reply)
}

// run calls the handler. A panic in one request must not take down the parent of every container.
func (c *conn) run(m *warden.Message) (body any, fds []int, err error) {
	defer func() {
		if r := recover(); r != nil {
			c.srv.log.Error("a request panicked", "method", m.Method, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("warden: %s: internal error: %v", m.Method, r)
		}
	}()
	h, ok := handlers[m.Method]
	if !ok {
		return nil, nil, fmt.Errorf("warden of version %d does not know %q: %w", warden.Version, m.Method, errdefs.ErrNotImplemented)
	}
	if !h.early {
		select {
		case <-c.srv.recovered:
		case <-c.done:
			return nil, nil, errdefs.ErrUnavailable.WithMessage("the connection is closed")
		}
	}
	return h.run(c, m)
}
