// Package storetest is the conformance suite of cluster/store: every way to fill a store
// passes it, so that whoever reads from one may read from any.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/store"
)

// Filling is a store under test and the store to write to: the same one, unless it is a mirror.
type Filling struct {
	Read, Write *store.Store
}

// ConfigMaps is the resource that the suite uses; Kinds are the kinds to open a store with.
var ConfigMaps = schema.GroupResource{Resource: "configmaps"}

// Kinds are what a Filling must hold.
func Kinds() []store.Kind {
	return []store.Kind{{
		Resource:   ConfigMaps,
		GVK:        schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"},
		Namespaced: true,
		New:        func() store.Object { return &corev1.ConfigMap{} },
		Indexes: map[string]func(store.Object) []string{
			"colour": func(o store.Object) []string {
				if c := o.GetLabels()["colour"]; c != "" {
					return []string{c}
				}
				return nil
			},
		},
	}}
}

// Run runs the suite; open makes an empty filling with the given options (Kinds and
// Detector are set) and closes it when the test ends.
func Run(t *testing.T, open func(*testing.T, store.Options) Filling) {
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"lists in the order of keys", listsInOrder},
		{"writes are conditional", writesAreConditional},
		{"objects find themselves under their index", indexes},
		{"a cursor sees each change once, in order", cursorSeesChanges},
		{"a cursor resumes where another one stopped", cursorResumes},
		{"a deletion carries its own revision", deletionRevision},
		{"old revisions are too old", tooOld},
		{"exact revisions can be read", exactRevisions},
		{"writers read what they wrote", readYourWrites},
		{"one of many concurrent writers wins", oneWins},
		{"a follower misses no net change", followerMissesNothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := store.Options{Kinds: Kinds(), Detector: true, HistoryBytes: 256 << 10}
			s := &suite{Filling: open(t, o), t: t}
			tt.run(t, s)
			for _, st := range []*store.Store{s.Read, s.Write} {
				if err := st.CheckFrozen(); err != nil {
					t.Errorf("CheckFrozen() = %v", err)
				}
			}
		})
	}
}

type suite struct {
	Filling
	t *testing.T
}

func newObject(ns, name, colour string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "uid-1", Labels: map[string]string{"colour": colour}},
		Data:       map[string]string{"k": "v"},
	}
}

func revisionOf(t *testing.T, o store.Object) int64 {
	t.Helper()
	rev, err := store.ParseRevision(o.GetResourceVersion())
	if err != nil || rev == 0 {
		t.Fatalf("object %s has resourceVersion %q; want a positive number", store.KeyOf(o), o.GetResourceVersion())
	}
	return rev
}

// done waits until a write can be read.
func (s *suite) done(o store.Object, err error) store.Object {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("write: %v", err)
	}
	if err := s.Read.Wait(s.t.Context(), ConfigMaps, revisionOf(s.t, o)); err != nil {
		s.t.Fatalf("wait for a write: %v", err)
	}
	return o
}

func (s *suite) create(ns, name, colour string) store.Object {
	s.t.Helper()
	return s.done(s.Write.Create(s.t.Context(), ConfigMaps, newObject(ns, name, colour)))
}

func (s *suite) update(ns, name, colour string, expect int64) store.Object {
	s.t.Helper()
	return s.done(s.Write.Update(s.t.Context(), ConfigMaps, newObject(ns, name, colour), expect))
}

func (s *suite) delete(ns, name string) store.Object {
	s.t.Helper()
	return s.done(s.Write.Delete(s.t.Context(), ConfigMaps, ns, name, store.Preconditions{}))
}

func keys(snap store.Snapshot, ns string) string {
	var out []string
	for o := range snap.All(ns) {
		out = append(out, store.KeyOf(o)+"="+o.GetLabels()["colour"])
	}
	return strings.Join(out, " ")
}

