package run

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"slipway.dev/slipway/engine/build/op"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

// Warden is what a Runner needs of the supervisor. *warden.Client is one.
type Warden interface {
	Start(ctx context.Context, spec warden.ContainerSpec) (warden.ProcessState, *warden.Attachment, error)
	Wait(ctx context.Context, containerID, execID string) (warden.ProcessState, error)
	Delete(ctx context.Context, id string) error
	CreateSandbox(ctx context.Context, spec warden.SandboxSpec) (netns *os.File, err error)
	RemoveSandbox(ctx context.Context, id string) error
	Sandboxes(ctx context.Context) ([]string, error)
}

// Networks connects steps to the world. *network.Manager is one.
type Networks interface {
	Attach(ctx context.Context, netns *os.File, spec network.AttachSpec) (network.Endpoint, error)
	Release(ctx context.Context, containerID string) error
}

// Options wires a Runner. Dir, Instance and Warden are required.
type Options struct {
	Dir      string // private directory, below D/build
	Rootfs   string // where the warden mounts roots: its RootDir; empty: below Dir
	Secrets  string // directory on a tmpfs for secrets; empty: one in /dev/shm
	Instance string
	Warden   Warden
	Networks Networks // nil: steps have no network unless it is the host's
	Log      *slog.Logger
}

// Runner implements op.Runner.
type Runner struct {
	o      Options
	log    *slog.Logger
	caches *caches
}

var _ op.Runner = (*Runner)(nil)

// prefix begins the names of what steps have outside their own directory.
const prefix = "build-"

// New makes a runner and removes what an earlier one left. The warden has killed its
// steps; their namespaces and directories are still there.
func New(ctx context.Context, o Options) (*Runner, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rootfs == "" {
		o.Rootfs = filepath.Join(o.Dir, "rootfs")
	}
	if o.Secrets == "" {
		o.Secrets = "/dev/shm"
	}
	o.Secrets = filepath.Join(o.Secrets, "slipway-"+o.Instance+"-build")
	steps := filepath.Join(o.Dir, "steps")
	for _, dir := range []string{steps, o.Secrets} {
		if err := os.RemoveAll(dir); err != nil {
			return nil, fmt.Errorf("open build runner: %w", err)
		}
	}
	if err := errors.Join(os.MkdirAll(steps, 0o700), os.MkdirAll(o.Rootfs, 0o711)); err != nil {
		return nil, fmt.Errorf("open build runner: %w", err)
	}
	c, err := openCaches(filepath.Join(o.Dir, "mounts-cache"))
	if err != nil {
		return nil, fmt.Errorf("open build runner: %w", err)
	}
	r := &Runner{o: o, log: o.Log, caches: c}
	if err := r.sweep(ctx); err != nil {
		return nil, fmt.Errorf("open build runner: %w", err)
	}
	return r, nil
}

func (r *Runner) sweep(ctx context.Context) error {
	ids, err := r.o.Warden.Sandboxes(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		step, ours := strings.CutPrefix(id, prefix)
		if !ours {
			continue
		}
		if r.o.Networks != nil {
			err = r.o.Networks.Release(ctx, step)
		}
		if err := errors.Join(err, r.o.Warden.RemoveSandbox(ctx, id)); err != nil {
			return fmt.Errorf("remove network of an interrupted step: %w", err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(r.o.Rootfs, prefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil {
			return fmt.Errorf("remove root of an interrupted step: %w", err)
		}
	}
	return nil
}

// newID is as long as all container ids: the network knows it by the first twelve.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// step is one run of a program.
type step struct {
	r       *Runner
	p       op.Process
	id      string
	dir     string // its files
	root    string // where the warden mounts its root file system
	sandbox string // id of its network sandbox, empty for none
	undo    []func(ctx context.Context) error
}

// Run implements op.Runner.
func (r *Runner) Run(ctx context.Context, p op.Process) (err error) {
	id := newID()
	s := &step{r: r, p: p, id: id, dir: filepath.Join(r.o.Dir, "steps", id), root: filepath.Join(r.o.Rootfs, prefix+id[:12])}
	defer func() { err = errors.Join(err, s.clean(ctx)) }()
	if err := s.begin(); err != nil {
		return fmt.Errorf("prepare step: %w", err)
	}
	stubs := findStubs(p)
	spec, err := s.spec(ctx)
	if err != nil {
		return err
	}
	if err := s.runOut(ctx, spec); err != nil {
		return err
	}
	return stubs.remove(p.Upper)
}

func (s *step) begin() error {
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	s.undo = append(s.undo, func(context.Context) error { return os.RemoveAll(s.dir) })
	return nil
}

// clean takes everything back, last things first, however the step ended.
func (s *step) clean(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i](ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up step: %w", err)
	}
	return nil
}

// runOut starts the container and waits for its end and the end of its output.
func (s *step) runOut(ctx context.Context, spec warden.ContainerSpec) (err error) {
	defer func() {
		err = errors.Join(err, s.r.o.Warden.Delete(context.WithoutCancel(ctx), s.id))
		if rerr := os.Remove(s.root); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, attached, err := s.r.o.Warden.Start(ctx, spec)
	if err != nil {
		return s.refused(ctx, err)
	}
	defer attached.Close()
	copied := make(chan error, 1)
	go func() { copied <- attached.Copy(s.p.Stdout, s.p.Stderr) }()
	st, err := s.r.o.Warden.Wait(ctx, s.id, "")
	if err != nil {
		attached.Close() // ends the copy
		<-copied
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("wait for step: %w", err)
	}
	if err := <-copied; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.r.log.Warn("output of a build step was lost", "step", s.p.Name, "error", err)
	}
	if st.ExitCode != 0 {
		return &op.ExitError{Args: s.p.Args, Code: st.ExitCode, OOM: st.OOMKilled}
	}
	return nil
}

func (s *step) refused(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return &startError{args: s.p.Args, err: err}
}

// startError is a program that could not be run. What the runtime did until then is of no
// interest to the author of a Dockerfile.
type startError struct {
	args []string
	err  error
}

func (e *startError) Error() string {
	msg := e.err.Error()
	for _, noise := range []string{"unable to start container process: ", "error during container init: "} {
		if _, rest, ok := strings.Cut(msg, noise); ok {
			msg = rest
		}
	}
	return fmt.Sprintf("process %q did not complete successfully: %s", strings.Join(e.args, " "), msg)
}

func (e *startError) Unwrap() error { return e.err }

// CacheDir implements op.Runner.
func (r *Runner) CacheDir(ctx context.Context, id string, sharing pb.CacheSharingOpt, fill func(dir string) error) (string, func(), error) {
	return r.caches.take(ctx, id, sharing, fill)
}

// CacheMounts lists the directories of cache mounts.
func (r *Runner) CacheMounts() ([]op.CacheMount, error) { return r.caches.list() }

// RemoveCacheMount removes one that is not in use.
func (r *Runner) RemoveCacheMount(id string) error { return r.caches.remove(id) }
