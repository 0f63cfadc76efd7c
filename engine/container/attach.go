package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/term"
)

// ErrDetached is returned by Attach and ExecStart when the user typed the detach keys.
var ErrDetached = errors.New("detached")

// joiner waits, before a start, to be given the streams from the first byte on.
type joiner struct {
	ch         chan joined
	rows, cols uint16
}

type joined struct {
	stream Stream
	err    error
}

// Attach connects to a container's standard streams until the container exits, the user
// detaches or ctx ends. A container that does not run yet is waited for, unless o.Running, and nothing
// that it writes is lost. A Read of o.Stdin may go on after Attach returned, until the caller
// closes what is behind it.
func (m *Manager) Attach(ctx context.Context, ref string, o AttachOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	m.publish(c, "attach", nil)
	if o.Attached == nil {
		o.Attached = func() {}
	}
	o.Attached = sync.OnceFunc(o.Attached)
	if o.Logs {
		if err := m.replay(ctx, c, o); err != nil {
			return err
		}
	}
	if !o.Stream {
		return nil
	}
	stream, err := m.join(ctx, c, o)
	if err != nil || stream == nil {
		return err
	}
	spec := c.spec()
	p := pump{
		stream: stream, stdout: o.Stdout, stderr: o.Stderr, tty: spec.Tty, keys: o.DetachKeys,
		closeStdin: spec.StdinOnce && !spec.Tty,
	}
	if spec.OpenStdin {
		p.stdin = o.Stdin
	}
	err = p.run(ctx)
	if errors.Is(err, ErrDetached) {
		m.publish(c, "detach", nil)
	}
	return err
}

// replay writes what was logged so far.
func (m *Manager) replay(ctx context.Context, c *instance, o AttachOptions) error {
	r, err := m.Logs(ctx, c.id, LogOptions{Stdout: o.Stdout != nil, Stderr: o.Stderr != nil, Tail: -1})
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		o.Attached()
		if err := writeTo(e.Stream, e.Line, o.Stdout, o.Stderr); err != nil {
			return err
		}
	}
}

// join returns the streams of a container: at once if it runs, else when it starts.
func (m *Manager) join(ctx context.Context, c *instance, o AttachOptions) (Stream, error) {
	c.mu.Lock()
	running := c.s.State.Running && !c.s.State.Restarting
	j := &joiner{ch: make(chan joined, 1)}
	if !running && !c.gone && !o.Running {
		c.pending = append(c.pending, j)
	}
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return nil, nil
	}
	if running {
		stream, err := m.Warden.Attach(ctx, c.id, "")
		if err == nil {
			o.Attached()
		}
		return stream, err
	}
	if o.Running {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	o.Attached()
	select {
	case got := <-j.ch:
		return got.stream, got.err
	case <-ctx.Done():
		c.leave(j)
		return nil, context.Cause(ctx)
	case <-m.ctx.Done():
		c.leave(j)
		return nil, context.Cause(m.ctx)
	}
}

// leave withdraws a joiner; one that was served meanwhile must not leak its stream.
func (c *instance) leave(j *joiner) {
	c.mu.Lock()
	waits := slices.Contains(c.pending, j)
	c.pending = slices.DeleteFunc(c.pending, func(x *joiner) bool { return x == j })
	c.mu.Unlock()
	if waits {
		return
	}
	// Whoever took it from the list serves it, now or in a moment: a stream that nobody reads would in the end hold up
	// the container's output.
	if got := <-j.ch; got.stream != nil {
		got.stream.Close()
	}
}

// joinPending serves those who attached before the start.
func (m *Manager) joinPending(c *instance, first Stream) {
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	if len(pending) == 0 {
		if first != nil {
			first.Close() // whoever wanted it has left
		}
		return
	}
	if first == nil { // they came while the container was being started
		for _, j := range pending {
			s, err := m.Warden.Attach(m.ctx, c.id, "")
			j.ch <- joined{s, err}
		}
		return
	}
	if len(pending) == 1 {
		pending[0].ch <- joined{stream: first}
		return
	}
	t := &tee{from: first, open: len(pending)}
	for _, j := range pending {
		b := &branch{tee: t, out: make(chan chunk, 16), left: make(chan struct{})}
		t.branches = append(t.branches, b)
		j.ch <- joined{stream: b}
	}
	m.goes(t.run)
}

