package dockerapi

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	containertypes "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/container"
)

// Containers is what this package needs of engine/container.
type Containers interface {
	Create(ctx context.Context, spec container.Spec) (container.Info, error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, o container.StopOptions) error
	Restart(ctx context.Context, ref string, o container.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, u container.UpdateSpec) (warnings []string, err error)
	Remove(ctx context.Context, ref string, o container.RemoveOptions) error
	Wait(ctx context.Context, ref string, c container.WaitCondition) (<-chan container.ExitStatus, error)
	Get(ref string) (container.Info, error)
	List(f container.Filter) ([]container.Info, error)
	Size(ctx context.Context, ref string) (rw, rootfs int64, err error)
	Prune(ctx context.Context, f container.Filter) (container.PruneReport, error)

	Attach(ctx context.Context, ref string, o container.AttachOptions) error
	Resize(ctx context.Context, ref string, rows, cols uint16) error
	Logs(ctx context.Context, ref string, o container.LogOptions) (LogReader, error)
	Stats(ctx context.Context, ref string) (container.Stats, error)
	Top(ctx context.Context, ref, psArgs string) (container.ProcessTable, error)

	ExecCreate(ctx context.Context, ref string, spec container.ExecSpec) (id string, err error)
	ExecStart(ctx context.Context, id string, io container.ExecIO) error
	ExecInspect(id string) (container.ExecInfo, error)
	ExecResize(ctx context.Context, id string, rows, cols uint16) error

	StatPath(ctx context.Context, ref, path string) (container.PathStat, error)
	CopyFrom(ctx context.Context, ref, path string) (io.ReadCloser, container.PathStat, error)
	CopyTo(ctx context.Context, ref, path string, content io.Reader, o container.CopyToOptions) error
	Changes(ctx context.Context, ref string) ([]container.Change, error)
	Export(ctx context.Context, ref string) (io.ReadCloser, error)
	Commit(ctx context.Context, ref string, pause bool) (digest.Digest, error)

	Connect(ctx context.Context, ref, network string, e container.EndpointSpec) error
	Disconnect(ctx context.Context, ref, network string, force bool) error
}

// LogReader gives the entries of a log in order, then io.EOF. It waits when the log is followed.
type LogReader interface {
	Next() (container.LogEntry, error)
	Close() error
}

func (s *Server) containerRoutes(t *router) {
	t.add("GET", "/containers/json", s.listContainers)
	t.add("POST", "/containers/create", s.createContainer)
	t.add("POST", "/containers/prune", s.pruneContainers)
	t.add("GET", "/containers/{id}/json", s.inspectContainer)
	t.add("POST", "/containers/{id}/start", s.startContainer)
	t.add("POST", "/containers/{id}/stop", s.stopContainer)
	t.add("POST", "/containers/{id}/restart", s.restartContainer)
	t.add("POST", "/containers/{id}/kill", s.killContainer)
	t.add("POST", "/containers/{id}/pause", s.simple(Containers.Pause))
	t.add("POST", "/containers/{id}/unpause", s.simple(Containers.Unpause))
	t.add("POST", "/containers/{id}/rename", s.renameContainer)
	t.add("POST", "/containers/{id}/update", s.updateContainer)
	t.add("POST", "/containers/{id}/wait", s.waitContainer)
	t.add("POST", "/containers/{id}/resize", s.resizeContainer)
	t.add("DELETE", "/containers/{id}", s.removeContainer)
	t.add("POST", "/containers/{id}/attach", s.attachContainer)
	t.add("GET", "/containers/{id}/attach/ws", s.attachWebsocket)
	t.add("GET", "/containers/{id}/logs", s.containerLogs)
	t.add("GET", "/containers/{id}/stats", s.containerStats)
	t.add("GET", "/containers/{id}/top", s.containerTop)
	t.add("HEAD", "/containers/{id}/archive", s.statArchive)
	t.add("GET", "/containers/{id}/archive", s.getArchive)
	t.add("PUT", "/containers/{id}/archive", s.putArchive)
	t.add("GET", "/containers/{id}/changes", s.containerChanges)
	t.add("GET", "/containers/{id}/export", s.exportContainer)
	t.add("POST", "/commit", s.commitContainer)
	t.add("POST", "/containers/{id}/exec", s.createExec)
	t.add("POST", "/exec/{id}/start", s.startExec)
	t.add("POST", "/exec/{id}/resize", s.resizeExec)
	t.add("GET", "/exec/{id}/json", s.inspectExec)
}

