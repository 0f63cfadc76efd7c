package container

import (
	"context"
	"strconv"
	"time"

	"slipway.dev/slipway/engine/warden"
)

const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	stableRun  = 10 * time.Second // after this the back-off starts again
)

// hear passes the warden's events on, in the order of their containers.
func (m *Manager) hear(events <-chan warden.Event) {
	for {
		select {
		case <-m.ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			m.dispatch(e)
		}
	}
}

func (m *Manager) dispatch(e warden.Event) {
	if e.Labels[labelRoom] != roomName {
		return
	}
	if e.ExecID != "" {
		if e.Type == warden.EventExit {
			m.execExited(e.ProcessState)
		}
		return
	}
	m.mu.RLock()
	c := m.byID[e.ContainerID]
	m.mu.RUnlock()
	if c == nil {
		return
	}
	if e.Type == warden.EventOOM {
		m.oom(c)
		return
	}
	m.goes(func() { m.exited(c, e.ProcessState) })
}

// oom reports that the kernel killed for memory, once in a run.
func (m *Manager) oom(c *instance) {
	c.mu.Lock()
	said := c.oomRun == c.s.Run
	c.oomRun = c.s.Run
	c.mu.Unlock()
	if !said {
		m.publish(c, "oom", nil)
	}
}

// exited handles the end of a run. Late and repeated reports are recognised by the
// number of the run.
func (m *Manager) exited(c *instance, p warden.ProcessState) {
	unlock, err := c.lock(m.ctx)
	if err != nil {
		return
	}
	defer unlock()
	s := c.saved()
	if strconv.Itoa(s.Run) != p.Labels[labelRun] || !s.Running {
		return
	}
	m.finish(c, p)
}

// finish ends the run that p reports; the caller holds the operation lock.
func (m *Manager) finish(c *instance, p warden.ProcessState) {
	spec := c.spec()
	m.disconnectAll(m.ctx, c)
	c.mu.Lock()
	c.stopTimersLocked()
	ran := p.ExitedAt.Sub(p.StartedAt)
	restart := shouldRestart(spec.Restart, p.ExitCode, c.s.Manual, c.s.RestartCount) && spec.Owner == OwnerDocker && m.ctx.Err() == nil
	c.applyExitLocked(p, restart)
	if err := writeState(c.dir, c.s); err != nil {
		m.Log.Warn("state is not saved", "container", c.id, "error", err)
	}
	cleaned := make(chan struct{})
	c.cleaned = cleaned
	if c.ended != nil {
		close(c.ended)
	}
	c.ended = nil
	run, kept := c.s.Run, c.kept > 0
	c.mu.Unlock()

	conn := &connection{}
	if kind, _ := networkKind(spec); kind == "network" || kind == "none" {
		conn.sandbox = sandboxID(c.id, run)
	}
	m.reaper.add(func() { m.cleanRun(c, conn, cleaned) })
	if p.OOMKilled {
		m.oom(c)
	}
	m.publish(c, "die", map[string]string{
		"exitCode": strconv.Itoa(p.ExitCode), "execDuration": strconv.Itoa(int(ran.Seconds())),
	})
	c.mu.Lock()
	c.notifyLocked(ExitStatus{Code: p.ExitCode}, func(w WaitCondition) bool {
		return w == WaitNextExit || w != WaitRemoved && !restart
	})
	c.mu.Unlock()
	if restart {
		m.restartLater(c, ran)
	} else if spec.AutoRemove && !kept {
		m.removeLocked(c, true)
	}
}

func (c *instance) applyExitLocked(p warden.ProcessState, restart bool) {
	s := &c.s
	s.Running, s.Endpoints, s.Ports = false, nil, nil
	st := &s.State
	st.Status, st.Running, st.Paused, st.Pid, st.Restarting = StatusExited, false, false, 0, false
	st.ExitCode, st.OOMKilled, st.FinishedAt = p.ExitCode, p.OOMKilled, p.ExitedAt.UTC()
	if !p.ExitKnown {
		st.Error = "it ended while nobody could see how"
	}
	if st.Health != nil { // what does not run is not healthy
		h := *st.Health
		h.Status = HealthUnhealthy
		st.Health = &h
	}
	if restart {
		st.Status, st.Running, st.Restarting = StatusRestarting, true, true
		s.RestartCount++
	}
}

// shouldRestart is the restart policy, at the end of a run.
func shouldRestart(r RestartPolicy, exitCode int, manual bool, restarts int) bool {
	if manual {
		return false
	}
	switch r.Policy {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return exitCode != 0 && (r.MaxRetries == 0 || restarts < r.MaxRetries)
	}
	return false
}

// nextDelay is the back-off: a run that was long enough begins it anew.
func nextDelay(last, ran time.Duration) time.Duration {
	if last == 0 || ran > stableRun {
		return firstDelay
	}
	return min(2*last, lastDelay)
}

func (m *Manager) restartLater(c *instance, ran time.Duration) {
	ctx, cancel := context.WithCancel(m.ctx)
	c.mu.Lock()
	c.delay = nextDelay(c.delay, ran)
	delay := c.delay
	c.timer = cancel
	c.mu.Unlock()
	m.goes(func() {
		defer cancel()
		t := time.NewTimer(delay)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.restartNow(ctx, c)
	})
}

func (m *Manager) restartNow(ctx context.Context, c *instance) {
	unlock, err := c.lock(ctx)
	if err != nil {
		return
	}
	defer unlock()
	if s := c.saved(); ctx.Err() != nil || !s.State.Restarting || s.Removing {
		return
	}
	count := c.saved().RestartCount
	err = m.start(context.WithoutCancel(ctx), c)
	if err == nil {
		return
	}
	m.Log.Warn("container does not start again", "container", c.id, "error", err)
	if s := c.saved(); shouldRestart(c.spec().Restart, s.State.ExitCode, s.Manual, count) && m.ctx.Err() == nil {
		c.change(func(s *saved) {
			s.State.Status, s.State.Running, s.State.Restarting = StatusRestarting, true, true
			s.RestartCount++
		})
		m.restartLater(c, 0)
	}
}

// Wait reports how the container ended, once cond holds. It is registered when Wait
// returns; the channel gives one value, or is closed without one when ctx ends first.
func (m *Manager) Wait(ctx context.Context, ref string, cond WaitCondition) (<-chan ExitStatus, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	if cond == "" {
		cond = WaitNotRunning
	}
	ch := c.wait(cond)
	context.AfterFunc(ctx, func() { c.drop(ch) })
	return ch, nil
}
