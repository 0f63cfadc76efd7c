package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

const (
	logName         = "log"
	defaultLogSize  = 10 << 20
	defaultLogFiles = 3
	logChunk        = 64 << 10
	maxLogEntry     = 16 << 20 // longer ones are garbage
)

func logPath(dir string, spec *Spec) string {
	if spec.LogPath != "" {
		return spec.LogPath
	}
	return filepath.Join(dir, logName)
}

// logSpec bounds the log even where nobody asked for a bound: an endless one fills disks.
func logSpec(dir string, spec *Spec) *warden.LogSpec {
	l := &warden.LogSpec{Path: logPath(dir, spec), MaxSize: spec.Log.MaxSize, MaxFiles: spec.Log.MaxFiles}
	if l.MaxSize == 0 {
		l.MaxSize = defaultLogSize
	}
	if l.MaxSize < 0 {
		l.MaxSize = 0
	}
	if l.MaxFiles == 0 {
		l.MaxFiles = defaultLogFiles
	}
	return l
}

// LogReader reads log entries. It is for one goroutine at a time; Close must be called.
type LogReader struct {
	ctx    context.Context
	cancel context.CancelFunc
	o      LogOptions
	path   string
	files  int // rotated files there may be, the current one included

	file  *os.File // nil before the first and after the last
	buf   []byte   // read and not yet used
	eof   bool     // of file, as far as we know
	watch *watch   // nil: do not follow
	ended <-chan struct{}
	over  bool // the container has ended: what is there now is all
}

// Logs opens a container's log. With Follow the reader waits for more until the container
// exits.
func (m *Manager) Logs(ctx context.Context, ref string, o LogOptions) (*LogReader, error) {
	c, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	spec := c.spec()
	if spec.Log.Driver == "none" {
		return nil, errdefs.ErrInvalidArgument.WithMessage("configured logging driver does not support reading")
	}
	r := &LogReader{o: o, path: logPath(c.dir, spec), files: logSpec(c.dir, spec).MaxFiles}
	if o.Follow && !o.Until.IsZero() {
		r.ctx, r.cancel = context.WithDeadline(ctx, o.Until)
	} else {
		r.ctx, r.cancel = context.WithCancel(ctx)
	}
	if o.Follow {
		c.mu.Lock()
		running := c.s.State.Running
		r.ended = c.ended
		c.mu.Unlock()
		if running && r.ended != nil {
			if r.watch, err = m.files.watch(filepath.Dir(r.path)); err != nil {
				r.cancel()
				return nil, fmt.Errorf("follow log of %s: %w", spec.Name, err)
			}
		}
	}
	if err := r.begin(); err != nil {
		r.Close()
		return nil, fmt.Errorf("read log of %s: %w", spec.Name, err)
	}
	return r, nil
}

// Close ends reading.
func (r *LogReader) Close() error {
	r.cancel()
	if r.watch != nil {
		r.watch.close()
	}
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

func (r *LogReader) name(i int) string {
	if i == 0 {
		return r.path
	}
	return fmt.Sprintf("%s.%d", r.path, i)
}

// begin opens the file in which to start, at the place where to start.
func (r *LogReader) begin() error {
	oldest := 0
	for i := r.files - 1; i > 0; i-- {
		if _, err := os.Lstat(r.name(i)); err == nil {
			oldest = i
			break
		}
	}
	if r.o.Tail < 0 {
		return r.open(oldest, 0)
	}
	want := r.o.Tail
	for i := 0; ; i++ {
		offset, found, err := tailOffset(r.name(i), want)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if want -= found; want <= 0 || i >= oldest {
			return r.open(i, offset)
		}
	}
}

func (r *LogReader) open(i int, offset int64) error {
	f, err := os.Open(r.name(i))
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was written yet
	}
	if err != nil {
		return err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return err
	}
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.buf, r.eof = f, nil, false
	return nil
}

// tailOffset finds where the last n lines of a file begin, and how many there are, by
// reading backwards.
func tailOffset(path string, n int) (offset int64, found int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	buf := make([]byte, logChunk)
	for at := end; at > 0; {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue
			}
			if found++; found == n {
				return at + i + 1, found, nil
			}
		}
	}
	if end > 0 {
		found++
	}
	return 0, found, nil
}

