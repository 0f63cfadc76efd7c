package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// composeFiles make the working directory a Compose project.
var composeFiles = []string{"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"}

// folder is what the rule of handOver needs to know of the surroundings.
type folder struct {
	project     bool                   // a Compose file is here, or one is named by COMPOSE_FILE
	isContainer func(name string) bool // asked only when it matters
	isDirectory func(name string) bool // of a build context
}

func (c *cli) folder() folder {
	return folder{
		project:     inProject(),
		isContainer: c.containerExists,
		isDirectory: func(name string) bool {
			st, err := os.Stat(name)
			return err == nil && st.IsDir()
		},
	}
}

func inProject() bool {
	if os.Getenv("COMPOSE_FILE") != "" {
		return true
	}
	return slices.ContainsFunc(composeFiles, func(name string) bool {
		_, err := os.Stat(filepath.Join(".", name))
		return err == nil
	})
}

// composeHelp explains the rule to people; keep it in step with handOver.
const composeHelp = `Compose projects: up, down, scale, config and ls are always about projects. In a folder
with a Compose file these are about its project, too:
  slipway ps | build | pull | push                        without a name
  slipway start | stop | restart | logs [SERVICE…]        where no container is called so
  slipway exec | top | port | wait | kill | rm | cp SERVICE …   likewise
  slipway build SERVICE…                                  where no directory is called so
and slipway ps -a lists containers. With -f FILE or -p PROJECT before the verb every one of them is
about that project.`

// handover is a command line for slipway-compose.
type handover struct {
	runDir string // from --run-dir; empty: not given
	args   []string
}

// composeFlags come before the verb and mean a project; true takes a value.
var composeFlags = map[string]bool{
	"-f": true, "--file": true, "-p": true, "--project-name": true, "--project-directory": true,
	"--profile": true, "--env-file": true, "--context": true,
}

// handOver decides whether a command line is slipway-compose's and what it gets: everything but --run-dir,
// unchanged. It looks at words only, because flags of the other program are not known here.
func handOver(args []string, f folder) (handover, bool) {
	if len(args) > 0 && (args[0] == cobra.ShellCompRequestCmd || args[0] == cobra.ShellCompNoDescRequestCmd) {
		h, ok := handOver(args[1:], f) // who gets the command line completes it, too
		h.args = append([]string{args[0]}, h.args...)
		return h, ok
	}
	h := handover{}
	verb, forced := -1, false
	for i := 0; i < len(args) && verb < 0; i++ {
		name, value, joined := strings.Cut(args[i], "=")
		takes, compose := composeFlags[name]
		switch {
		case name == "--run-dir":
			if !joined && i+1 < len(args) {
				i++
				value = args[i]
			}
			h.runDir = value
			continue
		case compose:
			forced = true
			h.args = append(h.args, args[i])
			if takes && !joined && i+1 < len(args) {
				i++
				h.args = append(h.args, args[i])
			}
			continue
		case !strings.HasPrefix(args[i], "-"):
			verb = i
		}
		h.args = append(h.args, args[i])
	}
	if verb < 0 {
		return h, false
	}
	rest := args[verb+1:]
	if args[verb] == "help" && len(rest) == 1 && isCompose(rest[0], nil, false, folder{}) {
		h.args = append(h.args[:len(h.args)-1], rest[0], "--help") // its flags are known there
		return h, true
	}
	h.args = append(h.args, rest...)
	return h, isCompose(args[verb], rest, forced, f)
}

func isCompose(verb string, rest []string, forced bool, f folder) bool {
	switch verb {
	case "up", "down", "scale", "config", "ls":
		return true
	}
	if forced || !f.project {
		return forced
	}
	name := firstOperand(verb, rest)
	switch verb {
	case "ps":
		return !slices.ContainsFunc(rest, func(a string) bool {
			return a == "--all" || strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.Contains(a, "a")
		})
	case "build":
		return len(rest) == 0 || !isContext(rest[len(rest)-1], f)
	case "pull", "push":
		return name == "" // a name is an image's
	case "start", "stop", "restart", "logs", "exec":
		return name == "" || !f.isContainer(name)
	case "top", "port", "wait", "kill", "rm":
		return name != "" && !f.isContainer(name)
	case "cp":
		return slices.ContainsFunc(rest, func(a string) bool {
			service, _, found := strings.Cut(a, ":")
			return found && !strings.HasPrefix(a, "-") && !strings.Contains(service, "/") && !f.isContainer(service)
		})
	}
	return false
}

func isContext(arg string, f folder) bool {
	return arg == "-" || strings.Contains(arg, "://") || f.isDirectory(arg)
}

// valued are the flags of verbs, here and in compose, whose value is the next word.
var valued = map[string][]string{
	"logs": {"-n", "--tail", "--since", "--until"},
	"exec": {"-e", "--env", "--env-file", "-u", "--user", "-w", "--workdir", "--detach-keys", "--index"},
	"stop": {"-t", "--timeout", "--time", "-s", "--signal"}, "restart": {"-t", "--timeout", "--time", "-s", "--signal"},
	"kill": {"-s", "--signal"}, "port": {"--protocol"}, "start": {"--detach-keys"}, "pull": {"--platform"},
}

func firstOperand(verb string, args []string) string {
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--" && i+1 < len(args):
			return args[i+1]
		case !strings.HasPrefix(args[i], "-"):
			return args[i]
		case slices.Contains(valued[verb], args[i]):
			i++
		}
	}
	return ""
}
