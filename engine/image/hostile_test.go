package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// outside is a directory that no archive may reach, and what must be in it afterwards.
func outside(t testing.TB, s *Store) (dir string, check func(testing.TB)) {
	t.Helper()
	dir = filepath.Join(s.root, "outside")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, func(t testing.TB) {
		t.Helper()
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 {
			t.Errorf("outside holds %v, %v; want only the victim", names, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(victim, &st); err != nil || st.Nlink != 1 || st.Mode&0o777 != 0o644 {
			t.Errorf("the victim has %d links, mode %o, %v", st.Nlink, st.Mode, err)
		}
		if b, _ := os.ReadFile(victim); string(b) != "untouched" {
			t.Errorf("the victim says %q", b)
		}
	}
}

func TestHostileLayersStayInside(t *testing.T) {
	s := openStore(t, Options{})
	dir, check := outside(t, s)
	up := strings.Repeat("../", 12) + strings.TrimPrefix(dir, "/")
	for name, files := range map[string][]file{
		"path traversal":             {{name: up + "/victim", body: "evil"}},
		"absolute path":              {{name: dir + "/victim", body: "evil"}},
		"symlink then file":          {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "l/victim", body: "evil"}},
		"relative symlink then file": {{name: "a/l", kind: tar.TypeSymlink, link: up}, {name: "a/l/victim", body: "evil"}},
		"symlink over file":          {{name: "l", kind: tar.TypeSymlink, link: dir + "/victim"}, {name: "l", body: "evil"}},
		"hardlink out":               {{name: "h", kind: tar.TypeLink, link: dir + "/victim"}, {name: "h", body: "evil"}},
		"hardlink up":                {{name: "h", kind: tar.TypeLink, link: up + "/victim"}},
		"hardlink through a symlink": {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "h", kind: tar.TypeLink, link: "l/victim"}},
		"whiteout through a symlink": {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "l/.wh.victim"}},
		"opaque through a symlink":   {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "l/.wh..wh..opq"}},
		"whiteout of the root":       {{name: ".wh.."}},
		"whiteout of the parent":     {{name: "a/.wh..."}},
		"mode of a symlink's target": {{name: "l", kind: tar.TypeSymlink, link: dir + "/victim", mode: 0o777}},
		"directory over a symlink":   {{name: "l", kind: tar.TypeSymlink, link: dir}, {name: "l/", kind: tar.TypeDir, mode: 0o700}},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := s.unpack(t.Context(), nil, bytes.NewReader(tarOf(t, files...)), nil)
			if err == nil {
				u.draft.Discard()
			}
			check(t)
		})
	}
	noDrafts(t, s)
}

func noDrafts(t testing.TB, s *Store) {
	t.Helper()
	left, err := os.ReadDir(s.path("drafts"))
	if err != nil || len(left) > 0 {
		t.Errorf("drafts left behind: %v, %v", left, err)
	}
}

