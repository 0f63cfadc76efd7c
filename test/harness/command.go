package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// commandLimit is how long a client program may take that is not watched otherwise.
const commandLimit = 60 * time.Second

// Result is how a client program ended.
type Result struct {
	Command string
	Stdout  string
	Stderr  string
	Code    int // -1: it was killed, or did not start
}

func (r Result) String() string {
	return fmt.Sprintf("%s\nexit code %d\n%s%s", r.Command, r.Code, r.Stdout, r.Stderr)
}

// client finds a client program: where scripts/clients puts it, or on PATH.
func client(t testing.TB, name string) string {
	t.Helper()
	if name == "slipway" {
		return filepath.Join(Binaries(t), name)
	}
	if dir := os.Getenv("SLIPWAY_TEST_CLIENTS"); dir != "" {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("no %s: run scripts/clients and set SLIPWAY_TEST_CLIENTS to .cache/clients", name)
	}
	return path
}

// environment points every client at this daemon.
func (d *Daemon) environment() []string {
	return append(os.Environ(), "KUBECONFIG="+filepath.Join(d.Run, "kubeconfig"), "DOCKER_HOST=unix://"+d.DockerSocket(),
		"SLIPWAY_RUN_DIR="+d.Run, "DOCKER_BUILDKIT=0", "HOME="+d.Run, "KUBECACHEDIR="+filepath.Join(d.Run, "kube-cache"))
}

// DockerSocket is where the Docker API is served.
func (d *Daemon) DockerSocket() string { return filepath.Join(d.Run, "docker.sock") }

// Command is a client program of this daemon, not yet started.
func (d *Daemon) Command(ctx context.Context, t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(ctx, client(t, program), args...)
	cmd.Env = d.environment()
	cmd.WaitDelay = 10 * time.Second // a busy machine may let a second pass between a program's end and its last line
	return cmd
}

// Try runs a client program with stdin and tells how it ended.
func (d *Daemon) Try(t testing.TB, stdin, program string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandLimit)
	defer cancel()
	cmd := d.Command(ctx, t, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	r := Result{Command: program + " " + strings.Join(args, " "), Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		r.Code = exit.ExitCode()
	case err != nil:
		r.Code, r.Stderr = -1, r.Stderr+err.Error()
	}
	if ctx.Err() != nil {
		r.Stderr += fmt.Sprintf("(killed after %v)", commandLimit)
	}
	return r
}

// Kubectl runs kubectl, which must succeed, and returns what it printed.
func (d *Daemon) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return d.must(t, "", "kubectl", args...)
}

// KubectlWith runs kubectl with stdin.
func (d *Daemon) KubectlWith(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	return d.must(t, stdin, "kubectl", args...)
}

// Apply has kubectl apply manifests in a namespace.
func (d *Daemon) Apply(t testing.TB, namespace, manifests string) string {
	t.Helper()
	return d.must(t, manifests, "kubectl", "apply", "-n", namespace, "-f", "-")
}

// Docker runs the docker client, which must succeed, and returns what it printed.
func (d *Daemon) Docker(t testing.TB, args ...string) string {
	t.Helper()
	return d.must(t, "", "docker", args...)
}

func (d *Daemon) must(t testing.TB, stdin, program string, args ...string) string {
	t.Helper()
	r := d.Try(t, stdin, program, args...)
	if r.Code != 0 {
		t.Fatalf("%v", r)
	}
	return r.Stdout
}

// Session is a client program that goes on while the test does other things: a watch, a forwarded port, a terminal.
type Session struct {
	t     testing.TB
	name  string
	cmd   *exec.Cmd
	input io.WriteCloser
	done  chan struct{}

	mu   sync.Mutex
	out  bytes.Buffer
	seen int           // how much of out Expect has passed
	more chan struct{} // closed and replaced when out grows
}

// Open starts a client program; it is ended with the test.
func (d *Daemon) Open(t testing.TB, program string, args ...string) *Session {
	t.Helper()
	s, cmd := d.session(t, program, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.input, cmd.Stdout, cmd.Stderr = stdin, s, s
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	go func() {
		cmd.Wait()
		close(s.done)
	}()
	return s
}

// OpenTerminal starts a client program on a terminal of 30 rows and 100 columns.
func (d *Daemon) OpenTerminal(t testing.TB, program string, args ...string) *Session {
	t.Helper()
	s, cmd := d.session(t, program, args...)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	s.input = tty
	go func() {
		io.Copy(s, tty) // ends with an error when the last program on the terminal ends
		cmd.Wait()
		tty.Close()
		close(s.done)
	}()
	return s
}

func (d *Daemon) session(t testing.TB, program string, args ...string) (*Session, *exec.Cmd) {
	t.Helper()
	cmd := d.Command(t.Context(), t, program, args...)
	s := &Session{t: t, name: program + " " + strings.Join(args, " "), cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	t.Cleanup(func() { s.Close() })
	return s, cmd
}

// Write takes what the program prints.
func (s *Session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.more)
	s.more = make(chan struct{})
	return s.out.Write(p)
}

// Send types text.
func (s *Session) Send(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.input, text); err != nil {
		s.t.Fatalf("type to %s: %v\n%s", s.name, err, s.Output())
	}
}

// Expect waits until the program has printed want after what was expected before, and returns all up to it.
func (s *Session) Expect(want string) string {
	s.t.Helper()
	limit := time.After(commandLimit)
	ended := false
	for {
		s.mu.Lock()
		rest := s.out.String()[s.seen:]
		more := s.more
		s.mu.Unlock()
		if i := strings.Index(rest, want); i >= 0 {
			s.seen += i + len(want)
			return rest[:i+len(want)]
		}
		if ended {
			s.t.Fatalf("%s ended (%v) without printing %q after:\n%s", s.name, s.cmd.ProcessState, want, rest)
		}
		select {
		case <-more:
		case <-s.done:
			ended = true // look once more
		case <-limit:
			s.t.Fatalf("%s did not print %q within %v, but:\n%s", s.name, want, commandLimit, rest)
		}
	}
}

// Output is all that the program has printed.
func (s *Session) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// Wait waits for the program's end and returns its exit code.
func (s *Session) Wait() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(commandLimit):
		s.t.Fatalf("%s did not end within %v; it printed:\n%s", s.name, commandLimit, s.Output())
	}
	return s.cmd.ProcessState.ExitCode()
}

// Resize changes the size of the program's terminal.
func (s *Session) Resize(rows, cols uint16) {
	s.t.Helper()
	if err := pty.Setsize(s.input.(*os.File), &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		s.t.Fatalf("resize the terminal of %s: %v", s.name, err)
	}
}

// Close ends the program as an interrupt by its user does, and waits.
func (s *Session) Close() {
	s.cmd.Process.Signal(syscall.SIGINT)
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
	}
}
