package image

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"
)

// bigLayer is a layer of n files of size bytes, which do not compress.
func bigLayer(b *testing.B, n, size int) []byte {
	files := []file{{name: "data/", kind: '5'}}
	for i := range n {
		body := make([]byte, size)
		_, _ = rand.Read(body)
		files = append(files, file{name: fmt.Sprintf("data/%06d", i), body: string(body)})
	}
	return tarOf(b, files...)
}

func drop(b *testing.B, s *Store, name string) {
	b.StopTimer()
	defer b.StartTimer()
	if _, err := s.Remove(b.Context(), name, RemoveOptions{Force: true}); err != nil {
		b.Fatal(err)
	}
	if err := s.GC(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func benchmarkLoad(b *testing.B, layers ...[]byte) {
	s := openStore(b, Options{})
	archive := dockerArchive(b, "bench", layers...)
	b.SetBytes(int64(len(archive)))
	for b.Loop() {
		load(b, s, archive)
		drop(b, s, "bench")
	}
}

func BenchmarkLoad64MB(b *testing.B) { benchmarkLoad(b, bigLayer(b, 64, 1<<20)) }

func BenchmarkLoad10000Files(b *testing.B) { benchmarkLoad(b, bigLayer(b, 10000, 512)) }

func BenchmarkLoad200Layers(b *testing.B) {
	layers := make([][]byte, 200)
	for i := range layers {
		layers[i] = tarOf(b, file{name: fmt.Sprint("f", i), body: "x"})
	}
	benchmarkLoad(b, layers...)
}

// BenchmarkCommitLayer is what a RUN or COPY with one small file costs the store.
func BenchmarkCommitLayer(b *testing.B) {
	s := openStore(b, Options{})
	load(b, s, dockerArchive(b, "base", busybox(b)))
	img, err := s.Get(b.Context(), "base")
	if err != nil {
		b.Fatal(err)
	}
	ctx, done, err := s.Lease(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer done()
	n := 0
	for b.Loop() {
		d, err := s.NewLayer(ctx, ChainID(img.Config.RootFS.DiffIDs))
		if err != nil {
			b.Fatal(err)
		}
		n++
		if err := os.WriteFile(d.Upper+"/file", fmt.Append(nil, n), 0o644); err != nil {
			b.Fatal(err)
		}
		if _, err := d.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommitLayer64MB shows what digesting a large layer costs.
func BenchmarkCommitLayer64MB(b *testing.B) {
	s := openStore(b, Options{})
	ctx, done, err := s.Lease(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer done()
	body := make([]byte, 64<<20)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		b.StopTimer()
		_, _ = rand.Read(body[:64])
		d, err := s.NewLayer(ctx, "")
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(d.Upper+"/file", body, 0o644); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := d.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteImage is the end of a build: configuration, manifest, sync and name.
func BenchmarkWriteImage(b *testing.B) {
	s := openStore(b, Options{})
	load(b, s, dockerArchive(b, "base", busybox(b)))
	img, err := s.Get(b.Context(), "base")
	if err != nil {
		b.Fatal(err)
	}
	top := ChainID(img.Config.RootFS.DiffIDs)
	for _, changed := range []bool{true, false} {
		b.Run(fmt.Sprintf("changed=%v", changed), func(b *testing.B) {
			n := 0
			for b.Loop() {
				if changed {
					n++
				}
				if _, err := s.WriteImage(b.Context(), fmt.Appendf(nil, `{"os":"linux","comment":"%v %d"}`, changed, n), top, []string{"app"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpenLayer64MB(b *testing.B) {
	s := openStore(b, Options{})
	layer := bigLayer(b, 64, 1<<20)
	load(b, s, dockerArchive(b, "bench", layer))
	b.SetBytes(int64(len(layer)))
	for b.Loop() {
		r, _, err := s.OpenLayer(b.Context(), digest.FromBytes(layer))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		closeQuietly(r)
	}
}

func BenchmarkGet(b *testing.B) {
	s := openStore(b, Options{})
	load(b, s, dockerArchive(b, "bench", second(b)))
	for i := range 500 {
		if err := s.Tag(b.Context(), "bench", fmt.Sprintf("other:%d", i)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.Get(b.Context(), "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen is what the store adds to the daemon's start, with 100 images.
func BenchmarkOpen(b *testing.B) {
	root := b.TempDir()
	s := openStore(b, Options{Root: root})
	for i := range 100 {
		archive := dockerArchive(b, fmt.Sprintf("app:%d", i), tarOf(b, file{name: "n", body: fmt.Sprint(i)}))
		if _, err := s.Load(b.Context(), bytes.NewReader(archive), nil); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		again, err := Open(b.Context(), Options{Root: root})
		if err != nil {
			b.Fatal(err)
		}
		s.collect, s.bolt, s.backing = again.collect, again.bolt, again.backing
	}
}

// BenchmarkCompress is what a push elsewhere costs the first time.
func BenchmarkCompress(b *testing.B) {
	s := openStore(b, Options{})
	layer := busybox(b)
	load(b, s, dockerArchive(b, "bench", layer))
	b.SetBytes(int64(len(layer)))
	for b.Loop() {
		f, _, err := s.compress(b.Context(), digest.FromBytes(layer))
		if err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(f)
	}
}
