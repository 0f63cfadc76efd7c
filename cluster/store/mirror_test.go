package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/storetest"
)

func TestMirror(t *testing.T) {
	storetest.Run(t, func(t *testing.T, o store.Options) storetest.Filling {
		o.Backend = store.Memory()
		source := open(t, o)
		o.Backend = store.Mirror(store.From(source))
		return storetest.Filling{Read: open(t, o), Write: source}
	})
}

// flaky is a source whose watches break, and can claim to have forgotten the past.
type flaky struct {
	store.Source
	fail chan error
}

type flakyStream struct {
	store.Stream
	fail chan error
}

func (f flaky) Watch(ctx context.Context, k store.Kind, from int64) (store.Stream, error) {
	s, err := f.Source.Watch(ctx, k, from)
	return flakyStream{s, f.fail}, err
}

func (f flakyStream) Next(ctx context.Context) ([]store.Event, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-f.fail:
			cancel(err)
		case <-ctx.Done():
		}
	}()
	return f.Stream.Next(ctx)
}

func TestMirrorSurvivesItsSource(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
	}{
		{"a broken connection", errors.New("connection reset")},
		{"a forgotten past", store.ErrTooOld},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source, err := store.Open(t.Context(), store.Options{Kinds: storetest.Kinds(), Backend: store.Memory()})
				if err != nil {
					t.Fatal(err)
				}
				defer source.Close()
				fail := make(chan error)
				mirror, err := store.Open(t.Context(), store.Options{Kinds: storetest.Kinds(), Backend: store.Mirror(flaky{store.From(source), fail})})
				if err != nil {
					t.Fatal(err)
				}
				defer mirror.Close()
				var told []string
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go store.Follow(ctx, mirror, storetest.ConfigMaps, func(e store.Event) {
					told = append(told, fmt.Sprint(e.Type, " ", e.Object.GetName()))
				})
				write := func(n int) {
					if _, err := source.Create(t.Context(), storetest.ConfigMaps, configMap(n)); err != nil {
						t.Fatal(err)
					}
				}
				write(1)
				synctest.Wait()
				fail <- tt.err
				write(2)
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if got, want := fmt.Sprint(told), "[ADDED cm000001 ADDED cm000002]"; got != want {
					t.Errorf("a follower of the mirror was told %s; want %s", got, want)
				}
				if _, err := mirror.Create(t.Context(), storetest.ConfigMaps, configMap(3)); !errors.Is(err, store.ErrReadOnly) {
					t.Errorf("writing to a mirror = %v; want ErrReadOnly", err)
				}
			})
		})
	}
}
