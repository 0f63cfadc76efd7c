package controller

import (
	"sync"
	"time"
)

const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 5 * time.Minute
)

// queue holds keys to be worked off. A key is held once however often it is added, and is
// not handed out twice at the same time.
type queue struct {
	mu      sync.Mutex
	ready   []string
	waiting map[string]bool // in ready, or added again while it is worked on
	working map[string]bool
	later   map[string]*alarm
	retries map[string]int
	wake    *sync.Cond
	closed  bool
}

// alarm adds a key at a time.
type alarm struct {
	at    time.Time
	timer *time.Timer
}

func newQueue() *queue {
	q := &queue{waiting: map[string]bool{}, working: map[string]bool{}, later: map[string]*alarm{}, retries: map[string]int{}}
	q.wake = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.addLocked(key)
}

func (q *queue) addLocked(key string) {
	if q.closed || q.waiting[key] {
		return
	}
	q.waiting[key] = true
	if !q.working[key] {
		q.ready = append(q.ready, key)
		q.wake.Signal()
	}
}

// addAfter adds the key once d has passed, unless an earlier time is set already.
func (q *queue) addAfter(key string, d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if d <= 0 {
		q.addLocked(key)
		return
	}
	at := time.Now().Add(d)
	if a := q.later[key]; a != nil {
		if !at.Before(a.at) {
			return
		}
		a.timer.Stop()
	}
	if q.closed {
		return
	}
	a := &alarm{at: at}
	a.timer = time.AfterFunc(d, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.later[key] == a {
			delete(q.later, key)
			q.addLocked(key)
		}
	})
	q.later[key] = a
}

// retry adds the key after a time that doubles with every retry until forget.
func (q *queue) retry(key string) {
	q.mu.Lock()
	n := q.retries[key]
	q.retries[key] = n + 1
	q.mu.Unlock()
	d := lastRetry
	if n < 16 {
		d = min(firstRetry<<n, lastRetry)
	}
	q.addAfter(key, d)
}

func (q *queue) forget(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.retries, key)
}

// take waits for a key; false when the queue is closed.
func (q *queue) take() (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ready) == 0 && !q.closed {
		q.wake.Wait()
	}
	if q.closed {
		return "", false
	}
	key := q.ready[0]
	q.ready = q.ready[1:]
	delete(q.waiting, key)
	q.working[key] = true
	return key, true
}

// done ends the work on a key, which may have been added again meanwhile.
func (q *queue) done(key string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.working, key)
	if q.waiting[key] && !q.closed {
		q.ready = append(q.ready, key)
		q.wake.Signal()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, a := range q.later {
		a.timer.Stop()
	}
	q.wake.Broadcast()
}
