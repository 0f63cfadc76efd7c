package warden

import (
	"context"
	"sync"
	"time"
)

// subscription is one listener. Its queue is bounded by what the warden remembers: at most one exit per process that was
// not deleted, and one out-of-memory kill per container.
type subscription struct {
	wake chan struct{} // of size one

	mu        sync.Mutex // guards what follows
	queue     []Event
	delivered map[Key]time.Time // exits, by the start of the process
}

// Subscribe returns events from now on, and first every exit that was not acknowledged by Delete or DeleteExec. The
// channel is closed when ctx ends or the client is closed. A warden's death loses nothing.
func (c *Client) Subscribe(ctx context.Context) <-chan Event {
	s := &subscription{wake: make(chan struct{}, 1), delivered: map[Key]time.Time{}}
	c.mu.Lock()
	c.subs[s] = struct{}{}
	c.mu.Unlock()
	out := make(chan Event)
	c.tasks.Go(func() {
		defer close(out)
		defer c.unsubscribe(s)
		states, err := c.List(ctx)
		if err == nil {
			s.replay(states)
		}
		s.run(ctx, c.ctx, out)
	})
	return out
}

func (c *Client) unsubscribe(s *subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subs, s)
}

func (c *Client) subscriptionsLocked() []*subscription {
	all := make([]*subscription, 0, len(c.subs))
	for s := range c.subs {
		all = append(all, s)
	}
	return all
}

func (c *Client) distribute(e Event) {
	c.mu.Lock()
	subs := c.subscriptionsLocked()
	c.mu.Unlock()
	for _, s := range subs {
		s.add(e)
	}
}

// acknowledged forgets what was delivered about processes that were deleted.
func (c *Client) acknowledged(id, exec string) {
	c.mu.Lock()
	subs := c.subscriptionsLocked()
	c.mu.Unlock()
	for _, s := range subs {
		s.forget(id, exec)
	}
}

func (s *subscription) forget(id, exec string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if exec != "" {
		delete(s.delivered, Key{Kind: HoldProcess, ID: id, Exec: exec})
		return
	}
	for key := range s.delivered {
		if key.ID == id {
			delete(s.delivered, key)
		}
	}
}

// replay adds the exits among states.
func (s *subscription) replay(states []ProcessState) {
	for _, st := range states {
		if st.Status == Exited {
			s.add(Event{Type: EventExit, ProcessState: st})
		}
	}
}

func (s *subscription) add(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := keyOf(e.ProcessState)
	switch e.Type {
	case EventExit:
		if s.delivered[key].Equal(e.StartedAt) {
			return
		}
		s.delivered[key] = e.StartedAt
	default:
		for _, q := range s.queue {
			if q.Type == e.Type && keyOf(q.ProcessState) == key {
				return
			}
		}
	}
	s.queue = append(s.queue, e)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run sends the queue until one of the contexts ends.
func (s *subscription) run(ctx, client context.Context, out chan<- Event) {
	for {
		s.mu.Lock()
		queue := s.queue
		s.queue = nil
		s.mu.Unlock()
		for _, e := range queue {
			select {
			case out <- e:
			case <-ctx.Done():
				return
			case <-client.Done():
				return
			}
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		case <-client.Done():
			return
		}
	}
}
