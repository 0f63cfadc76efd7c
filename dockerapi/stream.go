package dockerapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
)

// progress is the body of pull, push, load, import and build: JSON objects, each sent at once. It is not
// safe for concurrent use.
type progress struct {
	w     *reply
	enc   *json.Encoder
	began bool
}

func newProgress(w *reply) *progress {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return &progress{w: w, enc: enc}
}

func (p *progress) begin() {
	if p.began {
		return
	}
	p.began = true
	// The request's body, a context or an archive, is still being read while progress is shown. HTTP/1 servers in Go
	// would otherwise swallow the rest of it at the first byte of the reply.
	_ = http.NewResponseController(p.w.ResponseWriter).EnableFullDuplex()
	p.w.Header().Set("Content-Type", "application/json")
}

// object sends any value as one line.
func (p *progress) object(v any) {
	p.begin()
	_ = p.enc.Encode(v) // a client that went away is noticed by its context
	p.w.Flush()
}

func (p *progress) send(m jsonstream.Message) { p.object(m) }

func (p *progress) status(id, format string, args ...any) {
	p.send(jsonstream.Message{ID: id, Status: fmt.Sprintf(format, args...)})
}

func (p *progress) line(format string, args ...any) {
	p.send(jsonstream.Message{Stream: fmt.Sprintf(format, args...)})
}

func (p *progress) aux(v any) {
	raw, err := json.Marshal(v)
	if err != nil {
		return
	}
	p.send(jsonstream.Message{Aux: (*json.RawMessage)(&raw)})
}

// finish ends the stream with the outcome: before the first object err is returned to become a status, after it err
// is sent in the form that clients look for, with the text a second time under the name that old ones know.
func (p *progress) finish(err error) error {
	if err == nil {
		p.begin()
		return nil
	}
	if !p.began {
		return err
	}
	return p.fail(err)
}

// fail sends an error in the stream, even as its first object: a build that failed is a request that worked.
// The code is a program's, when one failed: the docker command ends with it.
func (p *progress) fail(err error) error {
	detail := jsonstream.Error{Message: err.Error()}
	if exit, ok := errors.AsType[interface {
		error
		ExitStatus() int
	}](err); ok {
		detail.Code = exit.ExitStatus()
	}
	p.object(map[string]any{
		"errorDetail": detail,
		"error":       err.Error(),
	})
	return nil
}

// lines turns text written to it into stream objects.
func (p *progress) lines() io.Writer { return (*progressText)(p) }

type progressText progress

func (p *progressText) Write(b []byte) (int, error) {
	(*progress)(p).send(jsonstream.Message{Stream: strings.ToValidUTF8(string(b), "\uFFFD")})
	return len(b), nil
}
