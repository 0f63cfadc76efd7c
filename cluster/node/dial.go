package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// dialIn opens a TCP connection from inside a network namespace. The thread that visits it is not
// given back when its way home fails: a stray thread in another namespace would be a hole.
func dialIn(ctx context.Context, netns *os.File, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- result{err: err}
			return
		}
		defer home.Close()
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter the pod's network: %w", err)}
			runtime.UnlockOSThread()
			return
		}
		// The socket is made on this thread: a numeric address needs no resolver goroutine, and
		// without fallback delays the dialer does not start others.
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp4", addr)
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
