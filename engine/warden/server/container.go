package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// killLimit is how long Delete waits for a killed process. Only one that hangs inside the kernel takes longer.
const killLimit = 10 * time.Second

// container is a container from the moment its id is taken until Delete.
type container struct {
	srv      *Server
	id       string
	rec      containerRecord
	cgroups  cgroupPaths
	lc       *libcontainer.Container // nil when its state was lost; then it can only be deleted
	paused   atomic.Bool
	oomSeen  atomic.Uint64 // kills that were reported
	starting chan struct{} // closed when the start is over, well or not
	unwatch  func()        // ends the watch for out-of-memory kills; never nil
	updating sync.Mutex    // one update or exec at a time, as libcontainer has it

	mu       sync.Mutex // guards what follows
	first    *process   // nil until it runs
	execs    map[string]*process
	deleting bool
	deleted  bool

	deletion sync.Mutex // held for the whole of a delete: a second one waits for the first
}

func (s *Server) newContainer(id string) *container {
	return &container{srv: s, id: id, starting: make(chan struct{}), unwatch: func() {}, execs: map[string]*process{}}
}

func (s *Server) runcDir() string { return filepath.Join(s.opts.StateDir, "runc") }

// processes lists what runs or ran in c, the first process first.
func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		return nil
	}
	all := []*process{c.first}
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// start answers MethodStart.
func start(conn *conn, m *warden.Message) (any, []int, error) {
	var spec warden.ContainerSpec
	if err := warden.Decode(m.Body, &spec); err != nil {
		return nil, nil, err
	}
	if err := checkSpec(&spec); err != nil {
		return nil, nil, err
	}
	s := conn.srv
	s.hasten()
	s.rest.Reset(restAfter)
	c := s.newContainer(spec.ID)
	if err := s.reserve(c); err != nil {
		return nil, nil, err
	}
	defer close(c.starting)
	reply, fds, err := s.start(conn, c, &spec)
	if err != nil {
		c.destroy()
		return nil, nil, fmt.Errorf("start container %q: %w", spec.ID, err)
	}
	return reply, fds, nil
}

func checkSpec(spec *warden.ContainerSpec) error {
	if err := checkID("container", spec.ID); err != nil {
		return err
	}
	b := spec.Bundle
	missing := ""
	switch {
	case b == nil || b.Root == nil || b.Process == nil || b.Linux == nil:
		missing = "bundle with root, process and linux"
	case !filepath.IsAbs(b.Root.Path):
		missing = "absolute bundle.root.path"
	case !filepath.IsAbs(b.Linux.CgroupsPath):
		missing = "absolute bundle.linux.cgroupsPath"
	case len(b.Process.Args) == 0:
		missing = "command (bundle.process.args)"
	}
	if missing != "" {
		return fmt.Errorf("container %q has no %s: %w", spec.ID, missing, errdefs.ErrInvalidArgument)
	}
	return nil
}

// reserve takes the id.
func (s *Server) reserve(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errdefs.ErrUnavailable.WithMessage("the warden is shutting down")
	}
	if _, ok := s.containers[c.id]; ok {
		return fmt.Errorf("container %q is already known to the warden: delete it first: %w", c.id, errdefs.ErrAlreadyExists)
	}
	s.containers[c.id] = c
	return nil
}

// start does the work of MethodStart. Whatever it leaves behind when it fails, destroy removes.
func (s *Server) start(conn *conn, c *container, spec *warden.ContainerSpec) (reply *warden.Started, fds []int, err error) {
	b := spec.Bundle
	if err := s.joinSandbox(b, spec.Sandbox); err != nil {
		return nil, nil, err
	}
	c.rec = containerRecord{
		Root: b.Root.Path, Mounted: len(spec.Rootfs) > 0, Cgroup: b.Linux.CgroupsPath, PrivatePID: privatePID(b),
		Log: spec.Log, WatchOOM: memoryLimit(b.Linux.Resources) > 0,
	}
	p := &process{
		srv: s, container: c, key: warden.Key{Kind: warden.HoldProcess, ID: spec.ID},
		stdinOnce: spec.StdinOnce, exited: make(chan struct{}),
		state: warden.ProcessState{
			ContainerID: spec.ID, Status: warden.Running, Lifetime: spec.Lifetime, Sandbox: spec.Sandbox,
			Terminal: b.Process.Terminal, Labels: spec.Labels,
		},
	}
	if spec.Lifetime == warden.Tied {
		p.owner = conn
	}
	if err := writeJSON(s.recordPath(p.key), record{State: p.state, Container: &c.rec}); err != nil {
		return nil, nil, err
	}
	if err := mountRootfs(b.Root.Path, spec.Rootfs); err != nil {
		return nil, nil, err
	}
	if p.log, err = openLog(spec.Log, s.log); err != nil {
		return nil, nil, err
	}
	if err := c.create(b); err != nil {
		p.log.close()
		return nil, nil, err
	}
	lp, err := processOf(b.Process)
	if err != nil {
		p.log.close()
		return nil, nil, err
	}
	lp.Init = true
	if err := p.launch(lp, launchOptions{terminal: b.Process.Terminal, stdin: spec.Stdin}); err != nil {
		p.log.close()
		return nil, nil, err
	}
	if c.rec.WatchOOM {
		c.unwatch = s.oom.watch(c)
	}
	return p.introduce(spec.Attach, func() { c.first = p })
}

