package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// streams are the command's own standard streams.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// terminal returns the descriptor of s if it is a terminal.
func terminal(s any) (fd int, ok bool) {
	f, ok := s.(*os.File)
	if !ok {
		return 0, false
	}
	return int(f.Fd()), term.IsTerminal(int(f.Fd()))
}

func (s streams) outIsTerminal() bool { _, ok := terminal(s.out); return ok }
func (s streams) inIsTerminal() bool  { _, ok := terminal(s.in); return ok }

// width is how wide lines may be; 0 means that nobody cares.
func (s streams) width() int {
	fd, ok := terminal(s.out)
	if !ok {
		return 0
	}
	w, _, err := term.GetSize(fd)
	if err != nil {
		return 0
	}
	return w
}

// maxFrame bounds one frame of output: a larger one means that the stream is not framed at all.
const maxFrame = 256 << 20

// unframe copies framed output to where each frame belongs, until the stream ends.
func unframe(stdout, stderr io.Writer, r io.Reader) error {
	var head [8]byte
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("read output: %w", err)
		}
		size := int64(binary.BigEndian.Uint32(head[4:]))
		if size > maxFrame {
			return fmt.Errorf("read output: frame of %d bytes is too large", size)
		}
		to := stdout
		switch head[0] {
		case 2:
			to = stderr
		case 3: // the daemon's own error
			text := make([]byte, size)
			if _, err := io.ReadFull(r, text); err != nil {
				return fmt.Errorf("read output: %w", err)
			}
			return fmt.Errorf("%s", text)
		}
		if _, err := io.CopyN(to, r, size); err != nil {
			return fmt.Errorf("copy output: %w", err)
		}
	}
}
