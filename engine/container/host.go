package container

import (
	"bufio"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	cgroupRoot  = "/sys/fs/cgroup"
	cgroupMagic = unix.CGROUP2_SUPER_MAGIC
)

// probeHost looks once at what the machine can do.
func probeHost() hostFacts {
	h := hostFacts{NumCPU: runtime.NumCPU(), Recursive: kernelAtLeast(5, 12), Capabilities: ownCapabilities(), X32: hasX32()}
	var st unix.Statfs_t
	if unix.Statfs(cgroupRoot, &st) == nil && st.Type == cgroupMagic {
		h.CgroupV2 = true
	}
	_, err := os.Stat(filepath.Join(cgroupRoot, "memory/memory.memsw.limit_in_bytes"))
	h.Swap = err == nil || h.CgroupV2
	var rl unix.Rlimit
	h.MaxNoFile = wantedNoFile
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &rl) == nil && !slices.Contains(h.Capabilities, "CAP_SYS_RESOURCE") {
		h.MaxNoFile = rl.Max
	}
	return h
}

// ownCapabilities lists what this process has, and so what its children can be given.
func ownCapabilities() []string {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil
	}
	var mask uint64
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			mask, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	var out []string
	for n, name := range allCapabilities {
		if mask&(1<<n) != 0 {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// hasX32 tells whether the kernel may have the x32 ABI. A process under a seccomp filter
// must not try: the filter may kill whoever uses a foreign ABI.
func hasX32() bool {
	if runtime.GOARCH != "amd64" || !unfiltered() {
		return true
	}
	const x32 = 0x40000000
	_, _, errno := syscall.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0)
	return errno != syscall.ENOSYS
}

func unfiltered() bool {
	b, err := os.ReadFile("/proc/self/status")
	return err == nil && strings.Contains(string(b), "\nSeccomp:\t0\n")
}

// findInit looks for a static init program that a package of the machine brought.
func findInit() string {
	for _, name := range []string{"docker-init", "catatonit", "tini-static", "/usr/libexec/docker/docker-init", "/usr/libexec/podman/catatonit"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	return ""
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	parts := strings.SplitN(unix.ByteSliceToString(u.Release[:]), ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, _ := strconv.Atoi(parts[0])
	b, _ := strconv.Atoi(strings.TrimRight(parts[1], "+-abcdefghijklmnopqrstuvwxyz"))
	return a > major || a == major && b >= minor
}

// hostDevices lists the device nodes of /dev, for privileged containers.
func hostDevices() []specs.LinuxDevice { return devicesUnder("/dev", "/dev", "rwm") }

// devicesUnder lists the devices at or below host, as they are to appear at target.
func devicesUnder(host, target, access string) []specs.LinuxDevice {
	var out []specs.LinuxDevice
	filepath.WalkDir(host, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // vanished, or not ours to read
		}
		if d.IsDir() {
			switch d.Name() {
			case "pts", "shm", "fd", "mqueue", "hugepages", ".lxc", ".lxd-mounts", ".udev":
				if path != host {
					return fs.SkipDir
				}
			}
			return nil
		}
		if d.Name() == "console" {
			return nil
		}
		if dev, ok := deviceAt(path); ok {
			dev.Path = target + strings.TrimPrefix(path, host)
			out = append(out, dev)
		}
		return nil
	})
	return out
}

func deviceAt(path string) (specs.LinuxDevice, bool) {
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode()&fs.ModeDevice == 0 {
		return specs.LinuxDevice{}, false
	}
	st := fi.Sys().(*syscall.Stat_t)
	kind := "b"
	if fi.Mode()&fs.ModeCharDevice != 0 {
		kind = "c"
	}
	mode, uid, gid := fi.Mode().Perm(), st.Uid, st.Gid
	return specs.LinuxDevice{
		Path: path, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &uid, GID: &gid,
	}, true
}

// resolvDirectives returns the search and options lines of the host's resolv.conf, and
// its name servers.
func resolvDirectives() (search, options string, servers []string) {
	f, err := os.Open("/etc/resolv.conf")
	if err != nil {
		return "", "", nil
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "search", "domain":
			search = strings.Join(fields[1:], " ")
		case "options":
			options = strings.Join(fields[1:], " ")
		case "nameserver":
			servers = append(servers, fields[1])
		}
	}
	return search, options, servers
}
