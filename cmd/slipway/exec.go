package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	xterm "golang.org/x/term"
)

func (c *cli) execCommand() *cobra.Command {
	var (
		req           container.ExecCreateRequest
		env, envFiles []string
		detach        bool
	)
	cmd := &cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG...]", Short: "Run a command in a running container (in a Compose project: or service)", GroupID: groupContainers,
		Example: `  slipway exec -it web sh
  slipway exec -u root -w /srv -e DEBUG=1 web ./migrate`,
		Args:              atLeast(2, "a container and a command"),
		ValidArgsFunction: c.completeContainers(true, 1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if req.Env, err = environment(env, envFiles); err != nil {
				return usageError{err}
			}
			req.Cmd, req.AttachStdout, req.AttachStderr = args[1:], !detach, !detach
			return c.exec(cmd.Context(), args[0], req, detach)
		},
	}
	s := cmd.Flags()
	s.SetInterspersed(false)
	s.BoolVarP(&req.Tty, "tty", "t", false, "give it a terminal")
	s.BoolVarP(&req.AttachStdin, "interactive", "i", false, "pass standard input on")
	s.BoolVarP(&detach, "detach", "d", false, "run in the background")
	s.BoolVar(&req.Privileged, "privileged", false, "give it every capability")
	s.StringVarP(&req.User, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	s.StringVarP(&req.WorkingDir, "workdir", "w", "", "working directory inside the container")
	s.StringVar(&req.DetachKeys, "detach-keys", "", "keys that leave the command running (default ctrl-p,ctrl-q)")
	s.StringArrayVarP(&env, "env", "e", nil, "`NAME=VALUE`, or NAME to pass it on")
	s.StringArrayVar(&envFiles, "env-file", nil, "read environment from a `FILE`")
	return cmd
}

func (c *cli) exec(ctx context.Context, name string, req container.ExecCreateRequest, detach bool) error {
	if req.Tty && req.AttachStdin && !c.inIsTerminal() && !detach {
		return exitError{1, "the input device is not a TTY"}
	}
	if req.Tty {
		if fd, ok := terminal(c.out); ok {
			if cols, rows, err := xterm.GetSize(fd); err == nil {
				req.ConsoleSize = &[2]uint{uint(rows), uint(cols)}
			}
		}
	}
	var created common.IDResponse
	if err := c.client.post(ctx, "/containers/"+url.PathEscape(name)+"/exec", nil, req, &created); err != nil {
		return err
	}
	start := container.ExecStartRequest{Detach: detach, Tty: req.Tty, ConsoleSize: req.ConsoleSize}
	if detach {
		return c.client.post(ctx, "/exec/"+created.ID+"/start", nil, start, nil)
	}
	ctx = context.WithoutCancel(ctx) // an interrupt ends the command inside, by the terminal
	conn, err := c.client.hijack(ctx, call{method: "POST", path: "/exec/" + created.ID + "/start", body: start})
	if err != nil {
		return err
	}
	if req.Tty {
		defer c.followSize(ctx, "/exec/"+created.ID+"/resize")()
	}
	s := session{streams: c.streams, conn: conn, tty: req.Tty, stdin: req.AttachStdin, detachKeys: req.DetachKeys}
	if err := s.run(ctx); err != nil {
		if errors.Is(err, errDetached) {
			return nil
		}
		return err
	}
	var end container.ExecInspectResponse
	if err := c.client.get(ctx, "/exec/"+created.ID+"/json", nil, &end); err != nil {
		return fmt.Errorf("exit code of the command: %w", err)
	}
	if end.ExitCode != nil && *end.ExitCode != 0 {
		return exitError{code: *end.ExitCode}
	}
	return nil
}
