package op

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"slipway.dev/slipway/engine/build/snapshot"
	"slipway.dev/slipway/engine/image"
)

// A RUN whose second output cannot be committed leaves no result of the first: the store would hold its layers for a build
// that is over.
func TestFailedRunLeavesNoResults(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("layers have owners: run as root")
	}
	log := slog.New(slog.DiscardHandler)
	images, err := image.Open(t.Context(), image.Options{Root: t.TempDir(), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	dated := 0 // results; the store reads its clock for each
	now := func() time.Time { dated++; return time.Unix(0, 0) }
	store, err := snapshot.Open(t.Context(), snapshot.Options{Dir: t.TempDir(), Images: images, Log: log, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()

	for _, fail := range []bool{true, false} {
		draft, err := store.NewDraft(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		want := 2
		if fail {
			cancel()
			want = 0
		}
		dated = 0
		r := &execRun{
			e: &Exec{o: Options{Store: store, Now: time.Now}}, ctx: ctx,
			outputs: []output{{snap: &snapshot.Snapshot{}}, {draft: draft}},
		}
		out, err := r.results()
		if errors.Is(err, context.Canceled) != fail || len(out) != want || dated != want {
			t.Errorf("cancelled %v: %d results (%v), and %d in the store; want %d", fail, len(out), err, dated, want)
		}
		for _, res := range out {
			res.Release(context.Background())
		}
	}
}
