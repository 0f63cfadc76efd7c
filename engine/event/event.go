// Package event is the engine's memory of what just happened: a bounded, in-memory
// bus of events in Docker's vocabulary ("container die", "network connect", …).
//
// Producers publish and never wait. The bus keeps the last few hundred events in one
// ring; a subscription is a cursor into that ring, so a hundred readers cost no copies
// and a reader that falls a whole ring behind gets ErrLagged instead of slowing anyone
// down. Nothing here is durable: events of a daemon's past life are gone with it.
package event

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Types of objects that events are about, as Docker spells them.
const (
	Container = "container"
	Image     = "image"
	Volume    = "volume"
	Network   = "network"
	Daemon    = "daemon"
	Builder   = "builder"
)

// Owner attribute: who an object belongs to. Absent means docker.
const OwnerAttribute = "slipway.owner"

// ErrLagged is returned by Next when events were overwritten before they were read.
var ErrLagged = errors.New("event reader fell behind and lost events: subscribe again")

// Actor is the object an event is about.
type Actor struct {
	ID         string
	Attributes map[string]string // never changed after Publish
}

// Event is one thing that happened.
type Event struct {
	Type   string
	Action string
	Actor  Actor
	Time   time.Time
}

// Bus distributes events. The zero value is not usable; NewBus makes one.
type Bus struct {
	mu   sync.Mutex
	ring []Event
	next uint64        // number of the event that will be published next
	wake chan struct{} // closed and replaced at each Publish
	now  func() time.Time
}

// NewBus makes a bus that remembers the last keep events (at least one).
func NewBus(keep int) *Bus {
	return &Bus{ring: make([]Event, max(keep, 1)), wake: make(chan struct{}), now: time.Now}
}

// Publish adds an event; a zero Time becomes now. It never waits.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.Time.IsZero() {
		e.Time = b.now()
	}
	b.ring[b.next%uint64(len(b.ring))] = e
	b.next++
	close(b.wake)
	b.wake = make(chan struct{})
}

// Subscribe starts reading: with the events not older than since that are still
// remembered, or, when since is zero, with the next one to be published.
func (b *Bus) Subscribe(since time.Time) *Subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &Subscription{bus: b, next: b.next}
	if since.IsZero() {
		return s
	}
	for s.next > b.oldestLocked() && !b.ring[(s.next-1)%uint64(len(b.ring))].Time.Before(since) {
		s.next--
	}
	return s
}

func (b *Bus) oldestLocked() uint64 {
	if b.next < uint64(len(b.ring)) {
		return 0
	}
	return b.next - uint64(len(b.ring))
}

// Subscription is one reader's place in the ring. It holds no resources and needs no
// Close. It is for one goroutine at a time.
type Subscription struct {
	bus  *Bus
	next uint64
}

// Next returns the next event, waiting for it if need be.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		e, wake, err := s.take()
		if wake == nil {
			return e, err
		}
		select {
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		case <-wake:
		}
	}
}

// TryNext returns the next event if there is one already.
func (s *Subscription) TryNext() (e Event, ok bool, err error) {
	e, wake, err := s.take()
	return e, wake == nil && err == nil, err
}

// take returns an event or an error, or else the channel that announces more.
func (s *Subscription) take() (Event, <-chan struct{}, error) {
	b := s.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.next == b.next {
		return Event{}, b.wake, nil
	}
	if s.next < b.oldestLocked() {
		s.next = b.next
		return Event{}, nil, ErrLagged
	}
	e := b.ring[s.next%uint64(len(b.ring))]
	s.next++
	return e, nil, nil
}
