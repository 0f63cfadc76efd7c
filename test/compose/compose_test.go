// Package compose brings Compose projects up and down as a newcomer would, with slipway's own command and a real daemon.
//
// Each file in testdata is a session: the project, what is typed and what is seen (see go-internal's testscript for the
// language). All of them share one daemon, on which their projects run side by side; at the end it is searched for what they
// left. The images are built from busybox, so that no registry is needed.
package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"slipway.dev/slipway/test/harness"
)

func TestScripts(t *testing.T) {
	bin := harness.Binaries(t)
	d := harness.Start(t)
	d.BaseImage(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup:               func(e *testscript.Env) error { return setUp(t, e, d, bin) },
		Cmds:                harness.ScriptCommands(map[string]harness.ScriptCommand{"same": same, "elsewhere": elsewhere(t)}),
	})
}

func setUp(t *testing.T, e *testscript.Env, d *harness.Daemon, bin string) error {
	e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	e.Setenv("SLIPWAY_RUN_DIR", d.Run)
	e.Setenv("KUBECONFIG", filepath.Join(d.Run, "kubeconfig"))
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("REGISTRY", "localhost:"+strconv.Itoa(d.Record.RegistryPort))
	e.Setenv("PORT", strconv.Itoa(harness.Port(t)))
	return nil
}

// same runs a command for each of two times that it is called with one name: its output must not have changed in between.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] same NAME COMMAND [ARG...]")
	}
	ts.Check(ts.Exec(args[1], args[2:]...))
	got := ts.ReadFile("stdout")
	path := ts.MkAbs(".same-" + args[0])
	before, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		ts.Check(os.WriteFile(path, []byte(got), 0o600))
		return
	}
	ts.Check(err)
	if (string(before) == got) == neg {
		ts.Fatalf("%s: before:\n%s\nnow:\n%s", args[0], before, got)
	}
}

// elsewhere starts a second daemon, another cluster to this one, and points KUBECONFIG at it.
func elsewhere(t *testing.T) harness.ScriptCommand {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		other := harness.Start(t)
		ts.Setenv("KUBECONFIG", filepath.Join(other.Run, "kubeconfig"))
	}
}

// project writes a Compose file into a folder of its own.
func project(t *testing.T, file string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "compose.yaml")
}

// TestInterrupted stops up and logs as a person does, by Ctrl-C on a terminal that shows the live board.
func TestInterrupted(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	file := project(t, `
name: patient
services:
  web: {image: "base:1", command: [sh, -c, "echo hello; exec sleep 1000"], init: true}
  slow: {image: "base:1", command: [sleep, "1000"], init: true, healthcheck: {test: "false", interval: 1m}}
`)
	up := d.OpenTerminal(t, "slipway", "-f", file, "up")
	up.Expect("web  [==========] running 1/1")
	up.Resize(5, 30)
	up.Send("\x03")
	up.Expect("slipway: interrupted: what has been started stays: `slipway up` goes on, `slipway down` removes it")
	if code := up.Wait(); code != 130 {
		t.Errorf("an interrupted up ends with %d; want 130", code)
	}
	logs := d.OpenTerminal(t, "slipway", "-f", file, "logs", "-f", "web")
	logs.Expect("hello")
	logs.Send("\x03")
	if code := logs.Wait(); code != 0 {
		t.Errorf("interrupted logs end with %d; want 0", code)
	}
	if got := d.Try(t, "", "slipway", "-f", file, "up", "web"); got.Code != 0 || !strings.Contains(got.Stderr, "patient: nothing has changed") || strings.Contains(got.Stderr, "\x1b") {
		t.Errorf("up in a pipe: %v", got)
	}
}

// TestHostNetworkSurvives: a service on the host's network has a sandbox without a network, which the next daemon must find.
func TestHostNetworkSurvives(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	file := project(t, `
name: host
services:
  agent: {image: "base:1", command: [sleep, "1000"], init: true, network_mode: host, pid: host, ipc: host}
`)
	if r := d.Try(t, "", "slipway", "-f", file, "up"); r.Code != 0 {
		t.Fatal(r)
	}
	ps := func() string { return d.Try(t, "", "slipway", "-f", file, "ps", "-o", "json").Stdout }
	container := func(text string) string {
		_, rest, _ := strings.Cut(text, `"container": "`)
		return rest[:min(len(rest), 12)]
	}
	before := ps()
	if !strings.Contains(before, `"status": "running"`) {
		t.Fatalf("it is not running: %s", before)
	}
	d.Restart()
	harness.Eventually(t, "the service to be seen running", func() error {
		if now := ps(); !strings.Contains(now, `"status": "running"`) || container(now) != container(before) {
			return fmt.Errorf("before the daemon was killed:\n%s\nnow:\n%s", before, now)
		}
		return nil
	})
}
