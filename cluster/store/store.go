package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Options wire a Store. Kinds and Backend are required.
type Options struct {
	Kinds   []Kind
	Backend Backend
	Log     *slog.Logger // nil: discarded

	// Default fills in what objects written by an older release lack. It runs on every
	// object loaded from a durable back end, before anybody sees it.
	Default func(Object)

	// Detector makes the store hash what it publishes and verify it later: see CheckFrozen.
	Detector bool

	// HistoryBytes bounds what each resource remembers for watchers, roughly in bytes of
	// heap; 0 means 32 MB. HistoryAge bounds it in time; 0 means five minutes.
	HistoryBytes int
	HistoryAge   time.Duration
}

// Store holds the objects of one cluster. It is safe for concurrent use.
type Store struct {
	log      *slog.Logger
	tables   map[schema.GroupResource]*table
	kinds    []Kind
	byType   map[reflect.Type]schema.GroupResource
	durable  engine
	volatile *local
	clock    *clock // of the durable keyspace
	age      time.Duration

	stop  context.CancelCauseFunc
	tasks sync.WaitGroup
}

// Backend decides where objects live: Memory, Etcd or Mirror.
type Backend interface {
	// clock is the clock of a kind's table; shared is the store's own.
	clock(shared *clock) *clock
	// start fills the store's tables and returns what commits to them.
	start(ctx context.Context, s *Store, o Options) (engine, error)
}

// engine commits writes and publishes what has been committed.
type engine interface {
	// commit makes one write and returns its item once readers can see it.
	commit(ctx context.Context, w *write) (*item, error)
	// compact forgets what happened before a revision.
	compact(ctx context.Context, rev int64) error
	close() error
}

// Open fills a store from its back end. Close it when every reader and writer has ended.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.HistoryBytes == 0 {
		o.HistoryBytes = 32 << 20
	}
	if o.HistoryAge == 0 {
		o.HistoryAge = 5 * time.Minute
	}
	s := &Store{log: o.Log, clock: &clock{}, kinds: o.Kinds, age: o.HistoryAge,
		tables: map[schema.GroupResource]*table{}, byType: map[reflect.Type]schema.GroupResource{}}
	if err := s.addTables(o); err != nil {
		return nil, err
	}
	durable, err := o.Backend.start(ctx, s, o)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.durable = durable
	if j, ok := durable.(journal); ok {
		s.volatile.journal = j
	}
	run, stop := context.WithCancelCause(context.Background())
	s.stop = stop
	s.tasks.Go(func() { s.keepBounds(run) })
	return s, nil
}

func (s *Store) addTables(o Options) error {
	limit := historyLimit{bytes: o.HistoryBytes, age: o.HistoryAge}
	s.volatile = newVolatile()
	for _, k := range o.Kinds {
		if _, twice := s.tables[k.Resource]; twice {
			return fmt.Errorf("open store: kind %s is listed twice", k.Resource)
		}
		c := o.Backend.clock(s.clock)
		if k.Volatile {
			c = s.volatile.clock
		}
		s.tables[k.Resource] = newTable(k, c, limit, o.Detector)
		if typ := reflect.TypeOf(k.New()); typ != unstructuredType {
			s.byType[typ] = k.Resource
		}
	}
	return nil
}

// Close ends every watch and then the back end.
func (s *Store) Close() error {
	s.stop(ErrClosed)
	for _, t := range s.tables {
		t.close()
	}
	s.tasks.Wait()
	return s.durable.close()
}

// Kinds are the kinds the store was opened with.
func (s *Store) Kinds() []Kind { return s.kinds }

// ResourceOf is the resource that objects of this Go type belong to.
func (s *Store) ResourceOf(o Object) (schema.GroupResource, bool) {
	gr, ok := s.byType[reflect.TypeOf(o)]
	return gr, ok
}

// Revision is the newest published revision of the durable keyspace. Revisions of volatile
// kinds are a sequence of their own: see Snapshot.Revision.
func (s *Store) Revision() int64 { return s.clock.rev.Load() }

func (s *Store) table(gr schema.GroupResource) *table {
	t, ok := s.tables[gr]
	if !ok {
		panic(fmt.Sprintf("store: resource %q is not held by this store: list it in Options.Kinds", gr))
	}
	return t
}

// Has says whether the store holds a resource.
func (s *Store) Has(gr schema.GroupResource) bool { _, ok := s.tables[gr]; return ok }

// Snapshot is the newest state of a resource.
func (s *Store) Snapshot(gr schema.GroupResource) Snapshot { return s.table(gr).snapshot() }

