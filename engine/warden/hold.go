package warden

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// holding is our duplicates of what one process, sandbox or name holds in the warden.
type holding struct {
	fds   map[string]int // by role
	stale bool           // not yet seen again after a reconnection
}

func (h *holding) close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
}

// takeHold keeps what the warden sent.
func (c *Client) takeHold(m *Message) {
	var body Hold
	if err := Decode(m.Body, &body); err != nil || len(body.Roles) != len(m.FDs) {
		c.log.Error("a message of the warden does not match its descriptors", "error", err, "key", body.Key)
		m.Discard()
		return
	}
	h := &holding{fds: map[string]int{}}
	for i, role := range body.Roles {
		h.fds[role] = m.FDs[i]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.held[body.Key]; old != nil {
		old.close()
	}
	c.held[body.Key] = h
}

func (c *Client) releaseHold(m *Message) {
	m.Discard()
	var body Hold
	if err := Decode(m.Body, &body); err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[body.Key]
	if h == nil {
		return
	}
	if len(body.Roles) == 0 {
		h.close()
		delete(c.held, body.Key)
		return
	}
	for _, role := range body.Roles {
		if fd, ok := h.fds[role]; ok {
			unix.Close(fd)
			delete(h.fds, role)
		}
	}
}

// handOver gives a fresh warden everything that its predecessor held.
func (c *Client) handOver(ctx context.Context) error {
	for _, b := range c.bequests() {
		err := c.request(ctx, MethodAdopt, b.hold, b.fds, nil)
		closeAll(b.fds)
		if err != nil {
			return err
		}
	}
	return c.request(ctx, MethodRecover, Target{}, nil, nil)
}

// bequest is one handing over, of duplicates.
type bequest struct {
	hold Hold
	fds  []int
}

func (c *Client) bequests() []bequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	byKey := map[Key]*bequest{}
	add := func(key Key, role string, fd int) (b *bequest, ok bool) {
		if b = byKey[key]; b == nil {
			b = &bequest{hold: Hold{Key: key}}
			byKey[key] = b
		}
		if len(b.fds) == maxFDs {
			return b, false
		}
		d, err := dupFD(fd)
		if err != nil {
			c.log.Error("a descriptor cannot be handed over", "key", key, "role", role, "error", err)
			return b, false
		}
		b.hold.Roles, b.fds = append(b.hold.Roles, role), append(b.fds, d)
		return b, true
	}
	for key, h := range c.held {
		for role, fd := range h.fds {
			add(key, role, fd)
		}
	}
	for id, a := range c.attached { // also of a process that has ended: the end may not have been said
		if b, ok := add(a.key, RoleAttach, a.theirs); ok {
			b.hold.AttachIDs = append(b.hold.AttachIDs, id)
		}
	}
	all := make([]bequest, 0, len(byKey))
	for _, b := range byKey {
		all = append(all, *b)
	}
	return all
}

// heldFile duplicates one descriptor that we hold.
func (c *Client) heldFile(key Key, role string) (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.held[key]
	if h == nil {
		return nil, fmt.Errorf("the warden has no %s %q: %w", key.Kind, key.ID, errdefs.ErrNotFound)
	}
	fd, ok := h.fds[role]
	if !ok {
		return nil, fmt.Errorf("%s %q has no %s: %w", key.Kind, key.ID, role, errdefs.ErrNotFound)
	}
	d, err := dupFD(fd)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(d), key.ID), nil
}

// Keep stores a duplicate of f in the warden under name, where it outlives the daemon. One of the same name is replaced. f
// stays the caller's.
func (c *Client) Keep(ctx context.Context, name string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	var derr error
	if err := raw.Control(func(old uintptr) { fd, derr = dupFD(int(old)) }); err != nil || derr != nil {
		return fmt.Errorf("keep %q: %v %v", name, err, derr)
	}
	defer unix.Close(fd)
	hold := Hold{Key: Key{Kind: HoldFile, ID: name}, Roles: []string{RoleFile}}
	return c.call(ctx, MethodKeep, hold, []int{fd}, nil)
}

// Fetch returns duplicates of the kept descriptors whose names begin with prefix. They are the caller's to close.
func (c *Client) Fetch(ctx context.Context, prefix string) (map[string]*os.File, error) {
	if err := c.await(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	var names []string
	for key := range c.held {
		if key.Kind == HoldFile && strings.HasPrefix(key.ID, prefix) {
			names = append(names, key.ID)
		}
	}
	c.mu.Unlock()
	files := map[string]*os.File{}
	for _, name := range names {
		f, err := c.heldFile(Key{Kind: HoldFile, ID: name}, RoleFile)
		if errdefs.IsNotFound(err) {
			continue // dropped meanwhile
		}
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files[name] = f
	}
	return files, nil
}

// Drop forgets a kept descriptor. One that is not there is dropped.
func (c *Client) Drop(ctx context.Context, name string) error {
	return c.call(ctx, MethodDrop, Target{ID: name}, nil, nil)
}

func dupFD(fd int) (int, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, os.NewSyscallError("dup", err)
	}
	return d, nil
}
