package daemon

import (
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"
)

// stopLimit is how long a daemon may take to end, once it was told to. Its containers do not depend on how it ends, and
// the next daemon waits for its lock: far below the 90 s after which systemd kills, far above what a loaded machine needs.
const stopLimit = 30 * time.Second

// tasks are what has to end before the daemon does, by name. The zero value has none.
type tasks struct {
	goroutines sync.WaitGroup
	mu         sync.Mutex
	names      []string // of those that run
}

// Go runs a task beside others.
func (t *tasks) Go(name string, task func()) {
	leave := t.enter(name)
	t.goroutines.Go(func() {
		defer leave()
		task()
	})
}

// enter says that something begins, and returns how to say that it has ended.
func (t *tasks) enter(name string) (leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names = append(t.names, name)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		i := slices.Index(t.names, name)
		t.names = slices.Delete(t.names, i, i+1)
	}
}

// Wait returns when no goroutine is left.
func (t *tasks) Wait() { t.goroutines.Wait() }

// Running names what has begun and not ended, the oldest first.
func (t *tasks) Running() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.names)
}

// awaitEnd waits until a daemon that was told to stop has ended, but not for ever: what hangs is named, every
// goroutine is written to the log, and the process may end, as after a crash. Containers go on, and what was
// acknowledged is on disk.
func (d *daemon) awaitEnd(ended <-chan error, limit <-chan time.Time) error {
	select {
	case err := <-ended:
		return err
	case <-limit:
	}
	stuck := strings.Join(d.tasks.Running(), ", ")
	d.Log.Error("the daemon does not end: every goroutine follows", "running", stuck)
	if d.Dump != nil {
		pprof.Lookup("goroutine").WriteTo(d.Dump, 2)
	}
	return fmt.Errorf("stop: still running after %v: %s: ended as after a crash; the log has what every goroutine was doing", stopLimit, stuck)
}