// SnapshotAt is the state at an exact revision: ErrTooOld or ErrFuture when it is out of reach.
// Its indexes are not available.
func (s *Store) SnapshotAt(gr schema.GroupResource, rev int64) (Snapshot, error) {
	return s.table(gr).at(rev)
}

// Watch opens a cursor after revision from; 0 means from the newest state on.
func (s *Store) Watch(gr schema.GroupResource, from int64) (*Cursor, error) {
	return s.table(gr).watch(from)
}

// Wait returns when a resource has reached a revision.
func (s *Store) Wait(ctx context.Context, gr schema.GroupResource, rev int64) error {
	return s.table(gr).clock.wait(ctx, rev)
}

func (c *clock) wait(ctx context.Context, rev int64) error {
	for {
		ok, wake := c.reached(rev)
		if ok {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d, now at %d: %w", rev, c.rev.Load(), context.Cause(ctx))
		}
	}
}

// Create adds an object. The store owns obj from here on: the caller must not touch it
// again, whether or not it succeeds.
func (s *Store) Create(ctx context.Context, gr schema.GroupResource, obj Object) (Object, error) {
	return s.commit(ctx, &write{t: s.table(gr), op: opCreate, key: KeyOf(obj), obj: obj})
}

// Update replaces the version at revision expect; 0 replaces whatever is there. The store
// owns obj from here on.
func (s *Store) Update(ctx context.Context, gr schema.GroupResource, obj Object, expect int64) (Object, error) {
	return s.commit(ctx, &write{t: s.table(gr), op: opUpdate, key: KeyOf(obj), obj: obj, expect: expect})
}

// Preconditions of a deletion; zero values mean none.
type Preconditions struct {
	UID      types.UID
	Revision int64
}

// Delete removes an object and returns its last version, carrying the revision of the deletion.
func (s *Store) Delete(ctx context.Context, gr schema.GroupResource, namespace, name string, p Preconditions) (Object, error) {
	return s.commit(ctx, &write{t: s.table(gr), op: opDelete, key: Key(namespace, name), expect: p.Revision, uid: p.UID})
}

func (s *Store) commit(ctx context.Context, w *write) (Object, error) {
	if err := w.prepare(); err != nil {
		return nil, err
	}
	eng := s.durable
	if w.t.kind.Volatile {
		eng = s.volatile
	}
	it, err := eng.commit(ctx, w)
	if err != nil {
		return nil, err
	}
	return it.obj, nil
}

// Edit changes a private copy of an object and writes it, again and again while others
// are quicker. change may return an error to stop, and must be ready to run several times.
func Edit[T Object](ctx context.Context, s *Store, gr schema.GroupResource, namespace, name string, change func(T) error) (T, error) {
	var none T
	for {
		cur, ok := Get[T](s, gr, namespace, name)
		if !ok {
			return none, apierrors.NewNotFound(gr, name)
		}
		rev, err := ParseRevision(cur.GetResourceVersion())
		if err != nil {
			return none, err
		}
		next := Copy(cur)
		if err := change(next); err != nil {
			return none, err
		}
		done, err := s.Update(ctx, gr, next, rev)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			return none, err
		}
		return done.(T), nil
	}
}

// CheckFrozen reports every published object that somebody has changed since. It needs
// Options.Detector, and is meant for the end of a test.
func (s *Store) CheckFrozen() error {
	var errs []error
	for gr, t := range s.tables {
		errs = append(errs, t.frozen.check(gr))
	}
	return errors.Join(errs...)
}

// sweepEvery is how often bounds in time are enforced on what nobody writes to.
const sweepEvery = 30 * time.Second

// keepBounds forgets old history, old volatile objects, and compacts the back end at the
// same horizon.
func (s *Store) keepBounds(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var marks []mark
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, t := range s.tables {
				s.volatile.expire(t, now)
				t.sweep(now)
			}
			marks = s.compact(ctx, marks, now)
		}
	}
}

// mark remembers which revision was the newest at a time.
type mark struct {
	at  time.Time
	rev int64
}

// compact lets the back end forget what was already past when the oldest kept history began.
func (s *Store) compact(ctx context.Context, marks []mark, now time.Time) []mark {
	marks = append(marks, mark{now, s.Revision()})
	var horizon int64
	for len(marks) > 0 && now.Sub(marks[0].at) > s.age {
		horizon = marks[0].rev
		marks = marks[1:]
	}
	if horizon > 0 {
		if err := s.durable.compact(ctx, horizon); err != nil && ctx.Err() == nil {
			s.log.Warn("the store could not be compacted", "revision", horizon, "error", err)
		}
	}
	return marks
}
