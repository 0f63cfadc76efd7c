package container

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
)

const (
	defaultStopTimeout = 10 // seconds
	killPatience       = 10 * time.Second
)

// Stop asks a container to end and, after the timeout, makes it. One that does not run
// gives errdefs.ErrNotModified.
func (m *Manager) Stop(ctx context.Context, ref string, o StopOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	sig, err := stopSignal(c.spec(), o.Signal)
	if err != nil {
		return err
	}
	return m.stop(ctx, c, sig, stopTimeout(c.spec(), o.Timeout))
}

func stopSignal(spec *Spec, override string) (syscall.Signal, error) {
	name := "SIGTERM"
	if spec.StopSignal != "" {
		name = spec.StopSignal
	}
	if override != "" {
		name = override
	}
	return parseSignal(name)
}

func parseSignal(name string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(name); err == nil && n == 0 {
		return 0, errdefs.ErrInvalidArgument.WithMessage("invalid signal: 0")
	}
	sig, err := signal.ParseSignal(name)
	if err != nil {
		return 0, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	return sig, nil
}

func stopTimeout(spec *Spec, override *int) int {
	switch {
	case override != nil:
		return *override
	case spec.StopTimeout != nil:
		return *spec.StopTimeout
	}
	return defaultStopTimeout
}

func (m *Manager) stop(ctx context.Context, c *instance, sig syscall.Signal, seconds int) error {
	ended, wasRunning := c.endByHand()
	if !wasRunning {
		return errdefs.ErrNotModified.WithMessage("container is already stopped")
	}
	if ended != nil { // else it was only waiting to be started again
		if err := m.end(ctx, c, ended, sig, seconds); err != nil {
			return err
		}
	}
	m.publish(c, "stop", nil)
	return nil
}

// end asks a run to end and, after so many seconds, makes it.
func (m *Manager) end(ctx context.Context, c *instance, ended <-chan struct{}, sig syscall.Signal, seconds int) error {
	if err := m.signal(ctx, c, sig); err != nil {
		m.Log.Warn("stop signal is not delivered: killing", "container", c.id, "signal", sig.String(), "error", err)
		seconds = 0
	}
	if seconds != 0 && waitEnded(ctx, ended, seconds) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return m.kill(ctx, c, ended)
}

// waitEnded waits for the end of a run, for so many seconds or, when negative, for ever.
func waitEnded(ctx context.Context, ended <-chan struct{}, seconds int) bool {
	var expired <-chan time.Time
	if seconds >= 0 {
		t := time.NewTimer(time.Duration(seconds) * time.Second)
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-ended:
		return true
	case <-expired:
	case <-ctx.Done():
	}
	return false
}

func (m *Manager) kill(ctx context.Context, c *instance, ended <-chan struct{}) error {
	c.mu.Lock()
	if c.health != nil { // nothing may join namespaces that are about to die
		c.health()
		c.health = nil
	}
	c.mu.Unlock()
	if err := m.signal(ctx, c, syscall.SIGKILL); err != nil {
		return fmt.Errorf("cannot kill container %s: %w", c.spec().Name, err)
	}
	t := time.NewTimer(killPatience)
	defer t.Stop()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return fmt.Errorf("container %s did not end within %s of SIGKILL: its process is stuck in the kernel", c.spec().Name, killPatience)
	}
}

// endByHand notes that a user wants the container stopped. A wait for a restart ends at
// once (ended is nil then).
func (c *instance) endByHand() (ended <-chan struct{}, wasRunning bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.s.State.Running {
		return nil, false
	}
	c.s.Manual = true
	if c.s.State.Restarting && !c.s.Running {
		c.stopTimersLocked()
		c.s.State.Status, c.s.State.Running, c.s.State.Restarting = StatusExited, false, false
		c.notifyLocked(ExitStatus{Code: c.s.State.ExitCode}, func(w WaitCondition) bool { return w == WaitNotRunning })
	}
	_ = writeState(c.dir, c.s) // best effort: without it the container is started after the daemon's next restart
	return c.ended, true
}

