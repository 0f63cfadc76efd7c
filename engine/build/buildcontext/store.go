package buildcontext

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
)

// Store keeps unpacked contexts by the digest of what the client sent. Safe for
// concurrent use. The directory is its own: nothing else may write there.
type Store struct {
	dir     string
	limits  Limits
	boot    string
	log     *slog.Logger
	now     func() time.Time
	flights singleflight.Group

	closing atomic.Bool
	sweep   sync.WaitGroup

	mu    sync.Mutex       // guards trees
	trees map[string]*tree // by id, those on disk
}

type tree struct {
	index *Index // nil until loaded
	bytes int64
	used  time.Time
	refs  int
}

// Open reads the store below dir, creating it when absent. What an interrupted run left
// half-made is removed meanwhile, and so are the trees of another boot of the machine than
// the one that boot names: a tree is not forced to disk, as its archive can be sent again,
// so a power cut may have left any of its files short.
func Open(dir string, limits Limits, boot string, now func() time.Time, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, limits: limits.orDefault(), boot: boot, log: log, now: now, trees: map[string]*tree{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open build context store: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open build context store: %w", err)
	}
	var left []string
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if isID(e.Name()) {
			t, err := s.readTree(p)
			if err == nil {
				s.trees[e.Name()] = t
				continue
			}
			log.Info("build context is dropped", "context", short(e.Name()), "reason", err)
			if p, err = s.hide(e.Name()); err != nil {
				return nil, fmt.Errorf("open build context store: %w", err)
			}
		}
		left = append(left, p)
	}
	s.sweep.Go(func() { s.removeAll(left) })
	return s, nil
}

// Close waits until the store has stopped removing what Open found. What is then left is
// for the next Open.
func (s *Store) Close() {
	s.closing.Store(true)
	s.sweep.Wait()
}

func (s *Store) removeAll(paths []string) {
	for _, p := range paths {
		if s.closing.Load() {
			return
		}
		if err := os.RemoveAll(p); err != nil {
			s.log.Warn("an unfinished or old build context could not be removed", "err", err)
		}
	}
}

// hide renames a tree, so that its name is free for the same context, and returns what
// is to be removed.
func (s *Store) hide(id string) (string, error) {
	gone := filepath.Join(s.dir, fmt.Sprintf(".gone-%s-%d", short(id), s.now().UnixNano()))
	return gone, os.Rename(filepath.Join(s.dir, id), gone)
}

// isID tells a tree from something unfinished: only what is complete is renamed to its id.
func isID(name string) bool {
	return digest.NewDigestFromEncoded(digest.SHA256, name).Validate() == nil
}

// readTree reads what is needed to account for a tree; its index is read on first use.
func (s *Store) readTree(dir string) (*tree, error) {
	boot, err := os.ReadFile(filepath.Join(dir, "boot"))
	if err != nil {
		return nil, err
	}
	if string(boot) != s.boot {
		return nil, errors.New("it was unpacked before the machine was started, and may not have reached the disk")
	}
	st, err := os.Stat(filepath.Join(dir, "bytes"))
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, "bytes"))
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", dir, err)
	}
	return &tree{bytes: n, used: st.ModTime()}, nil
}

// Ref is a context in use: its tree stays until Release.
type Ref struct {
	ID    string // hex digest of the archive
	store *Store
	once  sync.Once
}

// Release lets the store drop the tree when it needs the room.
func (r *Ref) Release() {
	r.once.Do(func() { r.store.unref(r.ID) })
}

func (s *Store) unref(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.trees[id]; t != nil {
		t.refs--
	}
}

// Ingest spools the archive in r and returns its tree, unpacked now or earlier.
func (s *Store) Ingest(ctx context.Context, r io.Reader) (*Ref, error) {
	spool, id, err := s.spool(ctx, r)
	if err != nil {
		return nil, err
	}
	defer spool.Close()
	if ref, ok := s.Acquire(id); ok {
		return ref, nil
	}
	err = s.flight(ctx, id, func() error { return s.unpack(ctx, spool, id) })
	if err != nil {
		return nil, err
	}
	ref, ok := s.Acquire(id)
	if !ok {
		return nil, fmt.Errorf("build context %s was dropped while it was unpacked: raise the build cache limit", id[:12])
	}
	return ref, nil
}