// Next returns the next selected entry, io.EOF at the end.
func (r *LogReader) Next() (LogEntry, error) {
	for {
		line, err := r.line()
		if err != nil {
			return LogEntry{}, err
		}
		e, ok := parseEntry(line)
		if !ok {
			continue // torn by a crash of the machine
		}
		if !r.o.Until.IsZero() && e.Time.After(r.o.Until) {
			return LogEntry{}, io.EOF
		}
		if e.Time.Before(r.o.Since) || e.Stream == 1 && !r.o.Stdout || e.Stream == 2 && !r.o.Stderr {
			continue
		}
		return e, nil
	}
}

// line returns the next complete line, without its newline.
func (r *LogReader) line() ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf, '\n'); i >= 0 {
			line := r.buf[:i]
			r.buf = r.buf[i+1:]
			return line, nil
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more: from the file, the one after it, or the future.
func (r *LogReader) fill() error {
	if r.file != nil {
		n, err := r.read()
		if n > 0 || err != nil {
			return err
		}
	}
	moved, err := r.advance()
	if moved || err != nil {
		return err
	}
	return r.await()
}

func (r *LogReader) read() (int, error) {
	if len(r.buf) > maxLogEntry {
		r.buf = nil
	}
	old := len(r.buf)
	buf := append(r.buf, make([]byte, logChunk)...)
	n, err := r.file.Read(buf[old:])
	r.buf = buf[:old+n]
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

// advance goes on with the file that was begun after the current one, if there is one. The
// current file's name may have changed meanwhile; its inode has not.
func (r *LogReader) advance() (bool, error) {
	if r.file == nil {
		err := r.open(0, 0)
		return r.file != nil, err
	}
	own, err := r.file.Stat()
	if err != nil {
		return false, err
	}
	for i := 0; i < r.files; i++ {
		fi, err := os.Lstat(r.name(i))
		if err != nil || !os.SameFile(own, fi) {
			continue
		}
		if i == 0 {
			return r.rewind(own)
		}
		return r.switchTo(i - 1)
	}
	for i := r.files - 1; i >= 0; i-- { // ours was dropped: go on with the oldest
		if _, err := os.Lstat(r.name(i)); err == nil {
			return r.switchTo(i)
		}
	}
	return false, nil
}

// switchTo leaves the current file, after everything in it was read: the writer turns to
// a new file before it writes again, so what is there after the rename is all.
func (r *LogReader) switchTo(i int) (bool, error) {
	if n, err := r.read(); n > 0 || err != nil {
		return true, err
	}
	before := r.file
	err := r.open(i, 0)
	return r.file != before, err
}

// rewind notices that a log of one file only was truncated.
func (r *LogReader) rewind(own os.FileInfo) (bool, error) {
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil || own.Size() >= at {
		return false, err
	}
	r.buf = nil
	_, err = r.file.Seek(0, io.SeekStart)
	return true, err
}

// await waits until there may be more, or gives io.EOF.
func (r *LogReader) await() error {
	if r.watch == nil || r.over {
		return io.EOF
	}
	select {
	case <-r.watch.changed:
		return nil
	case <-r.ended: // one more look: the last lines may have come just before
		r.over = true
		return nil
	case <-r.ctx.Done():
		if errors.Is(r.ctx.Err(), context.DeadlineExceeded) && !r.o.Until.IsZero() {
			return io.EOF
		}
		return context.Cause(r.ctx)
	}
}

func parseEntry(line []byte) (LogEntry, bool) {
	var e struct {
		Log    string    `json:"log"`
		Stream string    `json:"stream"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(line, &e); err != nil {
		return LogEntry{}, false
	}
	out := LogEntry{Stream: 1, Time: e.Time, Line: []byte(e.Log)}
	if e.Stream == "stderr" {
		out.Stream = 2
	}
	return out, true
}

// inotifyMask: content, and the renames and creations of a rotation.
const inotifyMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR
