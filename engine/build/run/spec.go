package run

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/warden"
)

// defaultCapabilities are Docker's.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// defaultHostname is BuildKit's: scripts test for it to know that they run in a build.
const defaultHostname = "buildkitsandbox"

const wantedNoFile = 524288

// spec describes the step's container, and connects it to its network.
func (s *step) spec(ctx context.Context) (warden.ContainerSpec, error) {
	hostname := s.p.Hostname
	if hostname == "" {
		hostname = defaultHostname
	}
	b := &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: s.root, Readonly: s.p.ReadonlyRoot},
		Hostname: hostname,
		Linux: &specs.Linux{
			CgroupsPath: "/slipway-" + s.r.o.Instance + "/build/" + s.id,
			MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
			Resources: resources(s.p.Resources),
		},
	}
	if p := s.p.CgroupParent; p != "" {
		b.Linux.CgroupsPath = filepath.Join("/", p, s.id)
	}
	if err := s.process(b); err != nil {
		return warden.ContainerSpec{}, err
	}
	if err := s.connect(ctx, b, hostname); err != nil {
		return warden.ContainerSpec{}, err
	}
	if err := s.mounts(b); err != nil {
		return warden.ContainerSpec{}, err
	}
	var err error
	if b.Linux.Seccomp, err = seccomp.GetDefaultProfile(b); err != nil {
		return warden.ContainerSpec{}, fmt.Errorf("seccomp profile: %w", err)
	}
	spec := warden.ContainerSpec{ID: s.id, Lifetime: warden.Tied, Sandbox: s.sandbox, Bundle: b, Attach: true}
	for _, m := range s.p.Root {
		spec.Rootfs = append(spec.Rootfs, warden.Mount{Type: m.Type, Source: m.Source, Options: m.Options})
	}
	return spec, nil
}

func (s *step) process(b *specs.Spec) error {
	u, err := lookupUser(s.p.Below, s.p.User)
	if err != nil {
		return err
	}
	limits, err := rlimits(s.p.Ulimits)
	if err != nil {
		return err
	}
	caps := &specs.LinuxCapabilities{Bounding: defaultCapabilities}
	if u.UID == 0 {
		caps.Effective, caps.Permitted = defaultCapabilities, defaultCapabilities
	}
	cwd, adj := s.p.Cwd, 0
	if cwd == "" {
		cwd = "/"
	}
	b.Process = &specs.Process{
		User: u, Args: s.p.Args, Env: s.p.Env, Cwd: cwd, Capabilities: caps, Rlimits: limits, OOMScoreAdj: &adj,
	}
	return nil
}

const maxUserFile = 10 << 20

// lookupUser reads who "name", "name:group" or numbers are in the image at root.
func lookupUser(root, spec string) (specs.User, error) {
	passwd, err := userFile(root, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	group, err := userFile(root, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	u, err := user.GetExecUser(spec, &user.ExecUser{}, strings.NewReader(passwd), strings.NewReader(group))
	if err != nil {
		return specs.User{}, fmt.Errorf("USER %q: %w", spec, err)
	}
	out := specs.User{UID: uint32(u.Uid), GID: uint32(u.Gid)}
	for _, g := range u.Sgids {
		out.AdditionalGids = append(out.AdditionalGids, uint32(g))
	}
	if !slices.Contains(out.AdditionalGids, out.GID) {
		out.AdditionalGids = append([]uint32{out.GID}, out.AdditionalGids...)
	}
	return out, nil
}

// userFile reads a file of the image as the image sees it; an absent one is empty.
func userFile(root, name string) (string, error) {
	p, err := fs.RootPath(root, name)
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", name, err)
	}
	st, err := os.Lstat(p)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxUserFile {
		return "", nil
	}
	data, err := os.ReadFile(p)
	if err != nil {
		return "", fmt.Errorf("read the image's %s: %w", name, err)
	}
	return string(data), nil
}

var rlimitNames = []string{
	"AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK",
}

// rlimits are always explicit: the supervisor's own must not leak into steps.
func rlimits(want []*pb.Ulimit) ([]specs.POSIXRlimit, error) {
	var own unix.Rlimit
	hard := uint64(wantedNoFile)
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &own); err == nil {
		hard = min(hard, own.Max)
	}
	out := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(1024, hard), Hard: hard}}
	for _, u := range want {
		name := strings.ToUpper(u.Name)
		if !slices.Contains(rlimitNames, name) {
			return nil, fmt.Errorf("ulimit %q is not known", u.Name)
		}
		out = slices.DeleteFunc(out, func(r specs.POSIXRlimit) bool { return r.Type == "RLIMIT_"+name })
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	return out, nil
}