// create makes the libcontainer container: nothing runs yet.
func (c *container) create(b *specs.Spec) error {
	c.srv.raiseOOMScore(b.Process)
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: c.id, Spec: b})
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	// Tied to the thread that forks, not to the process: a Go program's thread ends when it likes.
	config.ParentDeathSignal = 0
	if c.cgroups, err = pathsOf(config.Cgroups); err != nil {
		return err
	}
	c.lc, err = libcontainer.Create(c.srv.runcDir(), c.id, config)
	return err
}

func privatePID(b *specs.Spec) bool {
	for _, ns := range b.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path == ""
		}
	}
	return false
}

// initLogLevel is logrus's "warning". Without it a container's first process reports its every step, and we parse it.
const initLogLevel = "3"

// processOf translates the OCI description of a process.
func processOf(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args: p.Args, Env: p.Env, UID: int(p.User.UID), GID: int(p.User.GID), Cwd: p.Cwd,
		Label: p.SelinuxLabel, NoNewPrivileges: &p.NoNewPrivileges, AppArmorProfile: p.ApparmorProfile,
		Scheduler: p.Scheduler, IOPriority: p.IOPriority,
		LogLevel: initLogLevel,
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	if caps := p.Capabilities; caps != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: caps.Bounding, Effective: caps.Effective, Inheritable: caps.Inheritable,
			Permitted: caps.Permitted, Ambient: caps.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		kind, ok := rlimits[r.Type]
		if !ok {
			return nil, fmt.Errorf("unknown resource limit %q: %w", r.Type, errdefs.ErrInvalidArgument)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Soft: r.Soft, Hard: r.Hard})
	}
	return lp, nil
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// firstGone is called when the first process has ended.
func (c *container) firstGone() {
	c.unwatch()
	if !c.rec.PrivatePID { // the kernel kills the rest only of a pid namespace of its own
		c.cgroups.kill()
	}
}

func (c *container) oomKills() (uint64, error) { return c.cgroups.oomKills() }

// delete answers MethodDelete: a container with all that belongs to it, or one exec. What is not there is deleted.
func (s *Server) delete(t warden.Target) error {
	s.mu.Lock()
	c := s.containers[t.ID]
	s.mu.Unlock()
	if c == nil {
		return nil
	}
	if t.Exec != "" {
		return c.deleteExec(t.Exec)
	}
	return c.delete()
}

func (c *container) delete() error {
	select {
	case <-c.starting:
	default:
		c.cgroups.kill() // a start that hangs fails now
		<-c.starting
	}
	c.deletion.Lock()
	defer c.deletion.Unlock()
	c.mu.Lock()
	done := c.deleted || c.first == nil
	c.deleting = true // no more execs
	c.mu.Unlock()
	if done {
		return nil
	}
	if err := c.end(); err != nil {
		c.mu.Lock()
		c.deleting = false
		c.mu.Unlock()
		return err
	}
	c.mu.Lock()
	c.deleted = true
	c.mu.Unlock()
	return c.destroy()
}

// end kills everything and waits until it is gone.
func (c *container) end() error {
	all := c.processes()
	if c.first.alive() {
		c.first.signal(unix.SIGKILL)
		c.cgroups.kill()
		c.thaw()
	}
	limit := time.NewTimer(killLimit)
	defer limit.Stop()
	for _, p := range all {
		if p.key.Exec != "" {
			p.signal(unix.SIGKILL) // dead already, unless it shares a pid namespace
		}
		select {
		case <-p.exited:
		case <-limit.C:
			return fmt.Errorf("%s (pid %d) was killed %v ago and is not gone: it hangs inside the kernel: %w",
				p.name(), p.snapshot().Pid, killLimit, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// destroy removes what a container leaves, also one whose start failed half-way.
func (c *container) destroy() error {
	var errs []error
	c.unwatch()
	if c.cgroups != nil {
		errs = append(errs, c.cgroups.remove())
	}
	if c.rec.Mounted {
		errs = append(errs, unmountRootfs(c.rec.Root))
	}
	errs = append(errs,
		os.RemoveAll(filepath.Join(c.srv.runcDir(), c.id)),
		os.RemoveAll(filepath.Join(c.srv.opts.StateDir, "execs", c.id)),
	)
	if err := os.Remove(c.srv.recordPath(warden.Key{ID: c.id})); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if err != nil {
		c.srv.log.Warn("a container left something behind", "container", c.id, "error", err)
	}
	c.srv.mu.Lock()
	delete(c.srv.containers, c.id)
	c.srv.mu.Unlock()
	return err
}

// forget is called when a daemon has gone: what was tied to it goes too.
func (s *Server) forget(conn *conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range s.all() {
		s.mu.Lock()
		tied := p.owner == conn
		s.mu.Unlock()
		if tied {
			wg.Go(func() {
				if err := s.delete(warden.Target{ID: p.key.ID, Exec: p.key.Exec}); err != nil {
					s.log.Warn("a process of a daemon that went away could not be removed", "process", p.name(), "error", err)
				}
			})
		}
	}
	wg.Wait()
}

// process finds a process.
func (s *Server) process(t warden.Target) (*process, error) {
	s.mu.Lock()
	c := s.containers[t.ID]
	s.mu.Unlock()
	var p *process
	if c != nil {
		c.mu.Lock()
		if p = c.first; t.Exec != "" {
			p = c.execs[t.Exec]
		}
		c.mu.Unlock()
	}
	if p == nil {
		if t.Exec != "" {
			return nil, fmt.Errorf("no exec %q in container %q: %w", t.Exec, t.ID, errdefs.ErrNotFound)
		}
		return nil, fmt.Errorf("no container %q in the warden: %w", t.ID, errdefs.ErrNotFound)
	}
	return p, nil
}
