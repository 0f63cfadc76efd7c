package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/image"
)

// bench is a builder over a fresh data directory.
type bench struct {
	testing.TB
	dir    string
	images *image.Store
	b      *build.Builder
	opts   build.Options
}

func newBench(t testing.TB, change ...func(*build.Options)) *bench {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("building mounts overlays: run as root")
	}
	x := &bench{TB: t, dir: t.TempDir()}
	for _, fn := range change {
		fn(&x.opts)
	}
	x.open()
	t.Cleanup(x.close)
	return x
}

func (x *bench) open() {
	x.Helper()
	ctx := context.Background()
	log := slog.New(slog.NewTextHandler(testWriter{x.TB}, nil))
	var err error
	if x.images, err = image.Open(ctx, image.Options{Root: x.dir, Log: log}); err != nil {
		x.Fatal(err)
	}
	o := x.opts
	o.Dir, o.Images, o.Log = filepath.Join(x.dir, "build"), x.images, log
	if x.b, err = build.New(ctx, o); err != nil {
		x.Fatal(err)
	}
}

func (x *bench) close() {
	if err := x.b.Close(); err != nil {
		x.Errorf("close builder: %v", err)
	}
	if err := x.images.Close(); err != nil {
		x.Errorf("close images: %v", err)
	}
}

// TestDamagedCacheRecords checks that records a power cut spoiled cost their results, and
// are gone.
func TestDamagedCacheRecords(t *testing.T) {
	x := newBench(t)
	f := files{"Dockerfile": "FROM scratch\nCOPY a /a\nCOPY b /b\n", "a": "1", "b": "2"}
	x.mustBuild(request(f))
	x.close()
	spoilRecords(t, filepath.Join(x.dir, "build", "results.db"))
	x.open()
	for _, want := range []bool{true, false} {
		_, p := x.mustBuild(request(f))
		if ran := len(p.ran()) > 0; ran != want {
			t.Errorf("ran %q; steps should run: %v", p.ran(), want)
		}
	}
}

// spoilRecords cuts every record of the closed build cache short.
func spoilRecords(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	records := map[string][]byte{}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("results"))
		err := b.ForEach(func(k, v []byte) error {
			records[string(k)] = bytes.Clone(v[:len(v)/2])
			return nil
		})
		for k, v := range records {
			err = errors.Join(err, b.Put([]byte(k), v))
		}
		return err
	})
	if err != nil || len(records) == 0 {
		t.Fatalf("spoil the build cache: %d records, %v", len(records), err)
	}
}

// reopen is a restart of the daemon.
func (x *bench) reopen() {
	x.close()
	x.open()
}

type testWriter struct{ testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.Helper()
	w.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// files are the entries of a context: name to content; "name -> target" is a link, a
// trailing slash a directory, "name*0755" a file with a mode.
type files map[string]string

var epoch = time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)

