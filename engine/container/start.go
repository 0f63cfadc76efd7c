package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/warden"
)

// Labels that the warden keeps with a process, for recovery.
const (
	labelRoom = "slipway.dev/room"
	labelRun  = "slipway.dev/run"
	roomName  = "container"
)

// Start runs a container. One that runs already gives errdefs.ErrNotModified.
func (m *Manager) Start(ctx context.Context, ref string) error {
	c, err := m.find(ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.startable(ref); err != nil {
		return err
	}
	c.mu.Lock()
	c.stopTimersLocked()
	c.delay = 0
	c.s.RestartCount = 0
	c.mu.Unlock()
	// A client that goes away must not leave a container half started.
	return m.start(context.WithoutCancel(ctx), c)
}

func (c *instance) startable(ref string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.gone || c.s.Removing:
		return errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	case c.s.State.Paused:
		return errdefs.ErrConflict.WithMessage("cannot start a paused container, try unpause instead")
	case c.s.State.Running && !c.s.State.Restarting:
		return errdefs.ErrNotModified.WithMessage("container is already running")
	}
	return nil
}

// start runs the container; the caller holds its operation lock.
func (m *Manager) start(ctx context.Context, c *instance) error {
	c.mu.Lock()
	cleaned := c.cleaned
	c.mu.Unlock()
	if cleaned != nil { // the writable layer must be unmounted before it is mounted again
		select {
		case <-cleaned:
		case <-m.ctx.Done():
			return context.Cause(m.ctx)
		}
	}
	run, err := m.begin(c)
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.spec().Name, err)
	}
	state, conn, stream, err := m.launch(ctx, c, run)
	if err != nil {
		return m.startFailed(ctx, c, conn, err)
	}
	if err := m.started(c, state, conn); err != nil {
		m.Log.Warn("state is not saved", "container", c.id, "error", err)
	}
	m.joinPending(c, stream)
	m.publish(c, "start", nil)
	m.watchHealth(c)
	return nil
}

// begin notes the intent to start before anything is made, so that a crash half-way is
// recognised.
func (m *Manager) begin(c *instance) (run int, err error) {
	err = c.change(func(s *saved) {
		s.Run++
		s.Running, s.Manual = true, false
		run = s.Run
	})
	return run, err
}

func (m *Manager) launch(ctx context.Context, c *instance, run int) (warden.ProcessState, *connection, Stream, error) {
	conn, err := m.connect(ctx, c, run)
	if err != nil {
		return warden.ProcessState{}, conn, nil, err
	}
	bundle, err := m.bundle(ctx, c, conn)
	defer m.dropSubpaths(c)
	if err != nil {
		return warden.ProcessState{}, conn, nil, err
	}
	oci, err := generate(bundle)
	if err != nil {
		return warden.ProcessState{}, conn, nil, err
	}
	spec, err := m.wardenSpec(c, conn, run, oci)
	if err != nil {
		return warden.ProcessState{}, conn, nil, err
	}
	state, stream, err := m.Warden.Start(ctx, spec)
	if errdefs.IsUnavailable(err) {
		// The warden died meanwhile and has a successor. Nobody knows how far it came.
		if err = m.Warden.Delete(ctx, c.id); err == nil || errdefs.IsNotFound(err) {
			state, stream, err = m.Warden.Start(ctx, spec)
		}
	}
	if err != nil {
		err = startError(err)
	}
	return state, conn, stream, err
}

// bundle gathers what the specification is made from.
func (m *Manager) bundle(ctx context.Context, c *instance, conn *connection) (*bundle, error) {
	spec, r := c.spec(), c.record()
	chain, err := m.chain(c)
	if err != nil {
		return nil, fmt.Errorf("image of the container: %w", err)
	}
	b := &bundle{
		ID: c.id, Spec: spec, Args: append([]string{r.Path}, r.Args...), Rootfs: m.mountpoint(c.id),
		Cgroup: m.cgroup(c), Host: m.host, Net: conn.path, Hostname: m.hostname(c, conn),
	}
	if b.User, err = lookupUser(rootLayers(c, chain), spec.User, spec.GroupAdd, spec.StrictGroups); err != nil {
		return nil, err
	}
	if err := m.setModes(b); err != nil {
		return nil, err
	}
	if b.Devices, b.Rules, err = userDevices(spec); err != nil {
		return nil, err
	}
	if spec.Privileged {
		b.Host.AllDevices = hostDevices()
	}
	if b.Mounts, err = m.userMounts(ctx, c); err != nil {
		return nil, err
	}
	files, err := m.systemFiles(c, conn, b.Hostname)
	if err != nil {
		return nil, err
	}
	b.Mounts = appendUnlessMounted(b.Mounts, files)
	if spec.Init {
		b.InitPath = m.Init
	}
	return b, nil
}

