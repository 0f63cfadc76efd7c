package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/tree"
)

// caches holds the directories of cache mounts. One id may have several: steps that share
// privately at the same time each have their own.
type caches struct {
	dir string

	mu    sync.Mutex // guards what follows
	dirs  map[string]*cacheDir
	freed chan struct{} // closed and replaced when a directory is given back
}

type cacheDir struct {
	ID   string // of the mount
	Dir  string // name below caches.dir
	Used time.Time
	refs int
	lone bool // taken by a private or locked step
}

const nameFile = "name.json"

func openCaches(dir string) (*caches, error) {
	c := &caches{dir: dir, dirs: map[string]*cacheDir{}, freed: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name(), nameFile))
		d := &cacheDir{}
		if err == nil {
			err = json.Unmarshal(data, d)
		}
		if err != nil { // interrupted while it was made
			if err := tree.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		d.Dir = e.Name()
		c.dirs[d.Dir] = d
	}
	return c, nil
}

func (c *caches) take(ctx context.Context, id string, sharing pb.CacheSharingOpt, fill func(string) error) (string, func(), error) {
	for {
		d, wait, err := c.try(id, sharing, fill)
		if err != nil {
			return "", nil, err
		}
		if d != nil {
			var once sync.Once
			return filepath.Join(c.dir, d.Dir, "data"), func() { once.Do(func() { c.give(d) }) }, nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return "", nil, context.Cause(ctx)
		}
	}
}

// try takes a directory, or says what to wait for.
func (c *caches) try(id string, sharing pb.CacheSharingOpt, fill func(string) error) (*cacheDir, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	alone := sharing != pb.CacheSharingOpt_SHARED
	busy := false
	for _, d := range c.dirs {
		if d.ID != id {
			continue
		}
		if d.refs > 0 && (alone || d.lone) {
			busy = true
			continue
		}
		d.refs++
		d.lone = alone
		return d, nil, nil
	}
	if busy && sharing == pb.CacheSharingOpt_LOCKED {
		return nil, c.freed, nil
	}
	d, err := c.makeLocked(id, fill)
	if err != nil {
		return nil, nil, fmt.Errorf("make cache mount %q: %w", id, err)
	}
	d.refs, d.lone = 1, alone
	return d, nil, nil
}

func (c *caches) makeLocked(id string, fill func(string) error) (*cacheDir, error) {
	d := &cacheDir{ID: id, Used: time.Now().UTC(), Dir: digest.FromString(id).Encoded()[:16] + "-" + identity.NewID()[:8]}
	data := filepath.Join(c.dir, d.Dir, "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	if err := fill(data); err != nil {
		return nil, errors.Join(err, os.RemoveAll(filepath.Dir(data)))
	}
	if err := c.write(d); err != nil {
		return nil, errors.Join(err, os.RemoveAll(filepath.Dir(data)))
	}
	c.dirs[d.Dir] = d
	return d, nil
}

func (c *caches) write(d *cacheDir) error {
	data, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, d.Dir, nameFile), data, 0o600)
}

func (c *caches) give(d *cacheDir) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.refs--
	if d.refs == 0 {
		d.lone = false
	}
	d.Used = time.Now().UTC()
	_ = c.write(d) // only the time of use is lost
	close(c.freed)
	c.freed = make(chan struct{})
}

func (c *caches) list() ([]op.CacheMount, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []op.CacheMount
	for _, d := range c.dirs {
		size, err := sizeOf(filepath.Join(c.dir, d.Dir, "data"))
		if err != nil {
			return nil, fmt.Errorf("measure cache mount %q: %w", d.ID, err)
		}
		out = append(out, op.CacheMount{ID: d.Dir, Name: d.ID, Size: size, Used: d.Used, InUse: d.refs > 0})
	}
	return out, nil
}

func sizeOf(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return ignoreGone(err)
		}
		st, err := e.Info()
		if err == nil {
			n += st.Size()
		}
		return ignoreGone(err)
	})
	return n, err
}

// ignoreGone lets a step that is running remove files while they are counted.
func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (c *caches) remove(id string) error {
	c.mu.Lock()
	d := c.dirs[id]
	if d == nil || d.refs > 0 {
		c.mu.Unlock()
		return nil
	}
	delete(c.dirs, id)
	c.mu.Unlock()
	if err := tree.Remove(filepath.Join(c.dir, d.Dir)); err != nil {
		return fmt.Errorf("remove cache mount %q: %w", d.ID, err)
	}
	return nil
}
