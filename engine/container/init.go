package container

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// initPatience is how long the init of a container that was just started may take to get ready: a millisecond, but on
// a machine with much to do.
const initPatience = 2 * time.Second

// awaitInit waits until the init that --init asks for passes signals on. Before, it is a process 1 without a handler, for
// which the kernel drops them: a container that was stopped right after its start would end ten seconds later, by SIGKILL.
func awaitInit(ctx context.Context, pid int) {
	ctx, cancel := context.WithTimeout(ctx, initPatience)
	defer cancel()
	for {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || blocks(string(status), syscall.SIGTERM) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// blocks tells from /proc/PID/status whether a process has blocked a signal, as our init does with all that it passes on.
func blocks(status string, sig syscall.Signal) bool {
	for line := range strings.Lines(status) {
		if mask, ok := strings.CutPrefix(line, "SigBlk:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
			return err == nil && bits&(1<<(sig-1)) != 0
		}
	}
	return false
}
