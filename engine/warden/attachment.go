package warden

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Attachment is a client's end of a process's standard streams. One goroutine may read and another write. It survives the
// warden: another one goes on where the first stopped.
type Attachment struct {
	client *Client
	key    Key
	id     uint64
	sock   *os.File
	theirs int // the warden's end, for its successor
	buf    []byte
	ended  bool
	once   sync.Once
}

// newAttachment takes over both ends.
func (c *Client) newAttachment(started Started, fds []int) *Attachment {
	unix.SetNonblock(fds[0], true)
	a := &Attachment{
		client: c, id: started.AttachID, key: keyOf(started.State),
		sock: os.NewFile(uintptr(fds[0]), "attachment"), theirs: fds[1],
	}
	c.mu.Lock()
	c.attached[a.id] = a
	c.mu.Unlock()
	return a
}

// Next waits for output: stream 1 or 2, and what came, valid until the next call. At the end of the process it returns io.EOF; when
// the process got out of sight, io.ErrUnexpectedEOF.
func (a *Attachment) Next() (stream byte, p []byte, err error) {
	if a.ended {
		return 0, nil, io.EOF
	}
	if a.buf == nil {
		a.buf = make([]byte, 1+MaxPacket)
	}
	n, err := a.sock.Read(a.buf)
	switch {
	case n == 0 || errors.Is(err, os.ErrClosed):
		return 0, nil, io.ErrUnexpectedEOF
	case err != nil:
		return 0, nil, err
	case a.buf[0] == PacketEnd:
		a.ended = true
		a.letGo()
		return 0, nil, io.EOF
	}
	return a.buf[0], a.buf[1:n], nil
}

// Copy writes output to stdout and stderr until the end of the process, and returns nil then. A nil writer drops its stream.
func (a *Attachment) Copy(stdout, stderr io.Writer) error {
	for {
		stream, p, err := a.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		w := stdout
		if stream == PacketStderr {
			w = stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
}

// Write sends standard input. It waits when the process does not read.
func (a *Attachment) Write(p []byte) (n int, err error) {
	packet := make([]byte, 1, 1+min(len(p), MaxPacket))
	packet[0] = PacketStdin
	for len(p) > 0 {
		part := p[:min(len(p), MaxPacket)]
		if _, err := a.sock.Write(append(packet[:1], part...)); err != nil {
			return n, err
		}
		n += len(part)
		p = p[len(part):]
	}
	return n, nil
}

// CloseStdin ends standard input, if the process was started with StdinOnce or is an exec. A terminal stays open.
func (a *Attachment) CloseStdin() error {
	_, err := a.sock.Write([]byte{PacketCloseStdin})
	return err
}

// Close detaches. The process goes on.
func (a *Attachment) Close() error {
	a.letGo()
	return a.sock.Close()
}

// letGo forgets the warden's end.
func (a *Attachment) letGo() {
	a.once.Do(func() {
		a.client.mu.Lock()
		delete(a.client.attached, a.id)
		unix.Close(a.theirs)
		a.client.mu.Unlock()
	})
}
