package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"

	"slipway.dev/slipway/compose/apply"
)

func (a *app) execCommand() *cobra.Command {
	var noTTY, interactive, tty, detach, privileged bool
	var user, workdir string
	var env []string
	index := 0
	cmd := &cobra.Command{
		Use: "exec [flags] SERVICE COMMAND [ARG...]", Short: "Run a command in a running replica of a service",
		Example: `  slipway exec web sh
  slipway exec --index 2 web cat /etc/hostname
  slipway exec -u root -w /etc web ls
  echo 'select 1' | slipway exec -T db psql`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError{fmt.Errorf("%s needs a service and a command", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := apply.ExecOptions{Service: args[0], Index: index, Command: args[1:], Stdin: a.in, Stdout: a.out, Stderr: a.err}
			if user != "" || workdir != "" || len(env) > 0 || detach || privileged {
				// Kubernetes' exec has no words for these; the engine's has.
				words := []string{"exec"}
				for _, f := range []struct {
					name string
					set  bool
				}{{"-d", detach}, {"--privileged", privileged}, {"-i", !detach}, {"-t", !detach && !noTTY && terminal(a.in) != nil && terminal(a.out) != nil}} {
					if f.set {
						words = append(words, f.name)
					}
				}
				for _, e := range env {
					words = append(words, "-e", e)
				}
				if user != "" {
					words = append(words, "-u", user)
				}
				if workdir != "" {
					words = append(words, "-w", workdir)
				}
				return a.becomeContainer(cmd.Context(), args[0], index, func(id string) []string { return append(append(words, id), args[1:]...) })
			}
			in, out := terminal(a.in), terminal(a.out)
			if tty && in == nil {
				return errors.New("the input device is not a TTY")
			}
			o.TTY = !noTTY && in != nil && out != nil
			return a.exec(cmd.Context(), o)
		},
	}
	s := cmd.Flags()
	s.SetInterspersed(false)
	s.BoolVarP(&noTTY, "no-tty", "T", false, "no terminal (default: one where this command has one)")
	s.IntVar(&index, "index", 0, "which replica, from 1 (default: the first that runs)")
	s.StringVarP(&user, "user", "u", "", "as this user, by name or number")
	s.StringVarP(&workdir, "workdir", "w", "", "in this directory")
	s.StringArrayVarP(&env, "env", "e", nil, "`NAME=VALUE`: set a variable (repeatable)")
	s.BoolVarP(&detach, "detach", "d", false, "do not wait for it")
	s.BoolVar(&privileged, "privileged", false, "with all privileges")
	s.BoolVarP(&interactive, "interactive", "i", true, "as always: standard input is passed on")
	s.BoolVarP(&tty, "tty", "t", false, "insist on a terminal")
	_ = s.MarkHidden("interactive")
	_ = s.MarkHidden("tty")
	return cmd
}

// terminal returns s if it is one.
func terminal(s any) *os.File {
	if f, ok := s.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

func (a *app) exec(ctx context.Context, o apply.ExecOptions) error {
	namespace, c, err := a.project(ctx, o.Service)
	if err != nil {
		return err
	}
	if o.TTY {
		in := int(terminal(a.in).Fd())
		state, err := term.MakeRaw(in) // every key is the command's, Ctrl-C included
		if err != nil {
			return err
		}
		defer term.Restore(in, state)
		sizes := followSize(ctx, terminal(a.out))
		defer sizes.stop()
		o.Sizes = sizes
	}
	return execError(c.Exec(ctx, namespace, o))
}

// notStarted is a command that could not be run; the codes are a shell's, and docker's.
type notStarted struct {
	error
	code int
}

func (e notStarted) ExitStatus() int { return e.code }

// runtimeFailure comes before the reason for which a command did not start, in the words of the runtime.
const runtimeFailure = "unable to start container process: "

// execError finds out why a command was not run at all: the API tells it in words only.
func execError(err error) error {
	if err == nil {
		return nil
	}
	at := strings.LastIndex(err.Error(), runtimeFailure)
	if at < 0 {
		return err
	}
	reason := errors.New(err.Error()[at+len(runtimeFailure):])
	if strings.Contains(reason.Error(), "permission denied") {
		return notStarted{reason, 126}
	}
	return notStarted{reason, 127}
}

// sizes tells the other side how large our terminal is, whenever that changes.
type sizes struct {
	terminal *os.File
	changed  chan os.Signal
	ctx      context.Context
	cancel   context.CancelFunc
}

func followSize(ctx context.Context, f *os.File) *sizes {
	s := &sizes{terminal: f, changed: make(chan os.Signal, 1)}
	s.ctx, s.cancel = context.WithCancel(ctx)
	signal.Notify(s.changed, syscall.SIGWINCH)
	s.changed <- syscall.SIGWINCH // the first size is news too
	return s
}

func (s *sizes) stop() {
	signal.Stop(s.changed)
	s.cancel()
}

// Next waits for a change; nil ends the queue.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.changed:
	case <-s.ctx.Done():
		return nil
	}
	w, h, err := term.GetSize(int(s.terminal.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
}
