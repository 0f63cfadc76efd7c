package main

import (
	"errors"

	"github.com/spf13/cobra"

	"slipway.dev/slipway/daemon/rundir"
)

// cli holds what all verbs share.
type cli struct {
	streams
	runDir string // of --run-dir; empty: not given
	client *client
}

func (c *cli) runDirectory() string {
	if c.runDir != "" {
		return c.runDir
	}
	return rundir.Chosen()
}

// Groups of verbs in --help.
const (
	groupContainers = "containers"
	groupImages     = "images"
	groupProject    = "project"
	groupObjects    = "objects"
	groupDaemon     = "daemon"
)

// usageError is a mistake in the command line itself. Docker ends with 125 where a container would have run.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usageCode(err error) (int, bool) {
	var e usageError
	if errors.As(err, &e) {
		return 125, true
	}
	return 0, false
}

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "slipway",
		Short: "From a Dockerfile to a self-healing service",
		Long: `Slipway builds images, runs containers and keeps applications running.

` + composeHelp,
		Example: `  slipway up                            build and start the project of ./compose.yaml
  slipway build -t web .                build an image
  slipway run -d -p 8080:80 web         run one container
  slipway ps -a                         list containers
  slipway logs -f web                   follow its output
  kubectl --kubeconfig /run/slipway/kubeconfig get pods -A
  docker -H unix:///run/slipway/docker.sock ps`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&c.runDir, "run-dir", "", "run directory of the daemon (default $SLIPWAY_RUN_DIR or "+rundir.Default+")")
	root.AddGroup(
		&cobra.Group{ID: groupProject, Title: "Projects:"},
		&cobra.Group{ID: groupContainers, Title: "Containers:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupObjects, Title: "Networks, volumes and the system:"},
		&cobra.Group{ID: groupDaemon, Title: "The daemon:"},
	)
	root.PersistentPreRun = func(*cobra.Command, []string) {
		c.client = newClient(c.runDirectory(), c.startDaemon)
	}
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{errors.New(err.Error() + "\nRun '" + cmd.CommandPath() + " --help' for the flags it has.")}
	})
	c.projectCommands(root)
	c.containerCommands(root)
	c.imageCommands(root)
	c.objectCommands(root)
	root.AddCommand(c.serveCommand(), c.stopDaemonCommand(), c.kubeconfigCommand(), c.versionCommand())
	return root
}

// projectCommands show in --help what handOver gives to slipway-compose before cobra sees it.
func (c *cli) projectCommands(root *cobra.Command) {
	for _, v := range []struct{ use, short string }{
		{"up [SERVICE...]", "Build and start the project of the Compose file"},
		{"down", "Stop the project and remove what it made (--all: everything, and the daemon)"},
		{"config", "Check the Compose file and print it as it is understood"},
		{"scale SERVICE=N...", "Change how many replicas services have"},
		{"ls", "List the projects that are up"},
	} {
		root.AddCommand(&cobra.Command{
			Use: v.use, Short: v.short, GroupID: groupProject, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				return exitError{code: c.become(handover{runDir: c.runDir, args: append([]string{cmd.Name()}, args...)})}
			},
		})
	}
}
