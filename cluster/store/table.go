package store

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/btree"
)

const treeDegree = 32

// table is all there is of one resource: the newest state and the recent history.
type table struct {
	kind  Kind
	clock *clock
	limit historyLimit

	current atomic.Pointer[state] // what snapshots see

	// mu guards everything below. Publishing happens under it, so a cursor that is
	// opened sees the state that its history continues. Readers of snapshots never
	// take it. It is never held while calling out of this package.
	mu      sync.Mutex
	items   *btree.BTreeG[*item] // the publisher's own trees: current has their clones
	names   []string
	indexes []index
	weight  int // of all items, as weigh has it
	history history
	wake    chan struct{} // closed at the next publication; nil while nobody waits
	frozen  *detector     // nil without Options.Detector
	closed  bool
}

// clock is the revision of a keyspace: everything up to it has been published.
type clock struct {
	rev atomic.Int64

	mu   sync.Mutex
	wake chan struct{} // closed at the next advance; nil while nobody waits
}

// advance publishes a revision; it never goes back.
func (c *clock) advance(rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rev <= c.rev.Load() {
		return
	}
	c.rev.Store(rev)
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// set starts another sequence, which may be behind the last.
func (c *clock) set(rev int64) {
	c.mu.Lock()
	c.rev.Store(min(rev, c.rev.Load()))
	c.mu.Unlock()
	c.advance(rev)
}

// reached says whether rev has been published, and otherwise what to wait for.
func (c *clock) reached(rev int64) (bool, <-chan struct{}) {
	if c.rev.Load() >= rev {
		return true, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rev.Load() >= rev {
		return true, nil
	}
	if c.wake == nil {
		c.wake = make(chan struct{})
	}
	return false, c.wake
}

func newTable(k Kind, c *clock, limit historyLimit, detect bool) *table {
	t := &table{kind: k, clock: c, limit: limit, names: slices.Sorted(maps.Keys(k.Indexes))}
	t.clear()
	if detect {
		t.frozen = newDetector()
	}
	t.publishStateLocked(0)
	return t
}

// index is one secondary index: the publisher's tree, and what snapshots were last given.
type index struct {
	values func(Object) []string
	tree   *btree.BTreeG[indexEntry]
	given  *btree.BTreeG[indexEntry] // nil when the tree has changed since
}

func (t *table) clear() {
	t.items = btree.NewG(treeDegree, lessItem)
	t.weight = 0
	t.indexes = make([]index, len(t.names))
	for i, name := range t.names {
		t.indexes[i] = index{values: t.kind.Indexes[name], tree: btree.NewG(treeDegree, lessEntry)}
	}
}

// snapshot is the newest state. The clock is read first: every event up to it is in any
// state loaded afterwards, so the greater of both revisions is one this state is true at.
func (t *table) snapshot() Snapshot {
	rev := t.clock.rev.Load()
	s := t.current.Load()
	return Snapshot{s: s, rev: max(rev, s.rev)}
}

// get is the published version of a key, or nil.
func (t *table) get(key string) *item {
	it, _ := t.current.Load().items.Get(&item{key: key})
	return it
}

// change is one version to be published: it replaces whatever is under its key. A deletion
// without an object is given the last version's.
type change struct {
	it      *item
	deleted bool
}

// publish makes changes visible, in order, and wakes the watchers. Their revisions are
// greater than all before. The clock is the caller's to advance, afterwards.
func (t *table) publish(changes []change, now time.Time) {
	if len(changes) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range changes {
		t.applyLocked(c, now)
	}
	t.publishStateLocked(changes[len(changes)-1].it.rev)
	t.history.trim(t.limit.beside(t.weight), now, t.frozen)
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
}

func (t *table) applyLocked(c change, now time.Time) {
	var prev *item
	typ := Added
	if c.deleted {
		typ = Deleted
		prev, _ = t.items.Delete(c.it)
		if prev == nil {
			return // a deletion seen twice by a mirror
		}
		if c.it.obj == nil {
			c.it = t.tombstone(prev, c.it.rev)
		}
	} else if old, had := t.items.ReplaceOrInsert(c.it); had {
		typ, prev = Modified, old
	}
	if prev != nil {
		t.weight -= weigh(prev.size)
	}
	if !c.deleted {
		t.weight += weigh(c.it.size)
	}
	t.indexLocked(prev, c)
	t.frozen.add(c.it)
	t.history.append(entry{typ: typ, it: c.it, prev: prev, at: now, shared: &encodings{}})
}

// indexLocked moves a key from its old values to its new ones.
func (t *table) indexLocked(prev *item, c change) {
	for i := range t.indexes {
		x := &t.indexes[i]
		var before, after []string
		if prev != nil {
			before = x.values(prev.obj)
		}
		if !c.deleted {
			after = x.values(c.it.obj)
		}
		if slices.Equal(before, after) {
			continue
		}
		x.given = nil
		for _, v := range before {
			x.tree.Delete(indexEntry{v, c.it.key})
		}
		for _, v := range after {
			x.tree.ReplaceOrInsert(indexEntry{v, c.it.key})
		}
	}
}

func (t *table) publishStateLocked(rev int64) {
	s := &state{items: t.items.Clone(), names: t.names, indexes: make([]*btree.BTreeG[indexEntry], len(t.indexes)), rev: rev}
	for i := range t.indexes {
		x := &t.indexes[i]
		if x.given == nil {
			x.given = x.tree.Clone()
		}
		s.indexes[i] = x.given
	}
	t.current.Store(s)
}

// load fills an empty table; nothing before rev can be watched.
func (t *table) load(items []*item, rev int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, it := range items {
		t.items.ReplaceOrInsert(it)
		t.weight += weigh(it.size)
		t.indexLocked(nil, change{it: it})
		t.frozen.add(it)
	}
	t.history.floor = max(t.history.floor, rev)
	t.publishStateLocked(rev)
}

// reset replaces everything: what comes does not continue what was. Every cursor is told ErrTooOld.
func (t *table) reset(items []*item, rev int64) {
	t.mu.Lock()
	t.clear()
	t.frozen.retireAll()
	t.history.forget(rev)
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
	t.mu.Unlock()
	t.load(items, rev)
	t.clock.set(rev)
}

// at is the state at an exact revision, rebuilt by undoing the history since.
func (t *table) at(rev int64) (Snapshot, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if rev > max(t.clock.rev.Load(), t.current.Load().rev) {
		return Snapshot{}, ErrFuture
	}
	undo, err := t.history.after(rev)
	if err != nil {
		return Snapshot{}, err
	}
	if undo == t.history.end() {
		return Snapshot{s: t.current.Load(), rev: rev}, nil
	}
	items := t.items.Clone()
	for seq := t.history.end(); seq > undo; seq-- {
		e := t.history.get(seq - 1)
		if e.prev != nil {
			items.ReplaceOrInsert(e.prev)
		} else {
			items.Delete(e.it)
		}
	}
	return Snapshot{s: &state{items: items, rev: rev}, rev: rev}, nil
}

// sweep forgets history that has grown old while nothing happened.
func (t *table) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.history.trim(t.limit.beside(t.weight), now, t.frozen)
}

// close wakes every waiting cursor for the last time.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.wake != nil {
		close(t.wake)
		t.wake = nil
	}
}
