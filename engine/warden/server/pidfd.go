package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// exit is how a process ended.
type exit struct {
	code, signal int
	known        bool
}

// unknownExit is what is reported when nobody could see how a process ended.
var unknownExit = exit{code: 255}

func exitOf(status uint32) exit {
	ws := syscall.WaitStatus(status)
	if ws.Signaled() {
		return exit{code: 128 + int(ws.Signal()), signal: int(ws.Signal()), known: true}
	}
	return exit{code: ws.ExitStatus(), known: true}
}

// openPidfd takes hold of a process.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitPidfd waits for a process to end and reaps it when it is a child of this one. When it is not (the warden that
// started it has died), the kernel tells its exit code once its new parent has reaped it.
func waitPidfd(f *os.File, pid int, startTime uint64) exit {
	raw, err := f.SyscallConn()
	if err != nil {
		return unknownExit
	}
	end := unknownExit
	child := true
	err = raw.Read(func(fd uintptr) bool {
		if child {
			var ok bool
			if end, ok, child = reapChild(fd); ok || child {
				return ok
			}
		}
		var ok bool
		end, ok = orphanExit(fd, pid, startTime)
		return ok
	})
	if err != nil {
		return unknownExit
	}
	return end
}

// pidfdIDType is P_PIDFD, for waitid.
const pidfdIDType = 3

// reapChild waits without blocking. child is false when the process is not a child of this one.
func reapChild(fd uintptr) (end exit, done, child bool) {
	var info siginfo
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, pidfdIDType, fd, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.ECHILD:
			return unknownExit, false, false
		case errno != 0:
			return unknownExit, true, true
		case info.pid == 0:
			return unknownExit, false, true
		}
		return info.exit(), true, true
	}
}

// siginfo is the kernel's siginfo_t on 64-bit machines, as waitid fills it.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

const cldExited = 1 // CLD_EXITED

func (i *siginfo) exit() exit {
	if i.code == cldExited {
		return exit{code: int(i.status), known: true}
	}
	return exit{code: 128 + int(i.status), signal: int(i.status), known: true}
}

// pidfdInfo is the first version of the kernel's struct pidfd_info.
type pidfdInfo struct {
	mask, cgroup                                                      uint64
	pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid uint32
	exitCode                                                          int32
}

const (
	pidfdGetInfo  = 0xC040FF0B // PIDFD_GET_INFO: _IOWR(0xFF, 11, 64 bytes)
	pidfdInfoExit = 1 << 3     // PIDFD_INFO_EXIT, Linux 6.15
)

// orphanExit looks at a process that is not our child. Between its death and its reaping by its parent only /proc
// shows the exit code; after that only the pidfd does, and before Linux 6.15 nothing.
func orphanExit(fd uintptr, pid int, startTime uint64) (end exit, done bool) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n == 0 && (err == nil || errors.Is(err, unix.EINTR)) {
		return unknownExit, false
	}
	for range 2 { // it may be reaped between the two questions
		info := pidfdInfo{mask: pidfdInfoExit}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
		if errno == 0 && info.mask&pidfdInfoExit != 0 {
			return exitOf(uint32(info.exitCode)), true
		}
		st, err := readStat(pid)
		if err == nil && st.startTime == startTime && st.zombie {
			return exitOf(st.exitCode), true
		}
	}
	return unknownExit, true
}

// procStat is what the warden reads of /proc/PID/stat.
type procStat struct {
	zombie    bool
	forked    bool // still a copy of its parent: it has not exec'ed
	startTime uint64
	exitCode  uint32
}

const forkNoExec = 0x40 // PF_FORKNOEXEC

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

// parseStat reads the fields after the command's name, which may hold anything, parentheses included.
func parseStat(b []byte) (procStat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, fmt.Errorf("unexpected /proc/PID/stat %q", b)
	}
	f := bytes.Fields(b[i+1:]) // f[0] is field 3
	if len(f) < 50 {
		return procStat{}, fmt.Errorf("unexpected /proc/PID/stat of %d fields", len(f)+2)
	}
	flags, err := strconv.ParseUint(string(f[6]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	code, err := strconv.ParseInt(string(f[49]), 10, 64)
	if err != nil {
		return procStat{}, err
	}
	return procStat{
		zombie: f[0][0] == 'Z' || f[0][0] == 'X', forked: flags&forkNoExec != 0, startTime: start, exitCode: uint32(code),
	}, nil
}

func pidfdSignal(f *os.File, sig syscall.Signal) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	return os.NewSyscallError("pidfd_send_signal", serr)
}
