package warden

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// Version is the version of the protocol that this side speaks. A warden outlives upgrades of the daemon, so either
// side may be the older one: fields are only ever added, and a method that the other side does not know is answered
// with Unimplemented.
const Version = 1

// The limits of a frame. A bundle with a seccomp profile is about 100 KB; the kernel passes at most 253 descriptors at once.
const (
	maxBody  = 16 << 20
	maxFDs   = 250
	magic    = 0x5357 // "SW"
	headSize = 8      // magic, number of descriptors, length of the body
)

// ErrFrame is a frame that breaks the protocol: the connection cannot be used any more.
var ErrFrame = errors.New("malformed warden message")

// Message is one frame: a request, its reply (the same ID), or a push (no ID).
type Message struct {
	Version int             `json:"v"`
	ID      uint64          `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"` // empty in a reply
	Error   *WireError      `json:"error,omitempty"`
	Body    json.RawMessage `json:"body,omitempty"`

	// FDs are descriptors that travel with the message. The message owns them: Send closes them, and whoever receives
	// them takes them over or calls Discard.
	FDs []int `json:"-"`
}

// Discard closes the descriptors that nobody took over.
func (m *Message) Discard() {
	closeAll(m.FDs)
	m.FDs = nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// Conn sends and receives messages over a unix stream socket. Send may be called by several goroutines, Receive by one.
type Conn struct {
	sock *net.UnixConn

	mu sync.Mutex // guards writes, so that frames do not interleave

	oob []byte // Receive only
}

// NewConn makes a Conn that owns sock.
func NewConn(sock *net.UnixConn) *Conn {
	return &Conn{sock: sock, oob: make([]byte, unix.CmsgSpace(maxFDs*4))}
}

// Close ends both directions; a blocked Receive returns.
func (c *Conn) Close() error { return c.sock.Close() }

// Send writes m and closes its descriptors, also when it fails.
func (c *Conn) Send(m *Message) error {
	defer m.Discard()
	m.Version = Version
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Method, err)
	}
	if len(body) > maxBody || len(m.FDs) > maxFDs {
		return fmt.Errorf("%w: %s of %d bytes and %d descriptors is too big", ErrFrame, m.Method, len(body), len(m.FDs))
	}
	frame := make([]byte, headSize, headSize+len(body))
	putHeader(frame, len(m.FDs), len(body))
	frame = append(frame, body...)
	var oob []byte
	if len(m.FDs) > 0 {
		oob = unix.UnixRights(m.FDs...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _, err := c.sock.WriteMsgUnix(frame, oob, nil)
	if err != nil {
		return err
	}
	if n < len(frame) { // the descriptors went with the first part
		_, err = c.sock.Write(frame[n:])
	}
	return err
}

// Receive reads the next message. At the end of the stream it returns io.EOF.
func (c *Conn) Receive() (*Message, error) {
	var head [headSize]byte
	fds, err := c.readHeader(head[:])
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	count, size, err := parseHeader(head[:])
	if err == nil && count != len(fds) {
		err = fmt.Errorf("%w: %d descriptors arrived, %d announced", ErrFrame, len(fds), count)
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.sock, body); err != nil {
		closeAll(fds)
		return nil, err
	}
	m, err := decode(body)
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	m.FDs = fds
	return m, nil
}

// readHeader fills head. The kernel delivers the descriptors of a frame with its first byte and never joins reads
// across two sets of descriptors, so they all arrive here.
func (c *Conn) readHeader(head []byte) (fds []int, err error) {
	for have := 0; have < len(head); {
		n, oobn, flags, _, err := c.sock.ReadMsgUnix(head[have:], c.oob)
		if oobn > 0 {
			got, perr := parseRights(c.oob[:oobn])
			fds = append(fds, got...)
			if perr != nil {
				return fds, perr
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fds, err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fds, fmt.Errorf("%w: descriptors were truncated: the limit of open files is reached", ErrFrame)
		}
		if n == 0 {
			if have > 0 {
				return fds, io.ErrUnexpectedEOF
			}
			return fds, io.EOF
		}
		have += n
	}
	return fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	var fds []int
	for _, cmsg := range cmsgs {
		if cmsg.Header.Level != unix.SOL_SOCKET || cmsg.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&cmsg)
		if err != nil {
			return fds, fmt.Errorf("%w: %w", ErrFrame, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func putHeader(head []byte, fds, size int) {
	binary.BigEndian.PutUint16(head, magic)
	binary.BigEndian.PutUint16(head[2:], uint16(fds))
	binary.BigEndian.PutUint32(head[4:], uint32(size))
}

func parseHeader(head []byte) (fds, size int, err error) {
	if len(head) < headSize || binary.BigEndian.Uint16(head) != magic {
		return 0, 0, fmt.Errorf("%w: it does not begin like one", ErrFrame)
	}
	fds, size = int(binary.BigEndian.Uint16(head[2:])), int(binary.BigEndian.Uint32(head[4:]))
	if fds > maxFDs || size > maxBody {
		return 0, 0, fmt.Errorf("%w: %d bytes and %d descriptors announced", ErrFrame, size, fds)
	}
	return fds, size, nil
}

func decode(body []byte) (*Message, error) {
	m := &Message{}
	if err := json.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	if m.Version < 1 {
		return nil, fmt.Errorf("%w: no version", ErrFrame)
	}
	return m, nil
}
