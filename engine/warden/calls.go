package warden

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Start creates a container and runs its process. The error of a command that cannot be run says so in runc's words
// ("executable file not found in $PATH", "permission denied"). When Start is given up (ctx) or fails as unavailable, the
// container may exist: Delete it.
func (c *Client) Start(ctx context.Context, spec ContainerSpec) (ProcessState, *Attachment, error) {
	return c.launched(ctx, MethodStart, spec)
}

// Exec runs one more process in a container.
func (c *Client) Exec(ctx context.Context, spec ExecSpec) (ProcessState, *Attachment, error) {
	return c.launched(ctx, MethodExec, spec)
}

// Attach connects to a process's streams from now on. To one that has ended the attachment is at its end.
func (c *Client) Attach(ctx context.Context, containerID, execID string) (*Attachment, error) {
	_, a, err := c.launched(ctx, MethodAttach, Target{ID: containerID, Exec: execID})
	return a, err
}

func (c *Client) launched(ctx context.Context, method string, body any) (ProcessState, *Attachment, error) {
	var l launched
	if err := c.call(ctx, method, body, nil, &l); err != nil {
		return ProcessState{}, nil, err
	}
	return l.state, l.attachment, nil
}

// launched is the reply to Start, Exec and Attach.
type launched struct {
	state      ProcessState
	attachment *Attachment
	err        error
}

// take is called by the reader: see waiter.
func (l *launched) take(c *Client, m *Message) {
	var started Started
	if l.err = Decode(m.Body, &started); l.err != nil {
		return
	}
	l.state = started.State
	if started.AttachID == 0 || len(m.FDs) != 2 {
		return
	}
	l.attachment = c.newAttachment(started, m.FDs)
	m.FDs = nil
}

// Signal sends a signal to one process.
func (c *Client) Signal(ctx context.Context, containerID, execID string, sig syscall.Signal) error {
	return c.call(ctx, MethodSignal, Target{ID: containerID, Exec: execID, Signal: sig}, nil, nil)
}

// Resize sets the size of a process's terminal.
func (c *Client) Resize(ctx context.Context, containerID, execID string, rows, cols uint16) error {
	return c.call(ctx, MethodResize, Target{ID: containerID, Exec: execID, Rows: rows, Cols: cols}, nil, nil)
}

// Pause freezes a container's processes.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, MethodPause, Target{ID: id}, nil, nil)
}

// Resume thaws them.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, MethodResume, Target{ID: id}, nil, nil)
}

// Update changes a running container's limits; what resources does not mention stays.
func (c *Client) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	return c.call(ctx, MethodUpdate, Target{ID: id, Resources: resources}, nil, nil)
}

// Stats reads a running container's cgroup figures.
func (c *Client) Stats(ctx context.Context, id string) (*Stats, error) {
	st := &Stats{}
	if err := c.call(ctx, MethodStats, Target{ID: id}, nil, st); err != nil {
		return nil, err
	}
	return st, nil
}

// Processes lists the process ids of a running container, as the host numbers them.
func (c *Client) Processes(ctx context.Context, id string) ([]int, error) {
	var pids []int
	err := c.call(ctx, MethodProcesses, Target{ID: id}, nil, &pids)
	return pids, err
}

// Delete removes a container: kills it if it lives, removes its cgroup, unmounts its root file system and forgets how it
// ended. One that is not there is deleted.
func (c *Client) Delete(ctx context.Context, id string) error {
	if err := c.call(ctx, MethodDelete, Target{ID: id}, nil, nil); err != nil {
		return err
	}
	c.acknowledged(id, "")
	return nil
}

// DeleteExec kills an exec if it lives, and forgets how it ended.
func (c *Client) DeleteExec(ctx context.Context, id, execID string) error {
	if err := c.call(ctx, MethodDelete, Target{ID: id, Exec: execID}, nil, nil); err != nil {
		return err
	}
	c.acknowledged(id, execID)
	return nil
}

// List returns every process: running ones, and ended ones that were not deleted. A container comes before its execs.
func (c *Client) List(ctx context.Context) ([]ProcessState, error) {
	var states []ProcessState
	err := c.call(ctx, MethodList, Target{}, nil, &states)
	return states, err
}

// Wait waits for the end of a process and returns how it ended.
func (c *Client) Wait(ctx context.Context, containerID, execID string) (ProcessState, error) {
	var st ProcessState
	err := c.call(ctx, MethodWait, Target{ID: containerID, Exec: execID}, nil, &st)
	return st, err
}

// CreateSandbox makes namespaces. netns is the network namespace, the caller's to close; nil when the sandbox has none.
// It is not broken off when ctx ends: who left without the answer would not know from when on there is something to remove.
func (c *Client) CreateSandbox(ctx context.Context, spec SandboxSpec) (netns *os.File, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	if err := c.call(ctx, MethodCreateSandbox, spec, nil, nil); err != nil {
		return nil, err
	}
	if !spec.Net {
		return nil, nil
	}
	return c.Sandbox(ctx, spec.ID)
}

// Sandbox returns the network namespace of a sandbox, the caller's to close; nil when it has none, being on the host's.
func (c *Client) Sandbox(ctx context.Context, id string) (netns *os.File, err error) {
	if err := c.await(ctx); err != nil {
		return nil, err
	}
	key := Key{Kind: HoldSandbox, ID: id}
	c.mu.Lock()
	h := c.held[key]
	c.mu.Unlock()
	if h != nil {
		if _, ok := h.fds[RoleNet]; !ok {
			return nil, nil
		}
	}
	return c.heldFile(key, RoleNet)
}

// RemoveSandbox lets go of the namespaces; they vanish with their last process. One that is not there is removed.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	return c.call(ctx, MethodRemoveSandbox, Target{ID: id}, nil, nil)
}

// Sandboxes lists the sandboxes by id.
func (c *Client) Sandboxes(ctx context.Context) ([]string, error) {
	if err := c.await(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := []string{}
	for key := range c.held {
		if key.Kind == HoldSandbox {
			ids = append(ids, key.ID)
		}
	}
	return ids, nil
}

// SetCgroup makes a cgroup that is no container's, such as a pod's, with the given limits. path is absolute within each
// hierarchy, as in Bundle.Linux.CgroupsPath.
func (c *Client) SetCgroup(ctx context.Context, path string, resources *specs.LinuxResources) error {
	return c.call(ctx, MethodSetCgroup, Target{ID: path, Resources: resources}, nil, nil)
}

// RemoveCgroup removes a cgroup and those below it, in every hierarchy. Processes in it are an error.
func (c *Client) RemoveCgroup(ctx context.Context, path string) error {
	return c.call(ctx, MethodRemoveCgroup, Target{ID: path}, nil, nil)
}

// String is for messages.
func (k Key) String() string {
	if k.Exec != "" {
		return fmt.Sprintf("%s %s/%s", k.Kind, k.ID, k.Exec)
	}
	return k.Kind + " " + k.ID
}
