package server

import (
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

type launchOptions struct {
	terminal, stdin bool
}

// launch starts the process and fills in its pid, pidfd and streams. The daemon gets duplicates of the pipes before anything
// can be written to them.
func (p *process) launch(lp *libcontainer.Process, opts launchOptions) error {
	theirs, console, err := p.prepare(lp, opts)
	if err != nil {
		return err
	}
	if console != nil {
		defer console.Close()
	}
	p.srv.share(p)
	p.container.updating.Lock()
	err = p.container.run(lp)
	p.container.updating.Unlock()
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		p.abandon()
		return err
	}
	if err := p.grasp(lp, console); err != nil {
		if pid, perr := lp.Pid(); perr == nil {
			finish(pid) // nobody else has waited for it
		}
		p.abandon()
		return err
	}
	p.srv.share(p)
	return nil
}

// prepare makes the streams and returns the process's ends of them, or the socket through which its terminal will come.
func (p *process) prepare(lp *libcontainer.Process, opts launchOptions) (theirs []*os.File, console *os.File, err error) {
	defer func() {
		if err != nil {
			p.stdio.close()
			for _, f := range theirs {
				f.Close()
			}
		}
	}()
	if opts.terminal {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, nil, os.NewSyscallError("socketpair", err)
		}
		lp.ConsoleSocket = os.NewFile(uintptr(pair[1]), "console")
		return []*os.File{lp.ConsoleSocket}, os.NewFile(uintptr(pair[0]), "console"), nil
	}
	for _, s := range []struct {
		ours   **os.File
		output bool
		set    func(*os.File)
		on     bool
	}{
		{&p.stdio.stdin, false, func(f *os.File) { lp.Stdin = f }, opts.stdin},
		{&p.stdio.stdout, true, func(f *os.File) { lp.Stdout = f }, true},
		{&p.stdio.stderr, true, func(f *os.File) { lp.Stderr = f }, true},
	} {
		if !s.on {
			continue
		}
		ours, child, err := pipe(s.output)
		if err != nil {
			return theirs, nil, err
		}
		*s.ours = ours
		s.set(child)
		theirs = append(theirs, child)
	}
	return theirs, nil, nil
}

// pipe makes a pipe whose other end blocks, as programs expect, while ours waits in the poller.
func pipe(output bool) (ours, theirs *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	r, w := fds[0], fds[1]
	if output {
		unix.FcntlInt(uintptr(r), unix.F_SETPIPE_SZ, pipeSize) // a wish: without it there are more switches
		return file(r, "output"), os.NewFile(uintptr(w), "output"), nil
	}
	return file(w, "input"), os.NewFile(uintptr(r), "input"), nil
}

// grasp takes hold of the process that runs now.
func (p *process) grasp(lp *libcontainer.Process, console *os.File) error {
	pid, err := lp.Pid()
	if err != nil {
		return err
	}
	st, err := readStat(pid)
	if err != nil {
		return err
	}
	pidfd, err := openPidfd(pid)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pidfd, p.startTime = pidfd, st.startTime
	p.state.Pid, p.state.StartedAt = pid, time.Now().UTC()
	if console == nil {
		return nil
	}
	p.stdio.terminal, err = receiveTerminal(console)
	return err
}

