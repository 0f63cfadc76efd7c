// Package rundir is how programs find the daemon of a run directory, and bring it up.
//
// A daemon leaves a record of itself there, daemon.json. It stays when the daemon stops or is killed, because
// containers go on: whoever starts the daemon again, or takes everything down, finds the same directories and ports
// in it. The socket beside it says less than one would think: after a kill the warden holds it open for the next
// daemon, and takes connections.
//
// The commands link this package, so it imports nothing but the standard library.
package rundir

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Default is the run directory of the machine's own daemon.
const Default = "/run/slipway"

// Chosen is the run directory that the environment names, or the machine's own.
func Chosen() string {
	if dir := os.Getenv("SLIPWAY_RUN_DIR"); dir != "" {
		return dir
	}
	return Default
}

// Record is what others need to know of the daemon of a run directory.
type Record struct {
	PID          int    `json:"pid"` // 0: it was stopped
	Version      string `json:"version"`
	DataDir      string `json:"dataDir"`
	RunDir       string `json:"runDir"`
	Instance     string `json:"instance"`
	APIPort      int    `json:"apiPort"`
	RegistryPort int    `json:"registryPort"`
}

// Path is where the record of a run directory is.
func Path(dir string) string { return filepath.Join(dir, "daemon.json") }

// Socket is where the Docker API of a run directory is served.
func Socket(dir string) string { return filepath.Join(dir, "docker.sock") }

// Kubeconfig is where the administrator's access to the Kubernetes API of a run directory is written down.
func Kubeconfig(dir string) string { return filepath.Join(dir, "kubeconfig") }

// Read finds the daemon of a run directory; the error is os.ErrNotExist when none ever ran there.
func Read(dir string) (Record, error) {
	var r Record
	raw, err := os.ReadFile(Path(dir))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("%s: %w", Path(dir), err)
	}
	return r, nil
}

// Write leaves the record in its run directory, whole or not at all.
func (r Record) Write() error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := Path(r.RunDir) + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, Path(r.RunDir))
}

// Stopped notes that the daemon does not run.
func (r Record) Stopped() error {
	r.PID = 0
	return r.Write()
}

// alive says whether there is a process of the daemon's number. One that has ended and that nobody has waited for
// yet is none: in a container whose first process is not an init it may stay like that for long.
func (r Record) alive() bool {
	if r.PID <= 0 || errors.Is(syscall.Kill(r.PID, 0), syscall.ESRCH) {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.PID))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist) // or it is hidden from this user
	}
	// After the name, in parentheses that it may contain itself: the state (proc_pid_stat(5)).
	rest := stat[bytes.LastIndexByte(stat, ')')+1:]
	return !bytes.HasPrefix(rest, []byte(" Z")) && !bytes.HasPrefix(rest, []byte(" X"))
}

// Running tells whether the daemon of a run directory is there.
func Running(dir string) bool {
	r, err := Read(dir)
	if errors.Is(err, os.ErrPermission) {
		_, err := os.Stat(Socket(dir)) // not root: the record is not ours to read
		return err == nil
	}
	return err == nil && r.alive()
}

// Killed tells whether the daemon of a run directory ended without saying so.
func Killed(dir string) bool {
	r, err := Read(dir)
	return err == nil && r.PID > 0 && !r.alive()
}

// Program finds a program of Slipway: beside the executable, where `make install` puts it, then in PATH.
func Program(name string) (string, error) {
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

// Become is exec(2) of a program of Slipway: it returns only with an error.
func Become(name string, args, env []string) error {
	path, err := Program(name)
	if err != nil {
		return err
	}
	if err := syscall.Exec(path, append([]string{name}, args...), env); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// Daemon runs slipwayd for something short. Its error is what the program said.
func Daemon(ctx context.Context, args ...string) error {
	path, err := Program("slipwayd")
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

// dataDirVariable names the data directory of a run directory of one's own in which no daemon has run yet.
const dataDirVariable = "SLIPWAY_DATA_DIR"

// Start brings the daemon of a run directory up, tells so, and returns when it is ready. For a run directory of one's
// own it must be known which data directory is meant, because a wrong guess would open somebody else's.
func Start(ctx context.Context, dir string, tell io.Writer) error {
	data := os.Getenv(dataDirVariable)
	r, err := Read(dir)
	if err == nil {
		data = r.DataDir
	}
	if dir != Default && data == "" {
		return fmt.Errorf("no daemon at %s: start it with `slipway serve --detach --run-dir %s --data-dir DIR`", Socket(dir), dir)
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon is not running, and only root can start it: try sudo")
	}
	fmt.Fprintln(tell, "slipway: starting the daemon")
	return Daemon(ctx, r.startArguments(dir, data)...)
}

// startArguments bring a daemon back where it was: kubeconfigs and image names have its ports in them.
func (r Record) startArguments(dir, data string) []string {
	args := []string{"--detach", "--run-dir", dir}
	if data != "" {
		args = append(args, "--data-dir", data)
	}
	if r.APIPort > 0 {
		args = append(args, "--api-port", strconv.Itoa(r.APIPort))
	}
	if r.RegistryPort > 0 {
		args = append(args, "--registry-port", strconv.Itoa(r.RegistryPort))
	}
	return args
}

// Teardown becomes the program that ends the daemon of a run directory and all that it runs: it returns only with an
// error.
func Teardown(dir string) error {
	args := []string{"--teardown", "--run-dir", dir}
	if _, err := Read(dir); err != nil {
		if data := os.Getenv(dataDirVariable); data != "" {
			args = append(args, "--data-dir", data)
		} else if dir != Default {
			return fmt.Errorf("%s: no daemon ran here: nothing to take down", dir)
		}
	}
	return Become("slipwayd", args, os.Environ())
}
