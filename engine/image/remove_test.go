package image

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/types/known/anypb"

	"slipway.dev/slipway/engine/event"
)

func lines(ds []Deleted) string {
	var out []string
	for _, d := range ds {
		if d.Untagged != "" {
			out = append(out, "untagged "+d.Untagged)
		} else {
			out = append(out, "deleted")
		}
	}
	return strings.Join(out, ", ")
}

func TestRemove(t *testing.T) {
	const user = "0123456789abcdef"
	for _, tt := range []struct {
		name      string
		tags      []string
		remove    string // "ID" stands for the id
		force     bool
		user      string // running, stopped or none
		want, err string
		left      string // tags that are left; "-" means that no image is
	}{
		{name: "last tag", tags: []string{"a:1"}, remove: "a:1", want: "untagged a:1, deleted", left: "-"},
		{name: "one of two", tags: []string{"a:1", "a:2"}, remove: "a:1", want: "untagged a:1", left: "a:2"},
		{name: "by id", tags: []string{"a:1"}, remove: "ID", want: "untagged a:1, deleted", left: "-"},
		{name: "id of two", tags: []string{"a:1", "b:1"}, remove: "ID", err: "conflict: unable to delete SHORT (must be forced) - image is referenced in multiple repositories", left: "a:1 b:1"},
		{name: "id of two, forced", tags: []string{"a:1", "b:1"}, remove: "ID", force: true, want: "untagged a:1, untagged b:1, deleted", left: "-"},
		{name: "used by stopped", tags: []string{"a:1"}, remove: "a:1", user: "stopped", err: `conflict: unable to remove repository reference "a:1" (must force) - container 0123456789ab is using its referenced image SHORT`, left: "a:1"},
		{name: "one of two, used", tags: []string{"a:1", "a:2"}, remove: "a:1", user: "running", want: "untagged a:1", left: "a:2"},
		{name: "stopped, by id", tags: []string{"a:1"}, remove: "ID", user: "stopped", err: "conflict: unable to delete SHORT (must be forced) - image is being used by stopped container 0123456789ab", left: "a:1"},
		{name: "running, by id, forced", tags: []string{"a:1"}, remove: "ID", force: true, user: "running", err: "conflict: unable to delete SHORT (cannot be forced) - image is being used by running container 0123456789ab", left: "a:1"},
		{name: "running, forced", tags: []string{"a:1"}, remove: "a:1", force: true, user: "running", want: "untagged a:1", left: ""},
		{name: "unknown", tags: []string{"a:1"}, remove: "nothing", err: "No such image: nothing:latest", left: "a:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := openStore(t, Options{})
			load(t, s, dockerArchive(t, tt.tags[0], second(t)))
			img, err := s.Get(t.Context(), tt.tags[0])
			if err != nil {
				t.Fatal(err)
			}
			for _, tag := range tt.tags[1:] {
				if err := s.Tag(t.Context(), tt.tags[0], tag); err != nil {
					t.Fatal(err)
				}
			}
			if tt.user != "" {
				s.SetUsers(func() []User { return []User{{Container: user, Image: img.ID, Running: tt.user == "running"}} })
			}
			got, err := s.Remove(t.Context(), strings.Replace(tt.remove, "ID", img.ID.Encoded()[:10], 1), RemoveOptions{Force: tt.force})
			wantErr := strings.Replace(tt.err, "SHORT", shortDigest(img.ID), 1)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || err.Error() != wantErr) {
				t.Errorf("error %v; want %s", err, wantErr)
			}
			if lines(got) != tt.want {
				t.Errorf("Remove = %s; want %s", lines(got), tt.want)
			}
			left, err := s.Get(t.Context(), img.ID.String())
			if gone := errdefs.IsNotFound(err); gone != (tt.left == "-") || !gone && strings.Join(left.Names, " ") != tt.left {
				t.Errorf("left: %q, %v; want %q", left.Names, err, tt.left)
			}
		})
	}
}

