package store

import (
	"sort"
	"sync"
	"time"
)

// historyLimit bounds what a table remembers of the past.
type historyLimit struct {
	bytes int
	age   time.Duration
}

// leastHistory is what any resource may remember, in bytes: some 700 events of pods, enough for a watcher that is
// away for a moment.
const leastHistory = 4 << 20

// beside is the limit for a table whose objects weigh so much: the past may be as large as the present. Where there
// are many objects, many events come before a slow watcher has read on; where there are few, memory is worth more.
func (l historyLimit) beside(weight int) historyLimit {
	l.bytes = min(l.bytes, max(leastHistory, weight))
	return l
}

// weigh is roughly how much heap an object of that encoded size takes: about four times its encoding (measured on
// pods: 9.3 KB for 1.4 to 3.2 KB).
func weigh(size int) int { return 4*size + 512 }

// entry is one event as history keeps it.
type entry struct {
	typ      EventType
	it, prev *item
	at       time.Time
	shared   *encodings
}

// cost is roughly what the entry keeps alive.
func (e *entry) cost() int { return weigh(e.it.size) }

func (e *entry) event() Event {
	ev := Event{Type: e.typ, Object: e.it.obj, Revision: e.it.rev, shared: e.shared}
	if e.prev != nil {
		ev.Prev = e.prev.obj
	}
	return ev
}

// history is a bounded ring of the newest events of a table. Cursors hold sequence
// numbers, which only grow; a sequence number below first has been forgotten.
type history struct {
	ring  []entry // of a power of two
	first uint64  // sequence number of the oldest entry kept
	count int
	bytes int
	floor int64 // the newest revision that is not, or no longer, in the ring
}

func (h *history) end() uint64           { return h.first + uint64(h.count) }
func (h *history) get(seq uint64) *entry { return &h.ring[seq&uint64(len(h.ring)-1)] }

func (h *history) append(e entry) {
	if h.count == len(h.ring) {
		h.grow()
	}
	*h.get(h.end()) = e
	h.count++
	h.bytes += e.cost()
}

func (h *history) grow() { h.resize(max(64, 2*len(h.ring))) }

func (h *history) resize(n int) {
	ring := make([]entry, n)
	for seq := h.first; seq < h.end(); seq++ {
		ring[seq&uint64(n-1)] = *h.get(seq)
	}
	h.ring = ring
}

// trim forgets the oldest entries beyond the limits. The newest one may exceed them alone.
func (h *history) trim(limit historyLimit, now time.Time, d *detector) {
	for h.count > 1 && h.bytes > limit.bytes {
		h.drop(d)
	}
	for h.count > 0 && now.Sub(h.get(h.first).at) > limit.age {
		h.drop(d)
	}
	if len(h.ring) > 64 && h.count < len(h.ring)/4 {
		h.resize(len(h.ring) / 2)
	}
}

func (h *history) drop(d *detector) {
	e := h.get(h.first)
	h.floor = e.it.rev
	h.bytes -= e.cost()
	if e.prev != nil {
		d.retire(e.prev) // nobody can reach the old version through the store any more
	}
	if e.typ == Deleted {
		d.retire(e.it)
	}
	*e = entry{}
	h.first++
	h.count--
}

// forget drops everything and every cursor: what comes next does not continue it.
func (h *history) forget(rev int64) {
	*h = history{first: h.end() + 1, floor: rev}
}

// after is the sequence number of the first event later than rev.
func (h *history) after(rev int64) (uint64, error) {
	if rev < h.floor {
		return 0, ErrTooOld
	}
	if h.count == 0 {
		return h.end(), nil
	}
	n := sort.Search(h.count, func(i int) bool { return h.get(h.first+uint64(i)).it.rev > rev })
	return h.first + uint64(n), nil
}

// encodings are the bytes of one event's object, made once for all watchers and
// forgotten with the event.
type encodings struct {
	mu       sync.Mutex
	byFormat map[string][]byte
}

// Encoded is the event's encoding in a format, made by encode the first time any watcher
// asks. The format names everything the bytes depend on ("json", "protobuf",
// "json;deleted"). The bytes are shared: nobody changes them.
func (e Event) Encoded(format string, encode func(Event) ([]byte, error)) ([]byte, error) {
	if e.shared == nil {
		return encode(e)
	}
	e.shared.mu.Lock()
	defer e.shared.mu.Unlock()
	if b, ok := e.shared.byFormat[format]; ok {
		return b, nil
	}
	b, err := encode(e)
	if err != nil {
		return nil, err
	}
	if e.shared.byFormat == nil {
		e.shared.byFormat = map[string][]byte{}
	}
	e.shared.byFormat[format] = b
	return b, nil
}
