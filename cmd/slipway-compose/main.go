// Slipway's command for Compose projects, which `slipway` becomes for up, down, scale and, in a folder
// with a Compose file, for ps, logs, exec and build.
//
// It is a program of its own because it links compose-go and the Kubernetes client, which `slipway run`
// should not wait for. The work is in package compose (a project becomes objects), compose/machine (images,
// through the Docker API) and compose/apply (objects, through the Kubernetes API); here are the verbs, what
// they show and their exit codes, which are docker compose's.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"slipway.dev/slipway/daemon/rundir"
)

func main() {
	// One interrupt cancels what is going on; a second one ends the process as if nobody listened.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
	stop()
	os.Exit(code)
}

// streams are the command's own standard streams.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// exitStatus is an error with an exit code of its own: a command's in exec.
type exitStatus interface{ ExitStatus() int }

// usageError is a mistake in the command line.
type usageError struct{ error }

// codeInterrupted is what a shell gives a process that SIGINT ended.
const codeInterrupted = 130

// plain formats what compose-go logs (a variable that is not set, an obsolete key) as people read it.
type plain struct{}

// Format is logrus.Formatter's.
func (plain) Format(e *logrus.Entry) ([]byte, error) {
	return fmt.Appendf(nil, "%s: %s\n", e.Level, e.Message), nil
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, s streams) int {
	a := &app{streams: s}
	logrus.SetOutput(s.err)
	logrus.SetFormatter(plain{})
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		if errors.As(err, new(notStarted)) {
			fmt.Fprintf(s.err, "slipway: %v\n", err)
		}
		return status.ExitStatus()
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(s.err, "slipway: interrupted"+a.started)
		return codeInterrupted
	}
	fmt.Fprintf(s.err, "slipway: %v\n", err)
	return 1
}

// app holds what all verbs share: the global flags.
type app struct {
	streams
	source      sourceFlags
	kubeContext string
	runDir      string // of --run-dir; empty: not given
	started     string // what has come of the verb so far, for those who interrupt it
}

func (a *app) runDirectory() string {
	if a.runDir != "" {
		return a.runDir
	}
	return rundir.Chosen()
}

// elsewhere are docker compose's verbs that have another name here.
var elsewhere = map[string]string{
	"run":     "`slipway exec SERVICE COMMAND` runs one in a replica, `slipway run IMAGE COMMAND` in a container of its own",
	"create":  "`slipway up --no-wait` makes everything and does not wait",
	"pause":   "use `slipway stop`",
	"unpause": "use `slipway start`",
	"images":  "`slipway config --images` names them, `slipway images` lists what is here",
	"stats":   "`slipway stats` shows containers",
	"events":  "`kubectl get events -n PROJECT --watch` shows them",
	"watch":   "run `slipway up` again after a change: only what has changed is replaced",
	"volumes": "`slipway config --volumes` names them, `kubectl get pvc -n PROJECT` lists them",
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "slipway",
		Short: "Build, start and look after the project of a Compose file",
		Long: `Build, start and look after the project of a Compose file.

The project's services become ordinary Kubernetes objects in a namespace of the project's name: replicas are
restarted when they fail, a changed image or configuration is a rolling update, and kubectl shows all of it.`,
		Example: `  slipway up                         build and start ./compose.yaml
  slipway up --scale web=3 web       only web and what it depends on
  slipway -f prod.yaml -p shop up    another file, another project name
  slipway logs -f web
  slipway exec web sh
  slipway down -v                    and remove the volumes`,
		SilenceErrors:    true,
		SilenceUsage:     true,
		TraverseChildren: true, // global flags come before the verb: after it, -f is the verb's
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			if hint := elsewhere[args[0]]; hint != "" {
				return usageError{fmt.Errorf("%s is not a verb for projects: %s", args[0], hint)}
			}
			return usageError{fmt.Errorf("unknown command %q for a project: see slipway --help", args[0])}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	f := root.Flags()
	f.StringArrayVarP(&a.source.files, "file", "f", nil, "Compose `FILE` (repeatable; default compose.yaml and compose.override.yaml)")
	f.StringVarP(&a.source.name, "project-name", "p", "", "project name (default: the file's, or its folder's)")
	f.StringVar(&a.source.dir, "project-directory", "", "what relative paths start from (default: the first file's folder)")
	f.StringArrayVar(&a.source.profiles, "profile", nil, "also enable the services of a profile")
	f.StringArrayVar(&a.source.envFiles, "env-file", nil, "read variables from `FILE` instead of .env")
	// This one cannot be mistaken for a verb's own.
	root.PersistentFlags().StringVar(&a.kubeContext, "context", "", "apply to the cluster of a kubeconfig context instead of this machine")
	f.StringVar(&a.runDir, "run-dir", "", "run directory of the daemon (default $SLIPWAY_RUN_DIR or "+rundir.Default+")")
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{errors.New(err.Error() + "\nRun '" + cmd.CommandPath() + " --help' for the flags it has.")}
	})
	root.AddCommand(a.upCommand(), a.downCommand(), a.psCommand(), a.logsCommand(), a.execCommand(), a.buildCommand(), a.scaleCommand(), a.configCommand(),
		a.restartCommand(), a.stopCommand(), a.startCommand(), a.rmCommand(), a.lsCommand(), a.portCommand(), a.pullCommand(), a.pushCommand(),
		a.topCommand(), a.attachCommand(), a.waitCommand(), a.killCommand(), a.cpCommand())
	return root
}