// receiveTerminal takes the master that the process sent before it began.
func receiveTerminal(console *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	_, oobn, _, _, err := unix.Recvmsg(int(console.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(cmsgs) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor came: %v", err)
	}
	fds, err := unix.ParseUnixRights(&cmsgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("receive the terminal: no descriptor came: %v", err)
	}
	return file(fds[0], "terminal"), nil
}

// abandon lets go of the streams after a launch that failed.
func (p *process) abandon() {
	p.mu.Lock()
	p.gone = true
	p.stdio.close()
	if p.pidfd != nil {
		p.pidfd.Close()
	}
	p.mu.Unlock()
	p.srv.release(p.key)
}

// share gives every daemon duplicates of what h holds.
func (s *Server) share(h holder) {
	s.broadcast(func() (*warden.Message, error) {
		m, err := h.hold()
		if m == nil && err == nil {
			m = &warden.Message{Method: warden.PushRelease, Body: warden.Encode(warden.Hold{Key: h.holderKey()})}
		}
		return m, err
	})
}

// introduce records a launched process, attaches whoever started it, puts it in the table and lets it flow.
func (p *process) introduce(withAttachment bool, enter func()) (reply *warden.Started, fds []int, err error) {
	p.saveRecord()
	reply = &warden.Started{}
	if withAttachment {
		if reply.AttachID, fds, err = p.attach(); err != nil {
			p.srv.log.Warn("a process runs, but nobody could attach to it", "process", p.name(), "error", err)
		}
	}
	p.container.mu.Lock()
	enter()
	p.container.mu.Unlock()
	reply.State = p.snapshot()
	p.begin()
	p.awaitProgram(time.Sleep)
	return reply, fds, nil
}

// programLimit is how long a start waits for a program that a slow disk gives.
const programLimit = time.Second

// awaitProgram waits until the process has become its program. libcontainer returns a millisecond or two earlier, when its helper is
// about to exec: a signal in that time ends the helper, and the program never runs.
//
// No event tells of it, because the helper closes what is not the program's before it execs, close-on-exec pipes included. So /proc
// is asked. A `run` is not slower for it: its client waits for the program in any case.
func (p *process) awaitProgram(pause func(time.Duration)) {
	for waited, next := time.Duration(0), 50*time.Microsecond; waited < programLimit; next = min(2*next, 5*time.Millisecond) {
		st, err := readStat(p.state.Pid)
		if err != nil || !st.forked || st.zombie || st.startTime != p.startTime {
			return
		}
		pause(next)
		waited += next
	}
}

// execute answers MethodExec.
func execute(conn *conn, m *warden.Message) (any, []int, error) {
	var spec warden.ExecSpec
	if err := warden.Decode(m.Body, &spec); err != nil {
		return nil, nil, err
	}
	if err := checkID("exec", spec.ID); err != nil {
		return nil, nil, err
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, nil, fmt.Errorf("exec %q has no command: %w", spec.ID, errdefs.ErrInvalidArgument)
	}
	first, err := conn.srv.process(warden.Target{ID: spec.ContainerID})
	if err != nil {
		return nil, nil, err
	}
	c := first.container
	conn.srv.hasten()
	if err := c.reserveExec(spec.ID); err != nil {
		return nil, nil, err
	}
	reply, fds, err := c.exec(conn, &spec)
	if err != nil {
		c.mu.Lock()
		delete(c.execs, spec.ID)
		c.mu.Unlock()
		os.Remove(conn.srv.recordPath(warden.Key{ID: spec.ContainerID, Exec: spec.ID}))
		return nil, nil, fmt.Errorf("exec in container %q: %w", spec.ContainerID, err)
	}
	return reply, fds, nil
}

func (c *container) reserveExec(id string) error {
	if c.paused.Load() {
		return fmt.Errorf("container %q is paused: resume it first: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deleting || c.lc == nil || !c.first.alive() {
		return fmt.Errorf("container %q is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if _, ok := c.execs[id]; ok {
		return fmt.Errorf("exec %q of container %q exists: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[id] = nil
	return nil
}

func (c *container) exec(conn *conn, spec *warden.ExecSpec) (*warden.Started, []int, error) {
	p := &process{
		srv: c.srv, container: c, key: warden.Key{Kind: warden.HoldProcess, ID: spec.ContainerID, Exec: spec.ID},
		stdinOnce: true, exited: make(chan struct{}),
		state: warden.ProcessState{
			ContainerID: spec.ContainerID, ExecID: spec.ID, Status: warden.Running, Lifetime: spec.Lifetime,
			Terminal: spec.Process.Terminal, Labels: spec.Labels,
		},
	}
	if spec.Lifetime == warden.Tied {
		p.owner = conn
	}
	p.oomBefore, _ = c.oomKills()
	lp, err := processOf(spec.Process)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(c.srv.recordPath(warden.Key{ID: c.id, Exec: "."}), 0o700); err != nil {
		return nil, nil, err
	}
	if err := p.launch(lp, launchOptions{terminal: spec.Process.Terminal, stdin: spec.Stdin}); err != nil {
		return nil, nil, err
	}
	return p.introduce(spec.Attach, func() { c.execs[spec.ID] = p })
}

// deleteExec ends an exec and forgets it.
func (c *container) deleteExec(id string) error {
	c.mu.Lock()
	p := c.execs[id]
	c.mu.Unlock()
	if p == nil {
		return nil
	}
	if p.alive() {
		p.signal(unix.SIGKILL)
	}
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	select {
	case <-p.exited:
	case <-limit.C:
		return fmt.Errorf("%s was killed %v ago and is not gone: it hangs inside the kernel: %w", p.name(), killLimit, errdefs.ErrUnavailable)
	}
	c.mu.Lock()
	delete(c.execs, id)
	c.mu.Unlock()
	os.Remove(c.srv.recordPath(p.key))
	return nil
}
