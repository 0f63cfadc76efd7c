package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// layers are overlay directories, top-most first, read without mounting them: enough to
// look up a user in an image's passwd file for the price of a few lstats.
type layers []string

const (
	maxLinks     = 40
	maxSmallFile = 4 << 20
	opaqueXattr  = "trusted.overlay.opaque"
)

// open opens the regular file at path as the merged view would, following symbolic links
// inside the view only.
func (l layers) open(path string) (*os.File, error) {
	host, _, err := l.resolve(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	at, err := os.OpenFile(host, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return reopen(at, path)
}

// resolve returns the host path of the file that path means in the merged view.
func (l layers) resolve(path string) (string, fs.FileInfo, error) {
	for range maxLinks {
		host, fi, rest, at, err := l.walk(path)
		if err != nil {
			return "", nil, err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			if rest != "" {
				return "", nil, syscall.ENOTDIR
			}
			return host, fi, nil
		}
		target, err := os.Readlink(host)
		if err != nil {
			return "", nil, err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		path = filepath.Join("/", target, rest)
	}
	return "", nil, syscall.ELOOP
}

// walk follows path until its end or the first thing that is not a directory. It returns
// the host path of where it stopped, the view's path of that, and what was left to walk.
func (l layers) walk(path string) (host string, fi fs.FileInfo, rest, at string, err error) {
	live, at := l, "/"
	parts := strings.Split(strings.Trim(filepath.Clean("/"+path), "/"), "/")
	for i, name := range parts {
		at = filepath.Join(at, name)
		host, fi, live = live.lookup(at)
		if fi == nil {
			return "", nil, "", at, fs.ErrNotExist
		}
		if !fi.IsDir() {
			return host, fi, strings.Join(parts[i+1:], "/"), at, nil
		}
	}
	return host, fi, "", at, nil
}

// lookup finds one name in the layers that its parent directory merges. For a directory
// it also returns the layers that go on merging into it.
func (l layers) lookup(at string) (host string, fi fs.FileInfo, live layers) {
	for _, dir := range l {
		p := filepath.Join(dir, at)
		st, err := os.Lstat(p)
		if err != nil {
			continue
		}
		if isWhiteout(st) || (fi != nil && !st.IsDir()) {
			break
		}
		if fi == nil {
			host, fi = p, st
		}
		live = append(live, dir)
		if !st.IsDir() || isOpaque(p) {
			break
		}
	}
	return host, fi, live
}

func isWhiteout(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0
}

func isOpaque(dir string) bool {
	var v [1]byte
	n, err := unix.Lgetxattr(dir, opaqueXattr, v[:])
	return err == nil && n == 1 && v[0] == 'y'
}

// directory returns the directories, top-most first, that the merged view shows at path;
// none when there is no directory.
func (l layers) directory(path string) []string {
	for range maxLinks {
		host, fi, rest, at, err := l.walk(path)
		if err != nil {
			return nil
		}
		if fi.IsDir() {
			return l.merged(at)
		}
		target, err := os.Readlink(host)
		if err != nil {
			return nil
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(at), target)
		}
		path = filepath.Join("/", target, rest)
	}
	return nil
}

// merged lists the directories behind at, a path without symbolic links.
func (l layers) merged(at string) []string {
	live := l
	if at != "/" {
		live, at = l.liveAt(at), filepath.Clean(at)
	}
	out := make([]string, len(live))
	for i, dir := range live {
		out[i] = filepath.Join(dir, at)
	}
	return out
}

func (l layers) liveAt(path string) layers {
	live, at := l, "/"
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		at = filepath.Join(at, name)
		_, _, live = live.lookup(at)
	}
	return live
}

// onlyPlain tells whether the tree at dir holds no whiteouts, so that it can be copied
// without being mounted.
func onlyPlain(dir string) bool {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeCharDevice != 0 {
			if fi, err := d.Info(); err != nil || isWhiteout(fi) {
				return errors.New("whiteout")
			}
		}
		return nil
	})
	return err == nil
}