func resources(l *pb.LinuxResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if l == nil {
		return out
	}
	if l.Memory != 0 {
		out.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		if l.MemorySwap != 0 {
			out.Memory.Swap = &l.MemorySwap
		}
	}
	cpu := &specs.LinuxCPU{Cpus: l.CpusetCpus, Mems: l.CpusetMems}
	if l.CpuShares != 0 {
		cpu.Shares = &l.CpuShares
	}
	if l.CpuPeriod != 0 {
		cpu.Period = &l.CpuPeriod
	}
	if l.CpuQuota != 0 {
		cpu.Quota = &l.CpuQuota
	}
	out.CPU = cpu
	return out
}

// mounts adds the system's mounts and the step's.
func (s *step) mounts(b *specs.Spec) error {
	b.Mounts = append(b.Mounts, systemMounts(s.p.Network == pb.NetMode_HOST)...)
	for i, m := range s.p.Mounts {
		mnt, err := s.mount(i, m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		// --mount=type=tmpfs,target=/dev/shm (and --shm-size) replace the default one.
		b.Mounts = slices.DeleteFunc(b.Mounts, func(o specs.Mount) bool { return o.Destination == mnt.Destination })
		b.Mounts = append(b.Mounts, mnt)
	}
	return nil
}

func systemMounts(hostNetwork bool) []specs.Mount {
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}
	if hostNetwork { // sysfs of another network namespace can only be bound
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

func (s *step) mount(i int, m op.Mount) (specs.Mount, error) {
	out := specs.Mount{Destination: filepath.Clean(m.Dest)}
	mode := "rw"
	if m.Readonly {
		mode = "ro"
	}
	switch {
	case m.Content != nil:
		file, err := s.secret(i, m)
		if err != nil {
			return out, err
		}
		out.Type, out.Source, out.Options = "bind", file, []string{"bind", "ro", "nosuid", "nodev"}
	case m.Bind != "":
		out.Type, out.Source, out.Options = "bind", m.Bind, []string{"rbind", mode}
	case m.Upper != "":
		out.Type, out.Source = "overlay", "overlay"
		lower := m.Lower
		out.Options = append(overlayOptions(lower), "upperdir="+m.Upper, "workdir="+m.Work)
	case len(m.Lower) == 1:
		out.Type, out.Source, out.Options = "bind", m.Lower[0], []string{"rbind", "ro"}
	case len(m.Lower) > 1:
		out.Type, out.Source, out.Options = "overlay", "overlay", append(overlayOptions(m.Lower), "ro")
	default:
		out.Type, out.Source, out.Options = "tmpfs", "tmpfs", []string{"nosuid", "noexec", "nodev", "mode=1777"}
		if m.Size > 0 {
			out.Options = append(out.Options, fmt.Sprintf("size=%d", m.Size))
		}
	}
	return out, nil
}

func overlayOptions(lower []string) []string {
	return []string{"lowerdir=" + strings.Join(lower, ":"), "metacopy=off", "redirect_dir=off", "index=off"}
}

// secret stores content in memory for as long as the step runs.
func (s *step) secret(i int, m op.Mount) (string, error) {
	dir := filepath.Join(s.r.o.Secrets, s.id)
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(s.r.o.Secrets), &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		return "", fmt.Errorf("%s is not a tmpfs, and secrets are not written to disk: mount one there", filepath.Dir(s.r.o.Secrets))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	s.undo = append(s.undo, func(context.Context) error {
		err := os.RemoveAll(dir)
		_ = os.Remove(s.r.o.Secrets) // the last step that has secrets takes the directory with it
		return err
	})
	file := filepath.Join(dir, fmt.Sprint(i))
	if err := os.WriteFile(file, m.Content, 0o600); err != nil {
		return "", err
	}
	if err := os.Chmod(file, os.FileMode(m.Mode)); err != nil {
		return "", err
	}
	return file, os.Chown(file, int(m.UID), int(m.GID))
}
