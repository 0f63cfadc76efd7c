package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Source is somebody else's list and watch: a remote API server, another store, a test.
// The objects it hands over are the mirror's: nobody changes them any more.
type Source interface {
	// List is every object of a kind, and the revision at which that is the state.
	List(ctx context.Context, k Kind) ([]Object, int64, error)
	// Watch is every change after a revision. It ends with its context.
	Watch(ctx context.Context, k Kind, from int64) (Stream, error)
}

// Stream is an open watch. Next waits for events; ErrTooOld means "list again", and after
// any other error the mirror watches again from where it was. A Cursor is a Stream.
type Stream interface {
	Next(ctx context.Context) ([]Event, error)
}

// Mirror fills a store from a source, with the source's revisions, each resource having a
// clock of its own. Reading is as from any store; writing fails with ErrReadOnly. Opening
// waits until every kind has been listed once.
func Mirror(source Source) Backend { return mirrorBackend{source} }

type mirrorBackend struct{ source Source }

func (mirrorBackend) clock(*clock) *clock { return &clock{} }

func (b mirrorBackend) start(ctx context.Context, s *Store, _ Options) (engine, error) {
	run, stop := context.WithCancelCause(context.Background())
	m := &mirror{source: b.source, log: s.log, stop: stop}
	lists, ctx := errgroup.WithContext(ctx)
	for _, t := range s.tables {
		lists.Go(func() error {
			rev, err := m.list(ctx, t)
			if err == nil {
				m.tasks.Go(func() { m.follow(run, t, rev) })
			}
			return err
		})
	}
	if err := lists.Wait(); err != nil {
		_ = m.close()
		return nil, err
	}
	return m, nil
}

type mirror struct {
	source Source
	log    *slog.Logger
	stop   context.CancelCauseFunc
	tasks  sync.WaitGroup
}

func (m *mirror) commit(context.Context, *write) (*item, error) { return nil, ErrReadOnly }
func (m *mirror) compact(context.Context, int64) error          { return nil }

func (m *mirror) close() error {
	m.stop(ErrClosed)
	m.tasks.Wait()
	return nil
}

// list replaces a table by the source's state.
func (m *mirror) list(ctx context.Context, t *table) (int64, error) {
	objs, rev, err := m.source.List(ctx, t.kind)
	if err != nil {
		return 0, fmt.Errorf("mirror %s: list: %w", t.kind.Resource, err)
	}
	items := make([]*item, len(objs))
	for i, o := range objs {
		if items[i], err = t.adopt(o); err != nil {
			return 0, fmt.Errorf("mirror %s: %w", t.kind.Resource, err)
		}
	}
	t.reset(items, rev)
	return rev, nil
}

// retryEvery is how long the mirror waits after an error of its source.
const retryEvery = time.Second

// follow keeps a table up to date until the mirror is closed.
func (m *mirror) follow(ctx context.Context, t *table, rev int64) {
	for {
		last, err := m.watch(ctx, t, rev)
		rev = last
		if errors.Is(err, ErrTooOld) {
			if rev, err = m.list(ctx, t); err == nil {
				continue
			}
			rev = last
		}
		if ctx.Err() != nil {
			return
		}
		m.log.Warn("a mirrored watch ended and is tried again", "resource", t.kind.Resource.String(), "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryEvery):
		}
	}
}

// watch applies changes until the stream fails, and returns how far it came.
func (m *mirror) watch(ctx context.Context, t *table, rev int64) (int64, error) {
	stream, err := m.source.Watch(ctx, t.kind, rev)
	if err != nil {
		return rev, err
	}
	for {
		events, err := stream.Next(ctx)
		if err != nil {
			return rev, err
		}
		var changes []change
		for _, e := range events {
			rev = e.Revision
			if e.Type == Bookmark {
				continue
			}
			it, err := t.adopt(e.Object)
			if err != nil {
				return rev, err
			}
			changes = append(changes, change{it: it, deleted: e.Type == Deleted})
		}
		t.publish(changes, time.Now())
		t.clock.advance(rev)
	}
}

// adopt makes an item of an object that has its revision already.
func (t *table) adopt(o Object) (*item, error) {
	rev, err := ParseRevision(o.GetResourceVersion())
	if err != nil {
		return nil, err
	}
	data, err := marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %q: %w", KeyOf(o), err)
	}
	if o.GetObjectKind().GroupVersionKind() != t.kind.GVK {
		o.GetObjectKind().SetGroupVersionKind(t.kind.GVK)
	}
	return &item{key: KeyOf(o), obj: o, rev: rev, size: len(data)}, nil
}

// From is another store as a Source: the mirror shares its objects.
func From(r Reader) Source { return fromReader{r} }

type fromReader struct{ r Reader }

func (f fromReader) List(_ context.Context, k Kind) ([]Object, int64, error) {
	snap := f.r.Snapshot(k.Resource)
	objs := make([]Object, 0, snap.Len())
	for o := range snap.All("") {
		objs = append(objs, o)
	}
	return objs, snap.Revision(), nil
}

func (f fromReader) Watch(_ context.Context, k Kind, from int64) (Stream, error) {
	c, err := f.r.Watch(k.Resource, from)
	if err != nil {
		return nil, err
	}
	c.Bookmarks(time.Minute)
	return c, nil
}
