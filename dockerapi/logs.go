package dockerapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/moby/moby/api/types"

	"slipway.dev/slipway/engine/container"
)

// logTime is RFC 3339 with all nine digits, so that columns line up.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func (s *Server) containerLogs(w *reply, r *request) error {
	o, err := logOptionsOf(r, time.Now())
	if err != nil {
		return err
	}
	info, err := s.containers.Get(r.vars["id"])
	if err != nil {
		return err
	}
	if info.Spec.Log.Driver == "none" {
		return unsupported("configured logging driver does not support reading")
	}
	logs, err := s.containers.Logs(r.Context(), info.ID, o)
	if err != nil {
		return err
	}
	defer logs.Close()

	media := types.MediaTypeMultiplexedStream
	if info.Spec.Tty || r.version.less(apiVersion{1, 42}) {
		media = types.MediaTypeRawStream
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	if o.Follow {
		w.Flush()
	}
	out := &framer{w: w, framed: !info.Spec.Tty}
	var details []byte
	if r.flag("details") {
		details = logDetails(info)
	}
	return copyLogs(r.Context(), logs, out, r.flag("timestamps"), details, o.Follow, w.Flush)
}

func logOptionsOf(r *request, now time.Time) (container.LogOptions, error) {
	o := container.LogOptions{Stdout: r.flag("stdout"), Stderr: r.flag("stderr"), Follow: r.flag("follow"), Tail: -1}
	if !o.Stdout && !o.Stderr {
		return o, invalid("Bad parameters: you must choose at least one stream")
	}
	var err error
	if o.Since, err = r.timeParam("since", now); err != nil {
		return o, err
	}
	if o.Until, err = r.timeParam("until", now); err != nil {
		return o, err
	}
	// As in Docker, a tail that is not a number means all.
	if n, err := strconv.Atoi(r.query.Get("tail")); err == nil {
		o.Tail = n
	}
	return o, nil
}

// copyLogs writes entries until the log ends, each line with its details. flush is called after every entry of a followed log: the client
// is a person who waits for the line.
func copyLogs(ctx context.Context, logs LogReader, out *framer, timestamps bool, details []byte, follow bool, flush func()) error {
	var line []byte
	whole := true // the last entry ended its line
	for {
		e, err := logs.Next()
		if errors.Is(err, io.EOF) || ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		line = line[:0]
		if timestamps && whole {
			line = append(e.Time.UTC().AppendFormat(line, logTime), ' ')
		}
		if whole {
			line = append(line, details...)
		}
		line = append(line, e.Line...)
		whole = len(e.Line) == 0 || e.Line[len(e.Line)-1] == '\n'
		if _, err := out.write(e.Stream, line); err != nil {
			return err
		}
		if follow {
			flush()
		}
	}
}
