// Package wardentest gives the tests of other rooms the real warden.
package wardentest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

// built is the warden that this test binary has built for itself.
var built struct {
	once sync.Once
	dir  string
	err  error
}

// Program is the path of the warden's program: the one in $SLIPWAY_BIN, where `make test` has just built it, or
// else one built now, once for a test binary. Remove takes that away.
func Program(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("SLIPWAY_BIN"); dir != "" {
		return filepath.Join(dir, "slipway-warden")
	}
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatalf("build the warden (it needs gcc and libseccomp's headers): %v", built.err)
	}
	return filepath.Join(built.dir, "slipway-warden")
}

// build makes the program as the Makefile does: one tag less, and it asks for modules that nobody has fetched,
// from within a namespace that has no way to fetch them.
func build() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "slipway-warden-"); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-tags", "seccomp netgo osusergo runc_nocriu", "-ldflags", "-s -w -extldflags -static",
		"-o", filepath.Join(dir, "slipway-warden"), "slipway.dev/slipway/cmd/slipway-warden")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%w\n%s", err, out)
	}
	return dir, nil
}

// Remove deletes what Program built. It is for the end of TestMain.
func Remove() {
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
}

// Lose makes of the answer to CreateSandbox what is left of it when the connection breaks: nobody hears of the namespaces that were made.
func Lose(netns *os.File, err error) (*os.File, error) {
	if err != nil {
		return nil, err
	}
	return nil, errors.Join(netns.Close(), errdefs.ErrUnavailable)
}
