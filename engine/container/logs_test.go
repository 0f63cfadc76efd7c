package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

type imageConfig = dockerspec.DockerOCIImageConfig

func mkWhiteout(p string) error { return unix.Mknod(p, unix.S_IFCHR, 0) }
func setOpaque(dir string) error {
	return unix.Setxattr(dir, opaqueXattr, []byte("y"), 0)
}

// logbook writes a log as the warden does.
type logbook struct {
	t    *testing.T
	path string
	n    int
}

func (l *logbook) write(count int) {
	l.t.Helper()
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	for range count {
		stream := []string{"stdout", "stderr"}[l.n%2]
		fmt.Fprintf(f, `{"log":"line %d\n","stream":%q,"time":%q}`+"\n", l.n, stream, time.Unix(int64(l.n), 0).UTC().Format(time.RFC3339Nano))
		l.n++
	}
}

func (l *logbook) rotate(files int) {
	for i := files - 1; i > 0; i-- {
		from := l.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", l.path, i-1)
		}
		os.Rename(from, fmt.Sprintf("%s.%d", l.path, i))
	}
	l.write(0)
}

func newReader(t *testing.T, path string, o LogOptions) *LogReader {
	t.Helper()
	r := &LogReader{o: o, path: path, files: 3}
	r.ctx, r.cancel = context.WithCancel(t.Context())
	if err := r.begin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func readAll(t *testing.T, r *LogReader) string {
	t.Helper()
	var b strings.Builder
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(strings.TrimPrefix(strings.TrimSpace(string(e.Line)), "line ") + " ")
	}
}

func TestLogSelection(t *testing.T) {
	l := &logbook{t: t, path: filepath.Join(t.TempDir(), "log")}
	l.write(3)
	l.rotate(3)
	l.write(3)
	l.rotate(3)
	l.write(2)
	both := LogOptions{Stdout: true, Stderr: true, Tail: -1}
	for _, tt := range []struct {
		name string
		edit func(o *LogOptions)
		want string
	}{
		{"all", func(*LogOptions) {}, "0 1 2 3 4 5 6 7 "},
		{"stdout", func(o *LogOptions) { o.Stderr = false }, "0 2 4 6 "},
		{"tail in the last file", func(o *LogOptions) { o.Tail = 1 }, "7 "},
		{"tail over files", func(o *LogOptions) { o.Tail = 4 }, "4 5 6 7 "},
		{"tail of more than there is", func(o *LogOptions) { o.Tail = 100 }, "0 1 2 3 4 5 6 7 "},
		{"tail 0", func(o *LogOptions) { o.Tail = 0 }, ""},
		{"since", func(o *LogOptions) { o.Since = time.Unix(5, 0) }, "5 6 7 "},
		{"until", func(o *LogOptions) { o.Until = time.Unix(2, 0) }, "0 1 2 "},
	} {
		o := both
		tt.edit(&o)
		if got := readAll(t, newReader(t, l.path, o)); got != tt.want {
			t.Errorf("%s: read %q; want %q", tt.name, got, tt.want)
		}
	}
}

func TestFollowOverRotation(t *testing.T) {
	l := &logbook{t: t, path: filepath.Join(t.TempDir(), "log")}
	l.write(1)
	f := newFollower()
	defer f.close()
	ended := make(chan struct{})
	r := newReader(t, l.path, LogOptions{Stdout: true, Stderr: true, Tail: -1})
	var err error
	if r.watch, err = f.watch(filepath.Dir(l.path)); err != nil {
		t.Fatal(err)
	}
	r.ended = ended
	got := make(chan string)
	go func() {
		var b strings.Builder
		for {
			e, err := r.Next()
			if err != nil {
				got <- b.String()
				return
			}
			b.Write(e.Line)
			got <- ""
		}
	}()
	step := func(n int) {
		for range n {
			<-got
		}
	}
	step(1)
	l.write(2)
	step(2)
	l.rotate(3)
	l.write(2)
	step(2)
	l.rotate(3) // twice before the reader looks
	l.write(1)
	l.rotate(3)
	l.write(1)
	step(2)
	l.write(1)
	close(ended)
	step(1)
	if all := <-got; strings.Count(all, "\n") != l.n || !strings.HasSuffix(all, fmt.Sprintf("line %d\n", l.n-1)) {
		t.Errorf("follower saw %q; want all %d lines", all, l.n)
	}
}

// FuzzLogReader: whatever is in the file, reading ends and a valid line is found again.
func FuzzLogReader(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n"))
	f.Add([]byte("\x00\xff{\n\n\"log\"}"))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		path := filepath.Join(t.TempDir(), "log")
		os.WriteFile(path, append(append(garbage, '\n'), `{"log":"end\n","stream":"stdout","time":"2026-01-02T03:04:05Z"}`+"\n"...), 0o600)
		r := newReader(t, path, LogOptions{Stdout: true, Stderr: true, Tail: -1})
		last := ""
		for {
			e, err := r.Next()
			if err != nil {
				break
			}
			last = string(e.Line)
		}
		if last != "end\n" {
			t.Fatalf("after garbage the last line is %q; want end", last)
		}
	})
}
