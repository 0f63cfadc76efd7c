package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

const defaultRunDir = "/run/slipway"

// program finds a sibling of this command: beside the executable, where `make install` puts it, then in PATH.
func program(name string) (string, error) {
	if self, err := os.Executable(); err == nil {
		if resolved, err := filepath.EvalSymlinks(self); err == nil {
			self = resolved
		}
		beside := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(beside); err == nil && !st.IsDir() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s not found beside slipway or in PATH: is Slipway installed completely?", name)
	}
	return path, nil
}

// become replaces this process by slipway-compose.
func (c *cli) become(h handover) int {
	runDir := h.runDir
	if runDir == "" {
		runDir = envRunDir()
	}
	err := replace("slipway-compose", h.args, append(os.Environ(), "SLIPWAY_RUN_DIR="+runDir))
	fmt.Fprintf(c.err, "slipway: %v\n", err)
	return 1
}

// replace is exec(2): it returns only with an error.
func replace(name string, args, env []string) error {
	path, err := program(name)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{name}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

func envRunDir() string {
	if dir := os.Getenv("SLIPWAY_RUN_DIR"); dir != "" {
		return dir
	}
	return defaultRunDir
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
			return replace("slipwayd", args, append(os.Environ(), "SLIPWAY_RUN_DIR="+c.runDirectory()))
		},
	}
}

// record is what a daemon leaves in its run directory about itself: daemon.json.
type record struct {
	PID          int    `json:"pid"`
	DataDir      string `json:"dataDir"`
	APIPort      int    `json:"apiPort"`
	RegistryPort int    `json:"registryPort"`
}

func readRecord(runDir string) (record, error) {
	var r record
	raw, err := os.ReadFile(filepath.Join(runDir, "daemon.json"))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(raw, &r)
}

// killed is true when the daemon of a run directory ended without saying so. Its socket still takes connections then, because the
// warden holds it until the next daemon comes.
func killed(runDir string) bool {
	r, err := readRecord(runDir)
	return err == nil && r.PID > 0 && errors.Is(syscall.Kill(r.PID, 0), syscall.ESRCH)
}

// startDaemon brings the daemon of the run directory up and returns when it is ready. For a run directory of one's own it must
// be known which data directory is meant, because a wrong guess would open somebody else's.
func (c *cli) startDaemon(ctx context.Context) error {
	dir, data := c.runDirectory(), os.Getenv("SLIPWAY_DATA_DIR")
	r, err := readRecord(dir)
	if err == nil {
		data = r.DataDir
	}
	if dir != defaultRunDir && data == "" {
		return fmt.Errorf("no daemon at %s: start it with `slipway serve --detach --run-dir %s --data-dir DIR`", filepath.Join(dir, "docker.sock"), dir)
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon is not running, and only root can start it: try sudo")
	}
	args := []string{"--detach", "--run-dir", dir}
	if data != "" {
		args = append(args, "--data-dir", data)
	}
	// One that was killed comes back where it was: kubeconfigs and image names have its ports in them.
	if r.APIPort > 0 {
		args = append(args, "--api-port", strconv.Itoa(r.APIPort))
	}
	if r.RegistryPort > 0 {
		args = append(args, "--registry-port", strconv.Itoa(r.RegistryPort))
	}
	fmt.Fprintln(c.err, "slipway: starting the daemon")
	return daemonProgram(ctx, args...)
}

// daemonProgram runs slipwayd for something short.
func daemonProgram(ctx context.Context, args ...string) error {
	path, err := program("slipwayd")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return errors.New(strings.TrimPrefix(strings.TrimSpace(said.String()), "slipwayd: "))
	}
	return nil
}

func (c *cli) stopDaemonCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stop-daemon", Short: "Stop the daemon; containers go on (slipway down --all stops everything)", GroupID: groupDaemon,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemonProgram(cmd.Context(), "--stop", "--run-dir", c.runDirectory())
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
			path := filepath.Join(c.runDirectory(), "kubeconfig")
			raw, err := os.ReadFile(path)
			if err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
			_, err = c.out.Write(raw)
			return err
		},
	}
}