func appendUnlessMounted(mounts, more []specs.Mount) []specs.Mount {
	taken := map[string]bool{}
	for _, mt := range mounts {
		taken[mt.Destination] = true
	}
	for _, mt := range more {
		if !taken[mt.Destination] {
			mounts = append(mounts, mt)
		}
	}
	return mounts
}

func rootLayers(c *instance, chain image.Chain) layers {
	return append(layers{filepath.Join(c.dir, "upper")}, chain.Lower...)
}

// cgroup is the path of the container's cgroup in each hierarchy.
func (m *Manager) cgroup(c *instance) string {
	parent := c.spec().CgroupParent
	own := "/slipway-" + m.Instance
	switch {
	case parent == "":
		parent = own
	case !strings.HasPrefix(parent, "/"):
		parent = filepath.Join(own, parent)
	}
	return filepath.Join(parent, c.id)
}

func (m *Manager) hostname(c *instance, conn *connection) string {
	spec := c.spec()
	switch {
	case spec.Hostname != "":
		return spec.Hostname
	case spec.Sandbox != "":
		return ""
	case conn.of != nil:
		return m.hostname(conn.of, &connection{})
	case conn.path == hostNamespace || spec.UTSMode == "host":
		name, _ := os.Hostname()
		return name
	}
	return c.id[:12]
}

