package build_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"slipway.dev/slipway/engine/build"
)

func TestCacheIsKeyedByContent(t *testing.T) {
	x := newBench(t)
	f := files{"Dockerfile": "FROM scratch\nCOPY a /a\nCOPY d /d\n", "a": "1", "d/": "", "d/b": "2", "other": "3"}
	first, _ := x.mustBuild(request(f))
	for _, tt := range []struct {
		name   string
		change func(files)
		ran    []string
		same   bool
	}{
		{"a file that nobody copies", func(f files) { f["other"] = "4" }, nil, true},
		{"a file of the second copy", func(f files) { f["d/b"] = "5" }, []string{"[3/3] COPY d /d"}, false},
		{"the mode of a file", func(f files) { delete(f, "a"); f["a*0755"] = "1" }, []string{"[2/3] COPY a /a", "[3/3] COPY d /d"}, false},
		{"everything as it was", func(f files) {
			delete(f, "a*0755")
			f["a"], f["d/b"] = "1", "2"
		}, nil, true},
		{"an instruction that only describes", func(f files) { f["Dockerfile"] += "CMD x\n" }, nil, false},
	} {
		tt.change(f)
		res, p := x.mustBuild(request(f))
		var ran []string
		for _, name := range p.ran() {
			if strings.Contains(name, "COPY") {
				// Without FROM there are as many steps as COPYs.
				ran = append(ran, name)
			}
		}
		if len(ran) != len(tt.ran) {
			t.Errorf("after changing %s %q ran; want %d steps like %q", tt.name, ran, len(tt.ran), tt.ran)
		}
		if same := res.ImageID == first.ImageID; same != tt.same {
			t.Errorf("after changing %s the image is the same: %v; want %v", tt.name, same, tt.same)
		}
	}
}

func TestNoCache(t *testing.T) {
	x := newBase(t)
	f := files{"Dockerfile": "FROM base AS one\nRUN echo > /1\nFROM base\nCOPY --from=one /1 /\nRUN echo > /2\n"}
	x.mustBuild(request(f))
	req := request(f)
	req.NoCache = true
	if _, p := x.mustBuild(req); len(p.ran()) < 3 {
		t.Errorf("without cache only %q ran", p.ran())
	}
	req = request(f)
	req.NoCacheOf = []string{"one"}
	_, p := x.mustBuild(req)
	if !slices.ContainsFunc(p.ran(), func(s string) bool { return strings.HasPrefix(s, "[one 2/2]") }) {
		t.Errorf("without the cache of stage one %q ran; want its RUN", p.ran())
	}
	if slices.ContainsFunc(p.ran(), func(s string) bool { return strings.HasSuffix(s, "> /2") }) {
		t.Errorf("without the cache of stage one %q ran; want the last step from the cache, as /1 has the same content", p.ran())
	}
}

func TestOnlyNeededStagesRun(t *testing.T) {
	x := newBase(t)
	f := files{"Dockerfile": "FROM base AS unused\nRUN exit 1\nFROM base AS used\nRUN echo ok > /ok\nFROM scratch\nCOPY --from=used /ok /\n"}
	_, p := x.mustBuild(request(f))
	for _, name := range p.ran() {
		if strings.Contains(name, "unused") {
			t.Errorf("stage that nothing needs ran %q", name)
		}
	}
}

// TestStagesRunAtTheSameTime builds two stages that wait for each other through a shared
// cache mount: one after the other they would fail.
func TestStagesRunAtTheSameTime(t *testing.T) {
	x := newBase(t)
	wait := func(mine, theirs string) string {
		return "RUN --mount=type=cache,id=meet,target=/meet touch /meet/" + mine +
			"; i=0; while [ ! -e /meet/" + theirs + " ]; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done; touch /done\n"
	}
	x.mustBuild(request(files{"Dockerfile": "FROM base AS a\n" + wait("a", "b") + "FROM base AS b\n" + wait("b", "a") +
		"FROM scratch\nCOPY --from=a /done /a\nCOPY --from=b /done /b\n"}))
}

