package container

import (
	"net/netip"
	"time"
)

// Owners of containers. Each side's prune and list touch only its own.
const (
	OwnerDocker = "docker"
	OwnerNode   = "node"
)

// Spec says what container is wanted. Create fills in what the image provides, so the
// Spec found in an Info is complete: Env, Entrypoint, Cmd, Labels and so on are then the
// effective ones. A stored Spec is never changed in place; Update and Rename replace it.
type Spec struct {
	Name  string `json:",omitempty"` // empty: a random one
	Owner string `json:",omitempty"` // empty: OwnerDocker
	Image string // reference, id or id prefix, kept as the caller wrote it

	Hostname   string `json:",omitempty"` // empty: first 12 characters of the id
	Domainname string `json:",omitempty"`
	User       string `json:",omitempty"` // "", "uid", "name", "user:group"
	WorkingDir string `json:",omitempty"`

	// Entrypoint: nil takes the image's; not nil replaces it and drops the image's Cmd.
	Entrypoint []string
	Cmd        []string // nil: the image's
	Env        []string `json:",omitempty"` // added to the image's by name; "NAME" without "=" removes one

	Tty       bool   `json:",omitempty"`
	OpenStdin bool   `json:",omitempty"`
	StdinOnce bool   `json:",omitempty"`
	Rows      uint16 `json:",omitempty"` // size of the terminal at first; 0: unknown
	Cols      uint16 `json:",omitempty"`

	StopSignal  string            `json:",omitempty"` // name or number; empty: the image's, then SIGTERM
	StopTimeout *int              `json:",omitempty"` // seconds; nil: 10; negative: wait for ever
	Healthcheck *Health           `json:",omitempty"` // nil: the image's
	Labels      map[string]string `json:",omitempty"`
	Exposed     []string          `json:",omitempty"` // "80/tcp"; the image's are added
	Volumes     []string          `json:",omitempty"` // targets that get an anonymous volume; the image's are added

	Mounts    []Mount `json:",omitempty"`
	Resources Resources
	Restart   RestartPolicy

	AutoRemove     bool     `json:",omitempty"`
	Privileged     bool     `json:",omitempty"`
	ReadOnly       bool     `json:",omitempty"`
	Init           bool     `json:",omitempty"`
	CapAdd         []string `json:",omitempty"`
	CapDrop        []string `json:",omitempty"`
	SecurityOpt    []string `json:",omitempty"` // no-new-privileges[:bool], seccomp=unconfined|JSON, systempaths=unconfined, apparmor=…, label=…
	GroupAdd       []string `json:",omitempty"`
	StrictGroups   bool     `json:",omitempty"` // the user is in no group that only the image's /etc/group puts it in
	Sysctls        map[string]string
	MaskedPaths    []string `json:",omitempty"` // nil: the default list
	ReadonlyPaths  []string `json:",omitempty"` // nil: the default list
	Devices        []Device `json:",omitempty"`
	DeviceRules    []string `json:",omitempty"` // "c 10:200 rwm"
	NoNewPrivs     bool     `json:",omitempty"`
	AmbientCaps    []string `json:",omitempty"`
	AmbientAllCaps bool     `json:",omitempty"`

	// NetworkMode: "", "default", "bridge", the name or id of a network, "host", "none"
	// or "container:REF". Endpoints adds networks and says more about each, by network
	// name or id.
	NetworkMode string                  `json:",omitempty"`
	Endpoints   map[string]EndpointSpec `json:",omitempty"`
	Ports       []PortMapping           `json:",omitempty"`
	PublishAll  bool                    `json:",omitempty"`
	ExtraHosts  []string                `json:",omitempty"` // "name:address", "name=address", address may be host-gateway
	DNS         []string                `json:",omitempty"`
	DNSSearch   []string                `json:",omitempty"`
	DNSOptions  []string                `json:",omitempty"`
	Links       []string                `json:",omitempty"` // "container[:alias]"

	PidMode      string `json:",omitempty"` // "", "host", "container:REF"
	IpcMode      string `json:",omitempty"` // "", "private", "shareable", "none", "host", "container:REF"
	UTSMode      string `json:",omitempty"` // "", "host"
	CgroupnsMode string `json:",omitempty"` // "", "private", "host"; empty: private on cgroup v2, host on v1

	Log          LogConfig
	CgroupParent string `json:",omitempty"` // absolute, or relative to the instance's parent; empty: the instance's parent

	// Sandbox names an existing warden sandbox whose net, ipc and uts namespaces are
	// joined. Networks, hosts, resolv.conf and hostname are then the caller's business:
	// the manager attaches nothing and mounts only the three files given here.
	Sandbox      string `json:",omitempty"`
	SandboxPID   bool   `json:",omitempty"` // join the sandbox's pid namespace too
	ResolvConf   string `json:",omitempty"`
	HostsFile    string `json:",omitempty"`
	HostnameFile string `json:",omitempty"`
	// LogPath of a node-owned container; empty: one in the container's directory.
	LogPath string `json:",omitempty"`
	// TerminationGrace is not here on purpose: the node passes it to Stop.

	Annotations map[string]string `json:",omitempty"` // opaque; front doors keep their original request here
}

