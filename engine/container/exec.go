package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// keptExecs bounds how many finished execs of one container can still be inspected, and
// waitingExecs how many more there may be that were never started.
const (
	keptExecs    = 64
	waitingExecs = 1024
)

// execution is one exec, from its creation until it is forgotten.
type execution struct {
	id        string
	container *instance
	spec      ExecSpec
	done      chan struct{} // closed when it has exited

	mu       sync.Mutex
	started  bool
	running  bool
	attached bool // a client reads its output: it acknowledges the exit
	pid      int
	code     *int
}

// ExecCreate prepares another process in a running container.
func (m *Manager) ExecCreate(ctx context.Context, ref string, spec ExecSpec) (string, error) {
	c, err := m.find(ref)
	if err != nil {
		return "", err
	}
	if err := c.executable(); err != nil {
		return "", err
	}
	if len(spec.Cmd) == 0 {
		return "", errdefs.ErrInvalidArgument.WithMessage("No exec command specified")
	}
	e := m.newExec(c, spec)
	m.enterExec(e)
	m.publish(c, "exec_create: "+strings.Join(spec.Cmd, " "), map[string]string{"execID": e.id})
	return e.id, nil
}

func (c *instance) executable() error {
	st := c.saved().State
	switch {
	case st.Paused:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is paused, unpause the container before exec", c.id))
	case st.Restarting:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", c.id))
	case !st.Running:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	return nil
}

func (m *Manager) newExec(c *instance, spec ExecSpec) *execution {
	return &execution{id: newID(), container: c, spec: spec, done: make(chan struct{})}
}

// enterExec remembers an exec and forgets the oldest finished ones of its container.
func (m *Manager) enterExec(e *execution) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.execs[e.id] = e
	c := e.container
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execIDs = append(c.execIDs, e.id)
	if len(c.execIDs) <= keptExecs {
		return
	}
	spare, crowded := len(c.execIDs)-keptExecs, len(c.execIDs) > keptExecs+waitingExecs
	c.execIDs = slices.DeleteFunc(c.execIDs, func(id string) bool {
		old := m.execs[id]
		if spare == 0 || old == e || old != nil && !old.finished() && (old.begun() || !crowded) {
			return false
		}
		spare--
		delete(m.execs, id)
		return true
	})
}

func (m *Manager) forgetExec(e *execution) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.execs, e.id)
}

func (e *execution) begun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.started
}

func (e *execution) finished() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.code != nil
}

func (m *Manager) exec(id string) (*execution, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e := m.execs[id]; e != nil {
		return e, nil
	}
	return nil, errdefs.ErrNotFound.WithMessage("No such exec instance: " + id)
}

// ExecStart runs an exec that was created. Without Detach it returns when the process
// has exited and all its output was written, or with ErrDetached.
func (m *Manager) ExecStart(ctx context.Context, id string, o ExecIO) error {
	e, err := m.exec(id)
	if err != nil {
		return err
	}
	c := e.container
	if err := c.executable(); err != nil {
		return err
	}
	if err := e.begin(!o.Detach); err != nil {
		return err
	}
	m.publish(c, "exec_start: "+strings.Join(e.spec.Cmd, " "), map[string]string{"execID": e.id})
	stream, err := m.launchExec(context.WithoutCancel(ctx), e, o, warden.Kept)
	if err != nil {
		return err
	}
	if o.Started != nil {
		o.Started()
	}
	if o.Detach {
		return nil
	}
	p := pump{stream: stream, stdout: o.Stdout, stderr: o.Stderr, tty: e.spec.Tty, keys: o.DetachKeys, closeStdin: !e.spec.Tty}
	if p.keys == nil {
		p.keys = e.spec.DetachKeys
	}
	if e.spec.AttachStdin {
		p.stdin = o.Stdin
	}
	err = p.run(ctx)
	if err == nil {
		err = e.wait(ctx)
	}
	m.releaseExec(e)
	if errors.Is(err, ErrDetached) {
		m.publish(c, "exec_detach", map[string]string{"execID": e.id})
	}
	return err
}

func (e *execution) begin(attached bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.started {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Error: Exec command %s has already run", e.id))
	}
	e.started, e.attached = true, attached
	return nil
}

