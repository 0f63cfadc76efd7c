package tree

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes devices and files of other owners")
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestCopyKeepsEverything(t *testing.T) {
	needRoot(t)
	src, dst := t.TempDir(), t.TempDir()
	at := time.Unix(1_700_000_000, 0)
	file := filepath.Join(src, "dir/file")
	must(t,
		os.Mkdir(filepath.Join(src, "dir"), 0o755),
		os.WriteFile(file, []byte("content"), 0o600),
		os.Chown(file, 12, 34), os.Chmod(file, 0o755|os.ModeSetuid),
		unix.Setxattr(file, "trusted.kept", []byte("yes"), 0),
		unix.Setxattr(file, "trusted.left", []byte("no"), 0),
		os.Chtimes(file, at, at),
		os.Link(file, filepath.Join(src, "other")),
		os.Symlink("/nowhere", filepath.Join(src, "link")), os.Lchown(filepath.Join(src, "link"), 5, 6),
		unix.Lutimes(filepath.Join(src, "link"), []unix.Timeval{{Sec: at.Unix()}, {Sec: at.Unix()}}),
		unix.Mknod(filepath.Join(src, "white"), unix.S_IFCHR|0o600, 0),
		unix.Mkfifo(filepath.Join(src, "pipe"), 0o640),
		os.Chmod(src, 0o711), os.Chtimes(src, at, at),
	)
	must(t, Copy(dst, src, func(name string) bool { return name != "trusted.left" }))

	stat := func(name string) (os.FileInfo, *syscall.Stat_t) {
		info, err := os.Lstat(filepath.Join(dst, name))
		must(t, err)
		return info, info.Sys().(*syscall.Stat_t)
	}
	info, st := stat("dir/file")
	if st.Uid != 12 || st.Gid != 34 || info.Mode() != 0o755|os.ModeSetuid || !info.ModTime().Equal(at) {
		t.Errorf("the file is %v of %d:%d from %v; want -rwsr-xr-x of 12:34 from %v", info.Mode(), st.Uid, st.Gid, info.ModTime(), at)
	}
	if b, err := os.ReadFile(filepath.Join(dst, "dir/file")); err != nil || string(b) != "content" {
		t.Errorf("the file holds %q, %v", b, err)
	}
	if names, err := listXattrs(open(t, filepath.Join(dst, "dir/file"))); err != nil || len(names) != 1 || names[0] != "trusted.kept" {
		t.Errorf("its extended attributes are %q, %v; want trusted.kept alone", names, err)
	}
	if other, _ := stat("other"); !os.SameFile(info, other) {
		t.Error("the hard link became a file of its own")
	}
	if target, err := os.Readlink(filepath.Join(dst, "link")); err != nil || target != "/nowhere" {
		t.Errorf("the symbolic link leads to %q, %v", target, err)
	}
	if info, st := stat("link"); st.Uid != 5 || st.Gid != 6 || !info.ModTime().Equal(at) {
		t.Errorf("the symbolic link belongs to %d:%d and is from %v; want 5:6 from %v", st.Uid, st.Gid, info.ModTime(), at)
	}
	if info, st := stat("white"); info.Mode()&os.ModeCharDevice == 0 || st.Rdev != 0 {
		t.Errorf("the whiteout is %v of device %d", info.Mode(), st.Rdev)
	}
	if info, _ := stat("pipe"); info.Mode() != os.ModeNamedPipe|0o640 {
		t.Errorf("the pipe is %v", info.Mode())
	}
	if info, _ := stat("."); info.Mode().Perm() != 0o711 || !info.ModTime().Equal(at) {
		t.Errorf("the directory itself is %v from %v; want 0711 from %v", info.Mode(), info.ModTime(), at)
	}
}

func open(t *testing.T, name string) *os.File {
	t.Helper()
	f, err := os.Open(name)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// What a container put into the destination leads nowhere: these are the states that a race can bring about.
func TestCopyFollowsNothing(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name  string
		plant func(dst, outside string) error
	}{
		{"a link for a directory", func(dst, outside string) error { return os.Symlink(outside, dst+"/dir") }},
		{"a link for a file", func(dst, outside string) error {
			return os.Symlink(outside+"/file", dst+"/first")
		}},
		{"a link for a symbolic link", func(dst, outside string) error { return os.Symlink(outside+"/made", dst+"/link") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src, dst, outside := t.TempDir(), t.TempDir(), t.TempDir()
			must(t,
				os.Mkdir(src+"/dir", 0o755), os.WriteFile(src+"/dir/file", nil, 0o600),
				os.WriteFile(src+"/first", []byte("hostile"), 0o666), os.Symlink("x", src+"/link"),
				tt.plant(dst, outside),
			)
			if err := Copy(dst, src, nil); err == nil {
				t.Error("the copy succeeded; want an error")
			}
			if found, err := os.ReadDir(outside); err != nil || len(found) > 0 {
				t.Errorf("outside of the destination there is %v, %v; want nothing", found, err)
			}
		})
	}
}

func TestCopyRefusesAbysses(t *testing.T) {
	src := t.TempDir()
	at := open(t, src)
	for range maxDepth + 1 {
		must(t, unix.Mkdirat(int(at.Fd()), "d", 0o755))
		next, err := openAt(at, "d", unix.O_RDONLY|unix.O_DIRECTORY, "d")
		must(t, err)
		at.Close()
		at = next
	}
	at.Close()
	if err := Copy(t.TempDir(), src, nil); err == nil || !strings.Contains(err.Error(), "nested more than") {
		t.Errorf("a tree deeper than %d: %v; want a refusal", maxDepth, err)
	}
}
