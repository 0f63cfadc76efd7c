package server

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// oomWatcher tells when the kernel kills for a container's memory limit. On cgroup v2 all containers share one inotify
// instance (there are only 128 of them on a machine); on v1 each has an eventfd.
type oomWatcher struct {
	log     *slog.Logger
	inotify *os.File
	tasks   sync.WaitGroup

	mu      sync.Mutex // guards what follows
	watches map[int32]*container
}

func newOOMWatcher(log *slog.Logger) (*oomWatcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &oomWatcher{log: log, inotify: os.NewFile(uintptr(fd), "inotify"), watches: map[int32]*container{}}
	w.tasks.Go(w.read)
	return w, nil
}

func (w *oomWatcher) close() {
	w.inotify.Close()
	w.tasks.Wait()
}

// watch begins to watch c and returns how to end it. Without a watch, the exit still says what happened.
func (w *oomWatcher) watch(c *container) (end func()) {
	dir, file := c.cgroups.memory()
	var err error
	if file == "memory.events" {
		end, err = w.watchV2(c, filepath.Join(dir, file))
	} else {
		end, err = w.watchV1(c, dir)
	}
	if err != nil {
		w.log.Warn("out-of-memory kills of a container are not reported while it runs", "container", c.id, "error", err)
		return func() {}
	}
	return sync.OnceFunc(end)
}

func (w *oomWatcher) watchV2(c *container, path string) (end func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return nil, err
	}
	var wd int
	var werr error
	err = raw.Control(func(fd uintptr) { wd, werr = unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY) })
	if err != nil || werr != nil {
		return nil, fmt.Errorf("watch %s: %w", path, firstError(err, werr))
	}
	w.watches[int32(wd)] = c
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watches, int32(wd))
		raw.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(wd)) })
	}, nil
}

// read turns inotify's events into ours.
func (w *oomWatcher) read() {
	buf := make([]byte, 4096)
	for {
		n, err := w.inotify.Read(buf)
		if err != nil {
			return
		}
		for off := 0; off+unix.SizeofInotifyEvent <= n; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&buf[off]))
			off += unix.SizeofInotifyEvent + int(e.Len)
			w.mu.Lock()
			c := w.watches[e.Wd]
			w.mu.Unlock()
			if c != nil {
				c.checkOOM()
			}
		}
	}
}

// watchV1 asks the memory controller to count in an eventfd.
func (w *oomWatcher) watchV1(c *container, dir string) (end func(), err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	defer control.Close()
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	stop := make(chan struct{})
	w.tasks.Go(func() {
		var count [8]byte
		for {
			if _, err := f.Read(count[:]); err != nil {
				return
			}
			// The kernel tells before it kills, and counts after: look again for a moment. Further notices wait in the eventfd.
			for wait := time.Millisecond; !c.checkOOM() && wait < time.Second; wait *= 2 {
				select {
				case <-time.After(wait):
				case <-stop:
					return
				}
			}
		}
	})
	return func() {
		close(stop)
		f.Close()
	}, nil
}

// checkOOM reports kills that were not reported yet, and tells whether there were any.
func (c *container) checkOOM() bool {
	kills, err := c.oomKills()
	if err != nil || kills <= c.oomSeen.Swap(kills) {
		return false
	}
	c.mu.Lock()
	p := c.first
	c.mu.Unlock()
	if p != nil && p.alive() {
		c.srv.publish(warden.Event{Type: warden.EventOOM, ProcessState: p.snapshot()})
	}
	return true
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
