package node

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenSubPath(t *testing.T) {
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
		file, err := openSubPath(root, tt.sub)
		if tt.want == "" && err != nil {
			continue
		}
		if err != nil {
			t.Errorf("openSubPath(%q): %v", tt.sub, err)
			continue
		}
		if got, err := os.Readlink(filepath.Join("/proc/self/fd", strconv.Itoa(int(file.Fd())))); err != nil || got != filepath.Join(root, tt.want) {
			t.Errorf("openSubPath(%q) opened %q, %v; want %q below the volume, or an error when empty", tt.sub, got, err, tt.want)
		}
		file.Close()
	}
	if info, err := os.Stat(filepath.Join(root, "new/deep")); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("a new directory is %v, %v; want it to have the volume's permissions, 0777", info, err)
	}
}

// TestUnmountBelow proves that what a container bound into its volume does not go with the volume.
func TestUnmountBelow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir, precious := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "pod/volumes/v"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := filepath.Join(dir, "pod")
	bound := filepath.Join(pod, "volumes/v/bound")
	if err := os.Mkdir(bound, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(pod, "subpaths/c/0")
	for range 2 { // the second replaces the first
		if err := bindSubPath(precious, "data", target); err != nil {
			t.Fatal(err)
		}
	}
	if err := (volumes{data: dir, run: filepath.Join(dir, "run")}).tearDown("pod"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(pod); !os.IsNotExist(err) {
		t.Errorf("the pod's directory after tearDown: %v; want it gone", err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Errorf("what was mounted into the pod's volume after tearDown: %v; want it untouched", err)
	}
}

func TestExpandSubPath(t *testing.T) {
	values := map[string]string{"NAME": "web-0", "UP": "..", "ROOT": "/tmp", "NONE": ""}
	for _, tt := range []struct{ expr, want, err string }{
		{expr: "logs/$(NAME)", want: "logs/web-0"},
		{expr: "$$(NAME)", want: "$(NAME)"},
		{expr: "$(NONE)"},
		{expr: "$(UP)", err: "subPathExpr \"$(UP)\": unable to provision SubPath `..`: must not contain '..'"},
		{expr: "a/$(UP)/b", err: "subPathExpr \"a/$(UP)/b\": unable to provision SubPath `a/../b`: must not contain '..'"},
		{expr: "$(ROOT)", err: "subPathExpr \"$(ROOT)\": error SubPath `/tmp` must not be an absolute path"},
		{expr: "$(OTHER)", err: `subPathExpr "$(OTHER)": missing value for "OTHER"`},
	} {
		got, err := expandSubPath(tt.expr, values)
		said := ""
		if err != nil {
			said = err.Error()
		}
		if got != tt.want || said != tt.err {
			t.Errorf("expandSubPath(%q) = %q, %q; want %q, %q", tt.expr, got, said, tt.want, tt.err)
		}
	}
}
