package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBoundedLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), logName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l := &boundedLog{path: path, fds: []int{fd}, limit: 100}
	var last string
	for i := range 1000 {
		last = fmt.Sprintf("line %d\n", i)
		if n, err := l.Write([]byte(last)); n != len(last) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	for _, name := range []string{path, path + ".1"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) == 0 || len(raw) > 100 {
			t.Errorf("%s has %d bytes; want 1 to 100", filepath.Base(name), len(raw))
		}
		if name == path && !strings.HasSuffix(string(raw), last) {
			t.Errorf("the log ends with %q; want %q", raw, last)
		}
	}
	// The file may be gone: somebody removed it, or the last rotation could not make the next one.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if _, err := l.Write([]byte(last)); err != nil {
			t.Fatal(err)
		}
	}
	if raw, err := os.ReadFile(path); err != nil || !strings.HasSuffix(string(raw), last) {
		t.Errorf("after the file was removed: %q, %v; want it to be there again", raw, err)
	}
	// What is longer than the limit is written all the same, alone.
	long := strings.Repeat("x", 300)
	if _, err := l.Write([]byte(long)); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || string(raw) != long {
		t.Errorf("a long line: %d bytes, %v", len(raw), err)
	}
}
