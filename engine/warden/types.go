package warden

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Lifetime says who a process outlives.
type Lifetime int

const (
	// Kept processes survive the daemon: containers.
	Kept Lifetime = iota
	// Tied processes are killed when the daemon's connection closes: build steps, probes.
	Tied
)

// Mount is one mount that makes up a root file system, in containerd's shape.
type Mount struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Options []string `json:"options,omitempty"`
}

// LogSpec names a log file in Docker's json-file format, written and rotated by the warden: Path is the current
// file, Path.1 the one before, and so on. What one read of the stream returned becomes one write, at once; an entry
// whose "log" does not end in a newline is continued by the next entry of its stream.
type LogSpec struct {
	Path     string `json:"path"`
	MaxSize  int64  `json:"maxSize,omitempty"`  // bytes; 0: never rotated
	MaxFiles int    `json:"maxFiles,omitempty"` // files in all, the current one included; 0 counts as 1
}

// SandboxPath, as the Path of a namespace in Bundle.Linux.Namespaces, means: the one of ContainerSpec.Sandbox.
const SandboxPath = "sandbox"

// ContainerSpec describes a container to start.
type ContainerSpec struct {
	ID       string   `json:"id"`
	Lifetime Lifetime `json:"lifetime,omitempty"`
	// Sandbox is the sandbox whose namespaces are joined, each where Bundle says SandboxPath.
	Sandbox string `json:"sandbox,omitempty"`
	// Rootfs is mounted on Bundle.Root.Path in the warden's own mount namespace before the start, and unmounted by
	// Delete. Empty: the directory is used as it is.
	Rootfs []Mount `json:"rootfs,omitempty"`
	// Bundle is the OCI runtime configuration. Root.Path is absolute; Linux.CgroupsPath is absolute within each
	// hierarchy; Process.Terminal asks for a terminal, of Process.ConsoleSize. OOMScoreAdj absent means 0, never
	// the warden's own.
	Bundle *specs.Spec `json:"bundle"`
	// Stdin opens a pipe for standard input; StdinOnce closes it when the first client that is attached leaves or
	// says CloseStdin. Without Stdin it is /dev/null.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
	// Log receives the output. Nil: output goes only to attached clients.
	Log *LogSpec `json:"log,omitempty"`
	// Attach makes Start return an Attachment that sees the first byte.
	Attach bool `json:"attach,omitempty"`
	// Labels are opaque and come back in every ProcessState, for recovery.
	Labels map[string]string `json:"labels,omitempty"`
}

// ExecSpec describes one more process in a running container. It has no log: output without an attached client is
// discarded.
type ExecSpec struct {
	ContainerID string            `json:"containerID"`
	ID          string            `json:"id"`
	Process     *specs.Process    `json:"process"` // the User is numeric; Terminal asks for a terminal
	Lifetime    Lifetime          `json:"lifetime,omitempty"`
	Stdin       bool              `json:"stdin,omitempty"`
	Attach      bool              `json:"attach,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// Status is what a process is doing.
type Status string

const (
	Running Status = "running"
	Paused  Status = "paused" // the container's first process only
	Exited  Status = "exited"
)

// ProcessState is what the warden knows of a process: a container's first one (ExecID empty) or an exec.
type ProcessState struct {
	ContainerID string            `json:"containerID"`
	ExecID      string            `json:"execID,omitempty"`
	Pid         int               `json:"pid"` // of the warden's (the host's) pid namespace; stays after the exit
	Status      Status            `json:"status"`
	StartedAt   time.Time         `json:"startedAt"`
	ExitedAt    time.Time         `json:"exitedAt,omitzero"`
	ExitCode    int               `json:"exitCode"`         // as the shell reports it: 128+Signal when killed by one
	Signal      int               `json:"signal,omitempty"` // that ended it, or 0
	OOMKilled   bool              `json:"oomKilled,omitempty"`
	ExitKnown   bool              `json:"exitKnown"` // false: it ended while nobody could see how; ExitCode is 255
	Lifetime    Lifetime          `json:"lifetime,omitempty"`
	Sandbox     string            `json:"sandbox,omitempty"`
	Terminal    bool              `json:"terminal,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// EventType is the kind of an Event.
type EventType string

const (
	EventExit EventType = "exit"
	EventOOM  EventType = "oom" // the kernel killed something in the container for its memory limit; it may run on
)

// Event is one thing that happened to a process.
type Event struct {
	Type EventType `json:"type"`
	ProcessState
}

// SandboxSpec describes namespaces to be made and held by descriptor, without a process.
type SandboxSpec struct {
	ID         string            `json:"id"`
	Net        bool              `json:"net,omitempty"`
	IPC        bool              `json:"ipc,omitempty"`
	UTS        bool              `json:"uts,omitempty"`
	Hostname   string            `json:"hostname,omitempty"`
	Domainname string            `json:"domainname,omitempty"`
	Sysctls    map[string]string `json:"sysctls,omitempty"` // namespaced ones: net.*, kernel.shm* and the like
	// SharePID adds a pid namespace. A pid namespace needs a living init: a tiny one, a few hundred kilobytes.
	SharePID bool `json:"sharePID,omitempty"`
}

// Stats are a container's cgroup figures, the same on cgroup v1 and v2. Times are nanoseconds, sizes bytes.
type Stats struct {
	Read   time.Time   `json:"read"`
	CPU    CPUStats    `json:"cpu"`
	Memory MemoryStats `json:"memory"`
	Pids   PidsStats   `json:"pids"`
	Blkio  []BlkioStat `json:"blkio,omitempty"`
}

// CPUStats is processor time since the container started.
type CPUStats struct {
	Total            uint64   `json:"total"`
	User             uint64   `json:"user"`
	Kernel           uint64   `json:"kernel"`
	PerCPU           []uint64 `json:"perCPU,omitempty"` // cgroup v1 only
	Periods          uint64   `json:"periods,omitempty"`
	ThrottledPeriods uint64   `json:"throttledPeriods,omitempty"`
	ThrottledTime    uint64   `json:"throttledTime,omitempty"`
}

// MemoryStats is memory charged to the container now.
type MemoryStats struct {
	Usage        uint64            `json:"usage"`
	MaxUsage     uint64            `json:"maxUsage,omitempty"`
	Limit        uint64            `json:"limit,omitempty"` // the kernel's figure: a huge number means none
	InactiveFile uint64            `json:"inactiveFile,omitempty"`
	Failcnt      uint64            `json:"failcnt,omitempty"`
	OOMKills     uint64            `json:"oomKills,omitempty"`
	Stat         map[string]uint64 `json:"stat,omitempty"` // memory.stat as it is
}

// PidsStats is the number of processes and threads, and the limit (0: none).
type PidsStats struct {
	Current uint64 `json:"current"`
	Limit   uint64 `json:"limit,omitempty"`
}

// BlkioStat is one counter of one block device.
type BlkioStat struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`    // read, write, ...
	Bytes uint64 `json:"bytes"` // bytes moved
	IOs   uint64 `json:"ios"`   // operations
}