func listsInOrder(t *testing.T, s *suite) {
	for _, k := range []string{"b/2", "a/1", "b/1", "a-b/1", "c/9"} {
		ns, name, _ := strings.Cut(k, "/")
		s.create(ns, name, "red")
	}
	snap := s.Read.Snapshot(ConfigMaps)
	for _, tt := range []struct{ ns, want string }{
		{"", "a-b/1=red a/1=red b/1=red b/2=red c/9=red"},
		{"a", "a/1=red"},
		{"b", "b/1=red b/2=red"},
		{"none", ""},
	} {
		if got := keys(snap, tt.ns); got != tt.want {
			t.Errorf("objects of namespace %q = %q; want %q", tt.ns, got, tt.want)
		}
	}
	var page []string
	for key := range snap.From("b", "b/2") {
		page = append(page, key)
	}
	if got := strings.Join(page, " "); got != "b/2" {
		t.Errorf("page of b from b/2 = %q; want b/2", got)
	}
	s.delete("b", "1")
	if snap.Len() != 5 || s.Read.Snapshot(ConfigMaps).Len() != 4 {
		t.Errorf("after a deletion the old snapshot has %d and a new one %d objects; want 5 and 4", snap.Len(), s.Read.Snapshot(ConfigMaps).Len())
	}
}

func writesAreConditional(t *testing.T, s *suite) {
	ctx := t.Context()
	first := s.create("a", "1", "red")
	if _, err := s.Write.Create(ctx, ConfigMaps, newObject("a", "1", "blue")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating twice = %v; want AlreadyExists", err)
	}
	second := s.update("a", "1", "green", revisionOf(t, first))
	if _, err := s.Write.Update(ctx, ConfigMaps, newObject("a", "1", "blue"), revisionOf(t, first)); !apierrors.IsConflict(err) {
		t.Errorf("updating an old version = %v; want Conflict", err)
	}
	if revisionOf(t, second) <= revisionOf(t, first) {
		t.Errorf("revision of the update %d is not after %d", revisionOf(t, second), revisionOf(t, first))
	}
	s.update("a", "1", "blue", 0)
	if _, err := s.Write.Update(ctx, ConfigMaps, newObject("a", "2", "blue"), 0); !apierrors.IsNotFound(err) {
		t.Errorf("updating what is not there = %v; want NotFound", err)
	}
	if _, err := s.Write.Delete(ctx, ConfigMaps, "a", "1", store.Preconditions{UID: "other"}); !apierrors.IsConflict(err) {
		t.Errorf("deleting another UID = %v; want Conflict", err)
	}
	if _, err := s.Write.Delete(ctx, ConfigMaps, "a", "1", store.Preconditions{Revision: revisionOf(t, first)}); !apierrors.IsConflict(err) {
		t.Errorf("deleting an old version = %v; want Conflict", err)
	}
	s.delete("a", "1")
	if _, err := s.Write.Delete(ctx, ConfigMaps, "a", "1", store.Preconditions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleting twice = %v; want NotFound", err)
	}
	if _, err := s.Write.Create(ctx, ConfigMaps, newObject("", "1", "red")); !apierrors.IsBadRequest(err) {
		t.Errorf("creating without a namespace = %v; want BadRequest", err)
	}
}

func indexes(t *testing.T, s *suite) {
	s.create("a", "1", "red")
	s.create("a", "2", "red")
	s.create("a", "3", "")
	s.update("a", "1", "blue", 0)
	s.update("a", "2", "red", 0)
	find := func(colour string) string {
		var out []string
		for _, o := range s.Read.Snapshot(ConfigMaps).Index("colour", colour) {
			cur, _ := s.Read.Snapshot(ConfigMaps).Get(o.GetNamespace(), o.GetName())
			if cur != o {
				t.Errorf("the index has another version of %s than the table", o.GetName())
			}
			out = append(out, o.GetName())
		}
		return strings.Join(out, " ")
	}
	if got := find("red") + "|" + find("blue") + "|" + find("green"); got != "2|1|" {
		t.Errorf("red|blue|green = %q; want 2|1|", got)
	}
	s.delete("a", "2")
	if got := find("red"); got != "" {
		t.Errorf("red after its deletion = %q; want none", got)
	}
}

