package store

import (
	"context"
	"sync"
	"time"
)

// Memory keeps everything in this process and nothing beyond its end.
func Memory() Backend { return memory{} }

type memory struct{}

func (memory) clock(shared *clock) *clock { return shared }

func (memory) start(_ context.Context, s *Store, _ Options) (engine, error) {
	// Revision 1 is the empty store, as with etcd: 0 means "unset" to the API.
	s.clock.advance(1)
	for _, t := range s.tables {
		if !t.kind.Volatile {
			t.load(nil, 1)
		}
	}
	return &local{clock: s.clock, aging: map[*table]aging{}}, nil
}

// local is a keyspace that gives out revisions itself: the whole of the memory back end,
// and the volatile kinds of every back end.
type local struct {
	clock   *clock
	journal journal // nil: nothing outlives the process

	// mu orders commits. It is taken before any table's lock, and held while a journalled
	// object is written: those are rare, and order is worth more than their speed.
	mu    sync.Mutex
	aging map[*table]aging
}

// journal is what an engine offers to volatile objects that must survive.
type journal interface {
	record(ctx context.Context, w *write, rev int64) error
}

// newVolatile is a keyspace whose revisions begin at the clock's microseconds: greater
// than any it gave out in an earlier life, unless that wrote a million times a second.
func newVolatile() *local {
	c := &clock{}
	c.advance(time.Now().UnixMicro())
	return &local{clock: c, aging: map[*table]aging{}}
}

func (l *local) commit(ctx context.Context, w *write) (*item, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commitLocked(ctx, w)
}

func (l *local) commitLocked(ctx context.Context, w *write) (*item, error) {
	cur := w.t.get(w.key)
	if err := w.check(cur); err != nil {
		return nil, err
	}
	rev := l.clock.rev.Load() + 1
	c := w.change(cur, rev)
	if l.journal != nil && w.t.kind.Journal != nil && w.t.kind.Journal(c.it.obj) {
		if err := l.journal.record(ctx, w, rev); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	w.t.publish([]change{c}, now)
	l.clock.advance(rev)
	if w.t.kind.bounded() {
		l.remember(w, cur != nil, c.it, now)
	}
	return c.it, nil
}

func (l *local) compact(context.Context, int64) error { return nil }

func (l *local) close() error { return nil }
