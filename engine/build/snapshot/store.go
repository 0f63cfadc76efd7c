package snapshot

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/db"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"slipway.dev/slipway/engine/build/buildcontext"
	"slipway.dev/slipway/engine/image"
)

// Images is the part of the image store that holds layers. *image.Store is one.
type Images interface {
	NewLayer(ctx context.Context, parent digest.Digest) (*image.LayerDraft, error)
	Chain(id digest.Digest) (image.Chain, error)
	Mount(ctx context.Context, chain digest.Digest) (dir string, unmount func(), err error)
	Leases() leases.Manager
	Context(ctx context.Context) context.Context
	Sync(ctx context.Context) error
}

// leaseID is the lease under which cached chains are kept from the collector.
const leaseID = "slipway-build-cache"

var bucketResults = []byte("results")

// Options wires a Store. All fields are required.
type Options struct {
	Dir      string // private directory
	Images   Images
	Contexts *buildcontext.Store
	Boot     string // names this boot of the machine
	Log      *slog.Logger
	Now      func() time.Time
}

// Store keeps snapshots of earlier builds. Safe for concurrent use.
type Store struct {
	images   Images
	contexts *buildcontext.Store
	log      *slog.Logger
	now      func() time.Time
	mounts   string // parent of mount points
	db       db.DB
	boot     string
	views    *views

	mu      sync.Mutex         // guards records and what they point to
	records map[string]*record // by result id
}

// record is what is known of one result.
type record struct {
	ID string `json:"id"`
	Snapshot
	Description string    `json:"desc,omitempty"`
	Created     time.Time `json:"created"`
	Used        time.Time `json:"used"`
	Uses        int       `json:"uses"`
	// Boot is the boot in which the layers were written, until they are known to be on
	// disk; empty from then on.
	Boot string `json:"boot,omitempty"`

	refs  int
	saved bool // has a row in the database
	dirty bool // the row is out of date
}

var _ solver.CacheResultStorage = (*Store)(nil)

// Open opens the store below o.Dir, and unmounts and removes what a killed daemon left.
func Open(ctx context.Context, o Options) (*Store, error) {
	s := &Store{
		images: o.Images, contexts: o.Contexts, log: o.Log, now: o.Now,
		mounts: filepath.Join(o.Dir, "mounts"), records: map[string]*record{},
		boot: o.Boot, views: newViews(o.Images),
	}
	if err := sweep(s.mounts); err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	if err := s.openLease(ctx); err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	var err error
	// NoSync: losing the end of the cache in a power cut costs a rebuild; a damaged file
	// is detected and set aside.
	s.db, err = boltutil.SafeOpen(filepath.Join(o.Dir, "results.db"), 0o600, &bolt.Options{
		NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	err = s.load()
	if err == nil {
		err = s.releaseStrays(ctx)
	}
	if err != nil {
		s.db.Close()
		return nil, fmt.Errorf("open build cache: %w", err)
	}
	return s, nil
}

// sweep empties the directory of mount points.
func sweep(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if err := mount.UnmountAll(p, 0); err != nil {
			return fmt.Errorf("unmount what an earlier daemon left: %w", err)
		}
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) openLease(ctx context.Context) error {
	_, err := s.images.Leases().Create(s.images.Context(ctx), leases.WithID(leaseID))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("make lease: %w", err)
	}
	return nil
}

// scope is ctx with the cache's lease: what is committed under it stays.
func (s *Store) scope(ctx context.Context) context.Context {
	return leases.WithLease(s.images.Context(ctx), leaseID)
}

// load reads all records. The database is not forced to disk, so a power cut may have
// left a record that cannot be read: its result is lost, which costs a rebuild.
func (s *Store) load() error {
	return s.db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketResults)
		if err != nil {
			return err
		}
		var damaged [][]byte
		err = b.ForEach(func(k, v []byte) error {
			r := &record{saved: true}
			if err := json.Unmarshal(v, r); err != nil || r.ID != string(k) {
				s.log.Warn("a damaged record of the build cache is dropped", "record", string(k), "err", err)
				damaged = append(damaged, bytes.Clone(k))
				return nil
			}
			s.records[r.ID] = r
			return nil
		})
		for _, k := range damaged {
			err = errors.Join(err, b.Delete(k))
		}
		return err
	})
}

// Close writes what is outstanding and closes the store. No draft, view or result may be
// in use.
func (s *Store) Close() error {
	s.views.close()
	return errors.Join(s.flush(), s.db.Close())
}

func (s *Store) commit(ctx context.Context, d *image.LayerDraft) (image.Layer, error) {
	return d.Commit(s.scope(ctx))
}