func (f files) tar() []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, name := range names {
		content := f[name]
		h := &tar.Header{Name: name, Mode: 0o644, ModTime: epoch, Typeflag: tar.TypeReg}
		switch {
		case strings.HasSuffix(name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case strings.Contains(name, " -> "):
			h.Name, h.Linkname, _ = strings.Cut(name, " -> ")
			h.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(name, "*0755"):
			h.Name, h.Mode = strings.TrimSuffix(name, "*0755"), 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				panic(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

// steps records progress by step name.
type steps struct {
	mu     sync.Mutex
	byName map[string]*client.Vertex
	output strings.Builder
}

func (s *steps) Dockerfile([]byte, string) {}

func (s *steps) Status(st *client.SolveStatus, _ map[string][]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName == nil {
		s.byName = map[string]*client.Vertex{}
	}
	for _, v := range st.Vertexes {
		s.byName[v.Name] = v
	}
	for _, l := range st.Logs {
		s.output.Write(l.Data)
	}
}

// ran returns the names of steps that did their work anew, without internal ones.
func (s *steps) ran() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name, v := range s.byName {
		if v.Completed != nil && !v.Cached && !strings.HasPrefix(name, "[internal]") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (x *bench) build(req build.Request) (*build.Result, *steps, error) {
	p := &steps{}
	res, err := x.b.Build(context.Background(), req, p)
	return res, p, err
}

func (x *bench) mustBuild(req build.Request) (*build.Result, *steps) {
	x.Helper()
	res, p, err := x.build(req)
	if err != nil {
		x.Fatalf("build: %v\n%s", err, p.output.String())
	}
	return res, p
}

func request(f files) build.Request { return build.Request{Context: bytes.NewReader(f.tar())} }

// root mounts the image and returns its directory until the test ends.
func (x *bench) root(img image.Image) string {
	x.Helper()
	chain, err := x.images.Rootfs(context.Background(), img)
	if err != nil {
		x.Fatal(err)
	}
	dir, unmount, err := x.images.Mount(context.Background(), chain.ChainID)
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(unmount)
	return dir
}

// listing is what an image holds: "path mode uid:gid content" per entry.
func (x *bench) listing(img image.Image) string {
	x.Helper()
	root := x.root(img)
	var b strings.Builder
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			return nil
		}
		b.WriteString(describe(p, rel) + "\n")
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
	return b.String()
}

func describe(p, rel string) string {
	st, err := os.Lstat(p)
	if err != nil {
		return rel + ": " + err.Error()
	}
	uid, gid := owner(st)
	s := path.Join("/", rel) + " " + st.Mode().String()
	if uid != 0 || gid != 0 {
		s += " " + fmt.Sprintf("%d:%d", uid, gid)
	}
	switch {
	case st.Mode()&os.ModeSymlink != 0:
		target, _ := os.Readlink(p)
		s += " -> " + target
	case st.Mode().IsRegular():
		data, _ := os.ReadFile(p)
		if len(data) > 1000 {
			data = []byte(fmt.Sprintf("(%d bytes)", len(data)))
		}
		s += " " + strings.TrimSpace(string(data))
	}
	return s
}

func TestScratchCopy(t *testing.T) {
	x := newBench(t)
	res, _ := x.mustBuild(build.Request{Context: bytes.NewReader(files{
		"Dockerfile": "FROM scratch\nCOPY hello.txt /a/b/\nENV GREETING=hi\nCMD [\"/a/b/hello.txt\"]\n",
		"hello.txt":  "hello\n",
	}.tar()), Tags: []string{"hello"}})
	got := x.listing(res.Image)
	want := "/a drwxr-xr-x\n/a/b drwxr-xr-x\n/a/b/hello.txt -rw-r--r-- hello\n"
	if got != want {
		t.Errorf("image holds\n%s; want\n%s", got, want)
	}
	img, err := x.images.Get(context.Background(), "hello:latest")
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != res.ImageID {
		t.Errorf("hello:latest is %s; want %s", img.ID, res.ImageID)
	}
	if got := img.Config.Config.Env; !slices.Contains(got, "GREETING=hi") {
		t.Errorf("Env = %q; want GREETING=hi in it", got)
	}
	var config ocispec.Image
	if err := json.Unmarshal(img.RawConfig, &config); err != nil {
		t.Fatal(err)
	}
	if config.Created == nil || len(config.History) != 3 {
		t.Errorf("created %v, history %+v; want a time and 3 entries", config.Created, config.History)
	}
}

func TestRebuildIsTheSameImage(t *testing.T) {
	x := newBench(t)
	f := files{"Dockerfile": "FROM scratch\nCOPY a b /\nWORKDIR /w\n", "a": "1", "b": "2"}
	first, p := x.mustBuild(request(f))
	if len(p.ran()) != 2 {
		t.Errorf("first build ran %q; want both steps", p.ran())
	}
	second, p := x.mustBuild(request(f))
	if second.ImageID != first.ImageID || len(p.ran()) != 0 {
		t.Errorf("rebuild gave %s and ran %q; want %s and nothing", second.ImageID, p.ran(), first.ImageID)
	}
	x.reopen()
	third, p := x.mustBuild(request(f))
	if third.ImageID != first.ImageID || len(p.ran()) != 0 {
		t.Errorf("rebuild after a restart gave %s and ran %q; want %s and nothing", third.ImageID, p.ran(), first.ImageID)
	}
	f["b"] = "3"
	fourth, p := x.mustBuild(request(f))
	if fourth.ImageID == first.ImageID || len(p.ran()) != 2 {
		t.Errorf("rebuild with a changed file gave the same image or ran %q", p.ran())
	}
}
