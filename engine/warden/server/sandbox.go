package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// sandbox is a set of namespaces held by descriptor: no process, no mount, except that a pid namespace has its init.
type sandbox struct {
	key     warden.Key
	spec    warden.SandboxSpec
	ns      map[string]*os.File // by role
	initPid int                 // of the pid namespace's init, or 0
	init    *os.File            // its pidfd

	mu   sync.Mutex // guards what follows
	gone bool       // its descriptors are closed, or about to be
}

// sandboxRecord is what a fresh warden must know.
type sandboxRecord struct {
	Spec    warden.SandboxSpec `json:"spec"`
	InitPid int                `json:"initPid,omitempty"`
	// InitStart tells the init from a later process of the same number.
	InitStart uint64 `json:"initStart,omitempty"`
}

// namespaceRoles names the role of each namespace that a sandbox can have.
var namespaceRoles = map[specs.LinuxNamespaceType]string{
	specs.NetworkNamespace: warden.RoleNet, specs.IPCNamespace: warden.RoleIPC,
	specs.UTSNamespace: warden.RoleUTS, specs.PIDNamespace: warden.RolePID,
}

func (sb *sandbox) holderKey() warden.Key { return sb.key }

func (sb *sandbox) hold() (*warden.Message, error) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.gone {
		return nil, nil
	}
	var roles []string
	for role := range sb.ns {
		roles = append(roles, role)
	}
	sort.Strings(roles)
	var files []*os.File
	for _, role := range roles {
		files = append(files, sb.ns[role])
	}
	if sb.init != nil {
		roles, files = append(roles, warden.RolePidfd), append(files, sb.init)
	}
	return holdMessage(sb.key, roles, files)
}

func (sb *sandbox) close() {
	sb.mu.Lock()
	sb.gone = true
	sb.mu.Unlock()
	for _, f := range sb.ns {
		f.Close()
	}
	if sb.init != nil {
		pidfdSignal(sb.init, unix.SIGKILL)
		waitPidfd(sb.init, sb.initPid, 0)
		sb.init.Close()
	}
}

// createSandbox answers MethodCreateSandbox. The descriptors reach the daemon as a hold before the reply.
func createSandbox(conn *conn, m *warden.Message) (any, []int, error) {
	var spec warden.SandboxSpec
	if err := warden.Decode(m.Body, &spec); err != nil {
		return nil, nil, err
	}
	if err := checkID("sandbox", spec.ID); err != nil {
		return nil, nil, err
	}
	s := conn.srv
	if s.sandbox(spec.ID) != nil {
		return nil, nil, fmt.Errorf("sandbox %q exists: %w", spec.ID, errdefs.ErrAlreadyExists)
	}
	s.hasten() // its container comes next
	sb, err := newSandbox(spec)
	if err != nil {
		return nil, nil, fmt.Errorf("create sandbox %q: %w", spec.ID, err)
	}
	rec := sandboxRecord{Spec: spec, InitPid: sb.initPid}
	if st, err := readStat(sb.initPid); err == nil && sb.initPid > 0 {
		rec.InitStart = st.startTime
	}
	err = writeJSON(s.sandboxPath(spec.ID), rec)
	if err == nil {
		err = s.enter(sb)
	}
	if err != nil {
		sb.close()
		return nil, nil, err
	}
	s.share(sb)
	return nothing{}, nil, nil
}

func (s *Server) enter(sb *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errdefs.ErrUnavailable.WithMessage("the warden is shutting down")
	}
	if _, ok := s.sandboxes[sb.key.ID]; ok {
		return fmt.Errorf("sandbox %q exists: %w", sb.key.ID, errdefs.ErrAlreadyExists)
	}
	s.sandboxes[sb.key.ID] = sb
	return nil
}

func (s *Server) sandboxPath(id string) string {
	return filepath.Join(s.opts.StateDir, "sandboxes", id)
}

func (s *Server) sandbox(id string) *sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sandboxes[id]
}

