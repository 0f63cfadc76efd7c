package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	maxHeld = 64 // directories that are open at once
	batch   = 1024
)

// Remove removes what is at path, like os.RemoveAll, however deep a container has nested its directories: that one holds
// a descriptor for every level, and one container with a hundred thousand of them would take all that the daemon has.
// Nobody else may use what is removed.
func Remove(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	fd, oerr := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if oerr != nil {
		return err
	}
	r := remover{top: os.NewFile(uintptr(fd), path)}
	defer r.top.Close()
	for more := true; more; more = r.hoisted > 0 {
		r.hoisted = 0
		if err := r.empty(r.top, 0); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

type remover struct {
	top     *os.File
	hoisted int // directories that were moved to the top since the last look at it
	count   int
}

// empty removes what is in dir. What lies too deep goes to the top, to be looked at from there.
func (r *remover) empty(dir *os.File, depth int) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		before := r.hoisted
		for _, name := range names {
			if err := r.entry(dir, name, depth); err != nil {
				return err
			}
		}
		if depth == 0 && r.hoisted > before {
			return nil // they are in this very directory: Remove looks again
		}
	}
}

func (r *remover) entry(dir *os.File, name string, depth int) error {
	fd := int(dir.Fd())
	err := unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	if depth >= maxHeld {
		return r.hoist(dir, name)
	}
	in, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY, name)
	if err != nil {
		return err
	}
	err = r.empty(in, depth+1)
	in.Close()
	if err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, name, unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "remove", Path: filepath.Join(dir.Name(), name), Err: err}
	}
	return nil
}

// hoist moves a directory to the top.
func (r *remover) hoist(dir *os.File, name string) error {
	for {
		r.count++
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), ".deep-"+strconv.Itoa(r.count), unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "move to the top", Path: filepath.Join(dir.Name(), name), Err: err}
		}
		r.hoisted++
		return nil
	}
}
