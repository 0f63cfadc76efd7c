package store

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Follow tells fn about every object of a resource as Added, and then about every change,
// until ctx ends; it returns the context's cause. When it falls behind the history it
// reads a new snapshot and tells the difference, so that fn never misses a net change:
// it may miss versions in between. fn runs in the caller's goroutine, outside of all
// locks, and sees what it is told in the order of revisions.
func Follow(ctx context.Context, r Reader, gr schema.GroupResource, fn func(Event)) error {
	f := follower{reader: r, gr: gr, fn: fn}
	for {
		err := f.run(ctx)
		if !errors.Is(err, ErrTooOld) {
			return err
		}
	}
}

type follower struct {
	reader Reader
	gr     schema.GroupResource
	fn     func(Event)

	// What fn knows is base, changed by over (nil for deleted).
	base *Snapshot
	over map[string]Object
}

// run follows until the history is lost.
func (f *follower) run(ctx context.Context) error {
	cursor, err := f.reader.Watch(f.gr, 0)
	if err != nil {
		return err
	}
	f.tell(cursor.Snapshot())
	for {
		events, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		if f.over == nil {
			f.over = make(map[string]Object, len(events))
		}
		for _, e := range events {
			f.fn(e)
			f.note(e)
		}
		if now, ok := cursor.settled(); ok {
			f.base, f.over = &now, nil
		}
	}
}

func (f *follower) note(e Event) {
	if e.Type == Deleted {
		f.over[KeyOf(e.Object)] = nil
		return
	}
	f.over[KeyOf(e.Object)] = e.Object
}

// tell reports the difference between what fn knows and a snapshot: deletions first, so
// that whatever they free is free for the rest.
func (f *follower) tell(now Snapshot) {
	for key, old := range f.known() {
		if it, ok := now.s.items.Get(&item{key: key}); !ok || it.obj.GetUID() != old.GetUID() {
			f.fn(Event{Type: Deleted, Object: old, Prev: old, Revision: now.rev})
		}
	}
	for key, o := range now.From("", "") {
		old := f.lookup(key)
		switch {
		case old == nil || old.GetUID() != o.GetUID():
			f.fn(Event{Type: Added, Object: o, Revision: now.rev})
		case old != o:
			f.fn(Event{Type: Modified, Object: o, Prev: old, Revision: now.rev})
		}
	}
	f.base, f.over = &now, nil
}

func (f *follower) lookup(key string) Object {
	if o, ok := f.over[key]; ok {
		return o
	}
	if f.base == nil {
		return nil
	}
	it, ok := f.base.s.items.Get(&item{key: key})
	if !ok {
		return nil
	}
	return it.obj
}

func (f *follower) known() func(yield func(string, Object) bool) {
	return func(yield func(string, Object) bool) {
		if f.base != nil {
			for key, o := range f.base.From("", "") {
				if _, changed := f.over[key]; !changed && !yield(key, o) {
					return
				}
			}
		}
		for key, o := range f.over {
			if o != nil && !yield(key, o) {
				return
			}
		}
	}
}
