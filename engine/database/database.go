// Package database looks at a bbolt file before bbolt does.
//
// bbolt reads every page of a file when it opens it, on a goroutine of its own, and panics over a damaged one: there
// nobody can recover, and the daemon would end with a stack instead of the file's name. So whoever keeps something in
// such a file asks Check first. It takes as long as bbolt's own look, a millisecond for a megabyte.
package database

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

// Check tells what is wrong with a file. One that is missing or empty is not: bbolt makes a new one of it.
func Check(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	// A fault in mapped memory can be recovered from only where that was asked for, and that is a matter of goroutines.
	done := make(chan error)
	go func() { done <- read(path, info.Size()) }()
	if err := <-done; err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

// SetAside renames a damaged file that only makes things faster, so that a new one takes its place.
func SetAside(path string, log *slog.Logger) error {
	damage := Check(path)
	if damage == nil {
		return nil
	}
	aside := path + ".damaged"
	if err := os.Rename(path, aside); err != nil {
		return errors.Join(damage, err)
	}
	log.Error("set aside, and begun anew", "file", aside, "error", damage)
	return nil
}

// read opens a file for reading, which does not make bbolt look for free pages, and goes through all that it holds.
func read(path string, size int64) (err error) {
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		if tx.Size() > size {
			return fmt.Errorf("it is cut off: %d bytes are there, and %d are in use", size, tx.Size())
		}
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { return readBucket(b) })
	})
}

func readBucket(b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v != nil {
			return nil
		}
		if inner := b.Bucket(k); inner != nil {
			return readBucket(inner)
		}
		return fmt.Errorf("the bucket %q is not there", k)
	})
}
