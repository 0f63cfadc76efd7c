package dockerapi

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host is what version and info tell about this daemon and its machine.
type Host struct {
	ID      string // stable for the life of the data directory
	Version string // of Slipway
	Commit  string // may be empty
	Built   string // RFC 3339; may be empty
	DataDir string
	Driver  string // how image layers are stored; empty: overlay
	// Warnings are shown by `docker info`, a FORWARD policy that drops our traffic for example. May be nil.
	Warnings func() []string
}

func (h Host) driver() string {
	if h.Driver == "" {
		return "overlay"
	}
	return h.Driver
}

// machine is what the kernel tells; read per request, because it is cheap and some of it changes.
type machine struct {
	hostname, kernel, arch, system, systemVersion string
	memory                                        int64
	cgroupVersion                                 string
	controllers                                   map[string]bool
	memorySwap, ipv4Forwarding                    bool
}

func readMachine() machine {
	m := machine{arch: archName(runtime.GOARCH)}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.hostname, m.kernel, m.arch = unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.memory = int64(info.Totalram) * int64(info.Unit)
	}
	m.system, m.systemVersion = readOSRelease()
	m.readCgroups()
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	m.ipv4Forwarding = strings.TrimSpace(string(forward)) == "1"
	return m
}

func archName(goarch string) string {
	switch goarch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return goarch
}

func readOSRelease() (name, version string) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "linux", ""
	}
	defer f.Close()
	name = "linux"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if v, err := strconv.Unquote(value); err == nil {
			value = v
		}
		switch key {
		case "PRETTY_NAME":
			name = value
		case "VERSION_ID":
			version = value
		}
	}
	return name, version
}

func (m *machine) readCgroups() {
	m.controllers = map[string]bool{}
	if list, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.cgroupVersion = "2"
		for c := range strings.FieldsSeq(string(list)) {
			m.controllers[c] = true
		}
		m.memorySwap = m.controllers["memory"]
		return
	}
	m.cgroupVersion = "1"
	for _, c := range []string{"memory", "cpu", "cpuset", "pids", "blkio"} {
		_, err := os.Stat("/sys/fs/cgroup/" + c)
		m.controllers[c] = err == nil
	}
	_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	m.memorySwap = err == nil
}