func TestOverlayAttributesOfLayersAreIgnored(t *testing.T) {
	s := openStore(t, Options{})
	u, err := s.unpack(t.Context(), nil, bytes.NewReader(tarOf(t,
		file{name: "d/", kind: tar.TypeDir, xattrs: map[string]string{"trusted.overlay.redirect": "/etc", "trusted.overlay.opaque": "y", "user.other": "kept"}},
		file{name: "f", body: "x", xattrs: map[string]string{"trusted.overlay.metacopy": "", "user.overlay.origin": "x"}},
	)), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer u.draft.Discard()
	for _, name := range []string{"d", "f"} {
		buf := make([]byte, 1024)
		n, err := unix.Llistxattr(u.draft.Upper+"/"+name, buf)
		if err != nil || strings.Contains(string(buf[:n]), "overlay") {
			t.Errorf("%s has attributes %q, %v; want none of overlay's", name, buf[:n], err)
		}
	}
	if n, err := unix.Lgetxattr(u.draft.Upper+"/d", "user.other", make([]byte, 16)); err != nil || n != 4 {
		t.Errorf("user.other: %d bytes, %v; want it kept", n, err)
	}
}

// Layers that cannot be put together from their files come back byte for byte all the same.
func TestOddLayersComeBack(t *testing.T) {
	s := openStore(t, Options{})
	for name, layer := range map[string][]byte{
		"a name twice":         tarOf(t, file{name: "f", body: "first"}, file{name: "f", body: "second"}),
		"removed again":        tarOf(t, file{name: "f", body: "first"}, file{name: ".wh.f"}),
		"replaced directory":   tarOf(t, file{name: "d/f", body: "first"}, file{name: "d", body: "second"}),
		"through its own link": tarOf(t, file{name: "usr/lib/", kind: tar.TypeDir}, file{name: "lib", kind: tar.TypeSymlink, link: "usr/lib"}, file{name: "lib/x", body: "one"}),
		"twice through a link": tarOf(t, file{name: "lib", kind: tar.TypeSymlink, link: "usr"}, file{name: "usr/x", body: "one"}, file{name: "lib/x", body: "two"}),
		"hardlinks":            tarOf(t, file{name: "a", body: "x"}, file{name: "b", kind: tar.TypeLink, link: "a"}),
		"trailing bytes":       append(tarOf(t, file{name: "a", body: "x"}), make([]byte, 10240)...),
		"empty":                make([]byte, 1024),
		"dotted names":         tarOf(t, file{name: "./a", body: "x"}, file{name: "b/../c", body: "y"}),
		"a fifo and a device":  tarOf(t, file{name: "p", kind: tar.TypeFifo}, file{name: "null", kind: tar.TypeChar}, file{name: "z", body: "z"}),
		"names that are odd":   tarOf(t, file{name: "caf\xe9", body: "latin-1"}, file{name: strings.Repeat("long/", 60) + "f", body: "x"}),
	} {
		t.Run(name, func(t *testing.T) {
			load(t, s, dockerArchive(t, "odd", layer))
			img, err := s.Get(t.Context(), "odd")
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.Rootfs(t.Context(), img)
			if err != nil {
				t.Fatal(err)
			}
			checkLayer(t, s, c.Layers[0], layer)
		})
	}
	noDrafts(t, s)
}

func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// ociArchive is an OCI layout with one image; edit may spoil its blobs.
func ociArchive(t testing.TB, name string, edit func(blobs map[string][]byte), layers ...[]byte) []byte {
	t.Helper()
	blobs := map[string][]byte{}
	put := func(mediaType string, raw []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		blobs[blobPath(d.Digest)] = raw
		return d
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: put(ocispec.MediaTypeImageConfig, configOf(t, layers...))}
	for _, l := range layers {
		m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayerGzip, gzipped(t, l)))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	d := put(ocispec.MediaTypeImageManifest, raw)
	d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	index, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(blobs)
	}
	files := []file{{name: "index.json", body: string(index)}}
	for path, raw := range blobs {
		files = append(files, file{name: path, body: string(raw)})
	}
	return tarOf(t, files...)
}