func (e *execution) wait(ctx context.Context) error {
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// releaseExec acknowledges the exit, now that nobody reads the output any more.
func (m *Manager) releaseExec(e *execution) {
	e.mu.Lock()
	e.attached = false
	exited := e.code != nil
	e.mu.Unlock()
	if exited {
		m.reaper.add(func() { m.deleteExec(e) })
	}
}

func (m *Manager) deleteExec(e *execution) {
	ctx, cancel := m.cleanupContext()
	defer cancel()
	err := m.Warden.DeleteExec(ctx, e.container.id, e.id)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		m.Log.Warn("exit of an exec is not acknowledged", "container", e.container.id, "exec", e.id, "error", err)
	}
}

func (m *Manager) launchExec(ctx context.Context, e *execution, o ExecIO, life warden.Lifetime) (Stream, error) {
	c := e.container
	process, err := m.execProcess(c, &e.spec)
	if err != nil {
		e.failed(126)
		return nil, err
	}
	if o.Rows == 0 || o.Cols == 0 {
		o.Rows, o.Cols = e.spec.Rows, e.spec.Cols
	}
	if o.Rows > 0 && o.Cols > 0 {
		process.ConsoleSize = &specs.Box{Height: uint(o.Rows), Width: uint(o.Cols)}
	}
	state, stream, err := m.Warden.Exec(ctx, warden.ExecSpec{
		ContainerID: c.id, ID: e.id, Process: process, Lifetime: life, Stdin: e.spec.AttachStdin && o.Stdin != nil, Attach: !o.Detach,
		Labels: map[string]string{labelRoom: roomName, labelRun: strconv.Itoa(c.saved().Run)},
	})
	if err != nil {
		wrapped := fmt.Errorf("OCI runtime exec failed: exec failed: %w", err)
		code := 126
		if commandMissing(err.Error()) {
			code = 127
		}
		e.failed(code)
		if commandMissing(err.Error()) || commandRefused(err.Error()) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(wrapped.Error())
		}
		return nil, wrapped
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pid, e.running = state.Pid, e.code == nil // it may have exited before this line
	return stream, nil
}

func (e *execution) failed(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.code == nil {
		e.code = &code
		close(e.done)
	}
}

