// Package progress writes a build's progress in the words of the classic builder, which
// clients without BuildKit's session show to people and, some of them, parse:
//
//	Step 1/3 : FROM base
//	 ---> 0a1b2c3d4e5f
//	Step 2/3 : RUN make
//	 ---> Running in 6b7c8d9e0f1a
//	(what make printed)
//	 ---> 1c2d3e4f5a6b
//	Successfully built 7d8e9f0a1b2c
//	Successfully tagged web:latest
//
// The solver runs steps at the same time and in any order; here they are shown in the
// order of the Dockerfile. The output of a step that is ahead waits, within a bound, for
// the ones before it.
package progress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// maxHeld bounds the output of one step that waits for the steps before it.
const maxHeld = 4 << 20

// Classic writes the classic stream to w. Its methods may be called from any goroutine;
// w is written to by one at a time.
type Classic struct {
	mu    sync.Mutex // guards everything below, and w
	w     io.Writer
	err   error
	steps []*step
	byKey map[digest.Digest][]*step // vertex to the steps it does
	next  int                       // first step that is not shown to its end
	done  bool
}

// step is one instruction.
type step struct {
	text     string
	line     int
	run      bool // a RUN
	works    bool // always has vertices
	from     bool // a FROM: whether its image had to be loaded is of no interest
	vertices map[digest.Digest]*client.Vertex
	held     []byte
	clipped  bool
	opened   bool // its first line is out
	running  bool // "Running in" is out
	seen     bool // a vertex of it has started
}

// NewClassic returns a progress that writes to w; an error of w ends the writing, never
// the build.
func NewClassic(w io.Writer) *Classic {
	return &Classic{w: w, byKey: map[digest.Digest][]*step{}}
}

// Dockerfile implements build.Progress.
func (c *Classic) Dockerfile(content []byte, target string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.steps = plan(content, target)
}

// Status implements build.Progress.
func (c *Classic) Status(s *client.SolveStatus, lines map[string][]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range s.Vertexes {
		c.vertex(v, lines)
	}
	for _, l := range s.Logs {
		c.log(l)
	}
	c.show()
}

func (c *Classic) vertex(v *client.Vertex, lines map[string][]int) {
	if strings.HasPrefix(v.Name, "[internal]") {
		return
	}
	if c.byKey[v.Digest] == nil {
		for _, line := range lines[v.Digest.String()] {
			if st := c.at(line); st != nil && !slices.Contains(c.byKey[v.Digest], st) {
				c.byKey[v.Digest] = append(c.byKey[v.Digest], st)
			}
		}
	}
	for _, st := range c.byKey[v.Digest] {
		st.vertices[v.Digest] = v
		st.seen = st.seen || v.Started != nil
	}
}

// at is the step of an instruction that begins at a line.
func (c *Classic) at(line int) *step {
	if line == 0 {
		return nil
	}
	for _, st := range c.steps {
		if st.line == line {
			return st
		}
	}
	return nil
}

func (c *Classic) log(l *client.VertexLog) {
	if len(c.byKey[l.Vertex]) == 0 {
		return
	}
	st := c.byKey[l.Vertex][0]
	if len(st.held)+len(l.Data) > maxHeld {
		if !st.clipped {
			st.clipped = true
			st.held = append(st.held, "\n[output clipped: this step is ahead of others]\n"...)
		}
		return
	}
	st.held = append(st.held, l.Data...)
}

// show writes all that is in turn.
func (c *Classic) show() {
	for c.next < len(c.steps) {
		st := c.steps[c.next]
		if !c.done && !c.due(st) {
			return
		}
		c.open(st)
		c.emit(st)
		if !st.complete() && !c.done {
			return
		}
		c.finish(st)
		c.next++
	}
}

// due tells whether the present step may be shown: it has begun, or it has nothing to do,
// which is known once the work of later steps is.
func (c *Classic) due(st *step) bool {
	if st.seen {
		return true
	}
	return len(st.vertices) == 0 && !st.works &&
		slices.ContainsFunc(c.steps[c.next+1:], func(l *step) bool { return len(l.vertices) > 0 })
}

func (c *Classic) open(st *step) {
	if st.opened {
		return
	}
	st.opened = true
	c.printf("Step %d/%d : %s\n", c.next+1, len(c.steps), st.text)
}

func (c *Classic) emit(st *step) {
	if !st.running && st.run && st.seen && !st.cached() {
		st.running = true
		c.printf(" ---> Running in %s\n", st.id())
	}
	if len(st.held) > 0 {
		c.printf("%s", st.held)
		st.held = st.held[:0]
	}
}

func (c *Classic) finish(st *step) {
	if st.failed() {
		return
	}
	if st.cached() && !st.from {
		c.printf(" ---> Using cache\n")
	}
	c.printf(" ---> %s\n", st.id())
}

func (st *step) complete() bool {
	for _, v := range st.vertices {
		if v.Started != nil && v.Completed == nil {
			return false
		}
		if v.Started == nil && v.Completed == nil && st.seen {
			return false
		}
	}
	return true
}

func (st *step) failed() bool {
	for _, v := range st.vertices {
		if v.Error != "" {
			return true
		}
	}
	return false
}

// cached tells whether nothing of a step had to be done. A step that was never asked for
// lies below one that was found.
func (st *step) cached() bool {
	for _, v := range st.vertices {
		if v.Started != nil && !v.Cached {
			return false
		}
	}
	return len(st.vertices) > 0
}

// id is something of the length that people expect there.
func (st *step) id() string {
	for _, v := range st.vertices {
		return short(v.Digest)
	}
	return short(digest.FromString(fmt.Sprint(st.line, st.text)))
}

func short(d digest.Digest) string { return d.Encoded()[:12] }

func (c *Classic) printf(format string, args ...any) {
	if c.err != nil {
		return
	}
	_, c.err = fmt.Fprintf(c.w, format, args...)
}

// Finish writes the end of a build that succeeded.
func (c *Classic) Finish(image digest.Digest, tags []string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = true
	c.show()
	c.printf("Successfully built %s\n", short(image))
	for _, t := range tags {
		c.printf("Successfully tagged %s\n", t)
	}
	return c.err
}

// Fail writes what is still held back of a build that failed.
func (c *Classic) Fail() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; c.next < len(c.steps); c.next++ {
		st := c.steps[c.next]
		if !st.seen {
			continue
		}
		c.open(st)
		c.emit(st)
		if st.complete() {
			c.finish(st)
		}
	}
	return c.err
}