// Keep puts a chain that came from elsewhere, such as a base image, under the lease.
func (s *Store) Keep(ctx context.Context, chain digest.Digest) error {
	if chain == "" {
		return nil
	}
	err := s.images.Leases().AddResource(s.images.Context(ctx), leases.Lease{ID: leaseID}, leaseResource(chain))
	if err != nil {
		return fmt.Errorf("keep layers %s: %w", chain, err)
	}
	return nil
}

func leaseResource(chain digest.Digest) leases.Resource {
	return leases.Resource{ID: chain.String(), Type: "snapshots/" + image.Snapshotter}
}

// NewResult registers a snapshot made by an operation. The caller owns the reference.
func (s *Store) NewResult(snap *Snapshot, description string) *Result {
	now := s.now().UTC()
	r := &record{ID: identity.NewID(), Snapshot: *snap, Description: description, Created: now, Used: now, Uses: 1, Boot: s.boot, refs: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[r.ID] = r
	return &Result{id: r.ID, snap: snap, store: s}
}

func (s *Store) retain(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.records[id]; r != nil {
		r.refs++
	}
}

func (s *Store) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[id]
	if r == nil {
		return
	}
	r.refs--
}

// Save implements solver.CacheResultStorage: the result is worth keeping.
func (s *Store) Save(res solver.Result, created time.Time) (solver.CacheResult, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[res.ID()]
	if r == nil {
		return solver.CacheResult{}, fmt.Errorf("build cache has no record %s", res.ID())
	}
	if r.saved {
		return solver.CacheResult{ID: r.ID, CreatedAt: created}, nil
	}
	// Written at once: a build that is killed goes on from its last finished step.
	data, err := json.Marshal(r)
	if err != nil {
		return solver.CacheResult{}, fmt.Errorf("write build cache: %w", err)
	}
	if err := s.put(map[string][]byte{r.ID: data}); err != nil {
		return solver.CacheResult{}, err
	}
	r.saved = true
	return solver.CacheResult{ID: r.ID, CreatedAt: created}, nil
}

// Load implements solver.CacheResultStorage.
func (s *Store) Load(ctx context.Context, res solver.CacheResult) (solver.Result, error) {
	if !s.Exists(ctx, res.ID) {
		return nil, fmt.Errorf("build cache record %s: %w", res.ID, solver.ErrNotFound)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.records[res.ID]
	if r == nil {
		return nil, fmt.Errorf("build cache record %s: %w", res.ID, solver.ErrNotFound)
	}
	r.refs++
	r.Uses++
	r.Used = s.now().UTC()
	r.dirty = true
	return &Result{id: r.ID, snap: &r.Snapshot, store: s}, nil
}

// LoadRemotes implements solver.CacheResultStorage: nothing is exported as cache yet.
func (s *Store) LoadRemotes(context.Context, solver.CacheResult, *compression.Config, session.Group) ([]*solver.Remote, error) {
	return nil, nil
}

// Exists implements solver.CacheResultStorage: the files are there and can be believed.
func (s *Store) Exists(_ context.Context, id string) bool {
	s.mu.Lock()
	r := s.records[id]
	var snap Snapshot
	ok := r != nil && (r.Boot == "" || r.Boot == s.boot)
	if ok {
		snap = r.Snapshot
	}
	s.mu.Unlock()
	if !ok {
		return false
	}
	if snap.View != nil {
		return s.contexts.Has(snap.View.ID)
	}
	_, err := s.images.Chain(snap.Chain())
	return err == nil
}

// Settle is called when a build has ended: layers that are not yet on disk go there
// together, then the records that name them; results that nobody kept are forgotten.
func (s *Store) Settle(ctx context.Context) error {
	before := s.now()
	chains, unsynced := s.forget()
	if err := s.unlease(ctx, chains); err != nil {
		return err
	}
	if unsynced > 0 {
		if err := s.images.Sync(ctx); err != nil {
			return fmt.Errorf("write build cache: %w", err)
		}
		s.Durable(before)
	}
	return s.flush()
}

// Durable says that all that was written before a moment is on disk.
func (s *Store) Durable(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Boot != "" && !r.Created.After(before) {
			r.Boot, r.dirty = "", true
		}
	}
}

// forget drops unsaved records without users. It returns the chains that no record names
// any more, and how many records are not durable.
func (s *Store) forget() (chains []digest.Digest, unsynced int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []*record
	for id, r := range s.records {
		switch {
		case !r.saved && r.refs <= 0:
			delete(s.records, id)
			gone = append(gone, r)
		case r.saved && r.Boot == s.boot && r.size() > 0:
			unsynced++
		}
	}
	return s.unnamedLocked(gone), unsynced
}