// setModes decides which namespaces are joined.
func (m *Manager) setModes(b *bundle) error {
	spec := b.Spec
	if spec.Sandbox != "" {
		b.IPC, b.UTS = warden.SandboxPath, warden.SandboxPath
		if spec.SandboxPID {
			b.PID = warden.SandboxPath
		}
	}
	if spec.PidMode == "host" {
		b.PID = hostNamespace
	} else if ref, ok := strings.CutPrefix(spec.PidMode, "container:"); ok {
		_, pid, err := m.runningPeer(ref, "pid", "PID of")
		if err != nil {
			return err
		}
		b.PID = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	if spec.IpcMode == "host" {
		b.IPC = hostNamespace
	} else if ref, ok := strings.CutPrefix(spec.IpcMode, "container:"); ok {
		_, pid, err := m.runningPeer(ref, "ipc", "IPC of")
		if err != nil {
			return err
		}
		b.IPC = fmt.Sprintf("/proc/%d/ns/ipc", pid)
	}
	if spec.UTSMode == "host" {
		b.UTS = hostNamespace
	}
	if spec.CgroupnsMode == "host" || spec.CgroupnsMode == "" && (!m.host.CgroupV2 || spec.Privileged) {
		b.CgroupNS = hostNamespace
	}
	return nil
}

func (m *Manager) wardenSpec(c *instance, conn *connection, run int, oci *specs.Spec) (warden.ContainerSpec, error) {
	spec := c.spec()
	root, err := m.rootfs(c)
	if err != nil {
		return warden.ContainerSpec{}, err
	}
	out := warden.ContainerSpec{
		ID: c.id, Sandbox: conn.sandbox, Rootfs: []warden.Mount{root}, Bundle: oci,
		Stdin: spec.OpenStdin, StdinOnce: spec.StdinOnce,
		Labels: map[string]string{labelRoom: roomName, labelRun: strconv.Itoa(run)},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out.Attach = len(c.pending) > 0
	if spec.Tty && spec.Rows > 0 && spec.Cols > 0 {
		oci.Process.ConsoleSize = &specs.Box{Height: uint(spec.Rows), Width: uint(spec.Cols)}
	}
	for _, j := range c.pending {
		if j.rows > 0 {
			oci.Process.ConsoleSize = &specs.Box{Height: uint(j.rows), Width: uint(j.cols)}
		}
	}
	if spec.Log.Driver != "none" {
		out.Log = logSpec(c.dir, spec)
	}
	return out, nil
}

// rootfs is the overlay of the container's own layer over its image. A container that is
// removed when it exits need not survive a power loss, so its unmount need not flush.
func (m *Manager) rootfs(c *instance) (warden.Mount, error) {
	chain, err := m.chain(c)
	if err != nil {
		return warden.Mount{}, err
	}
	lower := chain.Lower
	if len(lower) == 0 {
		lower = []string{filepath.Join(c.dir, "lower")}
	}
	upper, work := filepath.Join(c.dir, "upper"), filepath.Join(c.dir, "work")
	var more []string
	if c.spec().AutoRemove || c.spec().Owner == OwnerNode {
		if err := clearVolatile(work); err != nil {
			return warden.Mount{}, err
		}
		more = append(more, "volatile")
	}
	o := overlayMount(lower, upper, work, more...)
	return warden.Mount{Type: o.Type, Source: o.Source, Options: o.Options}, nil
}

func (m *Manager) started(c *instance, state warden.ProcessState, conn *connection) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended, c.cleaned = make(chan struct{}), nil
	s := &c.s
	s.State = State{Status: StatusRunning, Running: true, Pid: state.Pid, StartedAt: state.StartedAt.UTC(), FinishedAt: s.State.FinishedAt}
	if hasCheck(c.rec.Spec.Healthcheck) {
		s.State.Health = &HealthState{Status: HealthStarting}
	}
	s.Endpoints, s.Ports = conn.endpoints, conn.ports
	return writeState(c.dir, *s)
}

// startFailed undoes what was made and says what Docker says.
func (m *Manager) startFailed(ctx context.Context, c *instance, conn *connection, cause error) error {
	code := exitCodeOf(cause)
	m.disconnectAll(ctx, c)
	c.mu.Lock()
	cleaned := make(chan struct{})
	c.cleaned = cleaned
	c.s.Running, c.s.Endpoints, c.s.Ports = false, nil, nil
	st := &c.s.State
	wasCreated := st.Status == StatusCreated
	*st = State{Status: StatusExited, ExitCode: code, Error: cause.Error(), StartedAt: st.StartedAt, FinishedAt: st.FinishedAt}
	if wasCreated {
		st.Status = StatusCreated
	}
	if c.rec.Spec.Owner == OwnerNode {
		st.FinishedAt = time.Now().UTC() // Docker's stays as it was, but pods tell this failure's age and wait from it
	}
	if err := writeState(c.dir, c.s); err != nil {
		m.Log.Warn("state is not saved", "container", c.id, "error", err)
	}
	c.notifyLocked(ExitStatus{Code: code}, func(w WaitCondition) bool { return w != WaitRemoved })
	c.endPendingLocked(nil) // who started it is told why; on a terminal it would be printed twice
	c.mu.Unlock()
	m.reaper.add(func() { m.cleanRun(c, conn, cleaned) })
	if c.spec().AutoRemove {
		m.removeLocked(c, true)
	}
	return cause
}

// startError keeps Docker's wording, which its command line turns into 126 and 127.
func startError(err error) error {
	text := err.Error()
	wrapped := fmt.Errorf("failed to create task for container: %w", err)
	if commandMissing(text) || commandRefused(text) {
		return errdefs.ErrInvalidArgument.WithMessage(wrapped.Error())
	}
	return wrapped
}

func commandMissing(text string) bool {
	return strings.Contains(text, "executable file not found") || strings.Contains(text, "no such file or directory")
}

func commandRefused(text string) bool {
	return strings.Contains(text, "permission denied") || strings.Contains(text, "is a directory") || strings.Contains(text, "exec format error")
}

func exitCodeOf(err error) int {
	var text string
	if err != nil {
		text = err.Error()
	}
	switch {
	case !strings.HasPrefix(text, "failed to create task"):
		return 128
	case commandMissing(text):
		return 127
	case commandRefused(text):
		return 126
	}
	return 128
}

// cleanupContext outlives Close, which waits for clean-ups, but not a warden that is gone
// for good.
func (m *Manager) cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(m.ctx), time.Minute)
}

// cleanRun removes what is left of a run: mounts, cgroup, namespaces.
func (m *Manager) cleanRun(c *instance, conn *connection, cleaned chan struct{}) {
	defer close(cleaned)
	ctx, cancel := m.cleanupContext()
	defer cancel()
	if err := m.Warden.Delete(ctx, c.id); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		m.Log.Warn("container's process is not cleaned up", "container", c.id, "error", err)
	}
	if conn != nil && strings.HasPrefix(conn.sandbox, sandboxPrefix) {
		if err := m.Warden.RemoveSandbox(ctx, conn.sandbox); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			m.Log.Warn("network namespace stays", "container", c.id, "error", err)
		}
	}
	m.unmountVolumes(c)
}
