package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/tree"
)

// Remove removes a container. When it returns, the name is free and no crash brings the
// container back; files and the record go behind the scenes.
func (m *Manager) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	for {
		unlock, err := c.lock(ctx)
		if err != nil {
			return err
		}
		if c.isGone() {
			unlock()
			return errdefs.ErrNotFound.WithMessage("No such container: " + ref)
		}
		s := c.saved()
		if !s.State.Running || s.State.Restarting && !s.Running {
			if s.State.Restarting && !o.Force {
				unlock()
				return removeRefused(c, "restarting")
			}
			c.endByHand()
			m.removeLocked(c, o.Volumes)
			unlock()
			return nil
		}
		unlock()
		if !o.Force {
			return removeRefused(c, string(s.State.Status))
		}
		if err := m.killToRemove(ctx, c); err != nil {
			return err
		}
	}
}

func removeRefused(c *instance, status string) error {
	remedy := "stop the container before removing or force remove"
	if status == string(StatusPaused) {
		remedy = "unpause and then stop the container before removing or force remove"
	}
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot remove container %q: container is %s: %s", "/"+c.spec().Name, status, remedy))
}

// killToRemove ends the run; an --rm container must not race its own removal.
func (m *Manager) killToRemove(ctx context.Context, c *instance) error {
	defer c.keep()()
	ended, running := c.endByHand()
	if !running || ended == nil {
		return nil
	}
	if err := m.kill(ctx, c, ended); err != nil {
		return fmt.Errorf("cannot remove container %q: could not kill container: %w", "/"+c.spec().Name, err)
	}
	return nil
}

func (c *instance) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// removeLocked removes a container that does not run; the caller holds its operation
// lock. The state file is the promise: a crash from here on only delays the rest.
func (m *Manager) removeLocked(c *instance, volumes bool) {
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return
	}
	c.stopTimersLocked()
	c.gone = true
	c.s.Removing, c.s.State.Status = true, StatusRemoving
	if err := writeState(c.dir, c.s); err != nil {
		m.Log.Warn("removal is not noted: a crash now would undo it", "container", c.id, "error", err)
	}
	cleaned := c.cleaned
	status := ExitStatus{Code: c.s.State.ExitCode}
	c.mu.Unlock()

	m.forget(c)
	m.releaseVolumes(c, volumes)
	m.reaper.add(func() {
		if cleaned != nil {
			<-cleaned
		}
		m.erase(c.id)
	})
	m.publish(c, "destroy", nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.notifyLocked(status, func(WaitCondition) bool { return true })
	c.endPendingLocked(errdefs.ErrNotFound.WithMessage("No such container: " + c.id))
}

// erase deletes record and files of a removed container. The record goes first: a
// directory without one is swept at the next start.
func (m *Manager) erase(id string) {
	ctx := m.Images.Context(context.WithoutCancel(m.ctx))
	if err := m.Images.Containers().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		m.Log.Warn("record of a removed container stays until the next start", "container", id, "error", err)
		return
	}
	if err := m.removeDirs(id); err != nil {
		m.Log.Warn("files of a removed container stay until the next start", "container", id, "error", err)
	}
}

// removeDirs deletes a container's files. The mount point is empty, or it is not ours to
// delete what is in it.
func (m *Manager) removeDirs(id string) error {
	err := os.Remove(m.mountpoint(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, tree.Remove(m.dir(id)))
}

// sweep deletes directories that no record knows. Others have mount points below Rootfs
// too; those of containers are named by an id.
func (m *Manager) sweep() {
	for _, dir := range []string{m.Dir, m.Rootfs} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			m.Log.Warn("left-over directories are not swept", "dir", dir, "error", err)
			continue
		}
		for _, e := range entries {
			id := e.Name()
			if m.byID[id] != nil || !validID.MatchString(id) {
				continue
			}
			m.reaper.add(func() {
				if err := m.removeDirs(id); err != nil {
					m.Log.Warn("left-over directory stays", "container", id, "error", err)
				}
			})
		}
	}
}

var validID = regexp.MustCompile(`^[0-9a-f]{64}$`)
