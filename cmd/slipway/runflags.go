package main

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-connections/nat"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/spf13/pflag"
)

// createFlags are the flags that run and create share, as they were given.
type createFlags struct {
	name, hostname, domainname, user, workdir, entrypoint, platform, pull, cidFile string
	stopSignal, restart, memory, memorySwap, memoryReservation, shmSize, cpus      string
	cpusetCPUs, cpusetMems, pid, ipc, uts, userns, cgroupns, cgroupParent          string
	logDriver, isolation, runtime, volumeDriver, mac, ip, ip6                      string
	healthCmd                                                                      string
	healthInterval, healthTimeout, healthStartPeriod, healthStartInterval          time.Duration
	healthRetries, stopTimeout, oomScoreAdj                                        int
	cpuShares, cpuPeriod, cpuQuota, pidsLimit, swappiness                          int64
	blkioWeight                                                                    uint16

	tty, interactive, rm, privileged, readOnly, init, publishAll, noHealthcheck, oomKillDisable, quiet bool

	env, envFiles, labels, labelFiles, publish, expose, volumes, mounts, tmpfs, networks, aliases, addHosts []string
	dns, dnsSearch, dnsOptions, links, capAdd, capDrop, securityOpt, groupAdd, sysctls, ulimits, devices    []string
	deviceRules, logOpts, volumesFrom, attach, annotations, storageOpt, linkLocal                           []string
}

