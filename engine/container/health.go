package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	healthOutput   = 4096
	healthLog      = 5
	healthTimedOut = -1
)

func hasCheck(h *Health) bool { return h != nil && len(h.Test) > 0 && h.Test[0] != "NONE" }

// watchHealth starts the health monitor of a container that runs, if it has a check.
func (m *Manager) watchHealth(c *instance) {
	h := c.spec().Healthcheck
	if !hasCheck(h) {
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.s.State.Running {
		cancel()
		return
	}
	c.health = cancel
	if c.s.State.Health == nil {
		c.s.State.Health = &HealthState{Status: HealthStarting}
	}
	started, run := c.s.State.StartedAt, c.s.Run
	m.goes(func() { m.monitor(ctx, c, *h, started, run) })
}

// healthPlan is a check with its defaults filled in.
type healthPlan struct {
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
}

func planHealth(h Health) healthPlan {
	return healthPlan{
		interval: cmp.Or(h.Interval, 30*time.Second), timeout: cmp.Or(h.Timeout, 30*time.Second),
		startPeriod: h.StartPeriod, startInterval: cmp.Or(h.StartInterval, 5*time.Second), retries: cmp.Or(h.Retries, 3),
	}
}

// pause is how long to wait before the next check.
func (p healthPlan) pause(state HealthState, sinceStart time.Duration) time.Duration {
	if state.Status == HealthStarting && sinceStart < p.startPeriod {
		return p.startInterval
	}
	return p.interval
}

// judge adds one result. Failures in the start period do not count; one success ends it.
func (p healthPlan) judge(s HealthState, r HealthResult, sinceStart time.Duration) HealthState {
	s.Log = append(slices.Clone(s.Log), r)
	if len(s.Log) > healthLog {
		s.Log = s.Log[len(s.Log)-healthLog:]
	}
	if r.ExitCode == 0 {
		s.Status, s.FailingStreak = HealthHealthy, 0
		return s
	}
	if s.Status == HealthStarting && sinceStart < p.startPeriod {
		return s
	}
	if s.FailingStreak++; s.FailingStreak >= p.retries {
		s.Status = HealthUnhealthy
	}
	return s
}

func (m *Manager) monitor(ctx context.Context, c *instance, h Health, started time.Time, run int) {
	plan := planHealth(h)
	for {
		t := time.NewTimer(plan.pause(c.healthState(), time.Since(started)))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if c.saved().State.Paused {
			continue
		}
		r := m.probe(ctx, c, h, plan)
		if ctx.Err() != nil {
			return
		}
		m.noteHealth(c, plan, r, time.Since(started), run)
	}
}

func (c *instance) healthState() HealthState {
	if h := c.saved().State.Health; h != nil {
		return *h
	}
	return HealthState{Status: HealthStarting}
}

func (m *Manager) noteHealth(c *instance, plan healthPlan, r HealthResult, sinceStart time.Duration, run int) {
	before := c.healthState()
	after := plan.judge(before, r, sinceStart)
	err := c.change(func(s *saved) {
		if s.Run == run && s.State.Running {
			s.State.Health = &after
		}
	})
	if err != nil {
		m.Log.Warn("health is not saved", "container", c.id, "error", err)
	}
	if after.Status != before.Status {
		m.publish(c, "health_status: "+after.Status, nil)
	}
}

// probe runs the check once.
func (m *Manager) probe(ctx context.Context, c *instance, h Health, plan healthPlan) HealthResult {
	argv := h.Test[1:]
	if h.Test[0] == "CMD-SHELL" {
		argv = []string{"/bin/sh", "-c", strings.Join(h.Test[1:], " ")}
	}
	ctx, cancel := context.WithTimeout(ctx, plan.timeout)
	defer cancel()
	r := HealthResult{Start: time.Now()}
	got, err := m.ExecRun(ctx, c.id, ExecSpec{Cmd: argv}, healthOutput)
	r.End, r.ExitCode, r.Output = time.Now(), got.ExitCode, string(got.Output)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		r.ExitCode = healthTimedOut
		r.Output = fmt.Sprintf("Health check exceeded timeout (%v)", plan.timeout)
		if len(got.Output) > 0 {
			r.Output += ": " + string(got.Output)
		}
	case err != nil:
		r.ExitCode, r.Output = max(got.ExitCode, 1), err.Error()
	}
	r.Output = r.Output[:min(len(r.Output), healthOutput)]
	return r
}
