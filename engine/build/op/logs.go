package op

import (
	"context"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/progress"
)

// maxLog bounds the output of one step that is passed on: a build that prints without end
// must not fill the memory of whoever follows it.
const maxLog = 16 << 20

// logs passes a program's output on as progress of its vertex.
type logs struct {
	w progress.Writer

	mu   sync.Mutex // guards left
	left int
}

func newLogs(ctx context.Context) *logs {
	w, _, _ := progress.NewFromContext(ctx)
	return &logs{w: w, left: maxLog}
}

func (l *logs) close() { _ = l.w.Close() }

func (l *logs) stream(n int) *logStream { return &logStream{l, n} }

type logStream struct {
	logs   *logs
	stream int
}

// Write never fails: a program does not stop because nobody listens.
func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	s.logs.mu.Lock()
	defer s.logs.mu.Unlock()
	if s.logs.left <= 0 {
		return n, nil
	}
	if len(p) >= s.logs.left {
		p = append(p[:s.logs.left:s.logs.left], "\n[output clipped: more than 16 MiB]\n"...)
	}
	s.logs.left -= len(p)
	data := append([]byte(nil), p...)
	_ = s.logs.w.Write(identity.NewID(), client.VertexLog{Stream: s.stream, Data: data})
	return n, nil
}