func (f *createFlags) register(s *pflag.FlagSet) {
	s.Bool("help", false, "show this help") // without its usual -h, which is --hostname here
	s.StringVar(&f.name, "name", "", "name of the container (default: a random one)")
	s.StringVarP(&f.hostname, "hostname", "h", "", "host name inside the container")
	s.StringVar(&f.domainname, "domainname", "", "NIS domain name inside the container")
	s.StringVarP(&f.user, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	s.StringVarP(&f.workdir, "workdir", "w", "", "working directory inside the container")
	s.StringVar(&f.entrypoint, "entrypoint", "", "run this instead of the image's entrypoint")
	s.BoolVarP(&f.tty, "tty", "t", false, "give it a terminal")
	s.BoolVarP(&f.interactive, "interactive", "i", false, "keep its standard input open")
	s.BoolVar(&f.rm, "rm", false, "remove the container when it exits")
	s.BoolVar(&f.init, "init", false, "run a small init inside that reaps processes and forwards signals")
	s.StringVar(&f.restart, "restart", "no", "no, on-failure[:N], always or unless-stopped")
	s.StringVar(&f.stopSignal, "stop-signal", "", "signal that stops the container")
	s.IntVar(&f.stopTimeout, "stop-timeout", 0, "seconds to wait before it is killed (-1: for ever)")
	s.StringVar(&f.platform, "platform", "", "OS/ARCH[/VARIANT] of the image")
	s.StringVar(&f.pull, "pull", "missing", "always, missing or never")
	s.BoolVar(&f.quiet, "quiet", false, "show no progress of a pull")
	s.StringVar(&f.cidFile, "cidfile", "", "write the container's id to this file")

	s.StringArrayVarP(&f.env, "env", "e", nil, "`NAME=VALUE`, or NAME to pass it on")
	s.StringArrayVar(&f.envFiles, "env-file", nil, "read environment from a `FILE`")
	s.StringArrayVarP(&f.labels, "label", "l", nil, "`KEY=VALUE`")
	s.StringArrayVar(&f.labelFiles, "label-file", nil, "read labels from a `FILE`")
	s.StringArrayVar(&f.annotations, "annotation", nil, "`KEY=VALUE` for the runtime")

	s.StringArrayVarP(&f.publish, "publish", "p", nil, "`[IP:][HOST:]CONTAINER[/PROTO]`, ports or ranges")
	s.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish all exposed ports on free host ports")
	s.StringArrayVar(&f.expose, "expose", nil, "expose a port or a range")
	s.StringArrayVar(&f.networks, "network", nil, "network to join, or host, none, container:NAME")
	s.StringArrayVar(&f.networks, "net", nil, "")
	_ = s.MarkHidden("net")
	s.StringArrayVar(&f.aliases, "network-alias", nil, "one more name on the network")
	s.StringVar(&f.ip, "ip", "", "IPv4 address on the network")
	s.StringVar(&f.ip6, "ip6", "", "IPv6 address on the network")
	s.StringVar(&f.mac, "mac-address", "", "MAC address on the network")
	s.StringArrayVar(&f.linkLocal, "link-local-ip", nil, "link-local address on the network")
	s.StringArrayVar(&f.links, "link", nil, "`CONTAINER[:ALIAS]`")
	s.StringArrayVar(&f.addHosts, "add-host", nil, "`NAME:IP`; IP may be host-gateway")
	s.StringArrayVar(&f.dns, "dns", nil, "DNS server")
	s.StringArrayVar(&f.dnsSearch, "dns-search", nil, "DNS search domain")
	s.StringArrayVar(&f.dnsOptions, "dns-option", nil, "DNS option")

	s.StringArrayVarP(&f.volumes, "volume", "v", nil, "`[SOURCE:]TARGET[:OPTIONS]`; a SOURCE with a slash is a path, else a volume")
	s.StringArrayVar(&f.mounts, "mount", nil, "`type=bind|volume|tmpfs|image,source=…,target=…[,readonly]…`")
	s.StringArrayVar(&f.tmpfs, "tmpfs", nil, "`TARGET[:OPTIONS]`")
	s.StringArrayVar(&f.volumesFrom, "volumes-from", nil, "`CONTAINER[:ro]`: mount what it mounts")
	s.StringVar(&f.volumeDriver, "volume-driver", "", "driver of volumes made for it")
	s.BoolVar(&f.readOnly, "read-only", false, "mount the root file system read-only")
	s.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm")
	s.StringArrayVar(&f.storageOpt, "storage-opt", nil, "storage option")

	s.StringVarP(&f.memory, "memory", "m", "", "memory limit, such as 256m")
	s.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1: no limit")
	s.StringVar(&f.memoryReservation, "memory-reservation", "", "soft memory limit")
	s.Int64Var(&f.swappiness, "memory-swappiness", -1, "0 to 100")
	s.BoolVar(&f.oomKillDisable, "oom-kill-disable", false, "do not kill it when memory is full")
	s.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "-1000 to 1000")
	s.StringVar(&f.cpus, "cpus", "", "number of CPUs, such as 1.5")
	s.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight")
	s.Int64Var(&f.cpuPeriod, "cpu-period", 0, "scheduler period in µs")
	s.Int64Var(&f.cpuQuota, "cpu-quota", 0, "scheduler quota in µs")
	s.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs it may use, such as 0-2,4")
	s.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes it may use")
	s.Int64Var(&f.pidsLimit, "pids-limit", 0, "number of processes; -1: no limit")
	s.StringArrayVar(&f.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]`")
	s.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "10 to 1000")
	s.StringVar(&f.cgroupParent, "cgroup-parent", "", "parent cgroup")

	s.BoolVar(&f.privileged, "privileged", false, "give it every capability and device")
	s.StringArrayVar(&f.capAdd, "cap-add", nil, "add a capability")
	s.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a capability")
	s.StringArrayVar(&f.securityOpt, "security-opt", nil, "no-new-privileges, seccomp=FILE|unconfined, …")
	s.StringArrayVar(&f.groupAdd, "group-add", nil, "one more group")
	s.StringArrayVar(&f.sysctls, "sysctl", nil, "`NAME=VALUE`")
	s.StringArrayVar(&f.devices, "device", nil, "`HOST[:CONTAINER[:rwm]]`")
	s.StringArrayVar(&f.deviceRules, "device-cgroup-rule", nil, "`'c MAJOR:MINOR rwm'`")
	s.StringVar(&f.pid, "pid", "", "host or container:NAME")
	s.StringVar(&f.ipc, "ipc", "", "private, shareable, host, none or container:NAME")
	s.StringVar(&f.uts, "uts", "", "host")
	s.StringVar(&f.userns, "userns", "", "host")
	s.StringVar(&f.cgroupns, "cgroupns", "", "private or host")
	s.StringVar(&f.isolation, "isolation", "", "")
	s.StringVar(&f.runtime, "runtime", "", "runc")
	_ = s.MarkHidden("isolation")

	s.StringVar(&f.logDriver, "log-driver", "", "json-file, local or none")
	s.StringArrayVar(&f.logOpts, "log-opt", nil, "`max-size=10m`, max-file=3")
	s.StringVar(&f.healthCmd, "health-cmd", "", "shell command that checks the container")
	s.DurationVar(&f.healthInterval, "health-interval", 0, "time between checks (default 30s)")
	s.DurationVar(&f.healthTimeout, "health-timeout", 0, "how long a check may take (default 30s)")
	s.DurationVar(&f.healthStartPeriod, "health-start-period", 0, "time to start up, when failures do not count")
	s.DurationVar(&f.healthStartInterval, "health-start-interval", 0, "time between checks while starting up")
	s.IntVar(&f.healthRetries, "health-retries", 0, "failures in a row that mean unhealthy (default 3)")
	s.BoolVar(&f.noHealthcheck, "no-healthcheck", false, "disable the image's health check")
	s.StringArrayVarP(&f.attach, "attach", "a", nil, "attach only to stdin, stdout or stderr")
}

// request builds the API's create request. args are the image and the command.
func (f *createFlags) request(set *pflag.FlagSet, args []string) (*container.CreateRequest, error) {
	c := &container.Config{
		Image: args[0], Cmd: args[1:], Hostname: f.hostname, Domainname: f.domainname, User: f.user, WorkingDir: f.workdir,
		Tty: f.tty, OpenStdin: f.interactive, StopSignal: f.stopSignal, Volumes: map[string]struct{}{},
	}
	if len(c.Cmd) == 0 {
		c.Cmd = nil
	}
	if set.Changed("entrypoint") {
		c.Entrypoint = []string{f.entrypoint}
	}
	if set.Changed("stop-timeout") {
		c.StopTimeout = &f.stopTimeout
	}
	h := &container.HostConfig{
		NetworkMode: "default", AutoRemove: f.rm, Privileged: f.privileged, ReadonlyRootfs: f.readOnly, PublishAllPorts: f.publishAll,
		VolumesFrom: f.volumesFrom, VolumeDriver: f.volumeDriver, CapAdd: f.capAdd, CapDrop: f.capDrop, GroupAdd: f.groupAdd,
		ExtraHosts: nil, DNSSearch: f.dnsSearch, DNSOptions: f.dnsOptions, Links: f.links,
		PidMode: container.PidMode(f.pid), IpcMode: container.IpcMode(f.ipc), UTSMode: container.UTSMode(f.uts),
		UsernsMode: container.UsernsMode(f.userns), CgroupnsMode: container.CgroupnsMode(f.cgroupns),
		Isolation: container.Isolation(f.isolation), Runtime: f.runtime, OomScoreAdj: f.oomScoreAdj,
		LogConfig: container.LogConfig{Type: f.logDriver},
	}
	if set.Changed("init") {
		h.Init = &f.init
	}
	req := &container.CreateRequest{Config: c, HostConfig: h, NetworkingConfig: &network.NetworkingConfig{}}
	for _, step := range []func(*pflag.FlagSet, *container.CreateRequest) error{
		f.setMaps, f.setLimits, f.setHealth, f.setPorts, f.setMounts, f.setNetworks, f.setSecurity,
	} {
		if err := step(set, req); err != nil {
			return nil, usageError{err}
		}
	}
	return req, nil
}

func (f *createFlags) setMaps(_ *pflag.FlagSet, req *container.CreateRequest) (err error) {
	if req.Config.Env, err = environment(f.env, f.envFiles); err != nil {
		return err
	}
	if req.Config.Labels, err = keyValues("--label", f.labels, f.labelFiles); err != nil {
		return err
	}
	if req.HostConfig.Annotations, err = keyValues("--annotation", f.annotations, nil); err != nil {
		return err
	}
	if req.HostConfig.Sysctls, err = keyValues("--sysctl", f.sysctls, nil); err != nil {
		return err
	}
	if req.HostConfig.StorageOpt, err = keyValues("--storage-opt", f.storageOpt, nil); err != nil {
		return err
	}
	if req.HostConfig.LogConfig.Config, err = keyValues("--log-opt", f.logOpts, nil); err != nil {
		return err
	}
	req.HostConfig.RestartPolicy, err = restartPolicy(f.restart)
	return err
}

func restartPolicy(s string) (container.RestartPolicy, error) {
	name, count, counted := strings.Cut(s, ":")
	p := container.RestartPolicy{Name: container.RestartPolicyMode(name)}
	if counted {
		n, err := strconv.Atoi(count)
		if err != nil {
			return p, fmt.Errorf("--restart %q: maximum retry count must be an integer", s)
		}
		p.MaximumRetryCount = n
	}
	if err := container.ValidateRestartPolicy(p); err != nil {
		return p, fmt.Errorf("--restart %q: %w", s, err)
	}
	return p, nil
}

// environment reads --env-file and --env; a bare NAME passes this process' variable on, if it is set.
func environment(pairs, files []string) ([]string, error) {
	var env []string
	for _, name := range files {
		lines, err := readLines(name)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for _, line := range lines {
			if strings.ContainsAny(strings.SplitN(line, "=", 2)[0], " \t") {
				return nil, fmt.Errorf("--env-file %s: variable %q contains white space", name, strings.SplitN(line, "=", 2)[0])
			}
			env = appendEnv(env, line)
		}
	}
	for _, p := range pairs {
		if p == "" || strings.HasPrefix(p, "=") {
			return nil, fmt.Errorf("--env %q: want NAME=VALUE or NAME", p)
		}
		env = appendEnv(env, p)
	}
	return env, nil
}

func appendEnv(env []string, pair string) []string {
	if strings.Contains(pair, "=") {
		return append(env, pair)
	}
	if value, ok := os.LookupEnv(pair); ok {
		return append(env, pair+"="+value)
	}
	return env
}

// readLines reads a file without blank lines and # comments.
func readLines(name string) ([]string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r")
		line = strings.TrimLeft(strings.TrimPrefix(line, "\ufeff"), " \t")
		if line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

func keyValues(flag string, pairs, files []string) (map[string]string, error) {
	m := map[string]string{}
	for _, name := range files {
		lines, err := readLines(name)
		if err != nil {
			return nil, fmt.Errorf("%s-file: %w", flag, err)
		}
		pairs = append(lines, pairs...)
	}
	for _, p := range pairs {
		key, value, _ := strings.Cut(p, "=")
		if key == "" {
			return nil, fmt.Errorf("%s %q: want KEY=VALUE", flag, p)
		}
		m[key] = value
	}
	if len(m) == 0 {
		return nil, nil
	}
	return m, nil
}

// bytesFlag reads a size such as 256m.
func bytesFlag(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil {
		return 0, fmt.Errorf("%s %q: want a size such as 256m", flag, s)
	}
	return n, nil
}

func (f *createFlags) setLimits(set *pflag.FlagSet, req *container.CreateRequest) (err error) {
	r := &req.HostConfig.Resources
	if err := f.setMemory(r); err != nil {
		return err
	}
	if req.HostConfig.ShmSize, err = bytesFlag("--shm-size", f.shmSize); err != nil {
		return err
	}
	if f.cpus != "" {
		n, err := strconv.ParseFloat(f.cpus, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("--cpus %q: want a number such as 1.5", f.cpus)
		}
		r.NanoCPUs = int64(n * 1e9)
	}
	r.CPUShares, r.CPUPeriod, r.CPUQuota = f.cpuShares, f.cpuPeriod, f.cpuQuota
	r.CpusetCpus, r.CpusetMems, r.BlkioWeight, r.CgroupParent = f.cpusetCPUs, f.cpusetMems, f.blkioWeight, f.cgroupParent
	if set.Changed("memory-swappiness") {
		r.MemorySwappiness = &f.swappiness
	}
	if set.Changed("oom-kill-disable") {
		r.OomKillDisable = &f.oomKillDisable
	}
	if set.Changed("pids-limit") {
		r.PidsLimit = &f.pidsLimit
	}
	for _, u := range f.ulimits {
		limit, err := units.ParseUlimit(u)
		if err != nil {
			return fmt.Errorf("--ulimit %q: %w", u, err)
		}
		r.Ulimits = append(r.Ulimits, limit)
	}
	return nil
}

func (f *createFlags) setMemory(r *container.Resources) (err error) {
	if r.Memory, err = bytesFlag("--memory", f.memory); err != nil {
		return err
	}
	if r.MemoryReservation, err = bytesFlag("--memory-reservation", f.memoryReservation); err != nil {
		return err
	}
	if f.memorySwap == "-1" {
		r.MemorySwap = -1
		return nil
	}
	r.MemorySwap, err = bytesFlag("--memory-swap", f.memorySwap)
	return err
}

func (f *createFlags) setHealth(_ *pflag.FlagSet, req *container.CreateRequest) error {
	given := f.healthCmd != "" || f.healthInterval != 0 || f.healthTimeout != 0 || f.healthStartPeriod != 0 || f.healthStartInterval != 0 || f.healthRetries != 0
	if f.noHealthcheck {
		if given {
			return fmt.Errorf("--no-healthcheck conflicts with --health-* options")
		}
		req.Config.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		return nil
	}
	if !given {
		return nil
	}
	req.Config.Healthcheck = &container.HealthConfig{
		Interval: f.healthInterval, Timeout: f.healthTimeout, StartPeriod: f.healthStartPeriod, StartInterval: f.healthStartInterval, Retries: f.healthRetries,
	}
	if f.healthCmd != "" {
		req.Config.Healthcheck.Test = []string{"CMD-SHELL", f.healthCmd}
	}
	return nil
}

func (f *createFlags) setPorts(_ *pflag.FlagSet, req *container.CreateRequest) error {
	exposed, bindings, err := nat.ParsePortSpecs(f.publish)
	if err != nil {
		return fmt.Errorf("--publish: %w", err)
	}
	req.Config.ExposedPorts, req.HostConfig.PortBindings = network.PortSet{}, network.PortMap{}
	for p := range exposed {
		port, err := network.ParsePort(string(p))
		if err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
		req.Config.ExposedPorts[port] = struct{}{}
		for _, b := range bindings[p] {
			var ip netip.Addr
			if b.HostIP != "" {
				if ip, err = netip.ParseAddr(b.HostIP); err != nil {
					return fmt.Errorf("--publish: invalid IP address %q", b.HostIP)
				}
			}
			req.HostConfig.PortBindings[port] = append(req.HostConfig.PortBindings[port], network.PortBinding{HostIP: ip, HostPort: b.HostPort})
		}
	}
	for _, e := range f.expose {
		ports, err := network.ParsePortRange(e)
		if err != nil {
			return fmt.Errorf("--expose %q: %w", e, err)
		}
		for p := range ports.All() {
			req.Config.ExposedPorts[p] = struct{}{}
		}
	}
	return nil
}

func (f *createFlags) setMounts(_ *pflag.FlagSet, req *container.CreateRequest) error {
	for _, v := range f.volumes {
		bind, err := absoluteBind(v)
		if err != nil {
			return err
		}
		if !strings.Contains(bind, ":") {
			req.Config.Volumes[bind] = struct{}{}
			continue
		}
		req.HostConfig.Binds = append(req.HostConfig.Binds, bind)
	}
	for _, m := range f.mounts {
		parsed, err := parseMount(m)
		if err != nil {
			return fmt.Errorf("--mount %q: %w", m, err)
		}
		req.HostConfig.Mounts = append(req.HostConfig.Mounts, parsed)
	}
	for _, t := range f.tmpfs {
		target, options, _ := strings.Cut(t, ":")
		if req.HostConfig.Tmpfs == nil {
			req.HostConfig.Tmpfs = map[string]string{}
		}
		req.HostConfig.Tmpfs[target] = options
	}
	return nil
}

// absoluteBind resolves a SOURCE that starts with a dot: only this side knows the working directory.
func absoluteBind(v string) (string, error) {
	source, rest, ok := strings.Cut(v, ":")
	if !ok || source != "." && source != ".." && !strings.HasPrefix(source, "./") && !strings.HasPrefix(source, "../") {
		return v, nil
	}
	abs, err := filepath.Abs(source)
	if err != nil {
		return "", fmt.Errorf("--volume %q: %w", v, err)
	}
	return abs + ":" + rest, nil
}

// parseMount reads the comma-separated --mount form.
func parseMount(s string) (mount.Mount, error) {
	m := mount.Mount{Type: mount.TypeVolume}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return m, err
	}
	for _, field := range fields {
		key, value, valued := strings.Cut(field, "=")
		if err := setMountField(&m, strings.ToLower(key), value, valued); err != nil {
			return m, err
		}
	}
	if m.Target == "" {
		return m, fmt.Errorf("target is required")
	}
	if m.Type == mount.TypeBind && !filepath.IsAbs(m.Source) {
		if m.Source, err = filepath.Abs(m.Source); err != nil {
			return m, err
		}
	}
	return m, nil
}

func setMountField(m *mount.Mount, key, value string, valued bool) (err error) {
	yes := !valued || value == "" || value == "true" || value == "1"
	switch key {
	case "type":
		m.Type = mount.Type(strings.ToLower(value))
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "readonly", "ro":
		m.ReadOnly = yes
	case "consistency":
		m.Consistency = mount.Consistency(value)
	case "bind-propagation":
		bindOf(m).Propagation = mount.Propagation(value)
	case "bind-create-src":
		bindOf(m).CreateMountpoint = yes
	case "bind-recursive":
		return setRecursive(bindOf(m), value)
	case "volume-nocopy":
		volumeOf(m).NoCopy = yes
	case "volume-subpath":
		volumeOf(m).Subpath = value
	case "volume-label":
		k, v, _ := strings.Cut(value, "=")
		if volumeOf(m).Labels == nil {
			volumeOf(m).Labels = map[string]string{}
		}
		volumeOf(m).Labels[k] = v
	case "volume-driver":
		driverOf(m).Name = value
	case "volume-opt":
		k, v, _ := strings.Cut(value, "=")
		if driverOf(m).Options == nil {
			driverOf(m).Options = map[string]string{}
		}
		driverOf(m).Options[k] = v
	case "image-subpath":
		m.ImageOptions = &mount.ImageOptions{Subpath: value}
	case "tmpfs-size":
		tmpfsOf(m).SizeBytes, err = units.RAMInBytes(value)
	case "tmpfs-mode":
		var mode uint64
		mode, err = strconv.ParseUint(value, 8, 32)
		tmpfsOf(m).Mode = os.FileMode(mode)
	default:
		return fmt.Errorf("unexpected key '%s' in '%s=%s'", key, key, value)
	}
	if err != nil {
		return fmt.Errorf("invalid value for %s: %s", key, value)
	}
	return nil
}

func setRecursive(b *mount.BindOptions, value string) error {
	switch value {
	case "enabled":
	case "disabled":
		b.NonRecursive = true
	case "writable":
		b.ReadOnlyNonRecursive = true
	case "readonly":
		b.ReadOnlyForceRecursive = true
	default:
		return fmt.Errorf("invalid value for bind-recursive: %s (must be enabled, disabled, writable or readonly)", value)
	}
	return nil
}

func bindOf(m *mount.Mount) *mount.BindOptions {
	if m.BindOptions == nil {
		m.BindOptions = &mount.BindOptions{}
	}
	return m.BindOptions
}

func volumeOf(m *mount.Mount) *mount.VolumeOptions {
	if m.VolumeOptions == nil {
		m.VolumeOptions = &mount.VolumeOptions{}
	}
	return m.VolumeOptions
}

func driverOf(m *mount.Mount) *mount.Driver {
	v := volumeOf(m)
	if v.DriverConfig == nil {
		v.DriverConfig = &mount.Driver{}
	}
	return v.DriverConfig
}

func tmpfsOf(m *mount.Mount) *mount.TmpfsOptions {
	if m.TmpfsOptions == nil {
		m.TmpfsOptions = &mount.TmpfsOptions{}
	}
	return m.TmpfsOptions
}
