package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// logName is the file in the run directory that a daemon in the background writes its log to.
const logName = "slipwayd.log"

// maxLog is how long that file gets, in bytes. The one before it is kept: together they are the bound, and run
// directories are in memory on most machines.
const maxLog = 8 << 20

// openLog is where the daemon's log goes: standard error, which for a daemon in the background is a file of bounded
// size. Whoever started a daemon in the foreground looks after its log himself.
func openLog(runDir string) io.Writer {
	path := filepath.Join(runDir, logName)
	here, err := os.Stderr.Stat()
	if err != nil {
		return os.Stderr
	}
	there, err := os.Stat(path)
	if err != nil || !os.SameFile(here, there) {
		return os.Stderr
	}
	return &boundedLog{path: path, fds: []int{1, 2}, size: there.Size(), limit: maxLog}
}

// boundedLog is a file behind descriptors of this process, so that what the runtime itself writes when it crashes
// goes there as well.
type boundedLog struct {
	path  string
	fds   []int // the last is written to
	limit int64

	mu   sync.Mutex
	size int64 // guarded by mu
}

// Write is io.Writer's. It fails only when the file cannot be written: that it grew too long is no error.
func (l *boundedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		l.rotateLocked()
	}
	n, err := unix.Write(l.fds[len(l.fds)-1], p)
	l.size += int64(max(n, 0))
	return n, err
}

// rotateLocked begins a new file. When that fails, the old one goes on growing until it succeeds.
func (l *boundedLog) rotateLocked() {
	if err := os.Rename(l.path, l.path+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	for _, fd := range l.fds {
		if unix.Dup3(int(f.Fd()), fd, 0) != nil {
			return
		}
	}
	l.size = 0
}
