package container

import (
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// follower tells log readers when files change. All share one inotify instance, made on
// first use: a machine allows a user only 128 of them.
type follower struct {
	mu     sync.Mutex
	file   *os.File // nil before the first watch
	fd     int      // of file; File.Fd would make it blocking
	byID   map[int32]*watched
	byDir  map[string]*watched
	done   sync.WaitGroup
	closed bool
}

type watched struct {
	id      int32
	dir     string
	readers map[*watch]bool
}

// watch is one reader's interest in a directory.
type watch struct {
	changed chan struct{} // holds one token when something changed
	on      *watched
	f       *follower
}

func newFollower() *follower {
	return &follower{byID: map[int32]*watched{}, byDir: map[string]*watched{}}
}

func (f *follower) watch(dir string) (*watch, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.startLocked(); err != nil {
		return nil, err
	}
	on := f.byDir[dir]
	if on == nil {
		id, err := unix.InotifyAddWatch(f.fd, dir, inotifyMask)
		if err != nil {
			return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
		}
		on = &watched{id: int32(id), dir: dir, readers: map[*watch]bool{}}
		f.byDir[dir], f.byID[on.id] = on, on
	}
	w := &watch{changed: make(chan struct{}, 1), on: on, f: f}
	on.readers[w] = true
	return w, nil
}

func (f *follower) startLocked() error {
	if f.closed {
		return os.ErrClosed
	}
	if f.file != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	f.file, f.fd = os.NewFile(uintptr(fd), "inotify"), fd
	file := f.file
	f.done.Go(func() { f.run(file) })
	return nil
}

func (f *follower) run(file *os.File) {
	buf := make([]byte, 16<<10)
	for {
		n, err := file.Read(buf)
		if err != nil {
			return
		}
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			id := int32(binary.NativeEndian.Uint32(p))
			mask := binary.NativeEndian.Uint32(p[4:])
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(p[12:]))
			p = p[min(size, len(p)):]
			f.wake(id, mask)
		}
	}
}

// wake tells the readers of one directory, or all of them when events were lost.
func (f *follower) wake(id int32, mask uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for wid, on := range f.byID {
		if wid != id && mask&unix.IN_Q_OVERFLOW == 0 {
			continue
		}
		for w := range on.readers {
			select {
			case w.changed <- struct{}{}:
			default:
			}
		}
	}
	if mask&unix.IN_IGNORED != 0 { // the directory is gone
		if on := f.byID[id]; on != nil {
			delete(f.byID, id)
			delete(f.byDir, on.dir)
		}
	}
}

func (w *watch) close() {
	f := w.f
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(w.on.readers, w)
	if len(w.on.readers) > 0 || f.byID[w.on.id] != w.on {
		return
	}
	delete(f.byID, w.on.id)
	delete(f.byDir, w.on.dir)
	if !f.closed {
		_, _ = unix.InotifyRmWatch(f.fd, uint32(w.on.id)) // fails only when the kernel dropped it already
	}
}

func (f *follower) close() error {
	f.mu.Lock()
	f.closed = true
	file := f.file
	f.file = nil
	f.mu.Unlock()
	var err error
	if file != nil {
		err = file.Close()
		f.done.Wait()
	}
	return err
}
