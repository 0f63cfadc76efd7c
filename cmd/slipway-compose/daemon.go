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

	"slipway.dev/slipway/compose/apply"
	"slipway.dev/slipway/compose/machine"
)

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

// running tells whether the daemon of the run directory is there. The socket alone does not say so: the
// warden holds it open for the next daemon when one was killed.
func running(runDir string) bool {
	if r, err := readRecord(runDir); err == nil {
		return r.PID > 0 && !errors.Is(syscall.Kill(r.PID, 0), syscall.ESRCH)
	} else if errors.Is(err, os.ErrPermission) {
		_, err := os.Stat(filepath.Join(runDir, "docker.sock")) // not root: the record is not ours to read
		return err == nil
	}
	return false
}

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

// startDaemon brings the daemon up if it is not, and returns when it is ready. For a run directory of one's own it must
// be known which data directory is meant, because a wrong guess would open somebody else's.
func (a *app) startDaemon(ctx context.Context) error {
	dir, data := a.runDirectory(), os.Getenv("SLIPWAY_DATA_DIR")
	if running(dir) {
		return nil
	}
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
	fmt.Fprintln(a.err, "slipway: starting the daemon")
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

// teardown becomes `slipwayd --teardown`: it returns only with an error.
func (a *app) teardown() error {
	args := []string{"slipwayd", "--teardown", "--run-dir", a.runDirectory()}
	if _, err := readRecord(a.runDirectory()); err != nil {
		if data := os.Getenv("SLIPWAY_DATA_DIR"); data != "" {
			args = append(args, "--data-dir", data)
		} else if a.runDirectory() != defaultRunDir {
			return fmt.Errorf("%s: no daemon ran here: nothing to take down", a.runDirectory())
		}
	}
	path, err := program("slipwayd")
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, args, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// engine is this machine's Docker API. The daemon must be there for it, also when another cluster is the target: images are built here.
func (a *app) engine() *machine.Client {
	return machine.Dial(filepath.Join(a.runDirectory(), "docker.sock"))
}

// cluster is the API that the project is applied to; the daemon is started when it is its own.
func (a *app) cluster(ctx context.Context) (*apply.Cluster, error) {
	if a.kubeContext == "" {
		if err := a.startDaemon(ctx); err != nil {
			return nil, err
		}
	}
	return apply.Connect(filepath.Join(a.runDirectory(), "kubeconfig"), a.kubeContext)
}
