package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"

	"slipway.dev/slipway/compose/apply"
)

// board shows how far each service is: on a terminal a line per service, kept up to date, elsewhere a line
// whenever something changes.
type board struct {
	out   io.Writer
	size  func() (width, rows int) // of the terminal; nil: not one
	quiet bool

	mu      sync.Mutex // guards what follows, and the output
	width   int        // of the terminal when it was last drawn on; 0: not one
	rows    int        // what scrolled away cannot be drawn again
	order   []string
	state   map[string]*row
	drawn   int   // lines of the block that are on the screen
	lengths []int // of these lines
}

// What a terminal has that does not tell.
const defaultWidth, defaultRows = 80, 24

type row struct {
	state       string
	ready, want int32
}

func newBoard(out io.Writer, quiet bool) *board {
	b := &board{out: out, quiet: quiet, state: map[string]*row{}, rows: defaultRows}
	if f, ok := out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && term.IsTerminal(int(f.Fd())) {
			b.width, b.rows = cmp.Or(w, defaultWidth), cmp.Or(h, defaultRows)
			b.size = func() (int, int) {
				w, h, err := term.GetSize(int(f.Fd()))
				if err != nil {
					return b.width, b.rows
				}
				return cmp.Or(w, defaultWidth), cmp.Or(h, defaultRows)
			}
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

// End prints the last line, below the block.
func (b *board) End(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.quiet {
		fmt.Fprintln(b.out, line)
	}
	b.drawn, b.order = 0, nil
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

// failure shows what a service that failed has printed last, and returns its error.
func (b *board) failure(err error) error {
	var failed *apply.FailedError
	if !errors.As(err, &failed) {
		return err
	}
	lines := make([]string, len(failed.Log))
	for i, line := range failed.Log {
		lines[i] = failed.Service + " | " + line
	}
	b.Lines(lines)
	return err
}

// State replaces what is shown of a service.
func (b *board) State(service, state string, ready, want int32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.quiet {
		return
	}
	r, known := b.state[service]
	if !known {
		r = &row{}
		b.state[service] = r
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
	r := b.state[service]
	bar := strings.Repeat(" ", barCells+2)
	if r.want > 0 {
		full := int(min(r.ready, r.want)) * barCells / int(r.want)
		bar = "[" + strings.Repeat("=", full) + strings.Repeat(" ", barCells-full) + "]"
	}
	text := []rune(fmt.Sprintf("  %-*s %s %s", names, service, bar, r.text()))
	if len(text) >= b.width {
		text = append(text[:max(b.width-2, 0)], '…')
	}
	return string(text)
}

// erase takes the block away. A terminal that has become narrower has wrapped its lines: each takes several rows now.
func (b *board) erase() {
	if b.size != nil {
		width, rows := b.size()
		if width < b.width {
			rows := 0
			for _, n := range b.lengths {
				rows += max(1, (n+width-1)/width)
			}
			b.drawn = rows
		}
		b.width, b.rows = width, rows
	}
	if b.drawn > 0 {
		fmt.Fprintf(b.out, "\x1b[%dA\r\x1b[J", min(b.drawn, max(b.rows-1, 1)))
		b.drawn = 0
	}
}

// atRest are the states that a service stays in.
var atRest = []string{"running", "completed", "stopped", "removed", "applied"}

// fitting chooses the lines that there is room for: those of services that are still on their way go before the others.
func (b *board) fitting(room int) (shown []string, hidden int) {
	if len(b.order) <= room {
		return b.order, 0
	}
	left := len(b.order) - max(room-1, 1) // one line tells of those that are hidden
	for _, s := range b.order {
		if left > hidden && slices.Contains(atRest, b.state[s].state) {
			hidden++
			continue
		}
		shown = append(shown, s)
	}
	if more := left - hidden; more > 0 {
		shown, hidden = shown[more:], left
	}
	return shown, hidden
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
	shown, hidden := b.fitting(max(b.rows-2, 1))
	b.lengths = b.lengths[:0]
	for _, s := range shown {
		line := b.line(s, names)
		b.lengths = append(b.lengths, utf8.RuneCountInString(line))
		text.WriteString(line + "\n")
	}
	if hidden > 0 {
		line := fmt.Sprintf("  … and %d more", hidden)
		b.lengths = append(b.lengths, utf8.RuneCountInString(line))
		text.WriteString(line + "\n")
	}
	b.drawn = len(b.lengths)
	io.WriteString(b.out, text.String())
}
