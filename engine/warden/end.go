package warden

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// processEnd tells when a process ends. Its zero value is a process that has.
type processEnd struct{ pidfd *os.File }

func watchEnd(pid int) (processEnd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return processEnd{}, nil
	}
	if err != nil {
		return processEnd{}, fmt.Errorf("watch process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	return processEnd{os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns when the process has ended, whether its parent has reaped it or not, or with the cause of ctx's end.
func (e processEnd) wait(ctx context.Context) error {
	if e.pidfd == nil {
		return nil
	}
	raw, err := e.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { e.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = raw.Read(func(fd uintptr) bool {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0
	})
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (e processEnd) Close() error {
	if e.pidfd == nil {
		return nil
	}
	return e.pidfd.Close()
}
