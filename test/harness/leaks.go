package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// process is one that belongs to the daemon under test.
type process struct {
	PID     int
	Command string
}

// processes finds the daemon, its warden, and everything in its control groups.
func (d *Daemon) processes() []process {
	var all []process
	for _, pid := range pids() {
		command := commandOf(pid)
		cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		ours := d.Record.Instance != "" && bytes.Contains(cgroup, []byte("/slipway-"+d.Record.Instance))
		if ours || (pid != os.Getpid() && strings.Contains(command, d.Run+"/") && strings.Contains(command, "slipway")) {
			all = append(all, process{pid, command})
		}
	}
	return all
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func commandOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.ReplaceAll(bytes.TrimRight(raw, "\x00"), []byte{0}, []byte{' '}))
}

// noteNamespaces remembers the network namespaces that the daemon's processes live in or hold open, so that
// they can be looked for after the end.
func (d *Daemon) noteNamespaces() {
	own := cookieOf("/proc/thread-self/ns/net") // the process as a whole may have left its first thread elsewhere
	for _, p := range d.processes() {
		for _, cookie := range netnsOf(p.PID) {
			if cookie != own {
				d.seen[cookie] = true
			}
		}
	}
}

// netnsOf lists the network namespaces of a process, its own and those it has descriptors of, by their cookies:
// the kernel gives the inode number of a namespace that is gone to the next one, but never its cookie.
func netnsOf(pid int) []uint64 {
	var links []string
	var all []uint64
	add := func(link string) {
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, "net:[") || slices.Contains(links, target) {
			return
		}
		links = append(links, target)
		if cookie := cookieOf(link); cookie != 0 {
			all = append(all, cookie)
		}
	}
	add(fmt.Sprintf("/proc/%d/ns/net", pid))
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		add(fd)
	}
	return all
}

// cookieOf enters a network namespace and reads its cookie; 0 when it is gone meanwhile.
func cookieOf(path string) uint64 {
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(ns)
	cookie := make(chan uint64)
	go func() {
		// The thread goes back to where it was. To let it end with its goroutine is not enough: the first thread
		// of a Go program never ends, and would hold the namespace, which then looks left behind.
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			cookie <- 0
			return
		}
		defer unix.Close(home)
		got := cookieIn(ns)
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		cookie <- got
	}()
	return <-cookie
}

func cookieIn(ns int) uint64 {
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return 0
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// CheckNoPods fails the test when something of a pod is left while the daemon goes on: to be called after all
// pods were deleted.
func (d *Daemon) CheckNoPods(t testing.TB) {
	t.Helper()
	Eventually(t, "the end of all pods", func() error {
		left := d.Links("p")
		for _, cgroup := range d.Cgroups() {
			if strings.Contains(cgroup, "/pod") {
				left = append(left, cgroup)
			}
		}
		for _, p := range d.processes() {
			if p.PID != d.Record.PID && !strings.Contains(p.Command, "slipway-warden") {
				left = append(left, fmt.Sprintf("process %d: %s", p.PID, p.Command))
			}
		}
		entries, err := os.ReadDir(filepath.Join(d.Data, "pods"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			left = append(left, "directory "+filepath.Join(d.Data, "pods", e.Name()))
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "\n  "))
		}
		return nil
	})
}

// checkNothingLeft fails the test with all that is still on the machine. The kernel finishes some of it in the
// background, so it gets a moment.
func (d *Daemon) checkNothingLeft() {
	d.t.Helper()
	deadline := time.Now().Add(commandLimit)
	for {
		left := d.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Errorf("left behind by the daemon of %s (instance %s):\n  %s", d.Data, d.Record.Instance, strings.Join(left, "\n  "))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// left lists what a daemon that is torn down must not leave.
func (d *Daemon) left() []string {
	var left []string
	for _, p := range d.processes() {
		left = append(left, fmt.Sprintf("process %d: %s", p.PID, p.Command))
	}
	left = append(left, d.mounts()...)
	left = append(left, d.Links("")...)
	left = append(left, d.namespaces()...)
	left = append(left, d.tables()...)
	left = append(left, d.Cgroups()...)
	return append(left, d.iptables()...)
}

func (d *Daemon) mounts() []string {
	var left []string
	for _, dir := range []string{d.Data, d.Run} {
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return []string{err.Error()}
		}
		for _, info := range infos {
			left = append(left, "mount "+info.Mountpoint)
		}
	}
	return left
}

// Links lists the daemon's network interfaces whose name goes on with kind: "b" bridges, "p" pods, "" all.
func (d *Daemon) Links(kind string) []string {
	links, err := net.Interfaces()
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sw"+d.Record.Instance+"-"+kind) {
			left = append(left, "interface "+l.Name)
		}
	}
	return left
}

// namespaces lists those of the daemon's network namespaces that some process still lives in or holds.
func (d *Daemon) namespaces() []string {
	if len(d.seen) == 0 {
		return nil
	}
	var left []string
	for _, pid := range pids() {
		for _, cookie := range netnsOf(pid) {
			if d.seen[cookie] {
				left = append(left, fmt.Sprintf("network namespace %d, held by process %d: %s", cookie, pid, commandOf(pid)))
			}
		}
	}
	return left
}

func (d *Daemon) tables() []string {
	out, err := exec.Command("nft", "list", "tables").CombinedOutput()
	if err != nil {
		return []string{fmt.Sprintf("nft list tables: %v: %s", err, out)}
	}
	return linesWith(string(out), "slipway-"+d.Record.Instance)
}

// Cgroups lists the daemon's control groups, in every hierarchy, the parent and the warden's own included.
func (d *Daemon) Cgroups() []string {
	var left []string
	for _, pattern := range []string{"/sys/fs/cgroup/slipway-%s*", "/sys/fs/cgroup/*/slipway-%s*"} {
		tops, _ := filepath.Glob(fmt.Sprintf(pattern, d.Record.Instance))
		for _, top := range tops {
			err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					left = append(left, "cgroup "+path)
				}
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			})
			if err != nil {
				left = append(left, err.Error())
			}
		}
	}
	return left
}

// iptables lists rules of ours in tables that belong to other tools.
func (d *Daemon) iptables() []string {
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		return nil // tables has said so already
	}
	return linesWith(string(out), d.Record.Instance)
}

func linesWith(text, word string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			lines = append(lines, "packet filter: "+strings.TrimSpace(line))
		}
	}
	return lines
}
