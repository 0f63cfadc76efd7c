package daemon

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestHearCollections: every collection is heard of, not only the first.
func TestHearCollections(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	heard := make(chan struct{}, 1)
	hearCollections(ctx, heard)
	for range 3 {
		runtime.GC()
		<-heard
	}
}

func TestLabour(t *testing.T) {
	start := time.Now()
	for _, tt := range []struct {
		what  string
		every time.Duration
		want  bool
	}{{"a load", 200 * time.Millisecond, true}, {"probes", 4 * time.Second, false}} {
		var l labour
		for n := range 10 {
			busy := l.collected(start.Add(time.Duration(n) * tt.every))
			if n < burst-1 && busy || n >= burst-1 && busy != tt.want {
				t.Errorf("%s: collection %d is work: %v", tt.what, n, busy)
			}
		}
	}
}

func TestParseMapping(t *testing.T) {
	tests := []struct {
		line string
		want mapping
		ok   bool
	}{
		{"00400000-02500000 r-xp 00000000 fe:00 1 /usr/local/bin/slipwayd", mapping{0x400000, 0x2500000, false, "/usr/local/bin/slipwayd"}, true},
		{"7f00-7f10 rw-p 00000000 fe:00 1 /lib/x.so", mapping{0x7f00, 0x7f10, true, "/lib/x.so"}, true},
		{"7f00-7f10 r--s 00000000 fe:00 1 /data dir/db", mapping{0x7f00, 0x7f10, false, "/data dir/db"}, true},
		{"c000000000-c000400000 rw-p 00000000 00:00 0", mapping{}, false},
		{"7ffc0000-7ffd0000 rw-p 00000000 00:00 0 [stack]", mapping{}, false},
		{"garbage", mapping{}, false},
		{"x-y r--p 0 0 0 /f", mapping{}, false},
	}
	for _, tt := range tests {
		if got, ok := parseMapping(tt.line); got != tt.want || ok != tt.ok {
			t.Errorf("parseMapping(%q) = %+v, %v; want %+v, %v", tt.line, got, ok, tt.want, tt.ok)
		}
	}
}

// TestDropPages: what was mapped of a file is dropped, what the process would lose by that is not, and both can be read.
func TestDropPages(t *testing.T) {
	file := filepath.Join(t.TempDir(), "executable")
	if err := os.WriteFile(file, []byte("code"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, data := mapped(t, file, unix.PROT_READ), mapped(t, file, unix.PROT_READ|unix.PROT_WRITE)
	copy(data, "mine")
	if code[0] != 'c' || !resident(t, code) {
		t.Fatal("what has just been read is not resident")
	}
	if err := dropPages(func(name string) bool { return name == file }); err != nil {
		t.Fatal(err)
	}
	if resident(t, code) {
		t.Error("the pages are still resident")
	}
	if got := string(code[:4]) + string(data[:4]); got != "codemine" {
		t.Errorf("read %q", got)
	}
}

func mapped(t *testing.T, file string, protection int) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, os.Getpagesize(), protection, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return m
}

// resident says whether this process has the page where m begins (pagemap's bit 63).
func resident(t *testing.T, m []byte) bool {
	t.Helper()
	pages, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer pages.Close()
	entry := make([]byte, 8)
	if _, err := pages.ReadAt(entry, int64(uintptr(unsafe.Pointer(&m[0])))/int64(os.Getpagesize())*8); err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(entry)>>63 == 1
}
