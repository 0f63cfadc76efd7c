package scheduler

import (
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
)

// waiting is a pod on its way to a node.
type waiting struct {
	info     *podInfo
	priority int32
	since    time.Time // it became ready to be decided
	order    uint64    // of arrival
	place    int       // in the heap it is in, -1 for none
	tries    int
	until    time.Time // of its back-off
	parked   bool      // found no place; waits for something to change
	told     string    // the message it was last given
}

// queue holds every pod without a node. ready is ordered by priority and time; backing
// off by the end of the back-off; parked pods are only in all.
type queue struct {
	all     map[types.UID]*waiting
	ready   readyHeap
	backing backingHeap
	order   uint64
}

func newQueue() *queue { return &queue{all: map[types.UID]*waiting{}} }

func (q *queue) add(p *podInfo, now time.Time) {
	if w := q.all[p.pod.UID]; w != nil {
		w.info = p
		if w.parked {
			q.unpark(w, now)
		}
		return
	}
	w := q.enter(p)
	w.since = now
	heap.Push(&q.ready, w)
}

// again adds a pod whose binding has failed: it tries again after a back-off.
func (q *queue) again(p *podInfo, now time.Time) {
	if q.all[p.pod.UID] != nil {
		return
	}
	w := q.enter(p)
	q.park(w, now)
	q.unpark(w, now)
}

func (q *queue) enter(p *podInfo) *waiting {
	q.order++
	w := &waiting{info: p, order: q.order, place: -1}
	if p.pod.Spec.Priority != nil {
		w.priority = *p.pod.Spec.Priority
	}
	q.all[p.pod.UID] = w
	return w
}

func (q *queue) remove(uid types.UID) {
	w := q.all[uid]
	if w == nil {
		return
	}
	delete(q.all, uid)
	switch {
	case w.place < 0:
	case w.until.IsZero():
		heap.Remove(&q.ready, w.place)
	default:
		heap.Remove(&q.backing, w.place)
	}
}

// pop takes the next pod to decide on; it stays in all.
func (q *queue) pop() *waiting {
	if len(q.ready) == 0 {
		return nil
	}
	return heap.Pop(&q.ready).(*waiting)
}

// park puts a pod aside that found no place.
func (q *queue) park(w *waiting, now time.Time) {
	w.tries++
	w.parked = true
	w.until = now.Add(min(firstBackoff<<min(w.tries-1, 10), lastBackoff))
}

func (q *queue) unpark(w *waiting, now time.Time) {
	w.parked = false
	if w.until.After(now) {
		heap.Push(&q.backing, w)
		return
	}
	w.until, w.since = time.Time{}, now
	heap.Push(&q.ready, w)
}

// wake lets all parked pods try again, because something has changed.
func (q *queue) wake(now time.Time) {
	if len(q.all) == len(q.ready)+len(q.backing) {
		return
	}
	for _, w := range q.all {
		if w.parked {
			q.unpark(w, now)
		}
	}
}

// due moves pods whose back-off has ended, and says when the next one will.
func (q *queue) due(now time.Time) (next time.Time) {
	for len(q.backing) > 0 {
		w := q.backing[0]
		if w.until.After(now) {
			return w.until
		}
		heap.Pop(&q.backing)
		w.until, w.since = time.Time{}, now
		heap.Push(&q.ready, w)
	}
	return time.Time{}
}

type readyHeap []*waiting

func (h readyHeap) Len() int { return len(h) }
func (h readyHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	if a.priority != b.priority {
		return a.priority > b.priority
	}
	if !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	return a.order < b.order
}
func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *readyHeap) Push(x any) { w := x.(*waiting); w.place = len(*h); *h = append(*h, w) }
func (h *readyHeap) Pop() any   { return popLast((*[]*waiting)(h)) }

type backingHeap []*waiting

func (h backingHeap) Len() int           { return len(h) }
func (h backingHeap) Less(i, j int) bool { return h[i].until.Before(h[j].until) }
func (h backingHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}
func (h *backingHeap) Push(x any) { w := x.(*waiting); w.place = len(*h); *h = append(*h, w) }
func (h *backingHeap) Pop() any   { return popLast((*[]*waiting)(h)) }

func popLast(h *[]*waiting) *waiting {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	w.place = -1
	return w
}
