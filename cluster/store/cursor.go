package store

import (
	"context"
	"time"
)

// maxBatch bounds what one Next returns, so that a watcher far behind does not hold all of
// history in its hands.
const maxBatch = 256

// Cursor is one watch: a position in a table's history. It needs no closing and holds no
// buffer. It is used by one goroutine at a time.
type Cursor struct {
	t         *table
	next      uint64
	snapshot  Snapshot
	rev       int64
	bookmarks time.Duration
}

func (t *table) watch(from int64) (*Cursor, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if from == 0 {
		snap := t.snapshot()
		return &Cursor{t: t, next: t.history.end(), snapshot: snap, rev: snap.rev}, nil
	}
	seq, err := t.history.after(from)
	if err != nil {
		return nil, err
	}
	return &Cursor{t: t, next: seq, rev: from}, nil
}

// Snapshot is the state that a cursor opened with from == 0 continues.
func (c *Cursor) Snapshot() Snapshot { return c.snapshot }

// Revision is how far the cursor has seen: watching from here misses nothing.
func (c *Cursor) Revision() int64 { return c.rev }

// Bookmarks makes Next return a Bookmark when nothing else has happened for that long.
func (c *Cursor) Bookmarks(every time.Duration) { c.bookmarks = every }

// Next waits for events and returns some of them, in order. It fails with ErrTooOld when
// the cursor has fallen out of the history, with the context's error, or with ErrClosed.
func (c *Cursor) Next(ctx context.Context) ([]Event, error) {
	var idle <-chan time.Time
	for {
		events, wake, err := c.poll()
		if err != nil || len(events) > 0 {
			return events, err
		}
		if c.bookmarks > 0 && idle == nil {
			timer := time.NewTimer(c.bookmarks)
			defer timer.Stop()
			idle = timer.C
		}
		select {
		case <-wake:
		case <-idle:
			// Whatever is published between poll and here has a revision above c.rev.
			return []Event{{Type: Bookmark, Revision: c.rev}}, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Ready returns what is there without waiting; nil when the cursor has caught up.
func (c *Cursor) Ready() ([]Event, error) {
	events, _, err := c.poll()
	return events, err
}

func (c *Cursor) poll() ([]Event, <-chan struct{}, error) {
	// The clock before the history: what it covers has been appended already.
	rev := c.t.clock.rev.Load()
	t := c.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.next < t.history.first {
		return nil, nil, ErrTooOld
	}
	if c.next == t.history.end() {
		return c.idleLocked(rev)
	}
	n := min(t.history.end()-c.next, maxBatch)
	events := make([]Event, n)
	for i := range events {
		events[i] = t.history.get(c.next + uint64(i)).event()
	}
	c.next += n
	c.rev = max(c.rev, events[n-1].Revision)
	return events, nil, nil
}

func (c *Cursor) idleLocked(rev int64) ([]Event, <-chan struct{}, error) {
	c.rev = max(c.rev, rev)
	if c.t.closed {
		return nil, nil, ErrClosed
	}
	if c.t.wake == nil {
		c.t.wake = make(chan struct{})
	}
	return nil, c.t.wake, nil
}

// settled is the state the cursor has reached, if it has caught up.
func (c *Cursor) settled() (Snapshot, bool) {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if c.next != c.t.history.end() {
		return Snapshot{}, false
	}
	return c.t.snapshot(), true
}
