package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// How long the store must have been quiet before the collector runs, and how long a busy
// store may put it off.
const (
	collectQuiet = 3 * time.Second
	collectLate  = 2 * time.Minute
)

// collector runs garbage collection when something was removed and the store is idle: mark
// and sweep hold up every write, so it must not follow each removal.
type collector struct {
	store  *Store
	wake   chan struct{} // something changed; capacity one
	cancel context.CancelFunc
	done   sync.WaitGroup
	run    sync.Mutex // one collection at a time
}

func startCollector(s *Store) *collector {
	ctx, cancel := context.WithCancel(s.scope(context.Background()))
	c := &collector{store: s, wake: make(chan struct{}, 1), cancel: cancel}
	s.meta.RegisterMutationCallback(func(dirty bool) {
		if dirty {
			c.poke()
		}
	})
	c.done.Go(func() { c.loop(ctx) })
	c.poke() // what the last run of the daemon left
	return c
}

func (c *collector) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *collector) stop() {
	c.cancel()
	c.done.Wait()
}

func (c *collector) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		if !c.waitQuiet(ctx) {
			return
		}
		if err := c.collect(ctx); err != nil && ctx.Err() == nil {
			c.store.log.Warn("garbage collection of images did not finish", "err", err)
		}
	}
}

// waitQuiet waits until nothing changed for a while; false when ctx ended.
func (c *collector) waitQuiet(ctx context.Context) bool {
	late := time.NewTimer(collectLate)
	defer late.Stop()
	quiet := time.NewTimer(collectQuiet)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-c.wake:
			quiet.Reset(collectQuiet)
		case <-quiet.C:
			return true
		case <-late.C:
			return true
		}
	}
}

func (c *collector) collect(ctx context.Context) error {
	c.run.Lock()
	defer c.run.Unlock()
	s := c.store
	if _, err := s.meta.GarbageCollect(ctx); err != nil {
		return err
	}
	if err := s.layers.forgetCollected(ctx, s.snaps); err != nil {
		return err
	}
	if err := s.forgetCompressed(); err != nil {
		return err
	}
	used := map[digest.Digest]bool{}
	for _, r := range s.names.snapshot() {
		used[r.Target.Digest] = true
	}
	s.parsed.keepOnly(used)
	return nil
}

// GC removes now everything that no image, container record or lease refers to.
func (s *Store) GC(ctx context.Context) error {
	if err := s.collect.collect(s.scope(ctx)); err != nil {
		return fmt.Errorf("collect garbage of images: %w", err)
	}
	return nil
}