// Acquire takes a reference on a tree that is already here.
func (s *Store) Acquire(id string) (*Ref, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.trees[id]
	if t == nil {
		return nil, false
	}
	t.refs++
	t.used = s.now()
	return &Ref{ID: id, store: s}, true
}

// Has reports whether a tree is here.
func (s *Store) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trees[id] != nil
}

// spool copies r to an unnamed file: an abandoned upload leaves nothing behind.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, string, error) {
	f, err := os.CreateTemp(s.dir, ".spool-")
	if err != nil {
		return nil, "", fmt.Errorf("receive build context: %w", err)
	}
	_ = os.Remove(f.Name()) // Open sweeps it should this fail
	sum := sha256.New()
	limit := s.limits.Bytes + s.limits.Bytes/8 // headers come on top of content
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), io.LimitReader(&ctxReader{ctx, r}, limit+1), make([]byte, 256<<10))
	if err == nil && n > limit {
		err = &Error{Kind: "build context", Reason: fmt.Sprintf("larger than %d bytes", limit)}
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, "", fmt.Errorf("receive build context: %w", err)
	}
	return f, digest.NewDigest(digest.SHA256, sum).Encoded(), nil
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// unpack extracts into a hidden directory and renames it into place.
func (s *Store) unpack(ctx context.Context, spool io.Reader, id string) error {
	if s.Has(id) {
		return nil
	}
	tmp, err := os.MkdirTemp(s.dir, ".unpack-")
	if err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	defer os.RemoveAll(tmp)
	root := filepath.Join(tmp, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	index := NewIndex()
	if err := Extract(ctx, spool, root, Options{Limits: s.limits, Index: index}); err != nil {
		return err
	}
	data, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "index.json"), data, 0o600); err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "boot"), []byte(s.boot), 0o600); err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	if err := os.WriteFile(filepath.Join(tmp, "bytes"), strconv.AppendInt(nil, index.Bytes(), 10), 0o600); err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, id)); err != nil {
		return fmt.Errorf("unpack build context: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trees[id] = &tree{index: index, bytes: index.Bytes(), used: s.now()}
	return nil
}

// maxCachedEntries bounds what indexes of idle contexts may hold in memory.
const maxCachedEntries = 100_000

// Index returns the listing of a tree on which the caller holds a reference.
func (s *Store) Index(id string) (*Index, error) {
	s.mu.Lock()
	t := s.trees[id]
	if t != nil && t.index != nil {
		defer s.mu.Unlock()
		return t.index, nil
	}
	s.mu.Unlock()
	if t == nil {
		return nil, fmt.Errorf("build context %s is no longer here: send it again", short(id))
	}
	data, err := os.ReadFile(filepath.Join(s.dir, id, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	index := &Index{}
	if err := json.Unmarshal(data, index); err != nil {
		return nil, fmt.Errorf("read listing of build context %s: %w", short(id), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.index = index
	s.forgetIndexesLocked(id)
	return index, nil
}

func short(id string) string { return id[:min(12, len(id))] }

func (s *Store) forgetIndexesLocked(keep string) {
	n := 0
	for _, t := range s.trees {
		if t.index != nil {
			n += len(t.index.Entries)
		}
	}
	for id, t := range s.trees {
		if n <= maxCachedEntries {
			return
		}
		if t.index != nil && t.refs == 0 && id != keep {
			n -= len(t.index.Entries)
			t.index = nil
		}
	}
}

// Root is the directory of a tree. Callers hold a reference and only read.
func (s *Store) Root(id string) string { return filepath.Join(s.dir, id, "root") }

// View is a tree as .dockerignore patterns leave it.
type View struct {
	ID       string   // of the tree
	Excludes []string // patterns, in order
}

// Key names the view: equal keys mean equal content.
func (v View) Key() string {
	if len(v.Excludes) == 0 {
		return v.ID
	}
	return v.ID + "-" + digest.FromString(strings.Join(v.Excludes, "\n")).Encoded()[:16]
}

// Select returns the entries of a view.
func (s *Store) Select(v View) (*Index, error) {
	index, err := s.Index(v.ID)
	if err != nil || len(v.Excludes) == 0 {
		return index, err
	}
	m, err := patternmatcher.New(v.Excludes)
	if err != nil {
		return nil, fmt.Errorf("read .dockerignore: %w", err)
	}
	if !m.Exclusions() {
		return index.Filter(func(e Entry) (bool, error) {
			skip, err := m.MatchesOrParentMatches(e.Path)
			return !skip, err
		})
	}
	return filterWithExceptions(index, m)
}

// filterWithExceptions keeps the parents of whatever a "!" pattern brings back.
func filterWithExceptions(index *Index, m *patternmatcher.PatternMatcher) (*Index, error) {
	keep := map[string]bool{}
	for _, e := range index.Entries {
		skip, err := m.MatchesOrParentMatches(e.Path)
		if err != nil {
			return nil, err
		}
		if skip {
			continue
		}
		for p := e.Path; p != "." && p != "/" && !keep[p]; p = filepath.Dir(p) {
			keep[p] = true
		}
	}
	return index.Filter(func(e Entry) (bool, error) { return keep[e.Path], nil })
}

// Dir returns a directory that holds exactly the view: the tree itself when nothing is
// left out, else a tree of hard links made once and kept beside it.
func (s *Store) Dir(ctx context.Context, v View) (string, error) {
	all, err := s.Index(v.ID)
	if err != nil {
		return "", err
	}
	selected, err := s.Select(v)
	if err != nil {
		return "", err
	}
	if len(selected.Entries) == len(all.Entries) {
		return s.Root(v.ID), nil
	}
	dir := filepath.Join(s.dir, v.ID, "view-"+v.Key()[len(v.ID)+1:])
	return dir, s.flight(ctx, dir, func() error { return s.makeView(ctx, v, selected, dir) })
}

// flight does once what several ask for at a time. The one whose work it is may give up in the middle; then another of
// them does it, for only the build that was cancelled is to fail.
func (s *Store) flight(ctx context.Context, key string, work func() error) error {
	for {
		worker, err, _ := s.flights.Do(key, func() (any, error) { return ctx, work() })
		if err == nil || ctx.Err() != nil || worker.(context.Context).Err() == nil {
			return err
		}
	}
}

func (s *Store) makeView(ctx context.Context, v View, selected *Index, dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".view-")
	if err != nil {
		return fmt.Errorf("filter build context: %w", err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return fmt.Errorf("filter build context: %w", err)
	}
	if err := linkTree(ctx, s.Root(v.ID), tmp, selected); err != nil {
		return fmt.Errorf("filter build context: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return fmt.Errorf("filter build context: %w", err)
	}
	return nil
}

// linkTree recreates the selected entries of from below to, files as hard links.
func linkTree(ctx context.Context, from, to string, selected *Index) error {
	for _, e := range selected.Entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if !e.IsDir() {
			if err := os.Link(filepath.Join(from, e.Path), filepath.Join(to, e.Path)); err != nil {
				return err
			}
			continue
		}
		if err := os.Mkdir(filepath.Join(to, e.Path), 0o755); err != nil {
			return err
		}
	}
	// Times and modes last, children first: filling a directory changes both.
	for _, e := range slices.Backward(selected.Entries) {
		if !e.IsDir() {
			continue
		}
		p := filepath.Join(to, e.Path)
		if err := chmod(p, e.Mode); err != nil {
			return err
		}
		if err := setTime(p, e.Time); err != nil {
			return err
		}
	}
	return nil
}

// Usage is one tree on disk.
type Usage struct {
	ID    string
	Bytes int64
	Used  time.Time
	InUse bool
}

// List returns every tree, most recently used first.
func (s *Store) List() []Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Usage, 0, len(s.trees))
	for id, t := range s.trees {
		out = append(out, Usage{ID: id, Bytes: t.bytes, Used: t.used, InUse: t.refs > 0})
	}
	slices.SortFunc(out, func(a, b Usage) int { return b.Used.Compare(a.Used) })
	return out
}

// Bytes is the size of all trees.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, t := range s.trees {
		n += t.bytes
	}
	return n
}

// Remove drops a tree unless it is in use, and reports whether it did.
func (s *Store) Remove(id string) (bool, error) {
	s.mu.Lock()
	t := s.trees[id]
	if t == nil || t.refs > 0 {
		s.mu.Unlock()
		return false, nil
	}
	delete(s.trees, id)
	// Renamed under the lock, so that a new upload of the same context finds the name free.
	gone, err := s.hide(id)
	s.mu.Unlock()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("remove build context: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return false, fmt.Errorf("remove build context: %w", err)
	}
	return true, nil
}
