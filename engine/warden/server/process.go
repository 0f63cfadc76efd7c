package server

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// process is a container's first process or an exec in it. It is made by launch or by recovery, begin starts its
// goroutines, and it is over when exited is closed: by then its output is in the log and its record is written.
type process struct {
	srv       *Server
	container *container
	key       warden.Key
	stdinOnce bool // the first attached client that leaves takes standard input with it
	log       *jsonLog
	owner     *conn // of a Tied process: it dies with it. Guarded by Server.mu

	draining atomic.Bool    // it has exited: what its pipes hold is all there will be
	pumps    sync.WaitGroup // one per output stream
	exited   chan struct{}

	mu        sync.Mutex // guards what follows
	state     warden.ProcessState
	startTime uint64 // of /proc/PID/stat: tells a process from a later one of the same number
	stdio     stdio
	pidfd     *os.File
	gone      bool // descriptors are closed
	attached  []*attachment
	oomBefore uint64 // kills in the cgroup before an exec began
}

// stdio is the warden's side of a process's standard streams. Absent ones are nil; a terminal is the only one.
type stdio struct {
	stdin, stdout, stderr, terminal *os.File
}

// roles lists what is there, in a fixed order.
func (io *stdio) roles() (roles []string, files []*os.File) {
	for _, e := range []struct {
		role string
		file *os.File
	}{
		{warden.RoleStdin, io.stdin}, {warden.RoleStdout, io.stdout},
		{warden.RoleStderr, io.stderr}, {warden.RoleTerminal, io.terminal},
	} {
		if e.file != nil {
			roles, files = append(roles, e.role), append(files, e.file)
		}
	}
	return roles, files
}

func (io *stdio) close() {
	_, files := io.roles()
	for _, f := range files {
		f.Close()
	}
}

func (p *process) name() string {
	if p.key.Exec != "" {
		return fmt.Sprintf("exec %q of container %q", p.key.Exec, p.key.ID)
	}
	return fmt.Sprintf("container %q", p.key.ID)
}

func (p *process) holderKey() warden.Key { return p.key }

// hold duplicates the descriptors for a daemon; nil when there are none any more.
func (p *process) hold() (*warden.Message, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, nil
	}
	roles, files := p.stdio.roles()
	if p.pidfd != nil {
		roles, files = append(roles, warden.RolePidfd), append(files, p.pidfd)
	}
	return holdMessage(p.key, roles, files)
}

func holdMessage(key warden.Key, roles []string, files []*os.File) (*warden.Message, error) {
	m := &warden.Message{Method: warden.PushHold, Body: warden.Encode(warden.Hold{Key: key, Roles: roles})}
	for _, f := range files {
		fd, err := dup(f)
		if err != nil {
			m.Discard()
			return nil, err
		}
		m.FDs = append(m.FDs, fd)
	}
	return m, nil
}

// dup duplicates f's descriptor without f leaving the runtime's poller, as Fd would make it.
func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return -1, err
	}
	return fd, derr
}

// file makes a descriptor a file that waits in the runtime's poller.
func file(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func (p *process) snapshot() warden.ProcessState {
	p.mu.Lock()
	st := p.state
	p.mu.Unlock()
	if st.Status == warden.Running && p.key.Exec == "" && p.container.paused.Load() {
		st.Status = warden.Paused
	}
	return st
}

func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.Status == warden.Running
}

// begin starts the pumps and the wait. The process has its pid, pidfd and streams.
func (p *process) begin() {
	for _, s := range []struct {
		stream byte
		f      *os.File
	}{
		{warden.PacketStdout, p.stdio.terminal}, {warden.PacketStdout, p.stdio.stdout}, {warden.PacketStderr, p.stdio.stderr},
	} {
		if s.f != nil {
			p.pumps.Go(func() { p.pump(s.stream, s.f) })
		}
	}
	go p.reap() // ends with the process; closes exited
}

// reap waits for the end of the process and puts everything in order behind it.
func (p *process) reap() {
	end := waitPidfd(p.pidfd, p.state.Pid, p.startTime)
	if p.key.Exec == "" {
		p.container.firstGone()
	}
	oomKilled := p.oomKilled(end)
	p.drain()

	p.mu.Lock()
	p.state.Status, p.state.ExitedAt = warden.Exited, time.Now().UTC()
	p.state.ExitCode, p.state.Signal, p.state.ExitKnown = end.code, end.signal, end.known
	p.state.OOMKilled = oomKilled
	st := p.state
	p.gone = true
	p.stdio.close()
	p.pidfd.Close()
	p.mu.Unlock()

	p.saveRecord()
	p.log.close()
	close(p.exited)
	p.srv.publish(warden.Event{Type: warden.EventExit, ProcessState: st})
	p.srv.release(p.key)
	p.finishAttachments()
}

// oomKilled tells whether the kernel killed something here for the memory limit and the process ended badly.
func (p *process) oomKilled(end exit) bool {
	if end.known && end.code == 0 {
		return false
	}
	kills, err := p.container.oomKills()
	if err != nil || kills <= p.oomBefore {
		return false
	}
	return p.key.Exec == "" || end.signal == int(unix.SIGKILL)
}

// drain makes the pumps take what the pipes still hold, and waits for them. They do not wait for more, because a child that
// the process left behind may hold the pipe open for ever; nor for clients, who get the rest later.
func (p *process) drain() {
	p.draining.Store(true)
	past := time.Unix(1, 0)
	for _, f := range []*os.File{p.stdio.terminal, p.stdio.stdout, p.stdio.stderr} {
		if f != nil {
			f.SetReadDeadline(past)
		}
	}
	for _, a := range p.attachments() {
		a.hurry()
	}
	p.pumps.Wait()
}

// signal sends sig to this process alone, whatever became of its number.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ended := p.gone || p.state.Status != warden.Running
	if !ended {
		err := pidfdSignal(p.pidfd, sig)
		if ended = errors.Is(err, unix.ESRCH); !ended { // or it is reaped already, and its end about to be noted here
			return err
		}
	}
	return fmt.Errorf("%s is not running: %w", p.name(), errdefs.ErrFailedPrecondition)
}

// closeStdin ends standard input. The daemon's duplicate has to go too, or the process would never see it.
func (p *process) closeStdin() {
	p.mu.Lock()
	f := p.stdio.stdin
	p.stdio.stdin = nil
	p.mu.Unlock()
	if f == nil {
		return
	}
	f.Close()
	p.srv.release(p.key, warden.RoleStdin)
}

// input is where standard input is written, or nil.
func (p *process) input() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdio.terminal != nil {
		return p.stdio.terminal
	}
	return p.stdio.stdin
}

func (p *process) attachments() []*attachment {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.attached)
}
