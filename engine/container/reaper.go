package container

import "sync"

// reaper does what nobody should wait for: unmounting, deleting cgroups, namespaces and
// directories, and acknowledging the exits of execs. Its queue is bounded by the number of
// containers and of execs that run in them: each container has at most one clean-up and one
// removal in it, each exec its acknowledgement. Two workers, because one slow rm -rf should
// not keep a restart from its clean-up.
type reaper struct {
	mu     sync.Mutex
	more   *sync.Cond
	queue  []func()
	busy   int
	closed bool
	done   sync.WaitGroup
}

func newReaper() *reaper {
	r := &reaper{}
	r.more = sync.NewCond(&r.mu)
	for range 2 {
		r.done.Go(r.work)
	}
	return r
}

func (r *reaper) add(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, fn)
	r.more.Broadcast()
}

func (r *reaper) work() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for len(r.queue) == 0 && !r.closed {
			r.more.Wait()
		}
		if len(r.queue) == 0 {
			return
		}
		fn := r.queue[0]
		r.queue = r.queue[1:]
		r.busy++
		r.mu.Unlock()
		fn()
		r.mu.Lock()
		r.busy--
		r.more.Broadcast()
	}
}

// drain waits until nothing is queued or under way.
func (r *reaper) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) > 0 || r.busy > 0 {
		r.more.Wait()
	}
}

// close finishes the queue and ends the workers.
func (r *reaper) close() {
	r.mu.Lock()
	r.closed = true
	r.more.Broadcast()
	r.mu.Unlock()
	r.done.Wait()
}
