package server

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

const (
	pipeSize = 256 << 10
	// stallLimit is how long a client that does not read may hold up the output of a container that has a log. Docker
	// lets it do so for ever; a log that stops because a terminal was suspended is worse than a client that has to attach again.
	stallLimit = 60 * time.Second
	// tailLimit is how long a client may take for the rest after the process ended.
	tailLimit = 5 * time.Minute
	// attachBuffer is the kernel buffer of an attachment: what a slow reader may lag behind before anything waits for it.
	attachBuffer = 1 << 20
)

// packets are read buffers: one byte for the packet's kind, then data.
var packets = sync.Pool{New: func() any { b := make([]byte, 1+warden.MaxPacket); return &b }}

// pump carries one output stream to the log and to the attached clients, until its end.
func (p *process) pump(stream byte, f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	var carry []byte // the beginning of a character whose rest the next read brings
	left := pipeSize // of what the process itself can have left behind; more is of a child that goes on
	for {
		packet, n, err := p.read(raw, f)
		if n > 0 {
			(*packet)[0] = stream
			carry = p.deliver((*packet)[:1+n], carry)
		}
		if packet != nil {
			packets.Put(packet)
		}
		if p.draining.Load() {
			left -= n
		}
		if err != nil || left < 0 {
			p.log.write(streamName(stream), carry, time.Now(), nil)
			return
		}
	}
}

var errDrained = errors.New("stream is drained")

// read reads once, into a buffer that it takes only when there is something to read: an idle stream costs none.
func (p *process) read(raw syscall.RawConn, f *os.File) (packet *[]byte, n int, err error) {
	for {
		var rerr error
		err = raw.Read(func(fd uintptr) bool {
			packet = packets.Get().(*[]byte)
			var last bool
			n, last, rerr = readLeft(int(fd), (*packet)[1:], p.draining.Load)
			if rerr != unix.EAGAIN {
				return true
			}
			packets.Put(packet)
			packet = nil
			return last
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			f.SetReadDeadline(time.Time{}) // woken by drain: read without waiting from here on
			continue
		case err != nil:
			return packet, 0, err
		case rerr == unix.EAGAIN:
			return nil, 0, errDrained
		case rerr != nil: // a terminal whose other side closed says EIO
			return packet, 0, rerr
		case n == 0:
			return packet, 0, errDrained
		}
		return packet, n, nil
	}
}

// readLeft reads once. last tells that the process had ended before, so that nothing more will come. That is asked first: what a
// process writes, and ends, after a read that found nothing would be lost.
func readLeft(fd int, p []byte, ended func() bool) (n int, last bool, err error) {
	last = ended()
	n, err = readEINTR(fd, p)
	return n, last, err
}

func readEINTR(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// deliver hands one packet to everyone. It returns what it held back from the log: at most three bytes.
func (p *process) deliver(packet, carry []byte) []byte {
	carry = p.log.write(streamName(packet[0]), packet[1:], time.Now(), carry)
	for _, a := range p.attachments() {
		if !a.send(packet, p) {
			p.detach(a)
		}
	}
	return carry
}

func streamName(stream byte) string {
	if stream == warden.PacketStderr {
		return "stderr"
	}
	return "stdout"
}

// attachment is the warden's end of one client's streams.
type attachment struct {
	id   uint64
	sock *os.File

	mu   sync.Mutex
	tail [][]byte // packets for after the process's end: at most what its pipes held
}

// attach makes an attachment from now on. The descriptors for the daemon are its end and a duplicate of ours.
func (p *process) attach() (id uint64, fds []int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range pair {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, attachBuffer)
	}
	ours, err := unix.FcntlInt(uintptr(pair[0]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		closeFDs(pair[:])
		return 0, nil, err
	}
	p.srv.mu.Lock()
	p.srv.attachSeq++
	id = p.srv.attachSeq
	p.srv.mu.Unlock()
	p.join(&attachment{id: id, sock: file(pair[0], "attachment")})
	return id, []int{pair[1], ours}, nil
}

// join makes a take part. One that comes too late learns at once that this was all.
func (p *process) join(a *attachment) {
	p.mu.Lock()
	late := p.gone
	if !late {
		p.attached = append(p.attached, a)
	}
	p.mu.Unlock()
	if late {
		a.finish()
		return
	}
	go p.feed(a) // ends when either side closes the socket
}

// detach forgets a client.
func (p *process) detach(a *attachment) {
	p.mu.Lock()
	i := slices.Index(p.attached, a)
	if i >= 0 {
		p.attached = slices.Delete(p.attached, i, i+1)
	}
	p.mu.Unlock()
	if i < 0 {
		return
	}
	a.sock.Close()
	if p.stdinOnce {
		p.closeStdin()
	}
}

// feed carries a client's input to the process, until the client leaves.
func (p *process) feed(a *attachment) {
	raw, err := a.sock.SyscallConn()
	if err != nil {
		return
	}
	for {
		var packet *[]byte
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			packet = packets.Get().(*[]byte)
			n, rerr = readEINTR(int(fd), *packet)
			if rerr != unix.EAGAIN {
				return true
			}
			packets.Put(packet)
			packet = nil
			return false
		})
		if err != nil || rerr != nil || n == 0 {
			break
		}
		p.take((*packet)[:n])
		packets.Put(packet)
	}
	p.detach(a)
}

// take handles one packet of a client. Input for a process that has none is dropped.
func (p *process) take(packet []byte) {
	switch packet[0] {
	case warden.PacketStdin:
		if f := p.input(); f != nil {
			f.Write(packet[1:]) // fails when the process has closed it: as a broken pipe should, silently
		}
	case warden.PacketCloseStdin:
		if p.stdinOnce {
			p.closeStdin()
		}
	}
}

// send gives the client a packet. It waits for a slow one: for ever when nothing else needs the output, at most stallLimit when
// there is a log, not at all once the process has ended. false: the client is gone.
func (a *attachment) send(packet []byte, p *process) bool {
	if p.log != nil && !p.draining.Load() {
		a.sock.SetWriteDeadline(time.Now().Add(stallLimit))
	}
	if p.draining.Load() { // asked after the deadline was set, or drain's hurry could be undone
		a.later(packet)
		return true
	}
	_, err := a.sock.Write(packet)
	if errors.Is(err, os.ErrDeadlineExceeded) && p.draining.Load() {
		a.later(packet)
		return true
	}
	return err == nil
}

// later keeps a packet for finish.
func (a *attachment) later(packet []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tail = append(a.tail, slices.Clone(packet))
}

// hurry interrupts a send that waits.
func (a *attachment) hurry() { a.sock.SetWriteDeadline(time.Unix(1, 0)) }

// finishAttachments gives all clients the rest and the end.
func (p *process) finishAttachments() {
	p.mu.Lock()
	all := p.attached
	p.attached = nil
	p.mu.Unlock()
	for _, a := range all {
		a.finish()
	}
}

// finish sends the rest and the end, and closes. A client that does not read is given up after tailLimit.
func (a *attachment) finish() {
	go func() {
		defer a.sock.Close()
		a.sock.SetWriteDeadline(time.Now().Add(tailLimit))
		for _, packet := range a.tail {
			if _, err := a.sock.Write(packet); err != nil {
				return
			}
		}
		a.sock.Write([]byte{warden.PacketEnd})
	}()
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