// signal sends sig to the container's first process, and lets it run if it is paused:
// a frozen process would never notice.
func (m *Manager) signal(ctx context.Context, c *instance, sig syscall.Signal) error {
	// Before it is sent: who follows events must hear of the signal before the death that it brings.
	m.publish(c, "kill", map[string]string{"signal": strconv.Itoa(int(sig))})
	if c.spec().Init && sig != syscall.SIGKILL {
		awaitInit(ctx, c.saved().State.Pid)
	}
	err := m.Warden.Signal(ctx, c.id, "", sig)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil // it has just ended; the exit is on its way
	}
	if err != nil {
		return err
	}
	if c.saved().State.Paused && sig != syscall.SIGSTOP {
		if err := m.Warden.Resume(ctx, c.id); err == nil {
			c.change(func(s *saved) { s.State.Paused = false; s.State.Status = StatusRunning })
		}
	}
	return nil
}

// Kill sends a signal: SIGKILL when none is named, and then it waits for the end.
func (m *Manager) Kill(ctx context.Context, ref, name string) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	sig := syscall.SIGKILL
	if name != "" {
		if sig, err = parseSignal(name); err != nil {
			return err
		}
	}
	stop, err := stopSignal(c.spec(), "")
	if err != nil {
		return err
	}
	if !c.saved().State.Running {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot kill container: %s: container %s is not running", ref, c.id))
	}
	if sig != syscall.SIGKILL && sig != stop {
		return m.signal(ctx, c, sig)
	}
	ended, running := c.endByHand()
	if !running || ended == nil {
		return nil
	}
	if sig == syscall.SIGKILL {
		return m.kill(ctx, c, ended)
	}
	return m.signal(ctx, c, sig)
}

// Restart stops a container, if it runs, and starts it.
func (m *Manager) Restart(ctx context.Context, ref string, o StopOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	sig, err := stopSignal(c.spec(), o.Signal)
	if err != nil {
		return err
	}
	// An --rm container must survive its own restart.
	defer c.keep()()
	if err := m.stop(ctx, c, sig, stopTimeout(c.spec(), o.Timeout)); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	if err := m.Start(ctx, c.id); err != nil && !errdefs.IsNotModified(err) {
		return err
	}
	m.publish(c, "restart", nil)
	return nil
}

// keep suspends AutoRemove until the returned function is called.
func (c *instance) keep() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kept--
	}
}

// Pause freezes a running container.
func (m *Manager) Pause(ctx context.Context, ref string) error {
	return m.freeze(ctx, ref, true)
}

// Unpause lets a paused container run on.
func (m *Manager) Unpause(ctx context.Context, ref string) error {
	return m.freeze(ctx, ref, false)
}

func (m *Manager) freeze(ctx context.Context, ref string, pause bool) error {
	c, unlock, err := m.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	conflict := func(format string) error {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, c.id))
	}
	st := c.saved().State
	switch {
	case !st.Running:
		return conflict("Container %s is not running")
	case st.Restarting:
		return conflict("Container %s is restarting, wait until the container is running")
	case pause && st.Paused:
		return conflict("Container %s is already paused")
	case !pause && !st.Paused:
		return conflict("Container %s is not paused")
	}
	action, status := "unpause", StatusRunning
	if pause {
		action, status = "pause", StatusPaused
		err = m.Warden.Pause(ctx, c.id)
	} else {
		err = m.Warden.Resume(ctx, c.id)
	}
	if err != nil {
		return fmt.Errorf("cannot %s container %s: %w", action, c.spec().Name, err)
	}
	err = c.change(func(s *saved) { s.State.Paused, s.State.Status = pause, status })
	m.publish(c, action, nil)
	return err
}

// Resize tells the container's terminal its size.
func (m *Manager) Resize(ctx context.Context, ref string, rows, cols uint16) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	if c.runningPid() == 0 {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	if err := m.Warden.Resize(ctx, c.id, "", rows, cols); err != nil {
		return err
	}
	m.publish(c, "resize", map[string]string{"height": strconv.Itoa(int(rows)), "width": strconv.Itoa(int(cols))})
	return nil
}

