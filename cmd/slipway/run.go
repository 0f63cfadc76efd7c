package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	xterm "golang.org/x/term"
)

// Exit codes of run, as docker's: the command line or the daemon failed; the command cannot be executed; it was not found.
const (
	codeFailed      = 125
	codeNotRunnable = 126
	codeNotFound    = 127
)

func (c *cli) createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use: "create [flags] IMAGE [COMMAND] [ARG...]", Short: "Create a container without starting it", GroupID: groupContainers,
		Args:              atLeast(1, "an image"),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(cmd.Flags(), args)
			if err != nil {
				return err
			}
			req.AttachStdin, req.AttachStdout, req.AttachStderr = f.interactive, true, true
			req.StdinOnce = f.interactive
			id, err := c.createContainer(cmd.Context(), &f, req)
			if err != nil {
				return failed(err)
			}
			fmt.Fprintln(c.out, id)
			return nil
		},
	}
	cmd.Flags().SetInterspersed(false)
	f.register(cmd.Flags())
	return cmd
}

func (c *cli) runCommand() *cobra.Command {
	var f createFlags
	var detach, sigProxy bool
	var detachKeys string
	cmd := &cobra.Command{
		Use: "run [flags] IMAGE [COMMAND] [ARG...]", Short: "Create and start a container", GroupID: groupContainers,
		Long: `Create and start a container.

Its exit code becomes this command's. 125 means that it could not be run at all, 126 that its command cannot be
executed, 127 that its command was not found.`,
		Example: `  slipway run --rm -it debian bash
  slipway run -d --name web -p 8080:80 -v data:/var/lib/web -e MODE=prod --restart unless-stopped web
  slipway run --rm -m 256m --cpus 0.5 --read-only --tmpfs /tmp job`,
		Args:              atLeast(1, "an image"),
		ValidArgsFunction: c.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.request(cmd.Flags(), args)
			if err != nil {
				return err
			}
			if detach {
				return c.runDetached(cmd.Context(), &f, req)
			}
			return c.runAttached(cmd.Context(), &f, req, detachKeys, sigProxy)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "run in the background and print the container's id")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the container")
	cmd.Flags().StringVar(&detachKeys, "detach-keys", "", "keys that leave the container running (default ctrl-p,ctrl-q)")
	f.register(cmd.Flags())
	return cmd
}

// failed gives an error of the daemon the exit code that it has in run.
func failed(err error) error {
	if err == nil || errors.As(err, new(exitError)) || errors.As(err, new(usageError)) {
		return err
	}
	code := codeFailed
	text := err.Error()
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		code = codeNotFound
	case strings.Contains(text, "permission denied"), strings.Contains(text, "is a directory"), strings.Contains(text, "exec format error"):
		code = codeNotRunnable
	}
	return exitError{code, text}
}

// createContainer creates a container, pulling its image as --pull says.
func (c *cli) createContainer(ctx context.Context, f *createFlags, req *container.CreateRequest) (string, error) {
	switch f.pull {
	case "always":
		if err := c.pull(ctx, req.Image, f.platform, f.quiet); err != nil {
			return "", err
		}
	case "missing", "never", "":
	default:
		return "", usageError{fmt.Errorf("--pull %q: want always, missing or never", f.pull)}
	}
	if f.cidFile != "" {
		if _, err := os.Stat(f.cidFile); err == nil {
			return "", fmt.Errorf("container id file found, make sure the other container isn't running or delete %s", f.cidFile)
		}
	}
	id, err := c.postCreate(ctx, f, req)
	if isStatus(err, http.StatusNotFound) && f.pull != "never" && strings.Contains(err.Error(), "image") {
		if perr := c.pull(ctx, req.Image, f.platform, f.quiet); perr != nil {
			return "", perr
		}
		id, err = c.postCreate(ctx, f, req)
	}
	if err != nil {
		return "", err
	}
	if f.cidFile != "" {
		if err := os.WriteFile(f.cidFile, []byte(id), 0o644); err != nil {
			return "", fmt.Errorf("--cidfile: %w", err)
		}
	}
	return id, nil
}

func (c *cli) postCreate(ctx context.Context, f *createFlags, req *container.CreateRequest) (string, error) {
	q := url.Values{}
	if f.name != "" {
		q.Set("name", f.name)
	}
	if f.platform != "" {
		q.Set("platform", f.platform)
	}
	var created container.CreateResponse
	if err := c.client.post(ctx, "/containers/create", q, req, &created); err != nil {
		return "", err
	}
	for _, w := range created.Warnings {
		fmt.Fprintln(c.err, "WARNING:", w)
	}
	return created.ID, nil
}

func (c *cli) runDetached(ctx context.Context, f *createFlags, req *container.CreateRequest) error {
	if len(f.attach) > 0 {
		return usageError{errors.New("conflicting options: cannot specify both --attach and --detach")}
	}
	id, err := c.createContainer(ctx, f, req)
	if err != nil {
		return failed(err)
	}
	if err := c.client.post(ctx, "/containers/"+id+"/start", nil, nil, nil); err != nil {
		return failed(err)
	}
	fmt.Fprintln(c.out, id)
	return nil
}

