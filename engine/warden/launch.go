package warden

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// launchLimit is how long a warden may take to accept connections. It takes milliseconds, but
// a machine that is just booting, or emulated, has been seen to need twenty seconds.
const launchLimit = time.Minute

// launch starts a warden that outlives us, in a mount namespace and a session of its own, and waits until it accepts
// connections.
func launch(ctx context.Context, opts Options) error {
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(opts.Executable,
		"--socket="+opts.Socket, "--state-dir="+opts.StateDir, "--root-dir="+opts.RootDir, "--cgroup="+opts.Cgroup, "--ready-fd=3")
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // containers must not find the daemon's secrets in their parent
	cmd.Stderr = w                                  // until the warden has opened its own log
	cmd.ExtraFiles = []*os.File{w}
	// Not Unshareflags: Go would make every mount private, and storage drivers need them shared.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the warden: %w", err)
	}
	go cmd.Wait() // so that a dead warden is no zombie of ours; ends with the warden, which outlives the client
	said, err := awaitReady(ctx, r)
	if err != nil {
		return fmt.Errorf("start the warden %s: %w: %s", opts.Executable, err, lastWords(said, opts.StateDir))
	}
	return nil
}

// awaitReady reads from the warden's pipe until the byte that says ready.
func awaitReady(ctx context.Context, r *os.File) (said []byte, err error) {
	r.SetReadDeadline(time.Now().Add(launchLimit))
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		if i := bytes.IndexByte(buf[:n], 1); i >= 0 {
			return said, nil
		}
		said = append(said, buf[:n]...)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return said, err
		}
	}
}

// lastWords is what a warden that failed to start had to say.
func lastWords(said []byte, stateDir string) []byte {
	path := filepath.Join(stateDir, "warden.log")
	if b, err := os.ReadFile(path); err == nil {
		said = append(said, b[max(0, len(b)-1024):]...)
	}
	return bytes.TrimSpace(said)
}
