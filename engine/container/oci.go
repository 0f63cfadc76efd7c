package container

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

// bundle is everything that the OCI specification of one run is made from. Gathering it
// touches the machine; turning it into a specification (generate) does not, and equal
// bundles give equal specifications.
type bundle struct {
	ID      string
	Spec    *Spec
	Args    []string
	Rootfs  string
	Cgroup  string
	User    specs.User
	Host    hostFacts
	Mounts  []specs.Mount // resolved mounts of the user, any order
	Devices []specs.LinuxDevice
	Rules   []specs.LinuxDeviceCgroup

	Hostname string // as seen inside; empty: not set
	// Paths of namespaces to join: warden.SandboxPath, /proc/PID/ns/…, "" for one of its own,
	// and hostNamespace for none at all.
	Net, PID, IPC, UTS string
	CgroupNS           string

	ConsoleRows, ConsoleCols uint
	InitPath                 string // host path of the init to run as process 1; empty: none
}

// hostNamespace as the path of a namespace means: stay in the host's.
const hostNamespace = "host"

// hostFacts is what generation needs to know about the machine.
type hostFacts struct {
	CgroupV2  bool
	Swap      bool // swap can be limited
	MaxNoFile uint64
	Recursive bool // read-only binds can be made recursive
	NumCPU    int
	X32       bool // the kernel may have the x32 ABI
	// Capabilities that can be given to containers, sorted by name.
	Capabilities []string
	AllDevices   []specs.LinuxDevice // for privileged containers
}

var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCapabilities are in the kernel's order: the index is the number.
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// What Docker hides from containers that are not privileged.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// DefaultPaths are what is hidden from a container, and what it may only read, when its Spec does not say.
func DefaultPaths() (masked, readonly []string) {
	return slices.Clone(defaultMasked), slices.Clone(defaultReadonly)
}

const (
	defaultPath  = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultShm   = 64 << 20
	wantedNoFile = 524288
)

// generate makes the OCI runtime specification of one run.
func generate(b *bundle) (*specs.Spec, error) {
	s := &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: b.Rootfs, Readonly: b.Spec.ReadOnly},
		Hostname: b.Hostname,
		Linux:    &specs.Linux{CgroupsPath: b.Cgroup, Sysctl: sysctls(b)},
	}
	if b.UTS != hostNamespace && b.UTS == "" {
		s.Domainname = b.Spec.Domainname
	}
	if err := setProcess(s, b); err != nil {
		return nil, err
	}
	setNamespaces(s, b)
	setMounts(s, b)
	if err := setResources(s, b); err != nil {
		return nil, err
	}
	return s, setSecurity(s, b)
}

func setProcess(s *specs.Spec, b *bundle) error {
	caps, err := capabilities(b.Spec, b.Host.Capabilities)
	if err != nil {
		return err
	}
	limits, err := rlimits(b.Spec.Resources.Ulimits, b.Host.MaxNoFile)
	if err != nil {
		return err
	}
	adj := 0
	if b.Spec.Resources.OomScoreAdj != nil {
		adj = *b.Spec.Resources.OomScoreAdj
	}
	s.Process = &specs.Process{
		Terminal: b.Spec.Tty, User: b.User, Args: b.Args, Cwd: workingDir(b.Spec.WorkingDir),
		Env:             environment(b.Spec, b.Hostname),
		Capabilities:    processCapabilities(caps, b.User.UID, b.Spec.AmbientAllCaps, b.Spec.AmbientCaps),
		Rlimits:         limits,
		NoNewPrivileges: b.Spec.NoNewPrivs || securityFlag(b.Spec.SecurityOpt, "no-new-privileges"),
		OOMScoreAdj:     &adj,
	}
	if b.ConsoleRows > 0 && b.ConsoleCols > 0 {
		s.Process.ConsoleSize = &specs.Box{Height: b.ConsoleRows, Width: b.ConsoleCols}
	}
	if b.InitPath != "" {
		s.Process.Args = append([]string{warden.InitTarget, "--"}, b.Args...)
	}
	return nil
}

func workingDir(dir string) string {
	if dir == "" {
		return "/"
	}
	return filepath.Clean(dir)
}

// environment is Docker's: a path, the host name, the terminal, then what was asked for.
func environment(spec *Spec, hostname string) []string {
	env := []string{defaultPath}
	if hostname != "" {
		env = append(env, "HOSTNAME="+hostname)
	}
	if spec.Tty {
		env = append(env, "TERM=xterm")
	}
	return mergeEnv(env, spec.Env)
}