func (c *cli) runAttached(ctx context.Context, f *createFlags, req *container.CreateRequest, keys string, sigProxy bool) error {
	streams, err := attachedStreams(f)
	if err != nil {
		return usageError{err}
	}
	if f.tty && f.interactive && !c.inIsTerminal() {
		return exitError{1, "the input device is not a TTY"}
	}
	req.AttachStdin, req.AttachStdout, req.AttachStderr = streams.stdin, streams.stdout, streams.stderr
	req.StdinOnce = f.interactive
	if f.tty {
		c.sizeInto(req.HostConfig)
	}
	id, err := c.createContainer(ctx, f, req)
	if err != nil {
		return failed(err)
	}
	a := attachment{id: id, tty: f.tty, want: streams, keys: keys, sigProxy: sigProxy && !f.tty, condition: container.WaitConditionNextExit}
	if f.rm {
		a.condition = container.WaitConditionRemoved
	}
	return c.attachAndStart(ctx, a)
}

// sizeInto tells the container how large our terminal is, so that its first line is wrapped right.
func (c *cli) sizeInto(h *container.HostConfig) {
	if fd, ok := terminal(c.out); ok {
		if cols, rows, err := xterm.GetSize(fd); err == nil {
			h.ConsoleSize = [2]uint{uint(rows), uint(cols)}
		}
	}
}

// attachSet says which streams are connected.
type attachSet struct{ stdin, stdout, stderr bool }

func attachedStreams(f *createFlags) (attachSet, error) {
	if len(f.attach) == 0 {
		return attachSet{stdin: f.interactive, stdout: true, stderr: true}, nil
	}
	var a attachSet
	for _, name := range f.attach {
		switch strings.ToLower(name) {
		case "stdin":
			a.stdin = true
		case "stdout":
			a.stdout = true
		case "stderr":
			a.stderr = true
		default:
			return a, fmt.Errorf("--attach %q: want stdin, stdout or stderr", name)
		}
	}
	return a, nil
}

// attachment is a container whose streams are to be ours.
type attachment struct {
	id        string
	tty       bool
	want      attachSet
	keys      string
	sigProxy  bool
	condition container.WaitCondition
}

// attachAndStart connects first, then starts, so that nothing is lost, and ends with the container's exit code.
func (c *cli) attachAndStart(ctx context.Context, a attachment) error {
	// An interrupt is the container's to handle, or the terminal's; this command ends when the container does.
	ctx = context.WithoutCancel(ctx)
	s, err := c.openAttachment(ctx, a)
	if err != nil {
		return failed(err)
	}
	exited, err := c.wait(ctx, a.id, a.condition)
	if err != nil {
		s.conn.Close()
		return failed(err)
	}
	if a.sigProxy {
		defer c.proxySignals(ctx, a.id)()
	}
	if err := c.client.post(ctx, "/containers/"+a.id+"/start", nil, nil, nil); err != nil {
		s.conn.Close()
		if a.condition == container.WaitConditionRemoved {
			<-exited // removed by the daemon
		}
		return failed(err)
	}
	return c.follow(ctx, a, s, exited)
}

func (c *cli) openAttachment(ctx context.Context, a attachment) (*session, error) {
	q := url.Values{"stream": {"1"}}
	for name, on := range map[string]bool{"stdin": a.want.stdin, "stdout": a.want.stdout, "stderr": a.want.stderr} {
		if on {
			q.Set(name, "1")
		}
	}
	if a.keys != "" {
		q.Set("detachKeys", a.keys)
	}
	conn, err := c.client.hijack(ctx, call{method: "POST", path: "/containers/" + a.id + "/attach", query: q})
	if err != nil {
		return nil, err
	}
	return &session{streams: c.streams, conn: conn, tty: a.tty, stdin: a.want.stdin, detachKeys: a.keys}, nil
}

// follow copies streams until the container exits and turns its exit code into ours.
func (c *cli) follow(ctx context.Context, a attachment, s *session, exited <-chan exitStatus) error {
	if a.tty {
		defer c.followSize(ctx, "/containers/"+a.id+"/resize")()
	}
	if err := s.run(ctx); err != nil {
		if errors.Is(err, errDetached) {
			return nil
		}
		fmt.Fprintf(c.err, "slipway: %v\n", err) // the exit code still counts
	}
	status := <-exited
	if status.err != nil {
		return failed(status.err)
	}
	if status.code != 0 {
		return exitError{code: status.code}
	}
	return nil
}

type exitStatus struct {
	code int
	err  error
}

// wait returns once the daemon is waiting; the channel then gives the container's end.
func (c *cli) wait(ctx context.Context, id string, condition container.WaitCondition) (<-chan exitStatus, error) {
	resp, err := c.client.do(ctx, call{method: "POST", path: "/containers/" + id + "/wait", query: url.Values{"condition": {string(condition)}}})
	if err != nil {
		return nil, err
	}
	done := make(chan exitStatus, 1)
	go func() {
		defer resp.Body.Close()
		done <- readExit(resp.Body)
	}()
	return done, nil
}

func readExit(r io.Reader) exitStatus {
	var answer container.WaitResponse
	if err := decodeOne(r, &answer); err != nil {
		return exitStatus{codeFailed, fmt.Errorf("wait for the container: %w", err)}
	}
	if answer.Error != nil && answer.Error.Message != "" {
		return exitStatus{codeFailed, errors.New(answer.Error.Message)}
	}
	return exitStatus{code: int(answer.StatusCode)}
}