func (s *Server) removeSandbox(t warden.Target) error {
	s.mu.Lock()
	sb := s.sandboxes[t.ID]
	delete(s.sandboxes, t.ID)
	s.mu.Unlock()
	if sb == nil {
		return nil
	}
	sb.close()
	s.release(sb.key)
	if err := os.Remove(s.sandboxPath(t.ID)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// newSandbox makes the namespaces on a thread that leaves its own for good, and ends.
func newSandbox(spec warden.SandboxSpec) (*sandbox, error) {
	sb := &sandbox{key: warden.Key{Kind: warden.HoldSandbox, ID: spec.ID}, spec: spec, ns: map[string]*os.File{}}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- sb.unshare()
	}()
	err := <-done
	if err == nil && spec.SharePID {
		err = sb.startInit()
	}
	if err != nil {
		sb.close()
		return nil, err
	}
	return sb, nil
}

// unshare gives the calling thread new namespaces, configures them from inside and opens them.
func (sb *sandbox) unshare() error {
	flags := 0
	for _, n := range []struct {
		on   bool
		flag int
	}{{sb.spec.Net, unix.CLONE_NEWNET}, {sb.spec.IPC, unix.CLONE_NEWIPC}, {sb.spec.UTS, unix.CLONE_NEWUTS}} {
		if n.on {
			flags |= n.flag
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := sb.configure(); err != nil {
		return err
	}
	for role, on := range map[string]bool{warden.RoleNet: sb.spec.Net, warden.RoleIPC: sb.spec.IPC, warden.RoleUTS: sb.spec.UTS} {
		if !on {
			continue
		}
		f, err := os.Open("/proc/thread-self/ns/" + role)
		if err != nil {
			return err
		}
		sb.ns[role] = f
	}
	return nil
}

func (sb *sandbox) configure() error {
	if sb.spec.UTS && sb.spec.Hostname != "" {
		if err := unix.Sethostname([]byte(sb.spec.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", sb.spec.Hostname, err)
		}
	}
	if sb.spec.UTS && sb.spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(sb.spec.Domainname)); err != nil {
			return fmt.Errorf("set domainname %q: %w", sb.spec.Domainname, err)
		}
	}
	if sb.spec.Net {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up loopback: %w", err)
		}
	}
	for key, value := range sb.spec.Sysctls {
		if err := sb.setSysctl(key, value); err != nil {
			return err
		}
	}
	return nil
}

// setSysctl writes only what belongs to one of the sandbox's own namespaces: anything else would be the host's.
func (sb *sandbox) setSysctl(key, value string) error {
	ours := false
	switch {
	case strings.HasPrefix(key, "net."):
		ours = sb.spec.Net
	case strings.HasPrefix(key, "fs.mqueue."), strings.HasPrefix(key, "kernel.shm"), strings.HasPrefix(key, "kernel.msg"), key == "kernel.sem":
		ours = sb.spec.IPC
	case key == "kernel.domainname":
		ours = sb.spec.UTS
	}
	path := filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/"))
	if !ours || filepath.Clean(path) != path || strings.Contains(key, "/..") {
		return fmt.Errorf("sysctl %q does not belong to a namespace of sandbox %q: %w", key, sb.spec.ID, errdefs.ErrInvalidArgument)
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl %s=%q: %w", key, value, err)
	}
	return nil
}

// loopbackUp sets the interface lo up, by ioctl: netlink would be one more library.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(uint16(net.FlagUp) | unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// startInit starts the init of a pid namespace: this executable, stopped in its C constructor before Go begins (reaper.go).
// Containers see it as process 1, so it joins the other namespaces of the sandbox, gives up all that it may and can
// (init.c), and only then is ready.
func (sb *sandbox) startInit() error {
	said, stderr, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	pidfd := -1
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"slipway-init"}
	cmd.Env = []string{reaperEnv + "=1"}
	cmd.Dir = "/"
	cmd.Stderr = stderr
	for _, ns := range sb.ns {
		cmd.ExtraFiles = append(cmd.ExtraFiles, ns)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Setsid: true, PidFD: &pidfd}
	err = cmd.Start()
	stderr.Close()
	if err != nil {
		return fmt.Errorf("start the init of the pid namespace: %w", err)
	}
	sb.initPid = cmd.Process.Pid
	sb.init = file(pidfd, "pidfd")
	cmd.Process.Release() // close waits, by pidfd
	if why, err := io.ReadAll(said); err != nil || len(why) > 0 {
		return fmt.Errorf("start the init of the pid namespace: %v %s", err, why)
	}
	// A wish: without it the kernel may take the pod's init when memory is short.
	os.WriteFile("/proc/"+strconv.Itoa(sb.initPid)+"/oom_score_adj", []byte(strconv.Itoa(oomScoreWarden+1)), 0)
	f, err := os.Open("/proc/" + strconv.Itoa(sb.initPid) + "/ns/pid")
	if err != nil {
		return err
	}
	sb.ns[warden.RolePID] = f
	return nil
}

// joinSandbox replaces SandboxPath in the bundle by paths to the sandbox's namespaces.
func (s *Server) joinSandbox(b *specs.Spec, id string) error {
	for i := range b.Linux.Namespaces {
		ns := &b.Linux.Namespaces[i]
		if ns.Path != warden.SandboxPath {
			continue
		}
		sb := s.sandbox(id)
		if sb == nil {
			return fmt.Errorf("no sandbox %q: %w", id, errdefs.ErrNotFound)
		}
		f := sb.ns[namespaceRoles[ns.Type]]
		if f == nil {
			return fmt.Errorf("sandbox %q has no %s namespace: %w", id, ns.Type, errdefs.ErrInvalidArgument)
		}
		// By number, in our /proc directory: the path is opened by a child of ours, which has other descriptors.
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }); err != nil {
			return err
		}
		if ns.Type == specs.UTSNamespace {
			b.Hostname, b.Domainname = "", "" // the sandbox's already
		}
	}
	return nil
}