// execProcess describes the process: the container's, with what the exec says otherwise.
func (m *Manager) execProcess(c *instance, e *ExecSpec) (*specs.Process, error) {
	own := *c.spec()
	pid := c.runningPid()
	if pid == 0 {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	if e.User != "" {
		own.User = e.User
	}
	if e.WorkingDir != "" {
		own.WorkingDir = e.WorkingDir
	}
	own.Env = mergeEnv(own.Env, e.Env)
	own.Tty = e.Tty
	own.Privileged = own.Privileged || e.Privileged
	user, err := lookupUser(rootOf(pid), own.User, own.GroupAdd, own.StrictGroups)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{Linux: &specs.Linux{}}
	b := &bundle{Spec: &own, Args: e.Cmd, User: user, Host: m.host, Hostname: m.hostname(c, &connection{})}
	if err := setProcess(s, b); err != nil {
		return nil, err
	}
	return s.Process, nil
}

// rootOf is the root directory of a running process.
type rootOf int

// open opens a file as the process would, never leaving its root.
func (pid rootOf) open(path string) (*os.File, error) {
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openRegular(root, path)
}

// openRegular opens the regular file at path for reading, below root as openIn does. It looks before it opens: a device may
// act on being opened, and a read of a pipe waits for who writes.
func openRegular(root *os.File, path string) (*os.File, error) {
	at, err := openIn(root, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return reopen(at, path)
}

// reopen opens for reading what a descriptor of O_PATH stands for, when it is a regular file.
func reopen(at *os.File, path string) (*os.File, error) {
	fi, err := at.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// openIn opens path with root as the root directory, whatever links a hostile container
// made.
func openIn(root *os.File, path string, flags int) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) { // a rename elsewhere raced the walk
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// execExited notes the end of an exec that the warden reports.
func (m *Manager) execExited(p warden.ProcessState) {
	m.mu.RLock()
	e := m.execs[p.ExecID]
	m.mu.RUnlock()
	if e == nil {
		m.reaper.add(func() {
			ctx, cancel := m.cleanupContext()
			defer cancel()
			if err := m.Warden.DeleteExec(ctx, p.ContainerID, p.ExecID); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				m.Log.Warn("exit of an exec is not acknowledged", "container", p.ContainerID, "exec", p.ExecID, "error", err)
			}
		})
		return
	}
	e.mu.Lock()
	if e.code != nil {
		e.mu.Unlock()
		return
	}
	e.running, e.code = false, &p.ExitCode
	attached := e.attached
	close(e.done)
	e.mu.Unlock()
	if !attached {
		m.reaper.add(func() { m.deleteExec(e) })
	}
	if p.Lifetime == warden.Kept {
		m.publish(e.container, "exec_die", map[string]string{"execID": e.id, "exitCode": strconv.Itoa(p.ExitCode)})
	}
}

// adoptExec takes over an exec that runs on, so that it can be inspected.
func (m *Manager) adoptExec(p warden.ProcessState) {
	m.mu.RLock()
	c := m.byID[p.ContainerID]
	m.mu.RUnlock()
	if c == nil {
		return
	}
	e := &execution{id: p.ExecID, container: c, done: make(chan struct{}), started: true, running: true, pid: p.Pid}
	e.spec.Tty = p.Terminal
	m.enterExec(e)
}

// ExecInspect returns an exec as it is now.
func (m *Manager) ExecInspect(id string) (ExecInfo, error) {
	e, err := m.exec(id)
	if err != nil {
		return ExecInfo{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return ExecInfo{ID: e.id, ContainerID: e.container.id, Spec: e.spec, Running: e.running, Started: e.started, ExitCode: e.code, Pid: e.pid}, nil
}

// ExecResize tells the terminal of an exec its size.
func (m *Manager) ExecResize(ctx context.Context, id string, rows, cols uint16) error {
	e, err := m.exec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	running := e.running
	e.mu.Unlock()
	if !running {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("exec %s is not running", id))
	}
	return m.Warden.Resize(ctx, e.container.id, e.id, rows, cols)
}

// ExecRun runs one process in a container and returns what it wrote, up to limit bytes.
// When ctx ends first the process is killed, and the error comes with the output so far.
// The process does not outlive this daemon, and is not shown among the container's execs.
func (m *Manager) ExecRun(ctx context.Context, ref string, spec ExecSpec, limit int) (ExecResult, error) {
	c, err := m.find(ref)
	if err != nil {
		return ExecResult{}, err
	}
	if err := c.executable(); err != nil {
		return ExecResult{}, err
	}
	e := m.newExec(c, spec)
	m.mu.Lock()
	m.execs[e.id] = e
	m.mu.Unlock()
	defer m.forgetExec(e)
	if err := e.begin(true); err != nil {
		return ExecResult{}, err
	}
	stream, err := m.launchExec(ctx, e, ExecIO{}, warden.Tied)
	if err != nil {
		code := 126
		if e.code != nil {
			code = *e.code
		}
		return ExecResult{ExitCode: code}, err
	}
	out := &capped{limit: limit}
	p := pump{stream: stream, stdout: out, stderr: out}
	err = p.run(ctx)
	if err == nil {
		err = e.wait(ctx)
	}
	if err != nil {
		m.killExec(e)
	}
	defer m.releaseExec(e)
	res := ExecResult{Output: out.bytes(), Truncated: out.truncated}
	if err == nil {
		res.ExitCode = *e.code
	}
	return res, err
}

func (m *Manager) killExec(e *execution) {
	ctx, cancel := m.cleanupContext()
	defer cancel()
	err := m.Warden.Signal(ctx, e.container.id, e.id, syscall.SIGKILL)
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		m.Log.Warn("exec is not killed", "container", e.container.id, "exec", e.id, "error", err)
	}
}

// capped keeps the first limit bytes.
type capped struct {
	limit     int
	buf       []byte
	truncated bool
}

func (c *capped) Write(p []byte) (int, error) {
	room := c.limit - len(c.buf)
	if room < len(p) {
		c.truncated = true
		c.buf = append(c.buf, p[:max(room, 0)]...)
		return len(p), nil
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

func (c *capped) bytes() []byte { return c.buf }