// mergeEnv lets over replace entries of base by name; "NAME" without "=" removes one.
func mergeEnv(base, over []string) []string {
	out := slices.Clone(base)
	at := make(map[string]int, len(base))
	for i, e := range out {
		name, _, _ := strings.Cut(e, "=")
		at[name] = i
	}
	for _, e := range over {
		name, _, set := strings.Cut(e, "=")
		i, known := at[name]
		switch {
		case !set && known:
			out[i] = ""
		case !set:
		case known:
			out[i] = e
		default:
			at[name] = len(out)
			out = append(out, e)
		}
	}
	return slices.DeleteFunc(out, func(e string) bool { return e == "" })
}

// capabilities applies cap-add and cap-drop to the default set, as Docker does: ALL is
// looked at first, and what is named explicitly wins.
// "All" is what this machine has to give: in a nested container that may be less.
func capabilities(spec *Spec, available []string) ([]string, error) {
	if spec.Privileged {
		return slices.Clone(available), nil
	}
	add, addAll, err := capNames(spec.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(spec.CapDrop)
	if err != nil {
		return nil, err
	}
	var caps []string
	switch {
	case addAll:
		caps = slices.DeleteFunc(slices.Clone(available), func(c string) bool { return slices.Contains(drop, c) })
	case dropAll:
		caps = add
	default:
		caps = slices.DeleteFunc(slices.Clone(defaultCapabilities), func(c string) bool { return slices.Contains(drop, c) })
		caps = append(caps, add...)
	}
	slices.Sort(caps)
	return slices.Compact(caps), nil
}

func capNames(in []string) (names []string, all bool, err error) {
	for _, c := range in {
		c = strings.ToUpper(c)
		if c == "ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(allCapabilities, c) {
			return nil, false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid capability: unknown capability: %q", c))
		}
		names = append(names, c)
	}
	return names, all, nil
}

// processCapabilities: a process of another user than root starts without effective and
// permitted capabilities, as after execve, and can gain those of the bounding set.
func processCapabilities(caps []string, uid uint32, ambientAll bool, ambient []string) *specs.LinuxCapabilities {
	if uid == 0 {
		return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	}
	if ambientAll {
		ambient = caps
	}
	if len(ambient) == 0 {
		return &specs.LinuxCapabilities{Bounding: caps}
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: ambient, Permitted: ambient, Inheritable: ambient, Ambient: ambient}
}

// rlimits are always explicit: the supervisor's own must not leak into containers.
func rlimits(want []Ulimit, maxNoFile uint64) ([]specs.POSIXRlimit, error) {
	hard := min(uint64(wantedNoFile), maxNoFile)
	set := map[string]specs.POSIXRlimit{
		"RLIMIT_NOFILE": {Type: "RLIMIT_NOFILE", Soft: min(1024, hard), Hard: hard},
	}
	for _, u := range want {
		name := "RLIMIT_" + strings.ToUpper(u.Name)
		if !slices.Contains(rlimitNames, name) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid ulimit type: %s", u.Name))
		}
		if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("ulimit %s: soft limit %d exceeds hard limit %d", u.Name, u.Soft, u.Hard))
		}
		set[name] = specs.POSIXRlimit{Type: name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
	}
	out := make([]specs.POSIXRlimit, 0, len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		out = append(out, set[name])
	}
	return out, nil
}

var rlimitNames = []string{
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE",
	"RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO", "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
}

func setNamespaces(s *specs.Spec, b *bundle) {
	add := func(t specs.LinuxNamespaceType, path string) {
		if path != hostNamespace {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
		}
	}
	add(specs.MountNamespace, "")
	add(specs.NetworkNamespace, b.Net)
	add(specs.PIDNamespace, b.PID)
	add(specs.IPCNamespace, b.IPC)
	add(specs.UTSNamespace, b.UTS)
	add(specs.CgroupNamespace, b.CgroupNS)
	if b.UTS != "" {
		s.Hostname, s.Domainname = "", "" // they belong to whoever made the namespace
	}
}

