package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/event"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Events: event.NewBus(16)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVolumesSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	v, err := s.Create(t.Context(), Spec{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(dir, ".new-half"), 0o700)
	again := open(t, dir)
	got, err := again.Get("data")
	if err != nil || got.Labels["a"] != "b" || !got.CreatedAt.Equal(v.CreatedAt) {
		t.Fatalf("Get after reopening = %+v, %v; want what was created: %+v", got, err, v)
	}
	if _, err := os.Stat(filepath.Join(dir, ".new-half")); err == nil {
		t.Error("an interrupted creation was left behind")
	}
}

func TestVolumeInUseIsNotRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	s.Create(t.Context(), Spec{Name: "data"})
	if err := s.Use("data", "c1"); err != nil {
		t.Fatal(err)
	}
	err := s.Remove(t.Context(), "data", true)
	if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume is in use - [c1]") {
		t.Fatalf("Remove of a used volume = %v; want a conflict naming c1", err)
	}
	s.Release("data", "c1")
	if err := s.Remove(t.Context(), "data", false); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "data", false); !errdefs.IsNotFound(err) {
		t.Fatalf("Remove twice = %v; want not found", err)
	}
	if err := s.Remove(t.Context(), "data", true); err != nil {
		t.Fatalf("forced Remove of nothing = %v; want nil", err)
	}
}

func TestBadVolumes(t *testing.T) {
	s := open(t, t.TempDir())
	for _, tt := range []struct {
		spec Spec
		want string
	}{
		{Spec{Name: "../x"}, "includes invalid characters"},
		{Spec{Name: "a"}, "includes invalid characters"},
		{Spec{Name: "ab", Driver: "nfs"}, `no volume driver "nfs"`},
		{Spec{Name: "ab", Options: map[string]string{"sise": "1"}}, `invalid option: "sise"`},
		{Spec{Name: "ab", Options: map[string]string{"type": "tmpfs"}}, `missing required option: "device"`},
		{Spec{Name: "ab", Options: map[string]string{"o": "size=1m"}}, `missing required option: "device"`},
		{Spec{Name: "ab", Options: map[string]string{"device": "/srv", "o": "bind"}}, `missing required option: "type"`},
	} {
		if _, err := s.Create(t.Context(), tt.spec); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Create(%+v) = %v; want an error with %q", tt.spec, err, tt.want)
		}
	}
}

func TestPopulateOnlyWhenEmptyAndAgainAfterACrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	v, _ := s.Create(t.Context(), Spec{Name: "data"})
	src := t.TempDir()
	os.WriteFile(filepath.Join(src, "a"), []byte("image"), 0o640)
	if err := s.Populate(t.Context(), "data", src); err != nil {
		t.Fatal(err)
	}
	read := func() string { b, _ := os.ReadFile(filepath.Join(v.Mountpoint, "a")); return string(b) }
	if read() != "image" {
		t.Fatalf("after Populate a = %q; want the image's", read())
	}
	os.WriteFile(filepath.Join(v.Mountpoint, "a"), []byte("user"), 0o640)
	s.Populate(t.Context(), "data", src)
	if read() != "user" {
		t.Fatal("Populate replaced a user's file")
	}
	os.WriteFile(filepath.Join(dir, "data", populating), nil, 0o600)
	s.Populate(t.Context(), "data", src)
	if read() != "image" {
		t.Fatal("an interrupted Populate was not repeated")
	}
}

func TestPruneLeavesTheNodesVolumes(t *testing.T) {
	s := open(t, t.TempDir())
	s.Create(t.Context(), Spec{Name: "mine"})
	s.Create(t.Context(), Spec{Name: "pods", Owner: "node"})
	s.Create(t.Context(), Spec{})
	removed, _, err := s.Prune(t.Context(), func(v Volume) bool { return v.Anonymous })
	if err != nil || len(removed) != 1 {
		t.Fatalf("Prune(anonymous) = %v, %v; want one volume", removed, err)
	}
	removed, _, _ = s.Prune(t.Context(), func(Volume) bool { return true })
	if len(removed) != 1 || removed[0] != "mine" {
		t.Fatalf("Prune(all) = %v; want [mine]", removed)
	}
}

// A copy that fails leaves nothing: neither half of the image's files, nor the mark that has the next copy clear the volume.
func TestFailedPopulateLeavesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it keeps owners")
	}
	dir, src := t.TempDir(), t.TempDir()
	dst, marker := dir+"/data", dir+"/marker"
	deep := src
	for range 1030 { // more than is copied
		deep += "/d"
	}
	for _, err := range []error{os.Mkdir(dst, 0o755), os.WriteFile(src+"/a", []byte("image"), 0o600), os.MkdirAll(deep, 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := PopulateDir(dst, marker, src); err == nil {
		t.Fatal("the copy succeeded; want it to fail")
	}
	if left, err := os.ReadDir(dst); err != nil || len(left) > 0 {
		t.Errorf("after a copy that failed the directory holds %v, %v; want nothing", left, err)
	}
	if err := os.WriteFile(dst+"/mine", []byte("written since"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PopulateDir(dst, marker, src); err != nil {
		t.Errorf("populate a directory that is in use: %v", err)
	}
	if b, err := os.ReadFile(dst + "/mine"); err != nil || string(b) != "written since" {
		t.Errorf("what a container wrote after the failure is %q, %v; want it kept", b, err)
	}
}
