package buildcontext

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeSymlink, Mode: 0o777}}
}

func hard(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Linkname: target, Typeflag: tar.TypeLink}}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestHostileArchives(t *testing.T) {
	device := entry{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}}
	pipe := entry{Header: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o666}}
	for _, tt := range []struct {
		name    string
		opts    Options
		archive []byte
		want    string
	}{
		{"parent directory", Options{}, pack(t, file("../out", "x")), `build context: entry "../out": name contains ".." and could leave the directory`},
		{"parent directory inside", Options{}, pack(t, file("a/../../out", "x")), `build context: entry "a/../../out": name contains ".." and could leave the directory`},
		{"file below a link", Options{}, pack(t, link("d", "/tmp"), file("d/out", "x")), `build context: entry "d/out": "d" is a symbolic link, and nothing may be stored below one`},
		{"file below a relative link", Options{}, pack(t, link("d", "../.."), file("d/out", "x")), `build context: entry "d/out": "d" is a symbolic link, and nothing may be stored below one`},
		{"directory over a link, then below", Options{}, pack(t, dir("e"), link("e/d", "/tmp"), file("e/d/x/out", "x")), `build context: entry "e/d/x/out": "e/d" is a symbolic link, and nothing may be stored below one`},
		{"hard link outside", Options{}, pack(t, hard("h", "../../etc/passwd")), `build context: entry "h": hard link to "../../etc/passwd": target could leave the directory`},
		{"hard link to an absolute path", Options{}, pack(t, hard("h", "/etc/passwd")), `build context: entry "h": hard link to "/etc/passwd": no such entry earlier in the archive`},
		{"hard link through a link", Options{}, pack(t, link("d", "/etc"), hard("h", "d/passwd")), `build context: entry "h": hard link to "d/passwd": target lies below a symbolic link`},
		{"hard link to a link", Options{}, pack(t, link("d", "/etc/passwd"), hard("h", "d")), `build context: entry "h": hard link to "d": target is not a regular file`},
		{"device", Options{}, pack(t, device), `build context: entry "null": device nodes and pipes are not allowed`},
		{"pipe", Options{}, pack(t, pipe), `build context: entry "pipe": device nodes and pipes are not allowed`},
		{"root as a file", Options{}, pack(t, file(".", "x")), `build context: entry ".": the root must be a directory`},
		{"too many entries", Options{Limits: Limits{Entries: 2}}, pack(t, file("a", ""), file("b", ""), file("c", "")), `build context: more than 2 entries`},
		{"too large", Options{Limits: Limits{Bytes: 10}}, pack(t, file("a", "123456"), file("b", "123456")), `build context: entry "b": more than 10 bytes of content in all`},
		{"bomb", Options{Limits: Limits{Ratio: 100}}, compressed(t, pack(t, file("zeros", strings.Repeat("\x00", 65<<20)))), `build context: expands to more than 100 times its size: refusing a decompression bomb`},
		{"cut short", Options{}, pack(t, file("a", "123456"))[:515], `build context: entry "a": write content: unexpected EOF`},
		{"not an archive", Options{}, []byte(strings.Repeat("no tar ", 200)), `build context: not a readable tar archive: archive/tar: invalid tar header`},
		{"broken gzip", Options{}, []byte("\x1f\x8b\x08 broken"), `build context: gzip: invalid header`},
		{"zero byte", Options{}, pack(t, entry{tar.Header{Name: "a", PAXRecords: map[string]string{"SLIPWAY.x": "y"}, Typeflag: tar.TypeReg, Format: tar.FormatPAX}, ""}, file(strings.Repeat("n", 256), "")), fmt.Sprintf("build context: entry %q: a name longer than 255 bytes", strings.Repeat("n", 64)+"...")},
		{"whiteout device in ADD", Options{Kind: `archive "t"`, Devices: true, KeepOwner: true}, pack(t, entry{Header: tar.Header{Name: "w", Typeflag: tar.TypeChar}}), `archive "t": entry "w": character device 0:0 would hide the file below as an overlay whiteout`},
		{"overlay attribute in ADD", Options{Kind: `archive "t"`, KeepOwner: true}, pack(t, entry{tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}, Format: tar.FormatPAX}, ""}), `archive "t": entry "f": extended attribute trusted.overlay.redirect belongs to the overlay file system`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			root := filepath.Join(parent, "root")
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			err := Extract(context.Background(), bytes.NewReader(tt.archive), root, tt.opts)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error is\n%v\nwant\n%s", err, tt.want)
			}
			entries, err := os.ReadDir(parent)
			if err != nil || len(entries) != 1 {
				t.Errorf("beside the root there is %v (%v)", entries, err)
			}
		})
	}
}