// Health is a health check. Test is [] (inherit), ["NONE"], ["CMD", argv…] or
// ["CMD-SHELL", line]. Zero durations and retries mean Docker's defaults: interval 30 s,
// timeout 30 s, start period 0, start interval 5 s, retries 3.
type Health struct {
	Test          []string
	Interval      time.Duration
	Timeout       time.Duration
	StartPeriod   time.Duration
	StartInterval time.Duration
	Retries       int
}

// MountType says where a mount's content comes from.
type MountType string

// The kinds of mounts.
const (
	MountBind   MountType = "bind"
	MountVolume MountType = "volume"
	MountTmpfs  MountType = "tmpfs"
	MountImage  MountType = "image"
)

// Mount is one mount wanted in the container.
type Mount struct {
	Type        MountType
	Source      string `json:",omitempty"` // bind: host path; volume: name, empty for anonymous; image: reference
	Target      string
	ReadOnly    bool     `json:",omitempty"`
	Propagation string   `json:",omitempty"` // bind: rprivate (default), private, rslave, slave, rshared, shared
	Options     []string `json:",omitempty"` // further mount options, kept for inspection ("z", "noexec", …)

	NonRecursive      bool `json:",omitempty"` // bind only what is mounted at Source itself
	RecursiveReadOnly bool `json:",omitempty"` // read-only holds for submounts too
	CreateSource      bool `json:",omitempty"` // bind: make a missing host directory, as -v does
	Populate          bool `json:",omitempty"` // bind: copy the image's content into an empty directory, as volumes do

	NoCopy        bool              `json:",omitempty"` // volume: do not copy the image's content into an empty volume
	Subpath       string            `json:",omitempty"` // volume, image
	VolumeLabels  map[string]string `json:",omitempty"` // volume made on demand
	VolumeOptions map[string]string `json:",omitempty"`
	VolumeDriver  string            `json:",omitempty"`

	TmpfsSize int64  `json:",omitempty"` // bytes; 0: no limit
	TmpfsMode uint32 `json:",omitempty"` // 0: 1777
	Unlisted  bool   `json:",omitempty"` // not among Info.Mounts: what --tmpfs asks for is shown with the request only

	// ImageID and Chain are what the reference of an image meant when the container was created, which
	// keeps it: the name may go, or mean another. Set by Create.
	ImageID string `json:",omitempty"`
	Chain   string `json:",omitempty"`

	// Anonymous marks volumes that were made for this container only: removed with it
	// by AutoRemove and by RemoveOptions.Volumes. Set by Create.
	Anonymous bool `json:",omitempty"`
}

// Resources are limits; zero means none.
type Resources struct {
	Memory            int64  `json:",omitempty"` // bytes
	MemorySwap        int64  `json:",omitempty"` // bytes of memory and swap together; -1: unlimited; 0: twice Memory
	MemoryReservation int64  `json:",omitempty"`
	MemorySwappiness  *int64 `json:",omitempty"`
	OomKillDisable    bool   `json:",omitempty"`
	OomScoreAdj       *int   `json:",omitempty"` // nil: 0, set explicitly

	NanoCPUs   int64  `json:",omitempty"` // CPUs × 10⁹
	CPUShares  int64  `json:",omitempty"`
	CPUQuota   int64  `json:",omitempty"`
	CPUPeriod  int64  `json:",omitempty"`
	CpusetCpus string `json:",omitempty"`
	CpusetMems string `json:",omitempty"`

	PidsLimit *int64   `json:",omitempty"` // nil, 0 or -1: none
	Ulimits   []Ulimit `json:",omitempty"`

	BlkioWeight          uint16           `json:",omitempty"`
	BlkioWeightDevice    []WeightDevice   `json:",omitempty"`
	BlkioDeviceReadBps   []ThrottleDevice `json:",omitempty"`
	BlkioDeviceWriteBps  []ThrottleDevice `json:",omitempty"`
	BlkioDeviceReadIOps  []ThrottleDevice `json:",omitempty"`
	BlkioDeviceWriteIOps []ThrottleDevice `json:",omitempty"`

	ShmSize  int64             `json:",omitempty"` // bytes; 0: 64 MB
	Unified  map[string]string `json:",omitempty"` // cgroup v2 files
	HugePage map[string]uint64 `json:",omitempty"` // page size to limit in bytes
}

// Ulimit is a resource limit by its lower-case name, such as "nofile". -1 is unlimited.
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// WeightDevice gives one block device a weight.
type WeightDevice struct {
	Path   string
	Weight uint16
}

// ThrottleDevice limits one block device, in bytes or operations a second.
type ThrottleDevice struct {
	Path string
	Rate uint64
}

// Device is a host device made visible in the container.
type Device struct {
	Source      string // path on the host; a directory stands for all devices in it
	Target      string // empty: the same path
	Permissions string // of "rwm"; empty: rwm
}

// Restart policies. The empty name means RestartNo.
const (
	RestartNo            = "no"
	RestartAlways        = "always"
	RestartOnFailure     = "on-failure"
	RestartUnlessStopped = "unless-stopped"
)