func TestDamagedArchives(t *testing.T) {
	s := openStore(t, Options{Limits: Limits{LayerBytes: 8 << 20, Entries: 100}})
	good := second(t)
	docker := dockerArchive(t, "bad", good)
	manifest := func(m string, files ...file) []byte {
		return tarOf(t, append(files, file{name: "manifest.json", body: m})...)
	}
	config := file{name: "c.json", body: string(configOf(t, good))}
	layer := file{name: "l.tar", body: string(good)}
	many := make([]file, 101)
	for i := range many {
		many[i] = file{name: strings.Repeat("x", i+1)}
	}
	links := make([]file, 70)
	for i := range links {
		links[i] = file{name: strings.Repeat("x", i+1), kind: tar.TypeSymlink, link: strings.Repeat("y", 1_000_000)}
	}
	spoil := func(prefix string, with func([]byte) []byte) func(map[string][]byte) {
		return func(blobs map[string][]byte) {
			for path, raw := range blobs {
				if bytes.HasPrefix(raw, []byte(prefix)) {
					blobs[path] = with(raw)
				}
			}
		}
	}
	for _, tt := range []struct {
		name    string
		archive []byte
		want    string
		kind    func(error) bool
	}{
		{"nothing", nil, "neither manifest.json nor index.json", errdefs.IsInvalidArgument},
		{"no archive", []byte("hello, world, this is not an archive at all" + strings.Repeat(".", 600)), "damaged tar", errdefs.IsInvalidArgument},
		{"cut short", docker[:len(docker)/2], "damaged tar", errdefs.IsInvalidArgument},
		{"cut gzip", gzipped(t, docker)[:200], "damaged compressed data", errdefs.IsInvalidArgument},
		{"damaged xz", append([]byte("\xfd7zXZ\x00"), make([]byte, 600)...), "damaged compressed data", errdefs.IsInvalidArgument},
		{"manifest is no JSON", manifest(`[{`, config, layer), "manifest.json", errdefs.IsInvalidArgument},
		{"no configuration", manifest(`[{"Config":"c.json","Layers":["l.tar"]}]`, layer), `configuration "c.json" is not in the archive`, errdefs.IsInvalidArgument},
		{"configuration outside", manifest(`[{"Config":"/etc/passwd","Layers":["l.tar"]}]`, layer), `configuration "/etc/passwd" is not in the archive`, errdefs.IsInvalidArgument},
		{"no layer", manifest(`[{"Config":"c.json","Layers":["../../l.tar"]}]`, config), `layer "../../l.tar" is not in the archive`, errdefs.IsInvalidArgument},
		{"layer is text", manifest(`[{"Config":"c.json","Layers":["l.tar"]}]`, config, file{name: "l.tar", body: "text"}), `layer "l.tar" is not in the archive, or is no tar`, errdefs.IsInvalidArgument},
		{"link to itself", manifest(`[{"Config":"c.json","Layers":["l.tar"]}]`, config, file{name: "l.tar", kind: tar.TypeSymlink, link: "l.tar"}), `layer "l.tar" is not in the archive`, errdefs.IsInvalidArgument},
		{"too many layers", manifest(`[{"Config":"c.json","Layers":["l.tar","l.tar"]}]`, config, layer), "configuration lists 1 layers, manifest 2", errdefs.IsInvalidArgument},
		{"other layer", manifest(`[{"Config":"c.json","Layers":["l.tar"]}]`, config, file{name: "l.tar", body: string(tarOf(t, file{name: "evil", body: "x"}))}), "damaged or was tampered with", errdefs.IsInvalidArgument},
		{"bad name", manifest(`[{"Config":"c.json","RepoTags":["BAD NAME"],"Layers":["l.tar"]}]`, config, layer), "invalid reference format", errdefs.IsInvalidArgument},
		{"member twice", manifest(`[]`, layer, layer), "is there twice", errdefs.IsInvalidArgument},
		{"too many members", tarOf(t, many...), "more than 100 members", errdefs.IsResourceExhausted},
		{"long links", gzipped(t, tarOf(t, links...)), "names of the archive are longer than", errdefs.IsResourceExhausted},
		{"too many files", dockerArchive(t, "bad", tarOf(t, many...)), "more than 100 files", errdefs.IsResourceExhausted},
		{"bomb", dockerArchive(t, "bad", gzipped(t, make([]byte, 9<<20))), "larger than 8388608 bytes", errdefs.IsResourceExhausted},
		{"layer blob changed", ociArchive(t, "bad:1", spoil("\x1f\x8b", func(b []byte) []byte { return gzipped(t, busybox(t)) }), good), "damaged or was tampered with", nil},
		{"configuration changed", ociArchive(t, "bad:1", spoil(`{"created"`, func(b []byte) []byte { return append(b, ' ') }), good), "damaged or was tampered with", errdefs.IsInvalidArgument},
		{"index with bad digest", tarOf(t, file{name: "index.json", body: `{"manifests":[{"digest":"sha256:../../etc/passwd"}]}`}), "digest", errdefs.IsInvalidArgument},
		{"index of nothing", tarOf(t, file{name: "index.json", body: `{"manifests":[]}`}), "no image for this platform", errdefs.IsInvalidArgument},
	} {
		t.Run(tt.name, func(t *testing.T) {
			names, err := s.Load(t.Context(), bytes.NewReader(tt.archive), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Load = %q, %v; want an error about %q", names, err, tt.want)
			}
			if tt.kind != nil && !tt.kind(err) {
				t.Errorf("error is of the wrong kind: %v", err)
			}
			noDrafts(t, s)
		})
	}
	if list, err := s.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("images after damaged archives: %v, %v; want none", list, err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := s.layers.all(); len(left) != 0 {
		t.Errorf("layers after damaged archives and a collection: %v", left)
	}
}

func TestLoadOCILayout(t *testing.T) {
	s := openStore(t, Options{})
	base := busybox(t)
	archive := gzipped(t, ociArchive(t, "example.com/oci:1", nil, base, second(t)))
	if names := load(t, s, archive); len(names) != 1 || names[0] != "example.com/oci:1" {
		t.Fatalf("Load = %q", names)
	}
	img, err := s.Get(t.Context(), "example.com/oci:1")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Rootfs(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	checkLayer(t, s, c.Layers[0], base)
}

// FuzzLoad looks for archives that escape, crash or leave something behind.
func FuzzLoad(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("layers are overlay directories, which only root may make")
	}
	small := tarOf(f, file{name: "d/", kind: tar.TypeDir}, file{name: "d/f", body: "x"}, file{name: ".wh.gone"})
	f.Add(dockerArchive(f, "a", small))
	f.Add(ociArchive(f, "a:1", nil, small))
	f.Add(gzipped(f, dockerArchive(f, "a", small)))
	f.Add(tarOf(f, file{name: "l", kind: tar.TypeSymlink, link: "/"}, file{name: "l/x", body: "x"}))
	s, err := Open(f.Context(), Options{Root: f.TempDir(), Limits: Limits{LayerBytes: 1 << 20, Entries: 200}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	_, check := outside(f, s)
	f.Fuzz(func(t *testing.T, archive []byte) {
		names, err := s.Load(t.Context(), bytes.NewReader(archive), nil)
		noDrafts(t, s)
		check(t)
		if err != nil {
			return
		}
		for _, name := range names {
			reload(t, s, name)
		}
	})
}

// reload saves an image and loads the result: it must be the same image.
func reload(t testing.TB, s *Store, name string) {
	t.Helper()
	img, err := s.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var saved bytes.Buffer
	if err := s.Save(t.Context(), &saved, []string{name}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), name, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), &saved, nil); err != nil {
		t.Fatalf("what was saved does not load: %v", err)
	}
	if again, err := s.Get(t.Context(), name); err != nil || again.ID != img.ID {
		t.Fatalf("%s was saved as %s and loaded as %s, %v", name, img.ID, again.ID, err)
	}
}

// FuzzHeaders feeds damaged header streams to the reader that regenerates layers.
func FuzzHeaders(f *testing.F) {
	dir := f.TempDir()
	w, err := newHeaderWriter(dir+"/h", 10)
	if err != nil {
		f.Fatal(err)
	}
	sum := digest.Canonical.Digester()
	split := newSplitter(w, sum.Hash())
	if _, err := split.Write(tarOf(f, file{name: "f", body: "x"})); err != nil {
		f.Fatal(err)
	}
	if err := split.Close(); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(dir + "/h")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := t.TempDir() + "/h"
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := openHeaders(path)
		if err != nil {
			return
		}
		defer r.Close()
		for range 1000 {
			if _, err := r.Next(); err != nil {
				if err == io.EOF && len(raw) == 0 {
					t.Error("an empty file is no header stream")
				}
				return
			}
		}
	})
}
