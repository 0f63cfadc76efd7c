package container

import (
	"io"
	"os"
	"time"
)

// AttachOptions say what to connect to a container's standard streams. Nil streams are
// not attached.
type AttachOptions struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer // with a tty everything goes to Stdout
	Logs           bool      // first what was logged before
	Stream         bool      // then what comes from now on, until the container exits
	Running        bool      // a container that does not run is an error, instead of being waited for
	DetachKeys     []byte    // nil: ctrl-p ctrl-q; empty: none
	// Attached, when not nil, is called once before the first byte is read or written: when
	// nothing that the container writes later can be missed any more, or when the logs come.
	Attached func()
}

// ExecSpec is one more process in a running container.
type ExecSpec struct {
	Cmd                                     []string
	Env                                     []string // added to the container's
	User, WorkingDir                        string   // empty: the container's
	Tty, Privileged                         bool
	AttachStdin, AttachStdout, AttachStderr bool
	DetachKeys                              []byte
	Rows, Cols                              uint16 // of the terminal at first; 0: unknown
}

// ExecIO says how ExecStart runs an exec that was created.
type ExecIO struct {
	Detach         bool // return as soon as it runs
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	DetachKeys     []byte // nil: those of the ExecSpec, then ctrl-p ctrl-q
	Rows, Cols     uint16 // first size of the tty; 0: unknown
	// Started, when not nil, is called once the process runs, before the first byte.
	Started func()
}

// ExecInfo is an exec as it is now.
type ExecInfo struct {
	ID, ContainerID string
	Spec            ExecSpec
	Running         bool
	Started         bool
	ExitCode        *int // nil until it has exited
	Pid             int
}

// ExecResult is what a one-shot exec gave.
type ExecResult struct {
	ExitCode  int
	Output    []byte // both streams, in the order they came
	Truncated bool
}

// LogOptions select log entries. With neither Stdout nor Stderr nothing is selected.
type LogOptions struct {
	Stdout, Stderr bool
	Follow         bool // until the container exits
	Since, Until   time.Time
	Tail           int // the last n entries; negative: all
}

// LogEntry is one line, or a piece of a very long one.
type LogEntry struct {
	Stream byte // 1 stdout, 2 stderr
	Time   time.Time
	Line   []byte // with its newline, unless the line goes on in the next entry
}

// PathStat describes a file in a container, as docker cp wants it.
type PathStat struct {
	Name       string
	Size       int64
	Mode       os.FileMode
	Mtime      time.Time
	LinkTarget string
}

// CopyToOptions refine CopyTo.
type CopyToOptions struct {
	NoOverwriteDirNonDir bool // refuse to replace a directory by a file or the reverse
	CopyUIDGID           bool // give what is copied to the container's user
}

// ChangeKind tells how a path differs from the image.
type ChangeKind int

// The kinds of changes, with Docker's numbers.
const (
	Modified ChangeKind = 0
	Added    ChangeKind = 1
	Deleted  ChangeKind = 2
)

// Change is one path that differs from the image.
type Change struct {
	Kind ChangeKind
	Path string
}

// ProcessTable is the answer to Top.
type ProcessTable struct {
	Titles    []string
	Processes [][]string
}

// PruneReport says what a prune removed.
type PruneReport struct {
	Removed   []string
	Reclaimed int64
}
