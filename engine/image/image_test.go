package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// openStore opens a store in a directory of the test's own.
func openStore(t testing.TB, o Options) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("layers are overlay directories, which only root may make")
	}
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// file is one member of a tar in a test.
type file struct {
	name, body, link string
	kind             byte
	mode             int64
	xattrs           map[string]string
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Size: int64(len(f.body)), Mode: f.mode, Linkname: f.link, ModTime: time.Unix(1700000000, 0), PAXRecords: map[string]string{}}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		for k, v := range f.xattrs {
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func busybox(t testing.TB) []byte {
	t.Helper()
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs busybox-static in /bin/busybox: ", err)
	}
	return tarOf(t,
		file{name: "bin/", kind: tar.TypeDir}, file{name: "bin/busybox", body: string(bin)}, file{name: "bin/sh", kind: tar.TypeLink, link: "bin/busybox"},
		file{name: "etc/", kind: tar.TypeDir}, file{name: "etc/passwd", body: "root:x:0:0:root:/:/bin/sh\n", mode: 0o644},
		file{name: "tmp/", kind: tar.TypeDir, mode: 0o1777}, file{name: "tmp/gone", body: "soon"},
	)
}

func configOf(t testing.TB, layers ...[]byte) []byte {
	t.Helper()
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	created := time.Unix(1700000000, 0).UTC()
	cfg.Created = &created
	cfg.Config.Cmd = []string{"/bin/sh"}
	for i, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, digest.FromBytes(l))
		cfg.History = append(cfg.History, ocispec.History{CreatedBy: fmt.Sprint("step ", i+1), Created: &created})
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// dockerArchive is what `docker save` wrote before it wrote OCI layouts.
func dockerArchive(t testing.TB, tag string, layers ...[]byte) []byte {
	t.Helper()
	m := dockerManifest{Config: "config.json", RepoTags: []string{tag}}
	files := []file{{name: "config.json", body: string(configOf(t, layers...))}}
	for i, l := range layers {
		name := fmt.Sprintf("%d/layer.tar", i)
		m.Layers = append(m.Layers, name)
		files = append(files, file{name: name, body: string(l)})
	}
	raw, err := json.Marshal([]dockerManifest{m})
	if err != nil {
		t.Fatal(err)
	}
	return tarOf(t, append(files, file{name: "manifest.json", body: string(raw)})...)
}

