package container

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"slipway.dev/slipway/engine/warden"
)

// adopt compares three witnesses of what was going on when the last daemon died: the
// records, the state files and the warden. The warden is right about what runs, the
// records about what exists.
func (m *Manager) adopt(ctx context.Context) error {
	if err := m.loadRecords(ctx); err != nil {
		return err
	}
	alive, err := m.wardenState(ctx)
	if err != nil {
		return err
	}
	events := m.Warden.Subscribe(m.ctx) // before anything can end unseen
	m.sweep()
	running := map[string]bool{}
	for _, c := range m.all() {
		p, known := alive[c.id]
		c.trust(p, known)
		if known && p.Status != warden.Exited && c.sameRun(p) {
			running[c.id] = true
		}
	}
	m.dropSandboxes(ctx, running)
	if err := m.Networks.Retain(ctx, func(id string) bool { return running[id] }); err != nil {
		m.Log.Warn("network endpoints of containers that are gone are not all released", "error", err)
	}
	for _, c := range m.all() {
		m.adoptOne(c, alive)
	}
	for id, p := range alive { // the warden's, and nobody knows them any more
		m.Log.Warn("unknown container is killed", "container", id, "pid", p.Pid)
		m.reaper.add(func() { m.deleteUnknown(id) })
	}
	m.goes(func() { m.hear(events) })
	m.startWanted()
	return nil
}

func (m *Manager) loadRecords(ctx context.Context) error {
	list, err := m.Images.Containers().List(m.Images.Context(ctx))
	if err != nil {
		return err
	}
	for _, packed := range list {
		if packed.Runtime.Name != runtimeName {
			continue
		}
		r, err := unpackRecord(packed)
		if err != nil {
			m.Log.Error("container record is unreadable and kept", "container", packed.ID, "error", err)
			continue
		}
		s, err := readState(m.dir(r.ID))
		if err != nil {
			m.Log.Error("state file is unreadable: unless the warden knows better, the container counts as exited", "container", r.ID, "error", err)
			s = saved{State: State{Status: StatusExited, ExitCode: 255, Error: err.Error()}, Run: runUnknown}
		}
		c := newInstance(r.ID, m.dir(r.ID), r, s)
		if s.Removing {
			m.reaper.add(func() { m.erase(c.id) })
			continue
		}
		m.enter(c)
	}
	return nil
}

// enter puts a loaded container into the maps. Of two with one name (a crash between the
// commits of a rename) the later keeps it.
func (m *Manager) enter(c *instance) {
	if err := m.claim(c); err != nil {
		m.Log.Warn("container loses its name to another", "container", c.id, "name", c.rec.Spec.Name)
		r, spec := cloneRecord(c.rec)
		spec.Name = c.id[:12]
		c.rec = r
		if err := m.claim(c); err != nil {
			m.Log.Error("container cannot be listed", "container", c.id, "error", err)
			return
		}
	}
	for _, mt := range c.rec.Spec.Mounts {
		if mt.Type != MountVolume {
			continue
		}
		if err := m.Volumes.Use(mt.Source, c.id); err != nil {
			m.Log.Warn("volume of a container is missing", "container", c.id, "volume", mt.Source, "error", err)
		}
	}
}

// wardenState lists this room's containers in the warden, and adopts their execs.
func (m *Manager) wardenState(ctx context.Context) (map[string]warden.ProcessState, error) {
	list, err := m.Warden.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the warden what runs: %w", err)
	}
	alive := map[string]warden.ProcessState{}
	for _, p := range list {
		if p.Labels[labelRoom] != roomName {
			continue
		}
		if p.ExecID == "" {
			alive[p.ContainerID] = p
		} else {
			m.adoptExec(p)
		}
	}
	return alive, nil
}

// runUnknown is the run of a container whose state file could not be read, until adopt has settled it.
const runUnknown = -1

// trust makes the warden's word for a run the container's own; without one, nothing runs.
func (c *instance) trust(p warden.ProcessState, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.s.Run != runUnknown {
		return
	}
	run, err := strconv.Atoi(p.Labels[labelRun])
	c.s.Run, c.s.Running = run, known && err == nil
}

func (c *instance) sameRun(p warden.ProcessState) bool {
	return strconv.Itoa(c.saved().Run) == p.Labels[labelRun]
}

// adoptOne settles one container and takes it out of alive if it is known.
func (m *Manager) adoptOne(c *instance, alive map[string]warden.ProcessState) {
	p, known := alive[c.id]
	delete(alive, c.id)
	s := c.saved()
	if known && !c.sameRun(p) { // left over from an earlier run
		m.cleanLater(c)
		known = false
	}
	switch {
	case known && p.Status != warden.Exited:
		m.adoptRunning(c, p)
	case known && s.Running:
		c.mu.Lock()
		c.ended = make(chan struct{})
		c.mu.Unlock()
		m.lockedFinish(c, p)
	case known: // its end was handled, its remains were not
		m.cleanLater(c)
	case s.Running || s.State.Running:
		m.lost(c)
	case c.spec().AutoRemove && s.State.Status == StatusExited:
		m.removeLocked(c, true)
	}
}

