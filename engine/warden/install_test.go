package warden

import (
	"os"
	"path/filepath"
	"testing"
)

func TestInstallInit(t *testing.T) {
	dir := t.TempDir()
	program, path := filepath.Join(dir, "warden"), filepath.Join(dir, "init")
	for _, content := range []string{"first", "another"} {
		if err := os.WriteFile(program, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := InstallInit(program, path); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("installed %q, %v; want %q", got, err, content)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o555 {
		t.Errorf("mode %v, %v; want 0555", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := InstallInit(filepath.Join(dir, "nonesuch"), path); err == nil {
		t.Error("no error without a program")
	}
}