// endPendingLocked turns away those who attached before a start that will not come.
func (c *instance) endPendingLocked(err error) {
	for _, j := range c.pending {
		j.ch <- joined{err: err}
	}
	c.pending = nil
}

// tee shares the one stream that saw the first byte among several clients.
type tee struct {
	from     Stream
	branches []*branch

	mu   sync.Mutex
	open int // branches that are not closed; the last one closes from
}

type chunk struct {
	stream byte
	p      []byte
}

type branch struct {
	tee  *tee
	out  chan chunk
	left chan struct{} // closed by Close
	once sync.Once
}

func (t *tee) run() {
	defer func() {
		for _, b := range t.branches {
			close(b.out)
		}
	}()
	for {
		stream, p, err := t.from.Next()
		if err != nil {
			return
		}
		c := chunk{stream, slices.Clone(p)}
		for _, b := range t.branches {
			select {
			case b.out <- c:
			case <-b.left:
			}
		}
	}
}

func (b *branch) Next() (byte, []byte, error) {
	select {
	case c, ok := <-b.out:
		if ok {
			return c.stream, c.p, nil
		}
	case <-b.left:
	}
	return 0, nil, io.EOF
}

func (b *branch) Write(p []byte) (int, error) { return b.tee.from.Write(p) }
func (b *branch) CloseStdin() error           { return b.tee.from.CloseStdin() }

func (b *branch) Close() error {
	var err error
	b.once.Do(func() {
		close(b.left)
		b.tee.mu.Lock()
		defer b.tee.mu.Unlock()
		if b.tee.open--; b.tee.open == 0 {
			err = b.tee.from.Close()
		}
	})
	return err
}

// pump moves bytes between a client and a process.
type pump struct {
	stream         Stream
	stdin          io.Reader
	stdout, stderr io.Writer
	tty            bool
	keys           []byte
	closeStdin     bool // the end of stdin is passed on; else it ends the pump
}

var defaultDetachKeys = []byte{16, 17} // ctrl-p ctrl-q

func (p *pump) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Closing the stream is what ends a blocked Next.
	stop := context.AfterFunc(ctx, func() { p.stream.Close() })
	defer func() {
		stop()
		p.stream.Close()
	}()
	if p.stdin != nil {
		go p.input(cancel) // its Read ends with the caller's connection, not with us
	}
	err := p.output()
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, io.EOF) {
			return nil
		}
		return cause
	}
	return err
}

func (p *pump) output() error {
	for {
		stream, b, err := p.stream.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := writeTo(stream, b, p.stdout, p.stderr); err != nil {
			return err
		}
	}
}

func writeTo(stream byte, b []byte, stdout, stderr io.Writer) error {
	to := stdout
	if stream == 2 {
		to = stderr
	}
	if to == nil {
		return nil
	}
	_, err := to.Write(b)
	return err
}

// input copies stdin until it ends. Where the process is not told of the end, the end
// means that the client is done with us (as in Docker).
func (p *pump) input(cancel context.CancelCauseFunc) {
	from := p.stdin
	if p.tty {
		keys := p.keys
		if keys == nil {
			keys = defaultDetachKeys
		}
		if len(keys) > 0 {
			from = term.NewEscapeProxy(from, keys)
		}
	}
	_, err := io.Copy(writerOnly{p.stream}, from)
	var escape term.EscapeError
	switch {
	case errors.As(err, &escape):
		cancel(ErrDetached)
	case p.closeStdin:
		_ = p.stream.CloseStdin() // fails only when the process has gone
	default:
		cancel(io.EOF)
	}
}

// writerOnly hides everything but Write, so that io.Copy buffers.
type writerOnly struct{ io.Writer }
