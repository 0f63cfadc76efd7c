package database

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
)

// filled makes a file with a few hundred pages, buckets in buckets among them.
func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for i := range 20 {
			outer, err := tx.CreateBucket(fmt.Appendf(nil, "outer-%d", i))
			if err != nil {
				return err
			}
			inner, err := outer.CreateBucket([]byte("inner"))
			if err != nil {
				return err
			}
			for k := range 400 {
				if err := inner.Put(fmt.Appendf(nil, "key-%d", k), bytes.Repeat([]byte{byte(k)}, 100)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(t *testing.T, path string)
		want   string // of the error; empty: none
	}{
		{"whole", func(*testing.T, string) {}, ""},
		{"missing", func(t *testing.T, path string) { os.Remove(path) }, ""},
		{"empty", func(t *testing.T, path string) { os.Truncate(path, 0) }, ""},
		{"cut off", func(t *testing.T, path string) { os.Truncate(path, 8<<12) }, "is damaged: it is cut off: 32768 bytes are there, and"},
		{"cut off within the first pages", func(t *testing.T, path string) { os.Truncate(path, 100) }, "is damaged: "},
		{"no database", func(t *testing.T, path string) { os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<16), 0o600) }, "is damaged: invalid database"},
		{"pages of zeros", func(t *testing.T, path string) { overwrite(t, path, bytes.Repeat([]byte{0}, 64<<12)) }, "is damaged: "},
		{"pages of something else", func(t *testing.T, path string) { overwrite(t, path, bytes.Repeat([]byte{0xa5}, 64<<12)) }, "is damaged: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filled(t)
			tt.damage(t, path)
			err := Check(path)
			if tt.want == "" && err != nil {
				t.Errorf("Check: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), path+" "+tt.want)) {
				t.Errorf("Check: %v; want %q", err, path+" "+tt.want)
			}
		})
	}
}

// overwrite puts other bytes behind the two pages that say what a file is.
func overwrite(t *testing.T, path string, with []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(with, 2<<12); err != nil {
		t.Fatal(err)
	}
}

func TestSetAside(t *testing.T) {
	path := filled(t)
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	if err := SetAside(path, log); err != nil || said.Len() > 0 {
		t.Errorf("a whole file: %v, %s", err, said.String())
	}
	if err := os.Truncate(path, 8<<12); err != nil {
		t.Fatal(err)
	}
	if err := SetAside(path, log); err != nil || !strings.Contains(said.String(), "file="+path+".damaged") {
		t.Errorf("a file that is cut off: %v, %s", err, said.String())
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
}
