package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/moby/term"
	xterm "golang.org/x/term"
)

// session copies between this command's streams and a container's, until its output ends, the user detaches, or the
// command is cancelled.
type session struct {
	streams
	conn       *duplex
	tty        bool
	stdin      bool
	detachKeys string // empty: ctrl-p,ctrl-q
}

// errDetached says that the user typed the detach keys.
var errDetached = errors.New("detached")

// run returns when all output was copied. The terminal is raw meanwhile if the container has one of its own.
func (s *session) run(ctx context.Context) error {
	restore, err := s.makeRaw()
	if err != nil {
		return err
	}
	defer restore()
	defer s.conn.Close()

	output := make(chan error, 1)
	go func() { output <- s.copyOutput() }()
	var input <-chan error
	if s.stdin {
		ch := make(chan error, 1)
		input = ch
		// This goroutine may outlive the session: nothing ends a read from a terminal. The process ends soon after.
		go func() { ch <- s.copyInput() }()
	}
	for {
		select {
		case err := <-output:
			return err
		case err := <-input:
			if errors.Is(err, errDetached) {
				return err
			}
			input = nil // what is left is output
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (s *session) copyOutput() error {
	if s.conn.framed || !s.tty {
		return unframe(s.out, s.err, s.conn)
	}
	_, err := io.Copy(s.out, s.conn)
	return err
}

func (s *session) copyInput() error {
	in := s.in
	if s.tty {
		keys, err := detachBytes(s.detachKeys)
		if err != nil {
			return err
		}
		in = term.NewEscapeProxy(s.in, keys)
	}
	_, err := io.Copy(s.conn, in)
	var escape term.EscapeError
	if errors.As(err, &escape) {
		return errDetached
	}
	s.conn.closeInput()
	return err
}

func detachBytes(keys string) ([]byte, error) {
	if keys == "" {
		return []byte{16, 17}, nil // ctrl-p, ctrl-q
	}
	b, err := term.ToBytes(keys)
	if err != nil {
		return nil, usageError{errors.New("--detach-keys " + strconv.Quote(keys) + ": want keys such as ctrl-p,ctrl-q")}
	}
	return b, nil
}

// makeRaw passes every key to the container's terminal, Ctrl-C included.
func (s *session) makeRaw() (restore func(), err error) {
	fd, ok := terminal(s.in)
	if !ok || !s.tty || !s.stdin {
		return func() {}, nil
	}
	state, err := xterm.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	var once sync.Once
	return func() { once.Do(func() { _ = xterm.Restore(fd, state) }) }, nil
}

// followSize keeps a container's terminal as large as ours. path is its resize endpoint. stop ends it.
func (c *cli) followSize(ctx context.Context, path string) (stop func()) {
	fd, ok := terminal(c.out)
	if !ok {
		return func() {}
	}
	resize := func() {
		cols, rows, err := xterm.GetSize(fd)
		if err != nil {
			return
		}
		q := url.Values{"h": {strconv.Itoa(rows)}, "w": {strconv.Itoa(cols)}}
		_ = c.client.post(ctx, path, q, nil, nil) // it may have exited
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		resize()
		for {
			select {
			case <-changed:
				resize()
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(changed)
		cancel()
		done.Wait()
	}
}

// enough is how many interrupts end this command although the container goes on: pid 1 ignores those it has no handler for.
const enough = 3

// proxySignals sends the signals that this command gets to the container. stop ends it.
func (c *cli) proxySignals(ctx context.Context, id string) (stop func()) {
	got := make(chan os.Signal, 16)
	signal.Notify(got, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for interrupts := 0; ; {
			select {
			case sig := <-got:
				if sig == syscall.SIGINT || sig == syscall.SIGTERM {
					interrupts++
				}
				if interrupts == enough {
					fmt.Fprintf(c.err, "slipway: interrupted %d times, and the container goes on: end it with `slipway rm -f %.12s`\n", enough, id)
					os.Exit(1)
				}
				number := int(sig.(syscall.Signal))
				_ = c.client.post(ctx, "/containers/"+id+"/kill", url.Values{"signal": {strconv.Itoa(number)}}, nil, nil)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(got)
		cancel()
		done.Wait()
	}
}
