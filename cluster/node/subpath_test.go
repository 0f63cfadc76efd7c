package node

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/volume"
)

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
		if err := volume.BindSubpath(precious, "data", target, true); err != nil {
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
