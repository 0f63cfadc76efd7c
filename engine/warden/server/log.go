package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
	"unicode/utf8"

	"slipway.dev/slipway/engine/warden"
)

// jsonLog writes a container's output in Docker's json-file format. Nothing is buffered: what one read brought is one
// write, so that the warden's death loses no line. A nil jsonLog drops everything.
type jsonLog struct {
	spec warden.LogSpec
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	f      *os.File
	size   int64
	buf    []byte
	failed bool // the last write failed: said once, until one succeeds
}

// openLog opens spec's file to append to it.
func openLog(spec *warden.LogSpec, log *slog.Logger) (*jsonLog, error) {
	if spec == nil {
		return nil, nil
	}
	l := &jsonLog{spec: *spec, log: log}
	if err := l.open(os.O_APPEND); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *jsonLog) open(flag int) error {
	f, err := os.OpenFile(l.spec.Path, os.O_WRONLY|os.O_CREATE|flag, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	l.f, l.size = f, st.Size()
	return nil
}

func (l *jsonLog) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.f.Close()
}

// write logs data, one entry per line; an unfinished line is an entry without a newline. carry is what the last call held
// back, and it returns what this one does: the bytes of a character that is not complete. With nil data everything is
// written.
func (l *jsonLog) write(stream string, data []byte, now time.Time, carry []byte) (rest []byte) {
	if l == nil {
		return nil
	}
	if data == nil {
		data, carry = carry, nil
	} else {
		if len(carry) > 0 {
			data = append(carry[:len(carry):len(carry)], data...)
		}
		data, rest = splitIncomplete(data)
	}
	if len(data) == 0 {
		return rest
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = appendEntries(l.buf[:0], stream, data, now)
	l.append()
	if cap(l.buf) > 256<<10 {
		l.buf = nil
	}
	return rest
}

// splitIncomplete cuts off the beginning of a UTF-8 sequence at the end of data, and copies it.
func splitIncomplete(data []byte) (whole, rest []byte) {
	for i := 1; i <= min(utf8.UTFMax-1, len(data)); i++ {
		b := data[len(data)-i]
		if !utf8.RuneStart(b) {
			continue
		}
		if tail := data[len(data)-i:]; b >= utf8.RuneSelf && !utf8.FullRune(tail) {
			return data[:len(data)-i], append([]byte(nil), tail...)
		}
		break
	}
	return data, nil
}

// append writes l.buf. A log that cannot be written must not stop its container.
func (l *jsonLog) append() {
	if l.spec.MaxSize > 0 && l.size > 0 && l.size+int64(len(l.buf)) > l.spec.MaxSize {
		if err := l.rotate(); err != nil {
			l.complain("rotate", err)
		}
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
	if err != nil {
		l.complain("write", err)
		return
	}
	l.failed = false
}

func (l *jsonLog) complain(op string, err error) {
	if !l.failed {
		l.log.Warn("a container's log loses output", "operation", op, "file", l.spec.Path, "error", err)
	}
	l.failed = true
}

// rotate moves Path to Path.1 and so on, dropping the oldest.
func (l *jsonLog) rotate() error {
	if l.spec.MaxFiles <= 1 {
		if err := l.f.Truncate(0); err != nil {
			return err
		}
		l.size = 0
		return nil
	}
	if err := l.shift(); err != nil {
		return err
	}
	old := l.f
	if err := l.open(os.O_APPEND); err != nil {
		return err
	}
	return old.Close()
}

// shift makes room for a new Path. Where there is none, the last rotation came no further than here: another shift for
// every line from then on would drop all of the older files.
func (l *jsonLog) shift() error {
	if _, err := os.Lstat(l.spec.Path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for i := l.spec.MaxFiles - 1; i >= 1; i-- {
		err := os.Rename(rotated(l.spec.Path, i-1), rotated(l.spec.Path, i))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}

// appendEntries encodes data as json-file entries.
func appendEntries(buf []byte, stream string, data []byte, now time.Time) []byte {
	var stamp [len(time.RFC3339Nano) + 8]byte
	t := now.UTC().AppendFormat(stamp[:0], time.RFC3339Nano)
	for len(data) > 0 {
		n := len(data)
		for i, b := range data {
			if b == '\n' {
				n = i + 1
				break
			}
		}
		buf = append(buf, `{"log":"`...)
		buf = appendEscaped(buf, data[:n])
		buf = append(buf, `","stream":"`...)
		buf = append(buf, stream...)
		buf = append(buf, `","time":"`...)
		buf = append(buf, t...)
		buf = append(buf, "\"}\n"...)
		data = data[n:]
	}
	return buf
}

const hexDigits = "0123456789abcdef"

// appendEscaped appends data as the inside of a JSON string, as Docker writes it: bytes that are not UTF-8 become U+FFFD.
func appendEscaped(buf, data []byte) []byte {
	for i := 0; i < len(data); {
		b := data[i]
		if b < utf8.RuneSelf {
			buf = appendASCII(buf, b)
			i++
			continue
		}
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			buf = append(buf, `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // JavaScript takes them for line ends
			buf = append(buf, `\u202`...)
			buf = append(buf, hexDigits[r&0xf])
		default:
			buf = append(buf, data[i:i+n]...)
		}
		i += n
	}
	return buf
}

func appendASCII(buf []byte, b byte) []byte {
	switch b {
	case '"', '\\':
		return append(buf, '\\', b)
	case '\n':
		return append(buf, `\n`...)
	case '\r':
		return append(buf, `\r`...)
	case '\t':
		return append(buf, `\t`...)
	}
	if b < ' ' || b == 0x7f || b == '<' || b == '>' || b == '&' {
		return append(buf, '\\', 'u', '0', '0', hexDigits[b>>4], hexDigits[b&0xf])
	}
	return append(buf, b)
}
