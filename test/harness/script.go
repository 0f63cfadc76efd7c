package harness

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// ScriptCommand is a command that scripts have beside testscript's own.
type ScriptCommand = func(ts *testscript.TestScript, neg bool, args []string)

// ScriptCommands are those that all scripts have, and some more.
func ScriptCommands(more map[string]ScriptCommand) map[string]ScriptCommand {
	all := map[string]ScriptCommand{"exits": exits, "until": until}
	maps.Copy(all, more)
	return all
}

// exits runs a command that must end with the given code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d; want %d", got, want)
	}
}

// until runs a command again and again until it succeeds and prints the given text: for what nobody announces.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until TEXT COMMAND [ARG...]")
	}
	var last string
	for range 200 {
		out, err := runScript(ts, args[1:])
		if err == nil && strings.Contains(out, args[0]) {
			return
		}
		last = fmt.Sprintf("%s (%v)", out, err)
		ts.Check(ts.Exec("sleep", "0.05"))
	}
	ts.Fatalf("%s never printed %q; at last: %s", strings.Join(args[1:], " "), args[0], last)
}

func runScript(ts *testscript.TestScript, args []string) (string, error) {
	err := ts.Exec(args[0], args[1:]...)
	return ts.ReadFile("stdout"), err
}