// Rename gives a container another name; it is on disk when Rename returns.
func (m *Manager) Rename(ctx context.Context, ref, name string) error {
	c, unlock, err := m.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	name = strings.TrimPrefix(name, "/")
	if !validName.MatchString(name) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name))
	}
	old := c.spec().Name
	if err := m.swapName(c, old, name); err != nil {
		return err
	}
	r, spec := cloneRecord(c.record())
	spec.Name = name
	if err := m.commitRecord(ctx, c, r); err != nil {
		m.mu.Lock()
		delete(m.names, name)
		m.names[old] = c.id
		m.mu.Unlock()
		return fmt.Errorf("rename container %s: %w", old, err)
	}
	if c.runningPid() != 0 && spec.Sandbox == "" {
		if err := m.Networks.Rename(ctx, c.id, name); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			m.Log.Warn("networks still know the old name", "container", c.id, "error", err)
		}
		c.mu.Lock()
		m.adoptEndpointsLocked(c)
		c.mu.Unlock()
	}
	m.publish(c, "rename", map[string]string{"oldName": "/" + old})
	return nil
}

func (m *Manager) swapName(c *instance, old, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == old {
		return errdefs.ErrInvalidArgument.WithMessage("Renaming a container with the same name as its current name")
	}
	if id, taken := m.names[name]; taken {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id))
	}
	delete(m.names, old)
	m.names[name] = c.id
	return nil
}

// Update changes limits and the restart policy, at once when the container runs.
func (m *Manager) Update(ctx context.Context, ref string, u UpdateSpec) (warnings []string, err error) {
	c, unlock, err := m.hold(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r, spec := cloneRecord(c.record())
	if u.Resources != nil {
		spec.Resources = overlayResources(spec.Resources, *u.Resources)
	}
	if u.Restart != nil {
		if err := checkRestartPolicy(*u.Restart, spec.AutoRemove); err != nil {
			return nil, err
		}
		spec.Restart = *u.Restart
	}
	limits, err := linuxResources(&spec.Resources, m.host)
	if err != nil {
		return nil, err
	}
	if u.Resources != nil && c.runningPid() != 0 {
		if err := m.Warden.Update(ctx, c.id, limits); err != nil {
			return nil, fmt.Errorf("Cannot update container %s: %w", c.id, err)
		}
	}
	if err := m.commitRecord(ctx, c, r); err != nil {
		return nil, fmt.Errorf("Cannot update container %s: %w", c.id, err)
	}
	m.publish(c, "update", nil)
	return nil, nil
}

// overlayResources replaces what is given in over.
func overlayResources(base, over Resources) Resources {
	if over.NanoCPUs != 0 {
		base.CPUQuota, base.CPUPeriod = 0, 0
		base.NanoCPUs = over.NanoCPUs
	}
	if over.CPUQuota != 0 || over.CPUPeriod != 0 {
		base.NanoCPUs = 0
	}
	for _, f := range []struct {
		to   *int64
		from int64
	}{
		{&base.Memory, over.Memory}, {&base.MemorySwap, over.MemorySwap}, {&base.MemoryReservation, over.MemoryReservation},
		{&base.CPUShares, over.CPUShares}, {&base.CPUQuota, over.CPUQuota}, {&base.CPUPeriod, over.CPUPeriod},
	} {
		if f.from != 0 {
			*f.to = f.from
		}
	}
	if over.CpusetCpus != "" {
		base.CpusetCpus = over.CpusetCpus
	}
	if over.CpusetMems != "" {
		base.CpusetMems = over.CpusetMems
	}
	if over.PidsLimit != nil {
		base.PidsLimit = over.PidsLimit
	}
	if over.BlkioWeight != 0 {
		base.BlkioWeight = over.BlkioWeight
	}
	return base
}