func (m *Manager) lockedFinish(c *instance, p warden.ProcessState) {
	unlock, err := c.lock(m.ctx)
	if err != nil {
		return
	}
	defer unlock()
	m.finish(c, p)
}

// adoptRunning takes over a container that runs on.
func (m *Manager) adoptRunning(c *instance, p warden.ProcessState) {
	c.mu.Lock()
	c.ended = make(chan struct{})
	s := &c.s
	s.Running = true
	st := &s.State
	st.Running, st.Restarting, st.Pid, st.StartedAt = true, false, p.Pid, p.StartedAt.UTC()
	st.Paused, st.Status, st.Error, st.ExitCode = p.Status == warden.Paused, StatusRunning, "", 0
	if st.Paused {
		st.Status = StatusPaused
	}
	if kind, _ := networkKind(c.rec.Spec); kind == "network" || kind == "none" {
		m.adoptEndpointsLocked(c)
	}
	err := writeState(c.dir, *s)
	mounts := c.rec.Spec.Mounts
	c.mu.Unlock()
	if err != nil {
		m.Log.Warn("state is not saved", "container", c.id, "error", err)
	}
	for _, mt := range mounts {
		if mt.Type == MountVolume {
			if _, err := m.Volumes.Mount(m.ctx, mt.Source, c.useOf(&mt)); err != nil {
				m.Log.Warn("volume of a running container is missing", "container", c.id, "volume", mt.Source, "error", err)
			}
		}
	}
	m.watchHealth(c)
}

// adoptEndpointsLocked takes the addresses and ports from the network manager, which
// knows them also when the daemon died before it could note them.
func (m *Manager) adoptEndpointsLocked(c *instance) {
	wanted := wantedNetworks(c.rec.Spec, c.s.Networks)
	c.s.Endpoints, c.s.Ports = map[string]Endpoint{}, nil
	for _, got := range m.Networks.Endpoints(c.id) {
		e, ports := fromNetwork(got, wanted[got.NetworkName])
		c.s.Endpoints[e.Network] = e
		c.s.Ports = append(c.s.Ports, ports...)
	}
}

// lost settles a container that should run and does not: the machine was restarted, or
// the daemon died between the intent and the start.
func (m *Manager) lost(c *instance) {
	waiting := c.saved().State.Restarting && !c.saved().Running
	c.change(func(s *saved) {
		st := &s.State
		s.Running, s.Endpoints, s.Ports = false, nil, nil
		st.Running, st.Paused, st.Restarting, st.Pid, st.Status = false, false, false, 0, StatusExited
		if !waiting {
			st.ExitCode, st.FinishedAt = 255, time.Now().UTC()
		}
	})
	if c.spec().AutoRemove {
		m.removeLocked(c, true)
		return
	}
	m.cleanLater(c)
}

// cleanLater removes what an earlier run left, before the next one may begin.
func (m *Manager) cleanLater(c *instance) {
	cleaned := make(chan struct{})
	c.mu.Lock()
	c.cleaned = cleaned
	c.mu.Unlock()
	m.reaper.add(func() { m.cleanRun(c, nil, cleaned) })
}

func (m *Manager) deleteUnknown(id string) {
	ctx, cancel := m.cleanupContext()
	defer cancel()
	if err := m.Warden.Delete(ctx, id); err != nil {
		m.Log.Warn("unknown container stays", "container", id, "error", err)
	}
}

// dropSandboxes removes the namespaces of runs that are over.
func (m *Manager) dropSandboxes(ctx context.Context, running map[string]bool) {
	list, err := m.Warden.Sandboxes(ctx)
	if err != nil {
		m.Log.Warn("left-over namespaces are not removed", "error", err)
		return
	}
	for _, id := range list {
		rest, ours := strings.CutPrefix(id, sandboxPrefix)
		owner, _, _ := strings.Cut(rest, "-")
		if !ours || running[owner] {
			continue
		}
		m.reaper.add(func() {
			ctx, cancel := m.cleanupContext()
			defer cancel()
			if err := m.Warden.RemoveSandbox(ctx, id); err != nil {
				m.Log.Warn("left-over namespace stays", "sandbox", id, "error", err)
			}
		})
	}
}

// startWanted starts what should run whenever the daemon does. As with Docker, "always"
// forgets that a user stopped the container and "unless-stopped" does not.
func (m *Manager) startWanted() {
	for _, c := range m.all() {
		s, spec := c.saved(), c.spec()
		if s.State.Running || spec.Owner != OwnerDocker || s.State.Status == StatusCreated || !wantedAtBoot(spec.Restart, s) {
			continue
		}
		m.goes(func() {
			if err := m.Start(m.ctx, c.id); err != nil && m.ctx.Err() == nil {
				m.Log.Warn("container does not start with the daemon", "container", c.id, "error", err)
			}
		})
	}
}

func wantedAtBoot(r RestartPolicy, s saved) bool {
	switch r.Policy {
	case RestartAlways:
		return true
	case RestartUnlessStopped, RestartOnFailure:
		return shouldRestart(r, s.State.ExitCode, s.Manual, s.RestartCount)
	}
	return false
}
