package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestOpenSubpath(t *testing.T) {
	root := filepath.Join(t.TempDir(), "volume")
	outside := filepath.Join(root, "..", "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"escape": "../outside", "absolute": outside, "inner": "file"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ sub, want string }{
		{"file", "file"},
		{"inner", "file"},
		{"new/deep", "new/deep"},
		{"escape", ""}, // seen from the volume's root there is nothing
		{"absolute", ""},
		{"absolute/../../etc", ""},
	} {
		file, err := openSubpath(root, tt.sub, true)
		if tt.want == "" && err != nil {
			continue
		}
		if err != nil {
			t.Errorf("openSubpath(%q): %v", tt.sub, err)
			continue
		}
		if got, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(int(file.Fd())))); err != nil || got != filepath.Join(root, tt.want) {
			t.Errorf("openSubpath(%q) opened %q, %v; want %q below the volume, or an error when empty", tt.sub, got, err, tt.want)
		}
		file.Close()
	}
	if info, err := os.Stat(filepath.Join(root, "new/deep")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("a new directory is %v, %v; want it to have the volume's permissions, 0777", info, err)
	}
	if _, err := openSubpath(root, "absent", false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a path that is not there and shall not be made: %v; want ErrNotExist", err)
	}
}
