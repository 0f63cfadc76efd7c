package dockerapi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"

	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"
)

// Streams of Docker's multiplexed format, as they appear in the first byte of a frame.
const (
	stdoutStream = 1
	stderrStream = 2
	systemErr    = 3
)

// upgraded is a connection taken over from HTTP: what is read from it is standard input, and standard
// output and error go out, in frames when the container has no terminal.
type upgraded struct {
	conn net.Conn
	in   io.Reader
	out  *framer
}

// upgrade takes the connection over. The caller must Close it.
func upgrade(w *reply, r *request, framed bool) (*upgraded, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	w.started = true
	media := types.MediaTypeRawStream
	if framed && !r.version.less(apiVersion{1, 42}) {
		media = types.MediaTypeMultiplexedStream
	}
	status := "HTTP/1.1 200 OK\r\nContent-Type: " + media + "\r\n\r\n"
	if r.Header.Get("Upgrade") != "" {
		status = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + media + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" +
			"Api-Version: " + maxVersion.String() + "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, status); err != nil {
		conn.Close()
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	// The server's own reader would cancel the request at the end of standard input, and the output with it.
	ahead, err := buf.Reader.Peek(buf.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	in := io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)
	return &upgraded{conn: conn, in: in, out: &framer{w: conn, framed: framed}}, nil
}

// receive copies what the client sends to stdin, and throws it away when that is nil, until the client is done. It
// returns true when the client has gone away altogether, false when it only has no more input.
func (u *upgraded) receive(stdin *io.PipeWriter) (gone bool) {
	var to io.Writer = io.Discard
	if stdin != nil {
		to = stdin
		defer stdin.Close()
	}
	_, err := io.Copy(to, u.in)
	return err != nil || hungUp(u.conn)
}

// hungUp tells a closed connection from one whose other side only finished writing.
func hungUp(conn net.Conn) bool {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	poll := make([]unix.PollFd, 1)
	err = raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_, _ = unix.Poll(poll, 0) // does not wait
	})
	return err != nil || poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

func (u *upgraded) Close() error {
	if c, ok := u.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // the client reads all output before it sees the end
	}
	return u.conn.Close()
}

// framer writes output of both streams to one writer, in frames of a stream number, three zero bytes and a length, or as
// it is when framed is false. It is safe for concurrent use.
type framer struct {
	framed bool
	mu     sync.Mutex
	w      io.Writer
	buf    []byte // guarded by mu
}

func (f *framer) write(stream byte, p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.framed {
		return f.w.Write(p)
	}
	f.buf = append(f.buf[:0], stream, 0, 0, 0)
	f.buf = binary.BigEndian.AppendUint32(f.buf, uint32(len(p)))
	f.buf = append(f.buf, p...)
	if _, err := f.w.Write(f.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}
