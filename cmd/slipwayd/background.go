package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"slipway.dev/slipway/daemon"
)

// readyVariable tells a daemon in the background on which descriptor to say that it is ready.
const readyVariable = "SLIPWAY_READY_FD"

const readyFD = 3

func readyPipe() *os.File {
	if os.Getenv(readyVariable) == "" {
		return nil
	}
	os.Unsetenv(readyVariable)
	syscall.CloseOnExec(readyFD)
	return os.NewFile(readyFD, "ready")
}

// background brings the daemon up in a session of its own, and returns when it is ready. One of the same directories
// that somebody else has started, systemd for example, is as good.
func (f flags) background(ctx context.Context) error {
	failed := f.spawn()
	if failed == nil {
		return nil
	}
	other, err := daemon.AwaitOther(ctx, f.options)
	if err != nil || other == 0 {
		return failed
	}
	fmt.Fprintf(os.Stderr, "slipwayd: it runs already, as process %d\n", other)
	return nil
}

// spawn starts this program again and returns when that one is ready, or with the end of its log when it ended
// instead.
func (f flags) spawn() error {
	if err := os.MkdirAll(f.options.RunDir, 0o711); err != nil {
		return err
	}
	logPath := filepath.Join(f.options.RunDir, logName)
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	start, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var args []string
	for _, a := range os.Args[1:] {
		if a != "--detach" && a != "--detach=true" {
			args = append(args, a)
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", readyVariable, readyFD))
	cmd.Stderr, cmd.Stdout = log, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	w.Close()
	line, _ := bufio.NewReader(r).ReadString('\n')
	if line == "ready\n" {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	said := make([]byte, 8<<10)
	if end, e := log.Seek(0, io.SeekEnd); e == nil {
		start = max(start, end-int64(len(said)))
	}
	n, _ := log.ReadAt(said, start)
	return fmt.Errorf("the daemon did not start (%v); its log %s ends with:\n%s", err, logPath, strings.TrimSpace(string(said[:n])))
}
