package api

import (
	"errors"
	"sync"
	"time"

	"slipway.dev/slipway/cluster/store"
)

const (
	// cacheBytes bounds what encoded lists may take together, cacheFor how long one stays that
	// nobody asks for.
	cacheBytes = 8 << 20
	cacheFor   = 10 * time.Second
	// worthCaching is the size from which encoding again costs more than remembering.
	worthCaching = 32 << 10
)

// listCache keeps encoded lists while their resource does not change, and lets clients that
// ask for the same one at the same time (every agent, when a server starts) share the work.
type listCache struct {
	mu      sync.Mutex
	entries map[listKey]*cachedList
	bytes   int
	timer   *time.Timer
}

// listKey is everything that the bytes depend on but the objects.
type listKey struct {
	path, mediaType, as, labels, fields string
}

type cachedList struct {
	snap store.Snapshot
	once sync.Once
	body []byte
	err  error

	// Under the cache's lock:
	used time.Time
	size int // of body, once it counts towards the bound
}

var errNotEncoded = errors.New("the list could not be encoded: ask again")

// get is the encoding of a list of snap, whose version is at least atLeast.
func (c *listCache) get(key listKey, snap store.Snapshot, atLeast int64, encode func() ([]byte, error)) ([]byte, error) {
	e := c.entry(key, snap, atLeast)
	e.once.Do(func() {
		// A panic counts as done: those who wait for it must not take nothing for an empty list, and nobody may find it later.
		e.err = errNotEncoded
		defer c.keep(key, e)
		e.body, e.err = encode()
	})
	return e.body, e.err
}

func (c *listCache) entry(key listKey, snap store.Snapshot, atLeast int64) *cachedList {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.entries[key]; ok && e.snap.Same(snap) && e.snap.Revision() >= atLeast {
		e.used = time.Now()
		return e
	}
	c.dropLocked(key)
	if c.entries == nil {
		c.entries = map[listKey]*cachedList{}
	}
	e := &cachedList{snap: snap, used: time.Now()}
	c.entries[key] = e
	return e
}

// keep decides whether an encoded list stays.
func (c *listCache) keep(key listKey, e *cachedList) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[key] != e {
		return // the resource has changed meanwhile
	}
	size := len(e.body)
	if e.err != nil || size < worthCaching || size > cacheBytes {
		delete(c.entries, key)
		return
	}
	e.size = size
	c.bytes += size
	for c.bytes > cacheBytes && c.dropOldestLocked(e) {
	}
	if c.timer == nil {
		c.timer = time.AfterFunc(cacheFor, c.expire)
	}
}

func (c *listCache) dropLocked(key listKey) {
	if e, ok := c.entries[key]; ok {
		delete(c.entries, key)
		c.bytes -= e.size
	}
}

// dropOldestLocked spares the newest, which alone is within the bound. It says whether there
// was one to drop.
func (c *listCache) dropOldestLocked(newest *cachedList) bool {
	var oldest listKey
	var at time.Time
	for k, e := range c.entries {
		if e != newest && e.size > 0 && (at.IsZero() || e.used.Before(at)) {
			oldest, at = k, e.used
		}
	}
	c.dropLocked(oldest)
	return !at.IsZero()
}

func (c *listCache) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timer = nil
	for k, e := range c.entries {
		if time.Since(e.used) >= cacheFor {
			c.dropLocked(k)
		}
	}
	if len(c.entries) > 0 {
		c.timer = time.AfterFunc(cacheFor, c.expire)
	}
}

// clear forgets everything.
func (c *listCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.entries)
	c.bytes = 0
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}
