package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// board shows how far each service is: on a terminal a line per service, kept up to date, elsewhere a line
// whenever something changes.
type board struct {
	out   io.Writer
	width int // of the terminal; 0: not one
	quiet bool

	mu    sync.Mutex // guards what follows, and the output
	order []string
	rows  map[string]*row
	drawn int // lines of the block that are on the screen
}

type row struct {
	state       string
	ready, want int32
	since       time.Time
}

func newBoard(out io.Writer, quiet bool) *board {
	b := &board{out: out, quiet: quiet, rows: map[string]*row{}}
	if f, ok := out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && term.IsTerminal(int(f.Fd())) {
			b.width = max(w, 20)
		}
	}
	return b
}

// Say prints a line that stays, above the block.
func (b *board) Say(service, line string) {
	if service != "" {
		line = service + ": " + line
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.quiet {
		return
	}
	b.erase()
	fmt.Fprintln(b.out, line)
	b.draw()
}

// Lines prints what must be seen even by those who asked for quiet, such as the log of a failed build.
func (b *board) Lines(lines []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.erase()
	for _, line := range lines {
		fmt.Fprintln(b.out, line)
	}
	b.draw()
}

// State replaces what is shown of a service.
func (b *board) State(service, state string, ready, want int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.quiet {
		return
	}
	r, known := b.rows[service]
	if !known {
		r = &row{since: time.Now()}
		b.rows[service] = r
		b.order = append(b.order, service)
	}
	r.state, r.ready, r.want = state, ready, want
	if b.width == 0 {
		fmt.Fprintf(b.out, "%s: %s\n", service, r.text())
		return
	}
	b.erase()
	b.draw()
}

// detail shows passing work on a terminal only: a pipe would be flooded.
func (b *board) detail(service, state string) {
	if b.width > 0 {
		b.State(service, state, 0, 0)
	}
}

func (r *row) text() string {
	if r.want == 0 {
		return r.state
	}
	return fmt.Sprintf("%s %d/%d", r.state, r.ready, r.want)
}

const barCells = 10

// line is one service's: a bar of its replicas where there are several to wait for.
func (b *board) line(service string, names int) string {
	r := b.rows[service]
	bar := strings.Repeat(" ", barCells+2)
	if r.want > 0 {
		full := int(min(r.ready, r.want)) * barCells / int(r.want)
		bar = "[" + strings.Repeat("=", full) + strings.Repeat(" ", barCells-full) + "]"
	}
	text := []rune(fmt.Sprintf("  %-*s %s %s", names, service, bar, r.text()))
	if len(text) >= b.width {
		text = append(text[:b.width-2], '…')
	}
	return string(text)
}

func (b *board) erase() {
	if b.drawn > 0 {
		fmt.Fprintf(b.out, "\x1b[%dA\r\x1b[J", b.drawn)
		b.drawn = 0
	}
}

func (b *board) draw() {
	if b.width == 0 {
		return
	}
	names := 0
	for _, s := range b.order {
		names = max(names, len(s))
	}
	var text strings.Builder
	for _, s := range b.order {
		text.WriteString(b.line(s, names) + "\n")
	}
	b.drawn = len(b.order)
	io.WriteString(b.out, text.String())
}