// TestConcurrentBuildsShareWork builds the same thing several times at once.
func TestConcurrentBuildsShareWork(t *testing.T) {
	if underRace {
		t.Skip("BuildKit v0.34.2's solver reads the progress of a vertex that two builds share without a lock (solver/jobs.go, connectProgressFromState)")
	}
	x := newBase(t)
	f := files{"Dockerfile": "FROM base\nRUN --mount=type=cache,id=count,target=/c echo x >> /c/n; sleep 0.2; cp /c/n /n\n"}
	var wg sync.WaitGroup
	results := make([]*build.Result, 4)
	for i := range results {
		wg.Go(func() {
			res, err := x.b.Build(context.Background(), request(f), nil)
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = res
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, r := range results {
		if r.ImageID != results[0].ImageID {
			t.Errorf("builds at the same time gave %s and %s", r.ImageID, results[0].ImageID)
		}
	}
	if got := x.listing(results[0].Image); !strings.Contains(got, "/n -rw-r--r-- x\n") {
		t.Errorf("the step ran more than once:\n%s", without(got, "/bin/"))
	}
}

// watcher calls fn once when a step's output holds text.
type watcher struct {
	steps
	text string
	once sync.Once
	fn   func()
}

func (w *watcher) Status(s *client.SolveStatus, lines map[string][]int) {
	w.steps.Status(s, lines)
	for _, l := range s.Logs {
		if bytes.Contains(l.Data, []byte(w.text)) {
			w.once.Do(w.fn)
		}
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	x := newBase(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("the client went away")
	w := &watcher{text: "started", fn: func() { cancel(gone) }}
	req := request(files{"Dockerfile": "FROM base\nRUN echo started; sleep 1000\n"})
	req.Tags = []string{"cancelled"}
	if _, err := x.b.Build(ctx, req, w); err == nil {
		t.Fatal("a cancelled build succeeded")
	}
	if _, err := x.images.Get(context.Background(), "cancelled"); err == nil {
		t.Error("a cancelled build left a name")
	}
	checkMounts(t, x.dir)
}

// checkMounts fails the test when something is mounted below dir.
func checkMounts(t testing.TB, dir string) {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, " "+dir+"/") {
			t.Errorf("still mounted: %s", line)
		}
	}
}

func TestPruneFreesWhatNoImageUses(t *testing.T) {
	x := newBench(t)
	ctx := context.Background()
	keep := func() build.Request {
		req := request(files{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "kept"})
		req.Tags = []string{"kept"}
		return req
	}
	kept, _ := x.mustBuild(keep())
	gone, _ := x.mustBuild(request(files{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "gone"}))
	if _, err := x.images.Remove(ctx, gone.ImageID.String(), removeOptions); err != nil {
		t.Fatal(err)
	}
	records, err := x.b.Usage(ctx)
	if err != nil || len(records) != 4 {
		t.Errorf("Usage = %+v, %v; want two layers and two contexts", records, err)
	}
	x.awaitUnused(ctx)
	removed, bytes, err := x.b.Prune(ctx, build.PruneOptions{})
	if err != nil || len(removed) != 3 || bytes == 0 {
		t.Errorf("Prune removed %d records, %d bytes, %v; want 3: all but the layer that an image has", len(removed), bytes, err)
	}
	if _, p := x.mustBuild(keep()); len(p.ran()) != 0 {
		t.Errorf("after pruning what no image has, %v ran again", p.ran())
	}
	x.awaitUnused(ctx)
	removed, bytes, err = x.b.Prune(ctx, build.PruneOptions{All: true})
	if err != nil || len(removed) != 2 || bytes == 0 {
		t.Errorf("Prune of all removed %d records, %d bytes, %v; want the layer and the context", len(removed), bytes, err)
	}
	if err := x.images.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if got := x.listing(kept.Image); got != "/a -rw-r--r-- kept\n" {
		t.Errorf("the image that stays holds %q", got)
	}
	if _, err := x.images.Chain(gone.Image.Config.RootFS.DiffIDs[0]); err == nil {
		t.Error("the layer that nothing uses is still there")
	}
	if left, _ := filepath.Glob(filepath.Join(x.dir, "build", "contexts", "*")); len(left) != 0 {
		t.Errorf("contexts are left: %v", left)
	}
	if _, p := x.mustBuild(request(files{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "kept"})); len(p.ran()) == 0 {
		t.Error("after pruning everything came from the cache")
	}
}

// awaitUnused waits for the solver to let go of a build's results, which it does in the background.
func (x *bench) awaitUnused(ctx context.Context) {
	x.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		records, err := x.b.Usage(ctx)
		if err != nil {
			x.Fatal(err)
		}
		if !slices.ContainsFunc(records, func(r build.CacheRecord) bool { return r.InUse }) {
			return
		}
	}
	x.Fatal("records of builds that have ended are still in use")
}

func TestCacheStaysWithinItsBound(t *testing.T) {
	x := newBench(t, func(o *build.Options) { o.MaxCache = 1 << 20 })
	for range 12 {
		x.mustBuild(request(files{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": random(100 << 10)}))
	}
	records, err := x.b.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, r := range records {
		total += r.Size
	}
	if total == 0 || total > 1<<20 {
		t.Errorf("cache holds %d bytes; want some, and no more than %d", total, 1<<20)
	}
}

// TestKilledBuild checks that a daemon that died in the middle of a build starts again,
// believes what was finished, and leaves no name and no mount.
func TestKilledBuild(t *testing.T) {
	x := newBase(t)
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{text: "started", fn: cancel}
	f := files{"Dockerfile": "FROM base\nRUN echo one > /1\nRUN echo started; sleep 1000\n"}
	if _, err := x.b.Build(ctx, request(f), w); err == nil {
		t.Fatal("the build succeeded")
	}
	x.reopen()
	checkMounts(t, x.dir)
	f["Dockerfile"] = "FROM base\nRUN echo one > /1\nRUN echo two > /2\n"
	_, p := x.mustBuild(request(f))
	for _, name := range p.ran() {
		if strings.Contains(name, "/1") {
			t.Errorf("a step that was finished before ran again: %q", name)
		}
	}
}

func TestSourceDateEpoch(t *testing.T) {
	x := newBench(t)
	req := request(files{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "1"})
	req.BuildArgs = map[string]string{"SOURCE_DATE_EPOCH": "1000000000"}
	res, _ := x.mustBuild(req)
	want := time.Unix(1000000000, 0).UTC()
	if c := res.Image.Config.Created; c == nil || !c.Equal(want) {
		t.Errorf("created %v; want %v", c, want)
	}
	for _, h := range res.Image.Config.History {
		if h.Created == nil || h.Created.After(want) {
			t.Errorf("history entry %q is of %v; want %v", h.CreatedBy, h.Created, want)
		}
	}
}
