package store

import (
	"context"
	"strings"
	"time"
)

func (k *Kind) bounded() bool { return k.Volatile && (k.TTL > 0 || k.MaxPerNamespace > 0) }

// aging is the order in which the objects of a volatile table were last written, so that
// the oldest can go first. There is one queue per namespace.
type aging map[string]*queue

type queue struct {
	entries []aged
	live    int // objects in the namespace; entries beyond that number are stale
}

// aged is one version; it is stale when the object has been written again since.
type aged struct {
	key string
	rev int64
	at  time.Time
}

func (e aged) fresh(t *table) bool {
	it := t.get(e.key)
	return it != nil && it.rev == e.rev
}

// remember notes a write and makes room if its namespace has become too full.
func (l *local) remember(w *write, had bool, it *item, now time.Time) {
	q := l.queue(w.t, it.key)
	if w.op == opDelete {
		q.live--
		return
	}
	if !had {
		q.live++
	}
	q.entries = append(q.entries, aged{it.key, it.rev, now})
	if len(q.entries) > 64 && len(q.entries) > 2*q.live {
		q.prune(w.t)
	}
	for limit := w.t.kind.MaxPerNamespace; limit > 0 && q.live > limit; {
		l.dropOldest(w.t, q)
	}
}

func (l *local) queue(t *table, key string) *queue {
	a := l.aging[t]
	if a == nil {
		a = aging{}
		l.aging[t] = a
	}
	ns, _, _ := strings.Cut(key, "/")
	q := a[ns]
	if q == nil {
		q = &queue{}
		a[ns] = q
	}
	return q
}

// prune drops the stale entries, which have become the larger part.
func (q *queue) prune(t *table) {
	kept := make([]aged, 0, 2*q.live)
	for _, e := range q.entries {
		if e.fresh(t) {
			kept = append(kept, e)
		}
	}
	q.entries = kept
}

// dropOldest takes one entry off the queue, and deletes its object unless it is stale.
func (l *local) dropOldest(t *table, q *queue) {
	e := q.entries[0]
	q.entries = q.entries[1:]
	if !e.fresh(t) {
		return
	}
	// It cannot fail: the version was just seen, and the keyspace is locked.
	_, _ = l.commitLocked(context.Background(), &write{t: t, op: opDelete, key: e.key, expect: e.rev})
}

// expire ends the life of what was last written longer than the TTL ago.
func (l *local) expire(t *table, now time.Time) {
	if t.kind.TTL == 0 || !t.kind.Volatile {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for ns, q := range l.aging[t] {
		for len(q.entries) > 0 && now.Sub(q.entries[0].at) >= t.kind.TTL {
			l.dropOldest(t, q)
		}
		if len(q.entries) == 0 {
			delete(l.aging[t], ns)
		}
	}
}
