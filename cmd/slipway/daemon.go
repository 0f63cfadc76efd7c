package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"slipway.dev/slipway/daemon/rundir"
)

// become replaces this process by slipway-compose.
func (c *cli) become(h handover) int {
	runDir := h.runDir
	if runDir == "" {
		runDir = rundir.Chosen()
	}
	err := rundir.Become("slipway-compose", h.args, append(os.Environ(), "SLIPWAY_RUN_DIR="+runDir))
	fmt.Fprintf(c.err, "slipway: %v\n", err)
	return 1
}

func (c *cli) serveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "serve [--data-dir DIR] [--run-dir DIR] [--api-port N] [--registry-port N] [--detach]",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground, or with --detach start it and return when everything is ready.

The verbs of this command start it by themselves where none is running. Its log goes to standard error.`,
		Example: `  slipway serve --detach
  slipway serve --data-dir /srv/slipway --run-dir /run/slipway-2 --api-port 0 --registry-port 0`,
		GroupID:            groupDaemon,
		DisableFlagParsing: true, // they are slipwayd's
		RunE: func(cmd *cobra.Command, args []string) error {
			return rundir.Become("slipwayd", args, append(os.Environ(), "SLIPWAY_RUN_DIR="+c.runDirectory()))
		},
	}
}

// startDaemon brings the daemon of the run directory up and returns when it is ready.
func (c *cli) startDaemon(ctx context.Context) error {
	return rundir.Start(ctx, c.runDirectory(), c.err)
}

func (c *cli) stopDaemonCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stop-daemon", Short: "Stop the daemon; containers go on (slipway down --all stops everything)", GroupID: groupDaemon,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return rundir.Daemon(cmd.Context(), "--stop", "--run-dir", c.runDirectory())
		},
	}
}

func (c *cli) kubeconfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "kubeconfig",
		Short:   "Print the admin's configuration for kubectl, helm and client-go",
		Example: "  slipway kubeconfig > ~/.kube/config\n  KUBECONFIG=<(slipway kubeconfig) kubectl get pods -A",
		GroupID: groupDaemon,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.client.exchange(cmd.Context(), call{method: "HEAD", path: "/_ping"}, nil); err != nil {
				return err // starts the daemon if need be
			}
			path := rundir.Kubeconfig(c.runDirectory())
			raw, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
			_, err = c.out.Write(raw)
			return err
		},
	}
}
