package server

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// inheritance is what a daemon held for the warden's predecessor.
type inheritance struct {
	conn    *conn
	fds     map[string]int
	attachs map[uint64]int
}

// take takes a descriptor out, or nil.
func (i *inheritance) take(role string) *os.File {
	if i == nil {
		return nil
	}
	fd, ok := i.fds[role]
	if !ok {
		return nil
	}
	delete(i.fds, role)
	return file(fd, role)
}

func (i *inheritance) discard() {
	for _, fd := range i.fds {
		unix.Close(fd)
	}
	for _, fd := range i.attachs {
		unix.Close(fd)
	}
}

// adopt answers MethodAdopt.
func (s *Server) adopt(c *conn, m *warden.Message, h warden.Hold) error {
	if len(m.FDs) != len(h.Roles) {
		return errdefs.ErrInvalidArgument.WithMessage("adopt: the roles do not match the descriptors")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.recovered:
		return errdefs.ErrFailedPrecondition.WithMessage("adopt: this warden has recovered already")
	default:
	}
	in := s.adopted[h.Key]
	if in == nil {
		in = &inheritance{conn: c, fds: map[string]int{}, attachs: map[uint64]int{}}
		s.adopted[h.Key] = in
	}
	attached := 0
	for i, role := range h.Roles {
		switch _, twice := in.fds[role]; {
		case role == warden.RoleAttach && attached < len(h.AttachIDs):
			in.attachs[h.AttachIDs[attached]] = m.FDs[i]
			attached++
		case role == warden.RoleAttach || twice:
			unix.Close(m.FDs[i])
		default:
			in.fds[role] = m.FDs[i]
		}
	}
	m.FDs = nil
	return nil
}

// doRecover answers MethodRecover.
func doRecover(c *conn, _ *warden.Message) (any, []int, error) {
	c.srv.recoverOnce.Do(c.srv.recover)
	return nothing{}, nil, nil
}

// recover takes up what the records and the inheritance say, and opens the door for requests. Nothing else runs yet.
func (s *Server) recover() {
	s.recoverFiles()
	s.report(readRecords(s, filepath.Join(s.opts.StateDir, "containers"), s.recoverContainer))
	s.report(readRecords(s, filepath.Join(s.opts.StateDir, "sandboxes"), s.recoverSandbox))
	s.mu.Lock()
	left := s.adopted
	s.adopted = nil
	s.mu.Unlock()
	for _, in := range left {
		in.discard()
	}
	var orphans []*process // tied to a daemon that is gone
	for _, p := range s.all() {
		if p.alive() {
			p.begin()
		}
		if p.state.Lifetime == warden.Tied && p.owner == nil {
			orphans = append(orphans, p)
		}
	}
	var wg sync.WaitGroup
	for _, p := range orphans {
		wg.Go(func() { s.report(s.delete(warden.Target{ID: p.key.ID, Exec: p.key.Exec})) })
	}
	wg.Wait()
	close(s.recovered)
	for _, h := range s.holders() {
		s.share(h)
	}
}

func (s *Server) report(err error) {
	if err != nil {
		s.log.Warn("recovery", "error", err)
	}
}

// claim takes an inheritance out.
func (s *Server) claim(key warden.Key) *inheritance {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.adopted[key]
	delete(s.adopted, key)
	return in
}

func (s *Server) recoverFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, in := range s.adopted {
		if key.Kind != warden.HoldFile {
			continue
		}
		if fd, ok := in.fds[warden.RoleFile]; ok {
			s.files[key.ID] = fd
			delete(in.fds, warden.RoleFile)
		}
	}
}

// recoverSandbox takes a sandbox back. When the daemon died, too, its namespaces live on in its containers only.
func (s *Server) recoverSandbox(id string, r sandboxRecord) {
	key := warden.Key{Kind: warden.HoldSandbox, ID: id}
	sb := &sandbox{key: key, spec: r.Spec, ns: map[string]*os.File{}, initPid: r.InitPid}
	in := s.claim(key)
	for _, role := range namespaceRoles {
		if f := in.take(role); f != nil {
			sb.ns[role] = f
		}
	}
	sb.init = in.take(warden.RolePidfd)
	if in != nil {
		in.discard()
	} else {
		sb.find(s.all(), r.InitStart)
	}
	if len(sb.ns) == 0 {
		s.log.Warn("a sandbox was lost together with the daemon", "sandbox", id)
		os.Remove(s.sandboxPath(id))
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sandboxes[id] = sb
}

// find looks for the sandbox's namespaces in what runs in it.
func (sb *sandbox) find(all []*process, initStart uint64) {
	if sb.initPid > 0 {
		sb.init = findProcess(sb.initPid, initStart)
	}
	pid := 0
	for _, p := range all {
		if p.state.Sandbox == sb.key.ID && p.alive() {
			pid = p.state.Pid
		}
	}
	if pid == 0 {
		return
	}
	for role, on := range map[string]bool{
		warden.RoleNet: sb.spec.Net, warden.RoleIPC: sb.spec.IPC, warden.RoleUTS: sb.spec.UTS, warden.RolePID: sb.spec.SharePID && sb.init != nil,
	} {
		if f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + role); on && err == nil {
			sb.ns[role] = f
		}
	}
}