// simple serves verbs that take nothing but a container.
func (s *Server) simple(verb func(Containers, context.Context, string) error) handler {
	return func(w *reply, r *request) error {
		if err := verb(s.containers, r.Context(), r.vars["id"]); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
}

func (s *Server) startContainer(w *reply, r *request) error {
	// A body held a HostConfig before 1.24; only an empty one is accepted since.
	if r.ContentLength > 2 {
		return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if err := s.containers.Start(r.Context(), r.vars["id"]); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) stopContainer(w *reply, r *request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	// A client that stops waiting does not take back what it asked for.
	if err := s.containers.Stop(context.WithoutCancel(r.Context()), r.vars["id"], o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) restartContainer(w *reply, r *request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	if err := s.containers.Restart(context.WithoutCancel(r.Context()), r.vars["id"], o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func stopOptions(r *request) (container.StopOptions, error) {
	o := container.StopOptions{Signal: r.query.Get("signal")}
	if r.query.Get("t") == "" {
		return o, nil
	}
	t, err := r.int("t")
	seconds := int(t)
	o.Timeout = &seconds
	return o, err
}

func (s *Server) killContainer(w *reply, r *request) error {
	signal := r.query.Get("signal")
	if signal == "" {
		signal = "SIGKILL"
	}
	if err := s.containers.Kill(r.Context(), r.vars["id"], signal); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) renameContainer(w *reply, r *request) error {
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if err := s.containers.Rename(r.Context(), r.vars["id"], name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) removeContainer(w *reply, r *request) error {
	if r.flag("link") {
		return invalid("legacy links are not removed one by one: remove the container instead")
	}
	o := container.RemoveOptions{Force: r.flag("force"), Volumes: r.flag("v")}
	if err := s.containers.Remove(r.Context(), r.vars["id"], o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) waitContainer(w *reply, r *request) error {
	condition := container.WaitCondition(r.query.Get("condition"))
	switch condition {
	case "":
		condition = container.WaitNotRunning
	case container.WaitNotRunning, container.WaitNextExit, container.WaitRemoved:
	default:
		return invalid("invalid condition: %q", string(condition))
	}
	done, err := s.containers.Wait(r.Context(), r.vars["id"], condition)
	if err != nil {
		return err
	}
	// `docker run` starts the container only after it has seen these headers.
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	w.Flush()
	status, ok := <-done
	if !ok {
		return nil // the client went away
	}
	// Why a start failed is not said here: who asked for the start is told, and docker would print it twice.
	return encodeLine(w, containertypes.WaitResponse{StatusCode: int64(status.Code)})
}

func (s *Server) resizeContainer(w *reply, r *request) error {
	rows, cols, err := terminalSize(r)
	if err != nil {
		return err
	}
	if err := s.containers.Resize(r.Context(), r.vars["id"], rows, cols); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func terminalSize(r *request) (rows, cols uint16, err error) {
	for _, side := range []struct {
		name, parameter string
		to              *uint16
	}{{"height", "h", &rows}, {"width", "w", &cols}} {
		value := r.query.Get(side.parameter)
		n, err := strconv.ParseInt(value, 10, 64)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange):
			return 0, 0, invalid("invalid resize %s %q: invalid syntax", side.name, value)
		case err != nil || n < 0 || n > math.MaxUint16:
			return 0, 0, invalid("invalid resize %s %q: value out of range", side.name, value)
		}
		*side.to = uint16(n)
	}
	return rows, cols, nil
}

func (s *Server) pruneContainers(w *reply, r *request) error {
	f, err := parseFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	report, err := s.containers.Prune(r.Context(), container.Filter{
		Owner: container.OwnerDocker, Label: f["label"], NotLabel: f["label!"], Until: until,
	})
	if err != nil {
		return err
	}
	s.publishPrune("container", report.Reclaimed)
	return writeJSON(w, http.StatusOK, containertypes.PruneReport{
		ContainersDeleted: report.Removed, SpaceReclaimed: uint64(report.Reclaimed),
	})
}

func (s *Server) containerTop(w *reply, r *request) error {
	args := "-ef"
	if r.query.Has("ps_args") && r.query.Get("ps_args") != "" {
		args = r.query.Get("ps_args")
	}
	table, err := s.containers.Top(r.Context(), r.vars["id"], args)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, containertypes.TopResponse{Titles: table.Titles, Processes: table.Processes})
}

func (s *Server) updateContainer(w *reply, r *request) error {
	var update containertypes.UpdateConfig
	if err := readJSON(r, &update); err != nil {
		return err
	}
	warnings, err := validateResources(update.Resources)
	if err != nil {
		return err
	}
	if p := update.PidsLimit; p != nil && *p < 0 {
		*p = 0 // unlimited
	}
	u := container.UpdateSpec{}
	if resources, changed := updatedResources(update.Resources); changed {
		u.Resources = &resources
	}
	if update.RestartPolicy.Name != "" {
		if err := containertypes.ValidateRestartPolicy(update.RestartPolicy); err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		u.Restart = &container.RestartPolicy{Policy: string(update.RestartPolicy.Name), MaxRetries: update.RestartPolicy.MaximumRetryCount}
	}
	more, err := s.containers.Update(r.Context(), r.vars["id"], u)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, containertypes.UpdateResponse{Warnings: append(warnings, more...)})
}