// unnamedLocked returns the chains of dropped records that no other record names.
func (s *Store) unnamedLocked(gone []*record) []digest.Digest {
	if len(gone) == 0 {
		return nil
	}
	candidates := map[digest.Digest]bool{}
	for _, r := range gone {
		if c := r.Chain(); c != "" {
			candidates[c] = true
		}
	}
	for _, r := range s.records {
		delete(candidates, r.Chain())
	}
	return slices.Collect(maps.Keys(candidates))
}

// unlease gives chains to the collector.
func (s *Store) unlease(ctx context.Context, chains []digest.Digest) error {
	for _, c := range chains {
		err := s.images.Leases().DeleteResource(s.images.Context(ctx), leases.Lease{ID: leaseID}, leaseResource(c))
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release layers %s: %w", c, err)
		}
	}
	return nil
}

// releaseStrays ends the lease on chains that a killed daemon committed and did not
// record.
func (s *Store) releaseStrays(ctx context.Context) error {
	held, err := s.images.Leases().ListResources(s.images.Context(ctx), leases.Lease{ID: leaseID})
	if err != nil {
		return fmt.Errorf("list lease: %w", err)
	}
	named := map[string]bool{}
	for _, r := range s.records {
		named[r.Chain().String()] = true
	}
	var strays []digest.Digest
	for _, h := range held {
		if !named[h.ID] {
			strays = append(strays, digest.Digest(h.ID))
		}
	}
	return s.unlease(ctx, strays)
}

// Bytes is the size of all layers that saved records added.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, r := range s.records {
		n += r.size()
	}
	return n
}

// flush writes changed records.
func (s *Store) flush() error {
	s.mu.Lock()
	rows := map[string][]byte{}
	for id, r := range s.records {
		if !r.saved || !r.dirty {
			continue
		}
		data, err := json.Marshal(r)
		if err != nil {
			s.mu.Unlock()
			return fmt.Errorf("write build cache: %w", err)
		}
		rows[id], r.dirty = data, false
	}
	s.mu.Unlock()
	if len(rows) == 0 {
		return nil
	}
	return s.put(rows)
}

func (s *Store) put(rows map[string][]byte) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketResults)
		for id, data := range rows {
			if err := b.Put([]byte(id), data); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write build cache: %w", err)
	}
	return nil
}

// Usage is one cached result.
type Usage struct {
	ID          string
	Parent      string // id of the record it was made from, if that is cached too
	Description string
	Size        int64
	Created     time.Time
	Used        time.Time
	Uses        int
	InUse       bool
	Chain       digest.Digest
	Context     bool // an uploaded context rather than layers
}

// List returns the saved records that hold something, most recently used first.
func (s *Store) List() []Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	byChain := map[digest.Digest]string{}
	for id, r := range s.records {
		if r.View == nil && r.saved {
			byChain[r.Chain()] = id
		}
	}
	var out []Usage
	for _, r := range s.records {
		if !r.saved || r.View != nil {
			continue
		}
		u := Usage{ID: r.ID, Description: r.Description, Size: r.size(), Created: r.Created, Used: r.Used, Uses: r.Uses, InUse: r.refs > 0, Chain: r.Chain()}
		if n := len(r.Layers); n > 1 {
			u.Parent = byChain[r.Layers[n-2].ChainID]
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Usage) int { return cmp.Or(b.Used.Compare(a.Used), strings.Compare(a.ID, b.ID)) })
	return out
}

// Remove forgets records that are not in use; the chains they alone named become
// garbage. It returns the ids that went.
func (s *Store) Remove(ctx context.Context, ids []string) ([]string, error) {
	gone, chains := s.drop(ids)
	err := s.db.Update(func(tx *bolt.Tx) error {
		for _, id := range gone {
			if err := tx.Bucket(bucketResults).Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("prune build cache: %w", err)
	}
	if err := s.unlease(ctx, chains); err != nil {
		return nil, fmt.Errorf("prune build cache: %w", err)
	}
	return gone, nil
}

// drop takes records out of memory and returns the chains that no record names now.
func (s *Store) drop(ids []string) (gone []string, chains []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dropped []*record
	for _, id := range ids {
		r := s.records[id]
		if r == nil || r.refs > 0 {
			continue
		}
		delete(s.records, id)
		gone = append(gone, id)
		dropped = append(dropped, r)
	}
	return gone, s.unnamedLocked(dropped)
}

// RemoveViews forgets the records of contexts that are no longer there.
func (s *Store) RemoveViews(ctx context.Context) error {
	s.mu.Lock()
	var ids []string
	for id, r := range s.records {
		if r.View != nil && !s.contexts.Has(r.View.ID) {
			ids = append(ids, id)
		}
	}
	s.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	_, err := s.Remove(ctx, ids)
	return err
}
