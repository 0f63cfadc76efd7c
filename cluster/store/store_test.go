package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/cluster/store/storetest"
)

func open(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return s
}

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T, o store.Options) storetest.Filling {
		o.Backend = store.Memory()
		s := open(t, o)
		return storetest.Filling{Read: s, Write: s}
	})
}

func TestVolatile(t *testing.T) {
	storetest.Run(t, func(t *testing.T, o store.Options) storetest.Filling {
		o.Backend = store.Memory()
		for i := range o.Kinds {
			o.Kinds[i].Volatile = true
		}
		s := open(t, o)
		return storetest.Filling{Read: s, Write: s}
	})
}

func event(ns string, n int) *corev1.Event {
	return &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("e%04d", n)}}
}

func TestVolatileObjectsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := kinds.All()
		for i := range all {
			if all[i].Resource == kinds.Events {
				all[i].MaxPerNamespace = 10
			}
		}
		s, err := store.Open(t.Context(), store.Options{Kinds: all, Backend: store.Memory(), Detector: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		started := s.Snapshot(kinds.Events).Revision()
		if want := time.Now().UnixMicro(); started < want {
			t.Errorf("the volatile keyspace starts at revision %d; want at least the clock's %d", started, want)
		}
		names := func(ns string) string {
			var out []string
			for o := range s.Snapshot(kinds.Events).All(ns) {
				out = append(out, o.GetName())
			}
			return strings.Join(out, " ")
		}
		for i := range 15 {
			if _, err := s.Create(t.Context(), kinds.Events, event("a", i)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Update(t.Context(), kinds.Events, event("a", 5), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), kinds.Events, event("a", 15)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(t.Context(), kinds.Events, event("b", 0)); err != nil {
			t.Fatal(err)
		}
		// e0006 is the oldest by then: e0005 has been written again.
		if got, want := names("a"), "e0005 e0007 e0008 e0009 e0010 e0011 e0012 e0013 e0014 e0015"; got != want {
			t.Errorf("events of a = %s; want %s", got, want)
		}
		time.Sleep(40 * time.Minute)
		if _, err := s.Create(t.Context(), kinds.Events, event("b", 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(21 * time.Minute)
		synctest.Wait()
		if got := names(""); got != "e0001" {
			t.Errorf("events after an hour = %s; want only the one of 21 minutes ago", got)
		}
		if err := s.CheckFrozen(); err != nil {
			t.Error(err)
		}
	})
}

func TestHistoryAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{Kinds: storetest.Kinds(), Backend: store.Memory()})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		from := s.Revision()
		if _, err := s.Create(t.Context(), storetest.ConfigMaps, configMap(1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Minute)
		if _, err := s.Watch(storetest.ConfigMaps, from); err != nil {
			t.Errorf("watching from four minutes ago = %v; want no error", err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if _, err := s.Watch(storetest.ConfigMaps, from); !errors.Is(err, store.ErrTooOld) {
			t.Errorf("watching from six minutes ago = %v; want ErrTooOld", err)
		}
	})
}

// TestHistoryIsAsLargeAsWhatIsThere: the same number of events is remembered beside many objects, and forgotten
// beside one.
func TestHistoryIsAsLargeAsWhatIsThere(t *testing.T) {
	const events = 3000 // of some 4 KB: 12 MB
	for _, tt := range []struct {
		objects int
		want    error
	}{{1, store.ErrTooOld}, {events, nil}} {
		s := open(t, store.Options{Kinds: storetest.Kinds(), Backend: store.Memory(), HistoryAge: time.Hour})
		put := func(n int, write func(*corev1.ConfigMap) (store.Object, error)) {
			t.Helper()
			cm := configMap(n)
			cm.Data["k"] = strings.Repeat("x", 900)
			if _, err := write(cm); err != nil {
				t.Fatal(err)
			}
		}
		for n := range tt.objects {
			put(n, func(cm *corev1.ConfigMap) (store.Object, error) {
				return s.Create(t.Context(), storetest.ConfigMaps, cm)
			})
		}
		from := s.Revision()
		for n := range events {
			put(n%tt.objects, func(cm *corev1.ConfigMap) (store.Object, error) {
				return s.Update(t.Context(), storetest.ConfigMaps, cm, 0)
			})
		}
		if _, err := s.Watch(storetest.ConfigMaps, from); !errors.Is(err, tt.want) {
			t.Errorf("%d objects, watching from %d events ago: %v; want %v", tt.objects, events, err, tt.want)
		}
	}
}

func TestBookmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Memory()})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		c, err := s.Watch(kinds.Secrets, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.Bookmarks(time.Minute)
		if _, err := s.Create(t.Context(), kinds.ConfigMaps, configMap(1)); err != nil {
			t.Fatal(err)
		}
		events, err := c.Next(t.Context())
		if err != nil || len(events) != 1 || events[0].Type != store.Bookmark || events[0].Revision != s.Revision() {
			t.Errorf("Next() on a quiet resource = %v, %v; want a bookmark at %d", events, err, s.Revision())
		}
	})
}

func TestDetectorFindsChangedObjects(t *testing.T) {
	s := open(t, store.Options{Kinds: storetest.Kinds(), Backend: store.Memory(), Detector: true})
	o, err := s.Create(t.Context(), storetest.ConfigMaps, configMap(1))
	if err != nil {
		t.Fatal(err)
	}
	o.(*corev1.ConfigMap).Data["k"] = "changed"
	if err := s.CheckFrozen(); err == nil || !strings.Contains(err.Error(), "ns/cm000001") {
		t.Errorf("CheckFrozen() = %v; want the object that was changed", err)
	}
}

func TestClosedStoreEndsWatches(t *testing.T) {
	s, err := store.Open(t.Context(), store.Options{Kinds: storetest.Kinds(), Backend: store.Memory()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Watch(storetest.ConfigMaps, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := c.Next(t.Context())
		ended <- err
	}()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, store.ErrClosed) {
		t.Errorf("Next() on a closed store = %v; want ErrClosed", err)
	}
}

func configMap(n int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("cm%06d", n)},
		Data:       map[string]string{"k": "v"},
	}
}
