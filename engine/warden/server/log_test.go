package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"slipway.dev/slipway/engine/warden"
)

func TestLogEntries(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600))
	got := string(appendEntries(nil, "stderr", []byte("a \"b\"\\\t<\x01\xff\u2028\nrest"), now))
	want := `{"log":"a \"b\"\\\t\u003c\u0001\ufffd\u2028\n","stream":"stderr","time":"2026-01-02T02:04:05.000006Z"}` + "\n" +
		`{"log":"rest","stream":"stderr","time":"2026-01-02T02:04:05.000006Z"}` + "\n"
	if got != want {
		t.Errorf("entries =\n%s want\n%s", got, want)
	}
}

func TestLogRotates(t *testing.T) {
	for _, tt := range []struct {
		files int
		want  []string
	}{{1, []string{"log"}}, {3, []string{"log", "log.1", "log.2"}}} {
		dir := t.TempDir()
		l, err := openLog(&warden.LogSpec{Path: filepath.Join(dir, "log"), MaxSize: 300, MaxFiles: tt.files}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			l.write("stdout", fmt.Appendf(nil, "line %d\n", i), time.Unix(0, 0), nil)
		}
		l.close()
		entries, _ := os.ReadDir(dir)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
			if info, _ := e.Info(); info.Size() > 300 {
				t.Errorf("%d files: %s has %d bytes; want at most 300", tt.files, e.Name(), info.Size())
			}
		}
		if strings.Join(names, " ") != strings.Join(tt.want, " ") {
			t.Errorf("%d files: %v; want %v", tt.files, names, tt.want)
		}
		if b, _ := os.ReadFile(filepath.Join(dir, "log")); !bytes.Contains(b, []byte(`line 19\n`)) {
			t.Errorf("%d files: the last line is not in the current file: %s", tt.files, b)
		}
	}
}

// A rotation that could not make the new file has moved the old ones already.
func TestAnUnfinishedRotationIsContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(&warden.LogSpec{Path: path, MaxSize: 100, MaxFiles: 3}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	l.write("stdout", []byte("first\n"), time.Unix(0, 0), nil)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.write("stdout", []byte("second\n"), time.Unix(0, 0), nil)
	for name, want := range map[string]string{path: "second", path + ".1": "first"} {
		if b, err := os.ReadFile(name); err != nil || !bytes.Contains(b, []byte(want)) {
			t.Errorf("%s has %q (%v); want %q in it", filepath.Base(name), b, err, want)
		}
	}
}

// FuzzLog: however a stream is cut into reads, the log's entries are JSON and join to what was written.
func FuzzLog(f *testing.F) {
	f.Add([]byte("hello\nworld"), 3)
	f.Add([]byte("grüße €\n\xff\xfe𝄞"), 1)
	f.Add([]byte("\x00\x1f\"\\<>&\u2028\n\n"), 2)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		path := filepath.Join(t.TempDir(), "log")
		l, err := openLog(&warden.LogSpec{Path: path}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		var carry []byte
		step := 1 + max(cut, 0)%8
		for rest := data; len(rest) > 0; {
			n := min(step, len(rest))
			carry = l.write("stdout", rest[:n], time.Unix(0, 0), carry)
			rest = rest[n:]
		}
		l.write("stdout", nil, time.Unix(0, 0), carry)
		l.close()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var joined strings.Builder
		for line := range bytes.Lines(b) {
			var e struct{ Log, Stream, Time string }
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("entry %q: %v", line, err)
			}
			joined.WriteString(e.Log)
		}
		want := string(data)
		if !utf8.ValidString(want) {
			want = string([]rune(want)) // each bad byte becomes U+FFFD
		}
		if joined.String() != want {
			t.Fatalf("cut in %d: the log says %q; want %q", step, joined.String(), want)
		}
	})
}

func FuzzStat(f *testing.F) {
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(b)
	}
	f.Add([]byte("1 (a) b) c) Z " + strings.Repeat("1 ", 60)))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}

func TestStatOfACommandWithParentheses(t *testing.T) {
	st, err := parseStat([]byte("1 (a) S 9 (x) Z " + strings.Repeat("7 ", 18) + "1234 " + strings.Repeat("7 ", 29) + "256"))
	if err != nil || !st.zombie || st.forked || st.startTime != 1234 || st.exitCode != 256 {
		t.Errorf("stat = %+v, %v; want a zombie of its own program, started at 1234, with status 256", st, err)
	}
}