// read takes n events from a cursor and checks their order.
func read(t *testing.T, c *store.Cursor, n int) []store.Event {
	t.Helper()
	var out []store.Event
	last := int64(0)
	for len(out) < n {
		events, err := c.Next(t.Context())
		if err != nil {
			t.Fatalf("Next() after %d of %d events: %v", len(out), n, err)
		}
		for _, e := range events {
			if e.Revision <= last {
				t.Fatalf("event at revision %d follows one at %d", e.Revision, last)
			}
			last = e.Revision
			out = append(out, e)
		}
	}
	return out
}

func story(events []store.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprintf("%s %s %s", e.Type, e.Object.GetName(), e.Object.GetLabels()["colour"]))
	}
	return strings.Join(out, ", ")
}

func cursorSeesChanges(t *testing.T, s *suite) {
	s.create("a", "0", "red")
	c, err := s.Read.Watch(ConfigMaps, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(c.Snapshot(), ""); got != "a/0=red" {
		t.Errorf("the cursor's snapshot = %q; want a/0=red", got)
	}
	s.create("a", "1", "red")
	s.update("a", "0", "blue", 0)
	s.delete("a", "1")
	events := read(t, c, 3)
	if got, want := story(events), "ADDED 1 red, MODIFIED 0 blue, DELETED 1 red"; got != want {
		t.Errorf("events = %s; want %s", got, want)
	}
	if p := events[1].Prev; p == nil || p.GetLabels()["colour"] != "red" {
		t.Errorf("the modification's previous version = %v; want the red one", p)
	}
	if more, err := c.Ready(); err != nil || len(more) > 0 {
		t.Errorf("Ready() on a settled cursor = %v, %v; want nothing", more, err)
	}
}

func cursorResumes(t *testing.T, s *suite) {
	first := s.create("a", "0", "red")
	for i := range 20 {
		s.create("a", fmt.Sprint("n", i), "red")
	}
	all, err := s.Read.Watch(ConfigMaps, revisionOf(t, first))
	if err != nil {
		t.Fatal(err)
	}
	events := read(t, all, 20)
	for i, e := range events {
		rest, err := s.Read.Watch(ConfigMaps, e.Revision)
		if err != nil {
			t.Fatal(err)
		}
		if i == len(events)-1 {
			continue
		}
		if got := read(t, rest, 19-i); story(got) != story(events[i+1:]) {
			t.Errorf("resuming after event %d = %s; want %s", i, story(got), story(events[i+1:]))
		}
	}
}

func deletionRevision(t *testing.T, s *suite) {
	made := s.create("a", "0", "red")
	c, err := s.Read.Watch(ConfigMaps, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.delete("a", "0")
	e := read(t, c, 1)[0]
	if revisionOf(t, e.Object) != e.Revision || e.Revision <= revisionOf(t, made) {
		t.Errorf("deletion at %d carries resourceVersion %s, its creation was %s", e.Revision, e.Object.GetResourceVersion(), made.GetResourceVersion())
	}
	if e.Prev.GetResourceVersion() != made.GetResourceVersion() {
		t.Errorf("the version before the deletion is %s; want %s", e.Prev.GetResourceVersion(), made.GetResourceVersion())
	}
}

func tooOld(t *testing.T, s *suite) {
	first := revisionOf(t, s.create("a", "0", "red"))
	stuck, err := s.Read.Watch(ConfigMaps, first)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // more than HistoryBytes holds
		s.update("a", "0", "blue", 0)
	}
	if _, err := s.Read.Watch(ConfigMaps, first); !errors.Is(err, store.ErrTooOld) {
		t.Errorf("watching from a forgotten revision = %v; want ErrTooOld", err)
	}
	if _, err := stuck.Next(t.Context()); !errors.Is(err, store.ErrTooOld) {
		t.Errorf("a cursor that fell behind = %v; want ErrTooOld", err)
	}
	if _, err := s.Read.SnapshotAt(ConfigMaps, first); !errors.Is(err, store.ErrTooOld) {
		t.Errorf("reading a forgotten revision = %v; want ErrTooOld", err)
	}
}

func exactRevisions(t *testing.T, s *suite) {
	var revs []int64
	var want []string
	note := func(o store.Object) {
		revs = append(revs, revisionOf(t, o))
		want = append(want, keys(s.Read.Snapshot(ConfigMaps), ""))
	}
	note(s.create("a", "0", "red"))
	note(s.create("a", "1", "red"))
	note(s.update("a", "0", "blue", 0))
	note(s.delete("a", "1"))
	note(s.create("a", "1", "green"))
	for i, rev := range revs {
		snap, err := s.Read.SnapshotAt(ConfigMaps, rev)
		if err != nil {
			t.Errorf("SnapshotAt(%d) = %v", rev, err)
			continue
		}
		if got := keys(snap, ""); got != want[i] {
			t.Errorf("state at revision %d = %q; want %q", rev, got, want[i])
		}
	}
	if _, err := s.Read.SnapshotAt(ConfigMaps, revs[len(revs)-1]+1000); !errors.Is(err, store.ErrFuture) {
		t.Errorf("reading the future = %v; want ErrFuture", err)
	}
}

func readYourWrites(t *testing.T, s *suite) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			ns := fmt.Sprint("ns", w)
			for i := range 25 {
				o, err := s.Write.Create(t.Context(), ConfigMaps, newObject(ns, fmt.Sprint(i), "red"))
				if err != nil {
					t.Errorf("create: %v", err)
					return
				}
				got, ok := s.Write.Snapshot(ConfigMaps).Get(ns, fmt.Sprint(i))
				if !ok || got != o {
					t.Errorf("%s/%d is not to be read after its creation", ns, i)
				}
				if rev := s.Write.Snapshot(ConfigMaps).Revision(); rev < revisionOf(t, o) {
					t.Errorf("a snapshot at %d follows a write at %s", rev, o.GetResourceVersion())
				}
			}
		})
	}
	wg.Wait()
}