func compressed(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestFollowedParentsStayInside checks that ADD resolves links as chroot would.
func TestFollowedParentsStayInside(t *testing.T) {
	parent := t.TempDir()
	root := filepath.Join(parent, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	data := pack(t, link("up", "../../.."), file("up/escaped", "x"), link("abs", "/"), file("abs/etc/f", "y"))
	err := Extract(context.Background(), bytes.NewReader(data), root, Options{FollowParents: true, KeepOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"escaped", "etc/f"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("%s is not in the root: %v", name, err)
		}
	}
	if entries, _ := os.ReadDir(parent); len(entries) != 1 {
		t.Errorf("beside the root there is %v", entries)
	}
}

// A directory's time is set last of all, when a later entry may have put a symbolic link
// on the way to it.
func TestDirectoryTimesStayInside(t *testing.T) {
	for name, opts := range map[string]Options{"context": {}, "ADD": {KeepOwner: true, FollowParents: true}} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			victim := filepath.Join(outside, "victim")
			if err := os.Mkdir(victim, 0o755); err != nil {
				t.Fatal(err)
			}
			old, made := time.Unix(1_000_000_000, 0), time.Unix(1_500_000_000, 0)
			if err := os.Chtimes(victim, old, old); err != nil {
				t.Fatal(err)
			}
			kept, lost := dir("kept"), dir("d/victim")
			kept.ModTime, lost.ModTime = made, made
			root := t.TempDir()
			if err := Extract(t.Context(), bytes.NewReader(pack(t, kept, dir("d"), lost, link("d", outside))), root, opts); err != nil {
				t.Fatal(err)
			}
			for p, want := range map[string]time.Time{victim: old, filepath.Join(root, "kept"): made} {
				st, err := os.Stat(p)
				if err != nil {
					t.Fatal(err)
				}
				if !st.ModTime().Equal(want) {
					t.Errorf("%s has time %v, want %v", p, st.ModTime(), want)
				}
			}
		})
	}
}

func TestCompressions(t *testing.T) {
	plain := pack(t, file("f", "content"))
	for _, tt := range []struct {
		name string
		pack func([]byte) ([]byte, error)
	}{
		{"none", func(p []byte) ([]byte, error) { return p, nil }},
		{"gzip", func(p []byte) ([]byte, error) { return compressed(t, p), nil }},
		{"zstd", func(p []byte) ([]byte, error) {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				return nil, err
			}
			return w.EncodeAll(p, nil), nil
		}},
		{"bzip2", filter("bzip2")},
		{"xz", func([]byte) ([]byte, error) { return xzArchive(t), nil }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			data, err := tt.pack(plain)
			if err != nil {
				t.Skipf("cannot make the archive: %v", err)
			}
			root := t.TempDir()
			if err := Extract(context.Background(), bytes.NewReader(data), root, Options{}); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(got) != "content" {
				t.Errorf("f holds %q, %v; want %q", got, err, "content")
			}
		})
	}
}