// recoverContainer takes a container and its execs back.
func (s *Server) recoverContainer(id string, r record) {
	c := s.newContainer(id)
	close(c.starting)
	key := warden.Key{Kind: warden.HoldProcess, ID: id}
	in := s.claim(key)
	if r.Container != nil {
		c.rec = *r.Container
	}
	paths, err := cgroupAt(c.rec.Cgroup)
	if err != nil {
		s.log.Warn("a container's cgroup is not found", "container", id, "error", err)
	}
	c.cgroups = paths
	if r.Container == nil || r.StartTime == 0 { // its start was never acknowledged
		if in != nil {
			in.discard()
		}
		c.cgroups.kill()
		s.report(c.destroy())
		return
	}
	c.lc, err = libcontainer.Load(s.runcDir(), id)
	if err != nil {
		s.log.Warn("a container's state is lost: it can only be signalled and deleted", "container", id, "error", err)
	} else if st, err := c.lc.Status(); err == nil {
		c.paused.Store(st == libcontainer.Paused)
	}
	kills, _ := c.oomKills()
	c.oomSeen.Store(kills)
	c.first = s.recoverProcess(c, key, r, in)
	s.mu.Lock()
	s.containers[id] = c
	s.mu.Unlock()
	if c.rec.WatchOOM && c.first.alive() {
		c.unwatch = s.oom.watch(c)
	}
	s.report(readRecords(s, filepath.Join(s.opts.StateDir, "execs", id), func(exec string, r record) {
		key := warden.Key{Kind: warden.HoldProcess, ID: id, Exec: exec}
		c.execs[exec] = s.recoverProcess(c, key, r, s.claim(key))
	}))
}

// recoverProcess takes a process back. If it runs, begin is still to be called.
func (s *Server) recoverProcess(c *container, key warden.Key, r record, in *inheritance) *process {
	p := &process{
		srv: s, container: c, key: key, stdinOnce: r.StdinOnce, exited: make(chan struct{}),
		state: r.State, startTime: r.StartTime, oomBefore: r.OOMBefore,
	}
	if in != nil {
		defer in.discard()
		if p.state.Lifetime == warden.Tied {
			p.owner = in.conn
		}
	}
	if p.state.Status == warden.Exited {
		p.gone = true
		close(p.exited)
		p.inherit(in)
		return p
	}
	p.pidfd = in.take(warden.RolePidfd)
	if p.pidfd == nil {
		p.pidfd = findProcess(p.state.Pid, p.startTime)
	}
	p.stdio = stdio{
		stdin: in.take(warden.RoleStdin), stdout: in.take(warden.RoleStdout),
		stderr: in.take(warden.RoleStderr), terminal: in.take(warden.RoleTerminal),
	}
	if p.pidfd == nil {
		p.lost()
		p.inherit(in)
		return p
	}
	if key.Exec == "" {
		log, err := openLog(c.rec.Log, s.log)
		s.report(err)
		p.log = log
	}
	p.inherit(in)
	return p
}

// inherit takes over the attachments; those to a process that has ended hear so.
func (p *process) inherit(in *inheritance) {
	if in == nil {
		return
	}
	p.srv.mu.Lock()
	for id := range in.attachs {
		p.srv.attachSeq = max(p.srv.attachSeq, id)
	}
	p.srv.mu.Unlock()
	for id, fd := range in.attachs {
		p.join(&attachment{id: id, sock: file(fd, "attachment")})
		delete(in.attachs, id)
	}
}

// lost marks a process that ended while nobody held its pidfd.
func (p *process) lost() {
	p.state.Status, p.state.ExitKnown, p.state.ExitCode = warden.Exited, false, unknownExit.code
	p.state.ExitedAt = p.state.StartedAt
	p.gone = true
	p.stdio.close()
	if p.key.Exec == "" && !p.container.rec.PrivatePID {
		p.container.cgroups.kill()
	}
	close(p.exited)
	p.saveRecord()
}

// findProcess opens a pidfd by number, if it is still the same process.
func findProcess(pid int, startTime uint64) *os.File {
	f, err := openPidfd(pid)
	if err != nil {
		return nil
	}
	if st, err := readStat(pid); err != nil || st.startTime != startTime {
		f.Close()
		return nil
	}
	return f
}

// shutdown answers MethodShutdown: an idle warden ends.
func shutdown(c *conn, _ *warden.Message) (any, []int, error) {
	s := c.srv
	s.mu.Lock()
	busy := []string{}
	for id := range s.containers {
		busy = append(busy, id)
	}
	if len(busy) == 0 {
		s.closing = true
	}
	s.mu.Unlock()
	if len(busy) > 0 {
		return nil, nil, errdefs.ErrFailedPrecondition.WithMessage("the warden still has containers: " + strings.Join(busy, ", "))
	}
	for _, h := range s.holders() {
		if sb, ok := h.(*sandbox); ok {
			s.report(s.removeSandbox(warden.Target{ID: sb.key.ID}))
		}
	}
	s.stopOnce.Do(func() { close(s.stop) })
	return nothing{}, nil, nil
}
