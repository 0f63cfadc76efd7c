package run

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/build/op"
)

// stubs are mount points that do not exist before the step, as resolved paths in the
// image.
type stubs struct {
	paths []string
	times map[string]time.Time // of directories that exist and may get a stub
}

// findStubs looks which mount points the runtime will have to make.
func findStubs(p op.Process) stubs {
	s := stubs{times: map[string]time.Time{}}
	dests := []string{"/etc/resolv.conf", "/etc/hosts"}
	for _, m := range p.Mounts {
		dests = append(dests, m.Dest)
	}
	for _, d := range dests {
		d = filepath.Join("/", d)
		if d == "/" || isSystem(d) {
			continue
		}
		s.find(p.Below, d, p.RemoveStubs)
	}
	return s
}

// isSystem tells paths on file systems of their own, where no stub reaches the layer.
func isSystem(d string) bool {
	for _, sys := range []string{"/proc", "/sys", "/dev"} {
		if d == sys || strings.HasPrefix(d, sys+"/") {
			return true
		}
	}
	return false
}

func (s *stubs) find(root, dest string, withParents bool) {
	full, err := fs.RootPath(root, dest)
	if err != nil {
		return
	}
	for first := true; full != root; first = false {
		_, err := os.Lstat(full)
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			break
		}
		rel := strings.TrimPrefix(full, root)
		if (first || withParents) && !slices.Contains(s.paths, rel) {
			s.paths = append(s.paths, rel)
		}
		full = filepath.Dir(full)
	}
	if st, err := os.Lstat(full); err == nil && st.IsDir() {
		s.times[strings.TrimPrefix(full, root)] = st.ModTime()
	}
}

// remove takes stubs that the step left empty out of the upper directory, and gives the
// directories that held them their times back, so that they are not taken for changed.
func (s *stubs) remove(upper string) error {
	slices.SortFunc(s.paths, func(a, b string) int { return len(b) - len(a) }) // children first
	for _, rel := range s.paths {
		p, err := fs.RootPath(upper, filepath.Dir(rel))
		if err != nil || p != filepath.Join(upper, filepath.Dir(rel)) {
			continue // the step replaced the parent by a link: not ours any more
		}
		p = filepath.Join(p, filepath.Base(rel))
		st, err := os.Lstat(p)
		if err != nil || (!st.IsDir() && (st.Size() != 0 || !st.Mode().IsRegular())) {
			continue
		}
		parent, err := os.Lstat(filepath.Dir(p))
		if err != nil {
			continue
		}
		if err := os.Remove(p); err != nil {
			continue // not empty: the step used it
		}
		s.restore(upper, filepath.Dir(rel), parent.ModTime())
	}
	return nil
}

// restore sets the time of a directory that lost a stub: what it was before the step when
// nothing else came to it since, else what it was a moment ago.
func (s *stubs) restore(upper, rel string, now time.Time) {
	at := now
	if before, ok := s.times[strings.TrimSuffix(rel, "/")]; ok && rel != "/" {
		if left, err := os.ReadDir(filepath.Join(upper, rel)); err == nil && len(left) == 0 {
			at = before
		}
	}
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return
	}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(upper, rel), []unix.Timespec{ts, ts}, 0) // a wrong time is no failed step
}
