package server

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// run starts lp, and when that fails leaves no child behind.
//
// libcontainer makes three processes, one after the other, that are all children of ours (nsenter's stages). When one dies
// early it forgets the other two, because runc ends then and init reaps them. Here they would stay, and one that has joined
// a pid namespace keeps that namespace's init from ending. Which they are only the kernel knows: the children of the thread
// that forked the first. So the thread does nothing else, and ends; its children then become the main thread's.
func (c *container) run(lp *libcontainer.Process) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		before := offspring()  // the runtime may have had the thread do something else before
		err := c.lc.Run(lp)
		if err != nil {
			for _, pid := range offspring() {
				if !slices.Contains(before, pid) {
					finish(pid)
				}
			}
		}
		done <- err
	}()
	return <-done
}

// offspring lists the children of this thread, the dead ones included. A kernel without CONFIG_PROC_CHILDREN shows none.
func offspring() []int {
	b, err := os.ReadFile("/proc/thread-self/children")
	if err != nil {
		return nil
	}
	var pids []int
	for field := range bytes.FieldsSeq(b) {
		if pid, err := strconv.Atoi(string(field)); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// finish kills a child and reaps it. Until then its number is not another's.
func finish(pid int) {
	unix.Kill(pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
