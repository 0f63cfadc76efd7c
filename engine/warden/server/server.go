// Package server is the warden's own side: the process that parents containers.
//
// It is linked into cmd/slipway-warden only, because it brings libcontainer, and it imports next to nothing else:
// libcontainer runs this very executable as the first process of every container, so each imported package's
// initialisation is part of every container's start. No net/http, no protobuf, no cobra.
//
// How it hangs together: a Server holds a table of containers, sandboxes and kept descriptors. A container has one first
// process and any number of execs, all of type process. A process owns its pidfd and its standard streams; one
// goroutine waits for its end and one pumps each output stream to the log and to the attached clients. A conn is a
// daemon: requests come in and run concurrently, and it is sent a duplicate of every descriptor.
//
// What must survive the warden is written to the state directory (on a tmpfs: it need not survive the machine) before it
// is acknowledged: one record per container, exec and sandbox. A fresh warden reads the records, takes the descriptors
// from the daemon, and goes on.
//
// Lock order: Server.mu, then container.mu, then process.mu. None is held across a system call that can block.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// restAfter is how long nothing must have been started when the memory that starts took is given back. The runtime by
// itself keeps it: a warden at rest hardly allocates, so that its next collection is minutes away.
const restAfter = 15 * time.Second

// Options configure a Server.
type Options struct {
	Socket   string // unix socket to listen on
	StateDir string // records; on a tmpfs
	RootDir  string // below it root file systems are mounted, unseen by the host; empty: no such place
	Cgroup   string // the warden's own, which it is in; empty: it has none
	OOMFloor int    // the lowest OOM score that this process may give to a container
	Log      *slog.Logger
	Ready    func() // called once connections are accepted; may be nil
}

// Server is a warden.
type Server struct {
	opts     Options
	log      *slog.Logger
	instance string
	oom      *oomWatcher
	oomSaid  sync.Once // that scores are raised
	listener *net.UnixListener

	ownProcs  string      // the process list of the warden's own cgroup; empty: it has none of its own
	hastening atomic.Bool // see hasten
	rest      *time.Timer // gives memory back; every start of a container puts it off

	recoverOnce sync.Once
	recovered   chan struct{} // closed when requests may be served
	stop        chan struct{} // closed by shutdown
	stopOnce    sync.Once
	tasks       sync.WaitGroup // connections, and what their requests leave to be done

	mu         sync.Mutex // guards what follows
	containers map[string]*container
	sandboxes  map[string]*sandbox
	files      map[string]int // kept descriptors
	conns      map[*conn]struct{}
	adopted    map[warden.Key]*inheritance // until recovered
	attachSeq  uint64
	closing    bool
}

// New prepares a Server; Run makes it work.
func New(opts Options) (*Server, error) {
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	for _, dir := range []string{"runc", "containers", "execs", "sandboxes"} {
		if err := os.MkdirAll(filepath.Join(opts.StateDir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	watcher, err := newOOMWatcher(opts.Log)
	if err != nil {
		return nil, err
	}
	return &Server{
		opts: opts, log: opts.Log, instance: hex.EncodeToString(id), oom: watcher,
		ownProcs: procsFile(opts.Cgroup), rest: time.AfterFunc(restAfter, debug.FreeOSMemory), recovered: make(chan struct{}), stop: make(chan struct{}),
		containers: map[string]*container{}, sandboxes: map[string]*sandbox{}, files: map[string]int{},
		conns: map[*conn]struct{}{}, adopted: map[warden.Key]*inheritance{},
	}, nil
}

// Run serves until Shutdown is asked for or ctx ends. Containers are not touched by either.
func (s *Server) Run(ctx context.Context) error {
	unlock, err := lock(filepath.Join(s.opts.StateDir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	defer s.oom.close()
	if err := os.Remove(s.opts.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.listener, err = listen(s.opts.Socket)
	if err != nil {
		return err
	}
	go func() { // ends with stop, which the end of this function closes
		select {
		case <-ctx.Done():
		case <-s.stop:
		}
		s.listener.Close()
	}()
	if s.opts.Ready != nil {
		s.opts.Ready()
	}
	s.log.Info("warden is ready", "pid", os.Getpid(), "socket", s.opts.Socket)
	s.accept(s.listener)
	s.end()
	s.tasks.Wait()
	return nil
}

// listen binds the socket without ever leaving it open to others.
func listen(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// lock makes this the only warden of its state directory.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another warden holds %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// acceptor is the listener.
type acceptor interface {
	AcceptUnix() (*net.UnixConn, error)
}

// accept serves connections until the listener is closed. No other error ends it: a warden that has no descriptor left for
// a daemon still parents its containers, and gets descriptors back when some of them end.
func (s *Server) accept(l acceptor) {
	pause := time.Duration(0)
	for {
		sock, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.Warn("a daemon cannot connect", "error", err, "retry", pause)
			select {
			case <-time.After(pause):
			case <-s.stop:
			}
			continue
		}
		pause = 0
		c := newConn(s, sock)
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.tasks.Go(c.serve)
	}
}

// end makes Run return.
func (s *Server) end() {
	s.stopOnce.Do(func() { close(s.stop) })
	s.rest.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.close()
	}
}

// broadcast queues a push to every daemon that is connected. make is called for each, because a message owns its
// descriptors.
func (s *Server) broadcast(makeMessage func() (*warden.Message, error)) {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		m, err := makeMessage()
		if err != nil {
			s.log.Warn("descriptors cannot be shared with the daemon", "error", err)
			continue
		}
		c.push(m)
	}
}

// release tells the daemons to let go of duplicates: of the roles, or of all when there are none.
func (s *Server) release(key warden.Key, roles ...string) {
	body := warden.Encode(warden.Hold{Key: key, Roles: roles})
	s.broadcast(func() (*warden.Message, error) {
		return &warden.Message{Method: warden.PushRelease, Body: body}, nil
	})
}

func (s *Server) publish(e warden.Event) {
	body := warden.Encode(e)
	s.broadcast(func() (*warden.Message, error) {
		return &warden.Message{Method: warden.PushEvent, Body: body}, nil
	})
}
