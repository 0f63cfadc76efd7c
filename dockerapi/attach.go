package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
	"github.com/moby/term"

	"slipway.dev/slipway/engine/container"
)

func encodeLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// attachContainer connects the client's connection to the container's streams. The connection is taken over only
// when the engine says that nothing can be missed any more, so an error until then is still an HTTP error, and a client
// that sees the upgrade may start the container.
func (s *Server) attachContainer(w *reply, r *request) error {
	info, err := s.containers.Get(r.vars["id"])
	if err != nil {
		return err
	}
	keys, err := detachKeys(r.query.Get("detachKeys"))
	if err != nil {
		return err
	}
	if info.State.Paused {
		return conflict("container %s is paused, unpause the container before attach", info.ID)
	}
	if info.State.Restarting {
		return conflict("container %s is restarting, wait until the container is running", info.ID)
	}
	ctx, t := newTakeover(w, r, !info.Spec.Tty)
	defer t.close()
	o := container.AttachOptions{
		Logs: r.flag("logs"), Stream: r.flag("stream"), DetachKeys: keys, Attached: t.start,
	}
	if r.flag("stdin") && info.Spec.OpenStdin {
		o.Stdin = t.input()
	}
	if r.flag("stdout") {
		o.Stdout = t.output(stdoutStream)
	}
	if r.flag("stderr") {
		o.Stderr = t.output(stderrStream)
	}
	return t.finish(s.containers.Attach(ctx, info.ID, o))
}

// takeover is a connection that becomes a stream at start, as late as an error can still be told over HTTP.
type takeover struct {
	w      *reply
	r      *request
	framed bool
	gone   context.CancelFunc // called when the client has gone away
	stdin  *io.PipeReader     // nil: standard input is thrown away
	feed   *io.PipeWriter
	up     *upgraded
	err    error // of the upgrade
	reader sync.WaitGroup
}

// newTakeover returns a context that ends when the client goes away; the end of its input alone, which is where Go's server
// would end the request's own context, does not count.
func newTakeover(w *reply, r *request, framed bool) (context.Context, *takeover) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	return ctx, &takeover{w: w, r: r, framed: framed, gone: cancel}
}

// input is standard input, from start on.
func (t *takeover) input() io.Reader {
	t.stdin, t.feed = io.Pipe()
	return t.stdin
}

func (t *takeover) start() {
	if t.up != nil || t.err != nil {
		return
	}
	if t.up, t.err = upgrade(t.w, t.r, t.framed); t.err != nil {
		return
	}
	t.reader.Go(func() {
		if t.up.receive(t.feed) {
			t.gone()
		}
	})
}

func (t *takeover) close() {
	t.gone()
	if t.stdin != nil {
		t.stdin.Close()
	}
	if t.up != nil {
		t.up.Close()
	}
	t.reader.Wait()
}

func (t *takeover) output(stream byte) io.Writer { return takeoverWriter{t, stream} }

type takeoverWriter struct {
	t      *takeover
	stream byte
}

func (w takeoverWriter) Write(p []byte) (int, error) {
	if w.t.up == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := w.t.up.out.write(w.stream, p)
	if err != nil {
		w.t.gone()
	}
	return n, err
}

// finish turns the end of a stream into what the client gets to see: an HTTP error before the upgrade, text in the
// stream after it.
func (t *takeover) finish(err error) error {
	switch {
	case t.err != nil:
		return t.err
	case err == nil || errors.Is(err, container.ErrDetached):
		t.start() // nothing came, but the client waits for the upgrade
		return nil
	case t.up == nil:
		return err
	case errors.Is(err, context.Canceled) || errors.Is(err, io.ErrClosedPipe):
		return nil
	}
	stream := byte(systemErr)
	if !t.framed {
		stream = stdoutStream
	}
	_, _ = t.up.out.write(stream, []byte(err.Error()+"\r\n"))
	return err
}

// detachKeys reads "ctrl-p,ctrl-q" and the like. An empty string means the default, which is nil.
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, invalid("Invalid detach keys (%s) provided", s)
	}
	return keys, nil
}

// attachWebsocket is attach for browsers: one binary message per piece of output, text or binary ones as input.
func (s *Server) attachWebsocket(w *reply, r *request) error {
	info, err := s.containers.Get(r.vars["id"])
	if err != nil {
		return err
	}
	keys, err := detachKeys(r.query.Get("detachKeys"))
	if err != nil {
		return err
	}
	// The socket is root-only and carries no cookies, so there is no origin to protect.
	up := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return invalid("attach/ws: the request is not a WebSocket handshake")
	}
	w.started = true
	conn, err := up.Upgrade(w.ResponseWriter, r.Request, nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	out := &websocketStream{conn: conn}
	o := container.AttachOptions{Logs: r.flag("logs"), Stream: r.flag("stream"), DetachKeys: keys}
	if r.flagOr("stdin", true) && info.Spec.OpenStdin {
		o.Stdin = out
	}
	if r.flagOr("stdout", true) {
		o.Stdout = out
	}
	if r.flagOr("stderr", true) {
		o.Stderr = out
	}
	err = s.containers.Attach(r.Context(), info.ID, o)
	_ = conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	if errors.Is(err, container.ErrDetached) {
		return nil
	}
	return err
}

// websocketStream is a WebSocket seen as two byte streams; one goroutine reads and one writes.
type websocketStream struct {
	conn *websocket.Conn
	in   io.Reader
}

func (s *websocketStream) Read(p []byte) (int, error) {
	for {
		if s.in == nil {
			_, in, err := s.conn.NextReader()
			if err != nil {
				return 0, io.EOF
			}
			s.in = in
		}
		n, err := s.in.Read(p)
		if err == io.EOF {
			s.in, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (s *websocketStream) Write(p []byte) (int, error) {
	if err := s.conn.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
