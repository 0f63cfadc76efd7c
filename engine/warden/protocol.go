package warden

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The methods of a request, and of the pushes that the warden sends unasked.
const (
	MethodHello   = "hello"   // first on every connection; the reply comes after a hold for all that is held
	MethodAdopt   = "adopt"   // daemon to a fresh warden: descriptors that its predecessor held
	MethodRecover = "recover" // daemon to a fresh warden: that was all, begin

	MethodStart     = "start"
	MethodExec      = "exec"
	MethodAttach    = "attach"
	MethodSignal    = "signal"
	MethodResize    = "resize"
	MethodPause     = "pause"
	MethodResume    = "resume"
	MethodUpdate    = "update"
	MethodStats     = "stats"
	MethodProcesses = "processes"
	MethodDelete    = "delete"
	MethodList      = "list"
	MethodWait      = "wait"

	MethodCreateSandbox = "sandbox.create"
	MethodRemoveSandbox = "sandbox.remove"
	MethodSetCgroup     = "cgroup.set"
	MethodRemoveCgroup  = "cgroup.remove"
	MethodKeep          = "keep"
	MethodDrop          = "drop"
	MethodShutdown      = "shutdown"

	PushHold    = "hold"    // Hold, with descriptors: keep duplicates of these
	PushRelease = "release" // Hold, without: close the duplicates of these roles, or of all
	PushEvent   = "event"   // Event
)

// The roles of held descriptors.
const (
	RoleStdin    = "stdin"    // write end
	RoleStdout   = "stdout"   // read end
	RoleStderr   = "stderr"   // read end
	RoleTerminal = "terminal" // master
	RolePidfd    = "pidfd"
	RoleNet      = "net"
	RoleIPC      = "ipc"
	RoleUTS      = "uts"
	RolePID      = "pid"
	RoleFile     = "file"
	// RoleAttach is the warden's end of an attachment: the daemon keeps it too, so that a warden's death does not even
	// interrupt it. There may be several.
	RoleAttach = "attach"
)

// The kinds of what holds descriptors.
const (
	HoldProcess = "process"
	HoldSandbox = "sandbox"
	HoldFile    = "file"
)

// Key names something that holds descriptors: a process (ID and Exec), a sandbox or a kept file (ID).
type Key struct {
	Kind string `json:"kind"`
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
}

// Hold goes with descriptors, one per role, in that order.
type Hold struct {
	Key
	Roles []string `json:"roles,omitempty"`
	// AttachIDs names the attachments, in the order of the RoleAttach roles.
	AttachIDs []uint64 `json:"attachIDs,omitempty"`
}

// Hello introduces a daemon.
type Hello struct {
	Version int `json:"version"`
}

// HelloReply introduces the warden.
type HelloReply struct {
	Version  int    `json:"version"`
	Pid      int    `json:"pid"`
	Instance string `json:"instance"` // differs for every warden process
	Fresh    bool   `json:"fresh"`    // it waits for Adopt and Recover before it does anything else
}

// Target names a process and what to do to it.
type Target struct {
	ID        string                `json:"id"`
	Exec      string                `json:"exec,omitempty"`
	Signal    syscall.Signal        `json:"signal,omitempty"`
	Rows      uint16                `json:"rows,omitempty"`
	Cols      uint16                `json:"cols,omitempty"`
	Resources *specs.LinuxResources `json:"resources,omitempty"`
}

// Started is the reply to Start, Exec and Attach. With an attachment, two descriptors go with it: the daemon's end and the
// warden's.
type Started struct {
	State    ProcessState `json:"state"`
	AttachID uint64       `json:"attachID,omitempty"`
}

// WireError is an error on its way through the socket: its kind survives.
type WireError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

var kinds = []struct {
	name string
	err  error
}{
	{"notfound", errdefs.ErrNotFound},
	{"exists", errdefs.ErrAlreadyExists},
	{"invalid", errdefs.ErrInvalidArgument},
	{"precondition", errdefs.ErrFailedPrecondition},
	{"unimplemented", errdefs.ErrNotImplemented},
	{"unavailable", errdefs.ErrUnavailable},
	{"conflict", errdefs.ErrConflict},
}

// ToWire packs err for the other side.
func ToWire(err error) *WireError {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &WireError{Kind: k.name, Message: err.Error()}
		}
	}
	return &WireError{Kind: "unknown", Message: err.Error()}
}

// Unpack is the error that ToWire packed.
func (e *WireError) Unpack() error {
	for _, k := range kinds {
		if k.name == e.Kind {
			return &remoteError{message: e.Message, kind: k.err}
		}
	}
	return &remoteError{message: e.Message, kind: errdefs.ErrUnknown}
}

// remoteError has the other side's text, unchanged, and is of its kind.
type remoteError struct {
	message string
	kind    error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

// Encode packs a body. It panics on what cannot be JSON, which only a type of this package could cause.
func Encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("warden protocol: %v", err))
	}
	return b
}

// Decode unpacks a body.
func Decode(body json.RawMessage, v any) error {
	if len(body) == 0 {
		return errdefs.ErrInvalidArgument.WithMessage("the request has no body")
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}