func TestARetaggedImageIsDangling(t *testing.T) {
	s := openStore(t, Options{})
	load(t, s, dockerArchive(t, "app", second(t)))
	old, err := s.Get(t.Context(), "app")
	if err != nil {
		t.Fatal(err)
	}
	load(t, s, dockerArchive(t, "app", tarOf(t, file{name: "app", body: "v2"})))
	again, err := s.Get(t.Context(), old.ID.String())
	if err != nil || len(again.Names) != 0 {
		t.Fatalf("the old image has names %q, %v; want none, but to be there", again.Names, err)
	}
	out, freed, err := s.Prune(t.Context(), PruneOptions{})
	if err != nil || lines(out) != "deleted" || freed <= 0 {
		t.Errorf("Prune = %s, %d bytes, %v", lines(out), freed, err)
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 1 || list[0].Names[0] != "app:latest" {
		t.Errorf("left: %+v, %v; want app:latest", list, err)
	}
}

// docker build -t a -t b moves all names of an image in one change.
func TestAnImageWhoseNamesMoveTogetherIsDangling(t *testing.T) {
	s := openStore(t, Options{})
	load(t, s, dockerArchive(t, "a", second(t)))
	old, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	load(t, s, dockerArchive(t, "other", tarOf(t, file{name: "app", body: "v2"})))
	next, err := s.Get(t.Context(), "other")
	if err != nil {
		t.Fatal(err)
	}
	tags := []string{"docker.io/library/a:latest", "docker.io/library/b:latest"}
	if err := s.name(t.Context(), next.Target, tags, nil); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Get(t.Context(), old.ID.String()); err != nil || len(again.Names) != 0 {
		t.Errorf("the old image has names %q, %v; want none, but to be there", again.Names, err)
	}
	if err := s.name(t.Context(), old.Target, tags, nil); err != nil {
		t.Fatal(err)
	}
	if _, left := s.names.snapshot()[danglingPrefix+old.Target.Digest.String()]; left {
		t.Error("the old image is dangling though it has its names again")
	}
}

func TestPruneKnowsOwnersAndUsers(t *testing.T) {
	s := openStore(t, Options{})
	for i, name := range []string{"used", "unused", "nodes"} {
		load(t, s, dockerArchive(t, name, tarOf(t, file{name: "f", body: fmt.Sprint(i)})))
	}
	used, err := s.Get(t.Context(), "used")
	if err != nil {
		t.Fatal(err)
	}
	s.SetUsers(func() []User { return []User{{Container: "c", Image: used.ID}} })
	err = s.editNames(t.Context(), func(now map[string]record) (change, error) {
		r := now["docker.io/library/nodes:latest"]
		r.Labels = map[string]string{labelOwner: "node"}
		return change{put: []record{r}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := s.Prune(t.Context(), PruneOptions{All: true})
	if err != nil || lines(out) != "untagged unused:latest, deleted" {
		t.Errorf("Prune = %s, %v; want only the unused image of docker's gone", lines(out), err)
	}
	if _, _, err := s.Prune(t.Context(), PruneOptions{All: true, Until: time.Unix(1, 0), Owner: "node"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "nodes"); err != nil {
		t.Errorf("an image newer than the limit: %v", err)
	}
}

func TestCollectionFollowsReferences(t *testing.T) {
	s := openStore(t, Options{})
	ctx := s.Context(t.Context())
	load(t, s, dockerArchive(t, "a", busybox(t), second(t)))
	img, err := s.Get(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Rootfs(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Containers().Create(ctx, containers.Container{ID: "c1", Runtime: containers.RuntimeInfo{Name: "x"}, Spec: &anypb.Any{TypeUrl: "test"}, Snapshotter: Snapshotter, SnapshotKey: c.ChainID.String()}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(ctx, "a", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	collected := func(want int) {
		t.Helper()
		if err := s.GC(ctx); err != nil {
			t.Fatal(err)
		}
		dirs, err := os.ReadDir(s.path("snapshots/snapshots"))
		if err != nil || len(s.layers.all()) != want || len(dirs) != want {
			t.Errorf("%d layers, %d directories, %v; want %d", len(s.layers.all()), len(dirs), err, want)
		}
	}
	collected(2) // the container's record holds them
	if err := s.Containers().Delete(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	leased, done, err := s.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.retain(leased, c.ChainID); err != nil {
		t.Fatal(err)
	}
	collected(2) // the lease does
	done()
	collected(0)
}

// A collection at any moment must leave alone what an operation is about to name.
func TestCollectionDuringWork(t *testing.T) {
	s := openStore(t, Options{})
	stop := make(chan struct{})
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := s.GC(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var working sync.WaitGroup
	for w := range 4 {
		working.Go(func() {
			for n := range 6 {
				name := fmt.Sprintf("app%d:%d", w, n)
				archive := dockerArchive(t, name, second(t), tarOf(t, file{name: "n", body: fmt.Sprint(n)})) // shared among the workers
				if _, err := s.Load(t.Context(), bytes.NewReader(archive), nil); err != nil {
					t.Error(err)
					return
				}
				img, err := s.Get(t.Context(), name)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Rootfs(t.Context(), img); err != nil {
					t.Error(err)
				}
				if _, err := s.Remove(t.Context(), name, RemoveOptions{Force: true}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	working.Wait()
	close(stop)
	collecting.Wait()
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := s.layers.all(); len(left) != 0 {
		t.Errorf("%d layers are left of nothing", len(left))
	}
}

func TestEventsAndNames(t *testing.T) {
	bus := event.NewBus(16)
	sub := bus.Subscribe(time.Time{})
	s := openStore(t, Options{Events: bus})
	img, err := s.WriteImage(t.Context(), []byte(`{"os":"linux","architecture":"amd64","config":{"Labels":{"team":"core","name":"theirs"}}}`), "", []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	s.Announce(t.Context(), img, []string{"a:latest"})
	if err := s.Tag(t.Context(), "a", "b:2"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "b:2", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "a", RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	id := img.ID.String()
	for _, want := range []struct{ action, name, team string }{
		{"create", id, "core"}, {"tag", "a:latest", "core"}, {"tag", "b:2", "core"}, {"untag", "b:2", "core"}, {"untag", "a:latest", "core"}, {"delete", id, ""},
	} {
		e, ok, err := sub.TryNext()
		attrs := e.Actor.Attributes
		if !ok || err != nil || e.Type != event.Image || e.Action != want.action || e.Actor.ID != id || attrs["name"] != want.name || attrs["team"] != want.team {
			t.Errorf("event %+v, %v, %v; want %+v", e, ok, err, want)
		}
	}
	for ref, want := range map[string]string{
		"a@sha256:bad": "invalid reference format", "UPPER": "invalid reference format", "": "invalid reference format",
		"b": "No such image: b:latest", "0123456789": "No such image: 0123456789",
	} {
		if _, err := s.Get(t.Context(), ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Get(%q) = %v; want %s", ref, err, want)
		}
	}
}

func TestCopyLayer(t *testing.T) {
	s := openStore(t, Options{})
	load(t, s, dockerArchive(t, "a", busybox(t)))
	img, err := s.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	c, err := s.Rootfs(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.NewLayer(ctx, c.ChainID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	root := t.TempDir()
	if err := d.Mounts()[0].Mount(root); err != nil {
		t.Fatal(err)
	}
	defer s.unview(root)
	if err := os.Remove(root + "/tmp/gone"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/tmp/new", []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := s.CopyLayer(ctx, c.ChainID, d.Upper) // while it is mounted
	if err != nil {
		t.Fatal(err)
	}
	checkView(t, s, l.ChainID)
	if _, _, err := s.OpenLayer(ctx, digest.FromString("none")); !errdefs.IsNotFound(err) {
		t.Errorf("a layer that is not here: %v", err)
	}
}

func TestSaveAndLoadAgain(t *testing.T) {
	s, other := openStore(t, Options{}), openStore(t, Options{})
	load(t, s, dockerArchive(t, "app:1", busybox(t), second(t)))
	if err := s.Tag(t.Context(), "app:1", "app:2"); err != nil {
		t.Fatal(err)
	}
	var first, again bytes.Buffer
	if err := s.Save(t.Context(), &first, []string{"app"}); err != nil { // no tag: all tags
		t.Fatal(err)
	}
	if err := s.Save(t.Context(), &again, []string{"app:1", "app:2"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), again.Bytes()) {
		t.Error("the same images save as different bytes")
	}
	if names := load(t, other, first.Bytes()); strings.Join(names, " ") != "app:1 app:2" {
		t.Errorf("Load = %q; want app:1 and app:2", names)
	}
	a, err1 := s.Get(t.Context(), "app:1")
	b, err2 := other.Get(t.Context(), "app:2")
	if err1 != nil || err2 != nil || a.ID != b.ID {
		t.Errorf("ids %s and %s, %v, %v; want the same image", a.ID, b.ID, err1, err2)
	}
	if h, err := other.History(t.Context(), "app:1"); err != nil || len(h) != 2 || h[0].CreatedBy != "step 2" || h[0].Size == 0 {
		t.Errorf("History = %+v, %v", h, err)
	}
	reload(t, other, b.ID.String())
}
