package image

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// tree lists the files of a chain.
func listing(t *testing.T, s *Store, chain digest.Digest) string {
	t.Helper()
	dir, unmount, err := s.Mount(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer unmount()
	var names []string
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// What a step removed, replaced or made again is the same on a machine that loads the image.
func TestCommittedChangesTravel(t *testing.T) {
	base := tarOf(t, file{name: "d/a", body: "a"}, file{name: "d/b", body: "b"}, file{name: "gone", body: "x"}, file{name: "kept", body: "x"}, file{name: "file", body: "x"}, file{name: "dir/x", body: "x"})
	for _, tt := range []struct {
		name string
		edit func(root string) error
		want string
	}{
		{"a file removed", func(r string) error { return os.Remove(r + "/gone") }, "d d/a d/b dir dir/x file kept"},
		{"a directory made again", func(r string) error {
			return errors.Join(os.RemoveAll(r+"/d"), os.Mkdir(r+"/d", 0o700), os.WriteFile(r+"/d/c", nil, 0o600))
		}, "d d/c dir dir/x file gone kept"},
		{"a file becomes a directory", func(r string) error {
			return errors.Join(os.Remove(r+"/file"), os.MkdirAll(r+"/file/sub", 0o755))
		}, "d d/a d/b dir dir/x file file/sub gone kept"},
		{"a directory becomes a file", func(r string) error {
			return errors.Join(os.RemoveAll(r+"/dir"), os.WriteFile(r+"/dir", nil, 0o600))
		}, "d d/a d/b dir file gone kept"},
		{"made and removed", func(r string) error {
			return errors.Join(os.WriteFile(r+"/new", nil, 0o600), os.Remove(r+"/new"))
		}, "d d/a d/b dir dir/x file gone kept"},
		{"nothing", func(string) error { return nil }, "d d/a d/b dir dir/x file gone kept"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, other := openStore(t, Options{}), openStore(t, Options{})
			load(t, s, dockerArchive(t, "base", base))
			img, err := s.Get(t.Context(), "base")
			if err != nil {
				t.Fatal(err)
			}
			ctx, done, err := s.Lease(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			l := writeLayer(t, s, ctx, ChainID(img.Config.RootFS.DiffIDs), tt.edit)
			if _, err := s.WriteImage(ctx, configOf(t), l.ChainID, []string{"built"}); err != nil {
				t.Fatal(err)
			}
			if got := listing(t, s, l.ChainID); got != tt.want {
				t.Errorf("where it was built: %s; want %s", got, tt.want)
			}
			var saved bytes.Buffer
			if err := s.Save(ctx, &saved, []string{"built"}); err != nil {
				t.Fatal(err)
			}
			load(t, other, saved.Bytes())
			if got := listing(t, other, l.ChainID); got != tt.want {
				t.Errorf("where it was loaded: %s; want %s", got, tt.want)
			}
		})
	}
}