// sysctls adds Docker's defaults where the network namespace is the container's own.
func sysctls(b *bundle) map[string]string {
	out := map[string]string{}
	ownNet := b.Net == "" || (b.Net == warden.SandboxPath && b.Spec.Sandbox == "")
	if ownNet {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(out, b.Spec.Sysctls)
	if len(out) == 0 {
		return nil
	}
	return out
}

// setMounts puts the system mounts first and the user's after them, shallow ones before
// deep ones, so that nothing is hidden by a parent mounted later.
func setMounts(s *specs.Spec, b *bundle) {
	mounts := systemMounts(b)
	taken := map[string]bool{}
	for _, m := range b.Mounts {
		taken[filepath.Clean(m.Destination)] = true
	}
	mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool { return taken[m.Destination] })
	user := slices.Clone(b.Mounts)
	if b.InitPath != "" {
		user = append(user, specs.Mount{Destination: warden.InitTarget, Type: "bind", Source: b.InitPath, Options: []string{"bind", "ro"}})
	}
	slices.SortStableFunc(user, func(x, y specs.Mount) int { return depth(x.Destination) - depth(y.Destination) })
	s.Mounts = append(mounts, user...)
	for _, m := range user {
		switch {
		case slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared"):
			s.Linux.RootfsPropagation = "shared"
		case (slices.Contains(m.Options, "rslave") || slices.Contains(m.Options, "slave")) && s.Linux.RootfsPropagation == "":
			s.Linux.RootfsPropagation = "rslave"
		}
	}
}

func depth(path string) int { return strings.Count(strings.Trim(filepath.Clean(path), "/"), "/") }

func systemMounts(b *bundle) []specs.Mount {
	ro := "ro"
	if b.Spec.Privileged {
		ro = "rw"
	}
	cgroup := ro
	if securityFlag(b.Spec.SecurityOpt, "writable-cgroups") {
		cgroup = "rw"
	}
	shm := b.Spec.Resources.ShmSize
	if shm == 0 {
		shm = defaultShm
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroup}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
	}
	if b.Net == hostNamespace { // sysfs of the host's network can only be bound
		mounts[3] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", ro}}
	}
	if b.PID == hostNamespace {
		mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	}
	if b.IPC == hostNamespace { // its queues are in every mqueue that is mounted in it, and not every host mounts one
		mounts[6] = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	}
	if b.Spec.IpcMode == "none" {
		mounts = mounts[:6]
	}
	return mounts
}

func setSecurity(s *specs.Spec, b *bundle) error {
	spec := b.Spec
	unconfined := spec.Privileged || securityValue(spec.SecurityOpt, "systempaths") == "unconfined"
	if !unconfined {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = defaultMasked, defaultReadonly
	}
	if !spec.Privileged && spec.MaskedPaths != nil {
		s.Linux.MaskedPaths = spec.MaskedPaths
	}
	if !spec.Privileged && spec.ReadonlyPaths != nil {
		s.Linux.ReadonlyPaths = spec.ReadonlyPaths
	}
	profile := securityValue(spec.SecurityOpt, "seccomp")
	var err error
	switch {
	case profile == "unconfined", spec.Privileged && profile == "":
		return nil
	case profile == "", profile == "builtin":
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	default:
		s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s)
	}
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("security option seccomp: %v", err))
	}
	if profile == "" && s.Linux.Seccomp != nil && !b.Host.X32 {
		// Rules for an ABI that the kernel does not have: compiling them is a quarter of
		// the time that a start takes.
		s.Linux.Seccomp.Architectures = slices.DeleteFunc(s.Linux.Seccomp.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	return nil
}

// securityValue returns the value of the last "name=value" or "name:value" in opts.
func securityValue(opts []string, name string) (value string) {
	for _, o := range opts {
		if v, ok := strings.CutPrefix(o, name+"="); ok {
			value = v
		} else if v, ok := strings.CutPrefix(o, name+":"); ok {
			value = v
		}
	}
	return value
}

// securityFlag tells whether opts holds "name", "name=true" or "name:true".
func securityFlag(opts []string, name string) bool {
	return slices.Contains(opts, name) || securityValue(opts, name) == "true"
}

// checkSecurityOpts refuses what is not understood instead of ignoring it.
func checkSecurityOpts(opts []string) error {
	for _, o := range opts {
		name, _, _ := strings.Cut(strings.Replace(o, ":", "=", 1), "=")
		switch name {
		case "no-new-privileges", "seccomp", "systempaths", "label", "disable":
		case "writable-cgroups":
			if !slices.Contains([]string{name, name + "=true", name + "=false"}, o) {
				return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid --security-opt: %q: true or false is needed", o))
			}
		case "apparmor":
			if v := securityValue([]string{o}, "apparmor"); v != "unconfined" && v != "" {
				return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("security option %q: AppArmor profiles are not supported: leave it out or use apparmor=unconfined", o))
			}
		default:
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid --security-opt: %q", o))
		}
	}
	return nil
}
