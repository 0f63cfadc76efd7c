package dockerapi

import (
	"errors"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	containertypes "github.com/moby/moby/api/types/container"

	"slipway.dev/slipway/engine/container"
)

func (s *Server) createExec(w *reply, r *request) error {
	var req containertypes.ExecCreateRequest
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return invalid("no exec command specified")
	}
	keys, err := detachKeys(req.DetachKeys)
	if err != nil {
		return err
	}
	spec := container.ExecSpec{
		Cmd: req.Cmd, Env: req.Env, User: req.User, WorkingDir: req.WorkingDir, Tty: req.Tty, Privileged: req.Privileged,
		AttachStdin: req.AttachStdin, AttachStdout: req.AttachStdout, AttachStderr: req.AttachStderr, DetachKeys: keys,
	}
	if req.ConsoleSize != nil {
		spec.Rows, spec.Cols = uint16(req.ConsoleSize[0]), uint16(req.ConsoleSize[1])
	}
	id, err := s.containers.ExecCreate(r.Context(), r.vars["id"], spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, common.IDResponse{ID: id})
}

// startExec runs an exec and, unless it is detached, connects the client to it. A process that cannot be started is no HTTP
// error when the client is to be attached: the docker command wants the text in the stream and the exit code from inspect.
func (s *Server) startExec(w *reply, r *request) error {
	var req containertypes.ExecStartRequest
	if err := readOptionalJSON(r, &req); err != nil {
		return err
	}
	info, err := s.containers.ExecInspect(r.vars["id"])
	if err != nil {
		return err
	}
	if info.Started && !info.Running || info.ExitCode != nil {
		return conflict("Error: Exec command %s has already run", info.ID)
	}
	if info.Running {
		return conflict("Error: Exec command %s is already running", info.ID)
	}
	o := container.ExecIO{Detach: req.Detach}
	if req.ConsoleSize != nil {
		if !info.Spec.Tty {
			return invalid("console size is only supported when TTY is enabled")
		}
		o.Rows, o.Cols = uint16(req.ConsoleSize[0]), uint16(req.ConsoleSize[1])
	}
	if req.Detach {
		if err := s.containers.ExecStart(r.Context(), info.ID, o); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return s.attachExec(w, r, info, o, req.Tty)
}

// attachExec connects the client to an exec. Whether output comes in frames is what this request says, not what the exec
// was created with: a client may read the terminal of an exec in frames.
func (s *Server) attachExec(w *reply, r *request, info container.ExecInfo, o container.ExecIO, raw bool) error {
	ctx, t := newTakeover(w, r, !raw)
	defer t.close()
	o.Started = t.start
	if info.Spec.AttachStdin {
		o.Stdin = t.input()
	}
	if info.Spec.AttachStdout {
		o.Stdout = t.output(stdoutStream)
	}
	if info.Spec.AttachStderr {
		o.Stderr = t.output(stderrStream)
	}
	err := s.containers.ExecStart(ctx, info.ID, o)
	if err != nil && t.up == nil && s.execFailed(info.ID) {
		t.start()
		if t.err == nil {
			_, _ = t.up.out.write(stdoutStream, []byte(err.Error()+"\r\n"))
		}
		return t.err
	}
	return t.finish(err)
}

// execFailed is true when a process could not be started and has an exit code that says so.
func (s *Server) execFailed(id string) bool {
	info, err := s.containers.ExecInspect(id)
	return err == nil && info.ExitCode != nil
}

func (s *Server) resizeExec(w *reply, r *request) error {
	rows, cols, err := terminalSize(r)
	if err != nil {
		return err
	}
	if err := s.containers.ExecResize(r.Context(), r.vars["id"], rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) inspectExec(w *reply, r *request) error {
	info, err := s.containers.ExecInspect(r.vars["id"])
	if err != nil {
		if errors.Is(err, errdefs.ErrNotFound) {
			return notFound("No such exec instance: %s", r.vars["id"])
		}
		return err
	}
	spec := info.Spec
	answer := containertypes.ExecInspectResponse{
		ID: info.ID, ContainerID: info.ContainerID, Running: info.Running, ExitCode: info.ExitCode, Pid: info.Pid,
		OpenStdin: spec.AttachStdin, OpenStdout: spec.AttachStdout, OpenStderr: spec.AttachStderr, DetachKeys: spec.DetachKeys,
		CanRemove:     !info.Running && info.ExitCode != nil,
		ProcessConfig: &containertypes.ExecProcessConfig{Tty: spec.Tty, Privileged: &spec.Privileged, User: spec.User},
	}
	if len(spec.Cmd) > 0 {
		answer.ProcessConfig.Entrypoint, answer.ProcessConfig.Arguments = spec.Cmd[0], nonNil(spec.Cmd[1:])
	}
	return writeJSON(w, http.StatusOK, answer)
}
