// Package docker drives a real daemon with the real docker command and with slipway's own, by scripts: each file in
// testdata is a session, its fixtures and its documentation at once (see go-internal's testscript for the language).
//
// Every script has a daemon of its own, which is searched for leaks at its end. The docker client is the one in
// $SLIPWAY_TEST_CLIENTS, else the one in PATH.
package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"slipway.dev/slipway/test/harness"
)

func TestScripts(t *testing.T) {
	bin := harness.Binaries(t)
	path := searchPath(t, bin)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			d := harness.Start(t)
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				RequireExplicitExec: true,
				Setup:               func(e *testscript.Env) error { return setUp(t, e, d, path) },
				Cmds:                harness.ScriptCommands(map[string]harness.ScriptCommand{"base": base}),
			})
		})
	}
}

// searchPath puts the programs under test and the docker client first.
func searchPath(t *testing.T, bin string) string {
	t.Helper()
	path := bin + string(os.PathListSeparator) + os.Getenv("PATH")
	if clients := os.Getenv("SLIPWAY_TEST_CLIENTS"); clients != "" {
		path = clients + string(os.PathListSeparator) + path
	} else if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("no docker client: set SLIPWAY_TEST_CLIENTS to a directory with one, as `make test` does")
	}
	return path
}

func setUp(t *testing.T, e *testscript.Env, d *harness.Daemon, path string) error {
	e.Setenv("PATH", path)
	e.Setenv("SLIPWAY_RUN_DIR", d.Run)
	e.Setenv("DOCKER_HOST", "unix://"+filepath.Join(d.Run, "docker.sock"))
	e.Setenv("DOCKER_BUILDKIT", "0")
	e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, ".docker"))
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("REGISTRY", "localhost:"+strconv.Itoa(d.Record.RegistryPort))
	e.Setenv("PORT", strconv.Itoa(harness.Port(t)))
	return os.MkdirAll(filepath.Join(e.WorkDir, ".docker"), 0o700)
}

// base makes the image "base" out of this machine's busybox.
func base(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: base")
	}
	archive, err := rootfs()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("base.tar"), archive, 0o600))
	ts.Check(ts.Exec("docker", "import", "-c", "ENV PATH=/bin", "-c", `CMD ["sh"]`, "base.tar", "base"))
}

// rootfs is a root file system with busybox alone, as a tar; made once.
var rootfs = sync.OnceValues(func() ([]byte, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		h.Size, h.Format = int64(len(content)), tar.FormatPAX
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := w.Write(content)
		err = errors.Join(err, werr)
	}
	for _, dir := range []string{"bin/", "etc/", "root/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, program)
	add(tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n"))
	add(tar.Header{Name: "etc/group", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("root:x:0:\napp:x:1000:\n"))
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			add(tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	return b.Bytes(), errors.Join(err, w.Close())
})
