package store

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestAFullDiskRefusesWritesInTime(t *testing.T) {
	pods := &table{kind: Kind{Resource: schema.GroupResource{Resource: "pods"}}}
	for _, tt := range []struct {
		freeMB uint64
		op     operation
		want   string // of the error; empty: none
	}{
		{64, opCreate, ""},
		{63, opCreate, `write pods "ns/a": the disk of /data/etcd is full (63 MB are free, and 64 are kept back`},
		{63, opUpdate, "is full (63 MB are free"},
		{16, opDelete, ""},
		{15, opDelete, "is full (15 MB are free"},
	} {
		d := &disk{dir: "/data/etcd", free: func(string) (uint64, error) { return tt.freeMB << 20, nil }}
		err := d.admit(&write{t: pods, op: tt.op, key: "ns/a"})
		if tt.want == "" {
			if err != nil {
				t.Errorf("operation %v with %d MB free: %v", tt.op, tt.freeMB, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("operation %v with %d MB free: %v; want an error with %q", tt.op, tt.freeMB, err, tt.want)
		}
		if status, ok := err.(apierrors.APIStatus); !ok || status.Status().Code != http.StatusInsufficientStorage {
			t.Errorf("operation %v with %d MB free: the error %v is not for clients of the API", tt.op, tt.freeMB, err)
		}
	}
}

func TestADatabaseIsNotOpenedOnAFullDisk(t *testing.T) {
	d := &disk{dir: "/data/etcd", free: func(string) (uint64, error) { return 63 << 20, nil }}
	if err := d.check(); err == nil || !strings.HasPrefix(err.Error(), "the disk of /data/etcd is full (63 MB are free, and 64 are needed to start)") {
		t.Errorf("with 63 MB free: %v", err)
	}
	d.free = func(string) (uint64, error) { return 64 << 20, nil }
	if err := d.check(); err != nil {
		t.Errorf("with 64 MB free: %v", err)
	}
}

func TestTheDatabaseHasItsBlocksAhead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "member", "snap", "db")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := newDisk(dir)
	for _, size := range []int64{1 << 20, 20 << 20} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if err := d.reserve(size); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got, want := st.Blocks*512, size+reserveStep; got < want || st.Size != size {
			t.Errorf("a database of %d bytes is a file of %d bytes with %d allocated; want %d", size, st.Size, got, want)
		}
	}
}
