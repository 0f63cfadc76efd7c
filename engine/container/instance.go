package container

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// instance is one container in memory.
type instance struct {
	id  string
	dir string

	// op is held (by sending) for the length of an operation: start, exit, rename,
	// update, pause, remove. Nobody waits for a process while holding it.
	op chan struct{}

	mu      sync.Mutex // guards what is below
	rec     *record
	s       saved
	ended   chan struct{}      // closed when the current run has ended and that is known to all; nil before the first
	cleaned chan struct{}      // closed when nothing of the last run is left; nil: nothing is
	timer   context.CancelFunc // ends the wait for a restart; nil: none is due
	health  context.CancelFunc // ends the health monitor; nil: there is none
	delay   time.Duration      // of the last restart
	waiters []waiter
	pending []*joiner // attached before the start
	execIDs []string
	oomRun  int  // the run whose lack of memory was reported
	kept    int  // above 0 while an operation needs the container to outlive its run in spite of AutoRemove
	gone    bool // removed: only waiters may still hold it
}

type waiter struct {
	cond WaitCondition
	ch   chan ExitStatus
}

func newInstance(id, dir string, rec *record, s saved) *instance {
	return &instance{id: id, dir: dir, op: make(chan struct{}, 1), rec: rec, s: s}
}

// lock begins an operation.
func (c *instance) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case c.op <- struct{}{}:
		return func() { <-c.op }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *instance) record() *record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

func (c *instance) saved() saved {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.s
}

// change edits the saved state and writes it down.
func (c *instance) change(edit func(s *saved)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	edit(&c.s)
	return writeState(c.dir, c.s)
}

func (c *instance) spec() *Spec { return c.record().Spec }

// runningPid returns the process of a container that runs, paused or not, or 0.
func (c *instance) runningPid() int {
	s := c.saved()
	if !s.State.Running || s.State.Status == StatusRestarting {
		return 0
	}
	return s.State.Pid
}

func (c *instance) info() Info {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, s := c.rec, &c.s
	i := Info{
		ID: c.id, Name: r.Spec.Name, Spec: r.Spec, ImageID: r.ImageID, Created: r.Created, Path: r.Path, Args: r.Args,
		State: s.State, RestartCount: s.RestartCount, Mounts: r.Mounts, Endpoints: maps.Clone(s.Endpoints), Ports: s.Ports,
		LogPath: logPath(c.dir, r.Spec), HostsPath: c.dir + "/hosts", HostnamePath: c.dir + "/hostname", ResolvConfPath: c.dir + "/resolv.conf",
		ExecIDs: slices.Clone(c.execIDs),
	}
	if i.Endpoints == nil {
		i.Endpoints = plannedEndpoints(r.Spec, s.Networks)
	}
	return i
}

// plannedEndpoints is what a container that does not run will be connected to.
func plannedEndpoints(spec *Spec, edited map[string]EndpointSpec) map[string]Endpoint {
	out := map[string]Endpoint{}
	for name, e := range wantedNetworks(spec, edited) {
		out[name] = Endpoint{EndpointSpec: e, Network: name}
	}
	return out
}

func (c *instance) stopTimersLocked() {
	if c.timer != nil {
		c.timer()
		c.timer = nil
	}
	if c.health != nil {
		c.health()
		c.health = nil
	}
}

// wait registers a waiter, or answers at once when there is nothing to wait for.
func (c *instance) wait(cond WaitCondition) <-chan ExitStatus {
	ch := make(chan ExitStatus, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	status := ExitStatus{Code: c.s.State.ExitCode}
	switch {
	case c.gone,
		cond == WaitNotRunning && !c.s.State.Running:
		ch <- status
		close(ch)
	default:
		c.waiters = append(c.waiters, waiter{cond, ch})
	}
	return ch
}

// drop ends a registration whose owner has left.
func (c *instance) drop(ch <-chan ExitStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiters = slices.DeleteFunc(c.waiters, func(w waiter) bool {
		if (<-chan ExitStatus)(w.ch) != ch {
			return false
		}
		close(w.ch)
		return true
	})
}

// notifyLocked answers the waiters for whom selects is true.
func (c *instance) notifyLocked(status ExitStatus, selects func(WaitCondition) bool) {
	c.waiters = slices.DeleteFunc(c.waiters, func(w waiter) bool {
		if !selects(w.cond) {
			return false
		}
		w.ch <- status
		close(w.ch)
		return true
	})
}