func load(t testing.TB, s *Store, archive []byte) []string {
	t.Helper()
	names, err := s.Load(t.Context(), bytes.NewReader(archive), nil)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func second(t testing.TB) []byte {
	return tarOf(t, file{name: "tmp/.wh.gone"}, file{name: "tmp/new", body: "here"}, file{name: "app", body: "v1"})
}

func TestLoadUnpackAndReopen(t *testing.T) {
	root := t.TempDir()
	s := openStore(t, Options{Root: root})
	base, top := busybox(t), second(t)
	if names := load(t, s, dockerArchive(t, "busybox:1", base, top)); len(names) != 1 || names[0] != "busybox:1" {
		t.Fatalf("Load = %v; want busybox:1", names)
	}
	img, err := s.Get(t.Context(), "busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Rootfs(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain.Lower) != 2 || chain.Lower[0] != chain.Layers[1].Dir {
		t.Fatalf("chain = %+v; want two directories, top-most first", chain)
	}
	checkView(t, s, chain.ChainID)
	for i, want := range [][]byte{base, top} {
		checkLayer(t, s, chain.Layers[i], want)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	s.collect, s.bolt, s.backing = again.collect, again.bolt, again.backing // closed by openStore's cleanup
	if reread, err := again.Get(t.Context(), img.ID.Encoded()[:12]); err != nil || reread.ID != img.ID {
		t.Fatalf("after reopening, Get = %v, %v; want %v", reread.ID, err, img.ID)
	}
}

func checkView(t *testing.T, s *Store, chain digest.Digest) {
	t.Helper()
	dir, unmount, err := s.Mount(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer unmount()
	if _, err := os.Lstat(filepath.Join(dir, "tmp/gone")); !os.IsNotExist(err) {
		t.Errorf("tmp/gone: %v; want it hidden by the second layer's whiteout", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "tmp/new")); err != nil || string(b) != "here" {
		t.Errorf("tmp/new = %q, %v", b, err)
	}
	fi, err := os.Stat(filepath.Join(dir, "tmp"))
	if err != nil || fi.Mode()&os.ModeSticky == 0 || fi.Mode().Perm() != 0o777 {
		t.Errorf("tmp has mode %v, %v; want 1777 as in the layer below, for the second layer does not list it", fi.Mode(), err)
	}
}

func checkLayer(t testing.TB, s *Store, l Layer, want []byte) {
	t.Helper()
	r, size, err := s.OpenLayer(t.Context(), l.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if size != int64(len(want)) || !bytes.Equal(got, want) {
		t.Errorf("layer %s comes back as %d bytes (%s), announced as %d; want the %d bytes that were loaded", l.DiffID, len(got), digest.FromBytes(got), size, len(want))
	}
}

// An archive that xz compressed is a root file system like any other: most distributions publish theirs so.
func TestImportXz(t *testing.T) {
	const archive = `/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AFtdADMAM1AYaImDAdzibiEFX+y+Q1pTw5Ws0GXNe6xtgtmN51QpqcP1uF7d9YuWpTBW2q2KO2yLl8TWLIL+lgsShiRzwxuJsv8Whq87Ny3K6d3EIP/+Gx0w5r90AAAAAKpx5MeoYkOEAAF3gFAAAACUVpmvscRn+wIAAAAABFla` // of one file f
	s := openStore(t, Options{})
	img, err := s.Import(t.Context(), base64.NewDecoder(base64.StdEncoding, strings.NewReader(archive)), "xz", ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.Rootfs(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(chain.Lower[0], "f")); err != nil || string(got) != "content" {
		t.Errorf("f holds %q, %v; want %q", got, err, "content")
	}
}

func TestBuildALayer(t *testing.T) {
	s := openStore(t, Options{})
	load(t, s, dockerArchive(t, "base", busybox(t)))
	img, err := s.Get(t.Context(), "base")
	if err != nil {
		t.Fatal(err)
	}
	ctx, done, err := s.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	chain, err := s.Rootfs(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	l := writeLayer(t, s, ctx, chain.ChainID, func(root string) error {
		if err := os.Remove(root + "/tmp/gone"); err != nil {
			return err
		}
		return os.WriteFile(root+"/etc/motd", []byte("hello"), 0o644)
	})
	built, err := s.WriteImage(ctx, configOf(t), l.ChainID, []string{"built:1", "built:2"})
	if err != nil {
		t.Fatal(err)
	}
	if len(built.Manifest.Layers) != 2 || built.Manifest.Layers[1].Digest != l.DiffID || len(built.Names) != 2 {
		t.Fatalf("built image = %+v", built)
	}
	r, _, err := s.OpenLayer(ctx, l.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if raw, err := io.ReadAll(r); err != nil || digest.FromBytes(raw) != l.DiffID {
		t.Fatalf("the built layer comes back as %s, %v; want %s", digest.FromBytes(raw), err, l.DiffID)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rootfs(t.Context(), built); err != nil {
		t.Fatalf("after a collection: %v", err)
	}
}

// writeLayer makes a layer by changing files in a mounted draft.
func writeLayer(t testing.TB, s *Store, ctx context.Context, parent digest.Digest, edit func(root string) error) Layer {
	t.Helper()
	d, err := s.NewLayer(ctx, parent)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Discard()
	root := t.TempDir()
	for _, m := range d.Mounts() {
		if err := m.Mount(root); err != nil {
			t.Fatal(err)
		}
	}
	err = edit(root)
	s.unview(root)
	if err != nil {
		t.Fatal(err)
	}
	l, err := d.Commit(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