// RestartPolicy says whether the manager starts a container again that exited.
type RestartPolicy struct {
	Policy     string `json:",omitempty"`
	MaxRetries int    `json:",omitempty"` // on-failure only; 0: no limit
}

// LogConfig chooses where output goes. Driver: "" or "json-file" or "local" (a bounded
// file that Logs reads), or "none".
type LogConfig struct {
	Driver   string            `json:",omitempty"`
	MaxSize  int64             `json:",omitempty"` // bytes per file; 0: 10 MB; -1: unbounded
	MaxFiles int               `json:",omitempty"` // 0: 3
	Options  map[string]string `json:",omitempty"` // as given, for inspection
}

// EndpointSpec says how the container is to be on one network.
type EndpointSpec struct {
	Aliases    []string          `json:",omitempty"`
	IPv4       netip.Addr        // zero: chosen
	IPv6       netip.Addr        // zero: chosen, if the network has IPv6
	MAC        string            `json:",omitempty"` // empty: from the address
	DriverOpts map[string]string `json:",omitempty"`
	IfName     string            `json:",omitempty"`
	GwPriority int               `json:",omitempty"`
	Links      []string          `json:",omitempty"`
}

// PortMapping publishes a container port on the host.
type PortMapping struct {
	Proto         string // tcp, udp or sctp
	ContainerPort uint16
	HostIP        netip.Addr // zero: all addresses
	HostPort      uint16     // 0: chosen by the host
	HostPortEnd   uint16     // not 0: the first free port of HostPort…HostPortEnd
}

// Endpoint is a container's place on one network, as it is now.
type Endpoint struct {
	EndpointSpec
	Network   string // name
	NetworkID string
	ID        string // empty while the container does not run
	Addr      netip.Prefix
	Gateway   netip.Addr
	Addr6     netip.Prefix
	Gateway6  netip.Addr
	MAC       string
	DNSNames  []string
}

// Status is the life phase of a container, as Docker names them.
type Status string

// The phases of a container's life.
const (
	StatusCreated    Status = "created"
	StatusRunning    Status = "running"
	StatusPaused     Status = "paused"
	StatusRestarting Status = "restarting"
	StatusExited     Status = "exited"
	StatusRemoving   Status = "removing"
	StatusDead       Status = "dead"
)

// Health states. The empty one means that there is no health check.
const (
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// HealthState is what the health check has found so far.
type HealthState struct {
	Status        string
	FailingStreak int
	Log           []HealthResult // the last five, oldest first
}

// HealthResult is one run of a health check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int
	Output     string // at most 4096 bytes
}

// State is how a container is.
type State struct {
	Status     Status
	Running    bool // also while paused
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        int
	ExitCode   int
	Error      string
	StartedAt  time.Time
	FinishedAt time.Time
	Health     *HealthState `json:",omitempty"` // never changed in place
}

// MountPoint is a mount as it was resolved.
type MountPoint struct {
	Type        MountType
	Name        string // volume name
	Source      string // host path
	Target      string
	Driver      string
	Mode        string // comma-separated options as given
	ReadOnly    bool
	Propagation string
}

// Info is a container as it is now. It is a snapshot: nothing in it changes later, and
// nothing in it may be changed.
type Info struct {
	ID           string
	Name         string
	Spec         *Spec // effective: merged with the image's configuration
	ImageID      string
	Created      time.Time
	Path         string // argv[0]
	Args         []string
	State        State
	RestartCount int
	Mounts       []MountPoint
	Endpoints    map[string]Endpoint // by network name
	Ports        []PortMapping       // with the host ports really taken
	SandboxKey   string

	LogPath, HostsPath, HostnamePath, ResolvConfPath string
	ExecIDs                                          []string
}

// ExitStatus is how a container ended, or what its start failed with.
type ExitStatus struct {
	Code int
}

// WaitCondition says what Wait waits for.
type WaitCondition string

// The conditions of Wait. The empty one means WaitNotRunning.
const (
	WaitNotRunning WaitCondition = "not-running"
	WaitNextExit   WaitCondition = "next-exit"
	WaitRemoved    WaitCondition = "removed"
)

// Filter selects containers; all given fields must match, any value of a field will do.
// The zero Filter selects the running containers of every owner.
type Filter struct {
	Owner string // empty: any
	All   bool   // also those that do not run
	Limit int    // the newest n, whatever their state; 0: no limit

	ID, Name, Label, NotLabel, Status, Health []string
	Exited                                    []int
	Ancestor, Before, Since                   []string
	Volume, Network, Publish, Expose          []string
	Until                                     time.Time // created before (prune)
}

// StopOptions refine Stop and Restart.
type StopOptions struct {
	Signal  string // empty: the container's
	Timeout *int   // seconds; nil: the container's; negative: no limit
}

// RemoveOptions refine Remove.
type RemoveOptions struct {
	Force   bool // kill it first
	Volumes bool // anonymous volumes too
}

// UpdateSpec holds what can be changed later; nil leaves a value alone.
type UpdateSpec struct {
	Resources *Resources // non-zero fields replace
	Restart   *RestartPolicy
}