// xzArchive is a tar of the file f, compressed by `xz`, which Go can read but not write.
func xzArchive(t *testing.T) []byte {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(`/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AFtdADMAM1AYaImDAdzibiEFX+y+Q1pTw5Ws0GXNe6xtgtmN51QpqcP1uF7d9YuWpTBW2q2KO2yLl8TWLIL+lgsShiRzwxuJsv8Whq87Ny3K6d3EIP/+Gx0w5r90AAAAAKpx5MeoYkOEAAF3gFAAAACUVpmvscRn+wIAAAAABFla`)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What an xz block says that it needs is what a decoder would allocate: up to four gigabytes.
func TestXzDictionaryIsBounded(t *testing.T) {
	data := xzArchive(t)
	block := data[12 : 12+4*(int(data[12])+1)] // the header of the first block, its checksum last
	block[4] = 40                              // the dictionary's size: 4 GiB
	binary.LittleEndian.PutUint32(block[len(block)-4:], crc32.ChecksumIEEE(block[:len(block)-4]))
	err := Extract(context.Background(), bytes.NewReader(data), t.TempDir(), Options{})
	if err == nil || !strings.Contains(err.Error(), ErrWindow.Error()) {
		t.Errorf("Extract = %v; want an error about the window", err)
	}
}

func filter(program string) func([]byte) ([]byte, error) {
	return func(p []byte) ([]byte, error) {
		cmd := exec.Command(program, "-c")
		cmd.Stdin = bytes.NewReader(p)
		return cmd.Output()
	}
}

func TestNamesAreReadAsWritten(t *testing.T) {
	root := t.TempDir()
	data := pack(t, link("dir", "/etc"), file("dir/../foo", "content"))
	if err := Extract(context.Background(), bytes.NewReader(data), root, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, "foo")); err != nil || string(got) != "content" {
		t.Errorf("dir/../foo is %q, %v; want foo, whatever dir is", got, err)
	}
}

func TestLastEntryWins(t *testing.T) {
	root := t.TempDir()
	index := NewIndex()
	data := pack(t, dir("a"), file("a/b", "1"), file("a", "now a file"), file("c", "1"), dir("c"), file("c/d", "2"), link("e", "c"), file("e", "3"))
	if err := Extract(context.Background(), bytes.NewReader(data), root, Options{Index: index}); err != nil {
		t.Fatal(err)
	}
	if got, want := paths(index), []string{"a", "c", "c/d", "e"}; !slices.Equal(got, want) {
		t.Errorf("index has %q; want %q", got, want)
	}
	checkIndex(t, root, index)
}

func paths(x *Index) []string {
	var out []string
	for _, e := range x.Entries {
		out = append(out, e.Path)
	}
	return out
}

// checkIndex compares an index with what is on disk.
func checkIndex(t testing.TB, root string, x *Index) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		if rel == "." {
			return nil
		}
		seen++
		e, ok := x.Lookup(rel)
		if !ok {
			t.Errorf("%q is on disk and not in the index", rel)
			return nil
		}
		if e.IsDir() != d.IsDir() || e.IsSymlink() != (d.Type()&fs.ModeSymlink != 0) {
			t.Errorf("%q is a %v on disk and mode %o in the index", rel, d.Type(), e.Mode)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if seen != len(x.Entries) {
		t.Errorf("%d entries on disk, %d in the index", seen, len(x.Entries))
	}
}

func TestComparePathsIsWalkOrder(t *testing.T) {
	want := []string{"a", "a/b", "a/b/c", "a/d", "a-b", "a.b", "ab"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, ComparePaths)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q; want %q", got, want)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(pack(f, dir("d"), file("d/f", "body"), link("l", "d"), hard("h", "d/f")))
	f.Add(pack(f, link("d", "/tmp"), file("d/out", "x")))
	f.Add(pack(f, file("a/b/c", "x"), file("a", "y"), dir("a")))
	f.Add(compressed(f, pack(f, file("f", "body"))))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		root := filepath.Join(parent, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		index := NewIndex()
		opts := Options{Limits: Limits{Bytes: 1 << 20, Entries: 100}, Index: index}
		err := Extract(context.Background(), bytes.NewReader(data), root, opts)
		if entries, _ := os.ReadDir(parent); len(entries) != 1 {
			t.Fatalf("beside the root there is %v", entries)
		}
		if err == nil {
			checkIndex(t, root, index)
		}
	})
}

func openStore(t testing.TB, dir string) *Store { return openIn(t, dir, "this boot") }

