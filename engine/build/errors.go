package build

import (
	"context"
	"errors"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

	"slipway.dev/slipway/engine/build/op"
)

// Error is a failed build, with the place in the Dockerfile where that is known.
type Error struct {
	// Excerpt shows the lines of the Dockerfile, as BuildKit prints them; may be empty.
	Excerpt string
	File    string
	Line    int // 0: unknown
	Err     error
}

func (e *Error) Error() string {
	msg := "failed to solve: " + e.Err.Error()
	if e.Excerpt == "" {
		return msg
	}
	return e.Excerpt + msg
}

func (e *Error) Unwrap() error { return e.Err }

// explain gives an error of the solver the shape that users know: the place first.
func explain(err error) error {
	var already *Error
	if errors.As(err, &already) || errors.Is(err, context.Canceled) {
		return err
	}
	out := &Error{Err: err}
	for _, s := range errdefs.Sources(err) {
		if s.Info == nil {
			continue
		}
		var b strings.Builder
		_ = s.Print(&b) // memory does not fail
		out.Excerpt, out.File = b.String(), s.Info.Filename
		if len(s.Ranges) > 0 && s.Ranges[0].Start != nil {
			out.Line = int(s.Ranges[0].Start.Line)
		}
	}
	return out
}

// noRunner refuses RUN in builders that were given no way to run programs.
type noRunner struct{}

func (noRunner) Run(context.Context, op.Process) error {
	return errors.New("this builder cannot run programs")
}

func (noRunner) CacheDir(context.Context, string, pb.CacheSharingOpt, func(string) error) (string, func(), error) {
	return "", nil, errors.New("this builder cannot run programs")
}
