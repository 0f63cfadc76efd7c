package tree

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// abyss nests directories deeper than any path can say, with files on the way.
func abyss(t *testing.T, root string, depth int) {
	t.Helper()
	at, err := os.Open(root)
	must(t, err)
	for i := range depth {
		must(t, unix.Mkdirat(int(at.Fd()), "d", 0o755))
		next, err := openAt(at, "d", unix.O_RDONLY|unix.O_DIRECTORY, "d")
		must(t, err)
		at.Close()
		at = next
		if i%100 == 0 {
			must(t, unix.Mkdirat(int(at.Fd()), "side", 0o755), unix.Mknodat(int(at.Fd()), "file", unix.S_IFREG|0o600, 0), unix.Symlinkat("/", int(at.Fd()), "link"))
		}
	}
	at.Close()
}

func TestRemoveHoldsFewDescriptors(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.Mkdir(root, 0o755), os.Mkdir(root+"/.deep-1", 0o755), os.WriteFile(root+"/.deep-1/f", nil, 0o600))
	for i := range 2 * batch {
		must(t, os.WriteFile(filepath.Join(root, strconv.Itoa(i)), nil, 0o600))
	}
	abyss(t, root, 3000)
	open, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var was unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	few := was
	few.Cur = uint64(len(open) + maxHeld + 32)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	err = Remove(root)
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was), err)
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after its removal: %v; want it gone", err)
	}
}

func TestRemoveLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/precious", 0o755), os.WriteFile(dir+"/precious/f", nil, 0o600), os.Symlink("precious", dir+"/link"),
		os.Mkdir(dir+"/tree", 0o755), os.Symlink("../precious", dir+"/tree/link"), os.WriteFile(dir+"/file", nil, 0o600))
	for _, name := range []string{"link", "tree", "file", "absent"} {
		if err := Remove(filepath.Join(dir, name)); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 1 || left[0].Name() != "precious" {
		t.Errorf("left is %v; want what the links led to", left)
	}
	if _, err := os.Stat(dir + "/precious/f"); err != nil {
		t.Errorf("what the links led to was emptied: %v", err)
	}
}