func openIn(t testing.TB, dir, boot string) *Store {
	t.Helper()
	s, err := Open(dir, Limits{}, boot, time.Now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Trees are not forced to disk: after a power cut files of theirs may be empty, those of
// the store's own too.
func TestTreesOfAnotherBootAreNotBelieved(t *testing.T) {
	d := t.TempDir()
	s := openIn(t, d, "first boot")
	ids := map[string]string{}
	for _, body := range []string{"one", "two"} {
		ref, err := s.Ingest(t.Context(), bytes.NewReader(pack(t, file("f", body))))
		if err != nil {
			t.Fatal(err)
		}
		ids[body] = ref.ID
	}
	s.Close()
	again := openIn(t, d, "first boot")
	if len(again.List()) != 2 {
		t.Fatalf("reopened in the same boot: %v, want both trees", again.List())
	}
	again.Close()

	for _, cut := range []string{filepath.Join(s.Root(ids["one"]), "f"), filepath.Join(d, ids["two"], "bytes")} {
		if err := os.Truncate(cut, 0); err != nil {
			t.Fatal(err)
		}
	}
	after := openIn(t, d, "second boot")
	if len(after.List()) != 0 {
		t.Errorf("reopened in another boot: %v, want no tree", after.List())
	}
	ref, err := after.Ingest(t.Context(), bytes.NewReader(pack(t, file("f", "one"))))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(after.Root(ref.ID), "f")); err != nil || string(got) != "one" {
		t.Errorf("sent again: %q, %v", got, err)
	}
}

func TestStoreKeepsEqualContextsOnce(t *testing.T) {
	d := t.TempDir()
	s := openStore(t, d)
	data := pack(t, dir("d"), file("d/f", "1"), file("g", "2"))
	ref, err := s.Ingest(context.Background(), bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Ingest(context.Background(), bytes.NewReader(data))
	if err != nil || again.ID != ref.ID || len(s.List()) != 1 {
		t.Errorf("second upload is %v (%v), %d trees; want %s and 1", again, err, len(s.List()), ref.ID)
	}
	if ok, err := s.Remove(ref.ID); ok || err != nil {
		t.Errorf("a context in use was removed: %v, %v", ok, err)
	}
	ref.Release()
	ref.Release()
	again.Release()
	s = openStore(t, d)
	index, err := s.Index(ref.ID)
	if err != nil || !slices.Equal(paths(index), []string{"d", "d/f", "g"}) {
		t.Errorf("after a restart the index is %v, %v", index, err)
	}
	if s.Bytes() != 2 {
		t.Errorf("Bytes = %d; want 2", s.Bytes())
	}
	view, err := s.Dir(context.Background(), View{ID: ref.ID, Excludes: []string{"*", "!d/f"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := filepath.Glob(view + "/*"); len(got) != 1 {
		t.Errorf("view holds %v; want d", got)
	}
	if ok, err := s.Remove(ref.ID); !ok || err != nil {
		t.Errorf("Remove = %v, %v", ok, err)
	}
	if left, _ := os.ReadDir(d); len(left) != 0 {
		t.Errorf("directory holds %v after the last tree went", left)
	}
}

func TestPackGivesTheSameBytes(t *testing.T) {
	d := t.TempDir()
	for name, body := range map[string]string{"Dockerfile": "FROM x", ".dockerignore": "skip\n*.log\n!keep.log\n", "a.log": "1", "keep.log": "2", "skip/x": "3", "d/e/f": "4"} {
		p := filepath.Join(d, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var one, two bytes.Buffer
	if err := Pack(context.Background(), &one, d, "Dockerfile"); err != nil {
		t.Fatal(err)
	}
	if err := Pack(context.Background(), &two, d, "Dockerfile"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("packing twice gave different archives")
	}
	var names []string
	tr := tar.NewReader(&one)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{".dockerignore", "Dockerfile", "d/", "d/e/", "d/e/f", "keep.log"}; !slices.Equal(names, want) {
		t.Errorf("archive holds %q; want %q", names, want)
	}
}
