package store

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// etcd ends its process when the disk is full, and it has to: what it cannot write it has already promised. So a
// write is refused before that, while there is room left for what etcd does by itself and for deleting things.
const (
	roomToWrite  = 64 << 20 // two segments of the write-ahead log, and the database growing
	roomToDelete = 16 << 20
)

// disk watches over the file system that the database is on.
type disk struct {
	dir  string
	free func(dir string) (uint64, error) // bytes that root may still use

	reserved atomic.Int64 // how far the database's file has its blocks
}

func newDisk(dir string) *disk { return &disk{dir: dir, free: freeBytes} }

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", dir, err)
	}
	return st.Bfree * uint64(st.Bsize), nil
}

// check says whether a member may be opened: etcd writes while it opens, and ends the process when it cannot.
func (d *disk) check() error {
	free, err := d.free(d.dir)
	if err != nil {
		return err
	}
	if free < roomToWrite {
		return fmt.Errorf("the disk of %s is full (%d MB are free, and %d are needed to start): remove files from it, and start the daemon again; containers go on meanwhile", d.dir, free>>20, roomToWrite>>20)
	}
	return nil
}

// admit refuses what there is no room for.
func (d *disk) admit(w *write) error {
	need := uint64(roomToWrite)
	if w.op == opDelete {
		need = roomToDelete
	}
	free, err := d.free(d.dir)
	if err != nil {
		return err
	}
	if free >= need {
		return nil
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage, Reason: "InsufficientStorage",
		Message: fmt.Sprintf("write %s %q: the disk of %s is full (%d MB are free, and %d are kept back so that nothing is damaged): remove images or files; until then the cluster can only be read, and objects deleted while %d MB are free",
			w.t.kind.Resource, w.key, d.dir, free>>20, roomToWrite>>20, roomToDelete>>20),
	}}
}

// reserveStep is how far ahead of its end the database's file has blocks of its own.
const reserveStep = 16 << 20

// reserve gives the database's file its blocks before it needs them: other programs may take the last ones between
// a write's admission and the moment when etcd puts it into the file. size is how much of the file is in use.
func (d *disk) reserve(size int64) error {
	if size+reserveStep/2 <= d.reserved.Load() {
		return nil
	}
	path := filepath.Join(d.dir, "member", "snap", "db")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size+reserveStep)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a file system that cannot may do without
		return fmt.Errorf("reserve room for %s: %w", path, err)
	}
	d.reserved.Store(size + reserveStep)
	return nil
}