func oneWins(t *testing.T, s *suite) {
	rev := revisionOf(t, s.create("a", "0", "red"))
	for range 10 {
		var mu sync.Mutex
		var won []int64
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				o, err := s.Write.Update(t.Context(), ConfigMaps, newObject("a", "0", fmt.Sprint(w)), rev)
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					won = append(won, revisionOf(t, o))
				} else if !apierrors.IsConflict(err) {
					t.Errorf("update: %v", err)
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d writers replaced revision %d; want one", len(won), rev)
		}
		rev = won[0]
	}
}

func followerMissesNothing(t *testing.T, s *suite) {
	s.create("a", "old", "red")
	ctx, cancel := context.WithCancel(t.Context())
	known := map[string]string{}
	behind, caughtUp, done := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		stalled := false
		done <- store.Follow(ctx, s.Read, ConfigMaps, func(e store.Event) {
			key := store.KeyOf(e.Object)
			if e.Type == store.Deleted {
				delete(known, key)
			} else {
				known[key] = e.Object.GetLabels()["colour"]
			}
			if !stalled {
				stalled = true
				<-behind // falls out of the history meanwhile
			}
			if key == "z/end" {
				close(caughtUp)
			}
		})
	}()
	for i := range 800 {
		s.create("b", fmt.Sprint(i), "red")
		if i%2 == 0 {
			s.delete("b", fmt.Sprint(i))
		}
	}
	s.delete("a", "old")
	s.update("b", "1", "blue", 0)
	s.create("z", "end", "red")
	want := strings.Fields(keys(s.Read.Snapshot(ConfigMaps), ""))
	close(behind)
	<-caughtUp
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Follow = %v; want the context's error", err)
	}
	var got []string
	for key, colour := range known {
		got = append(got, key+"="+colour)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the follower knows %d objects; want these %d", len(got), len(want))
	}
}
