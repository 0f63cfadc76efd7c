package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/daemon/rundir"
)

// The defaults of `slipway serve`.
const (
	DefaultDataDir      = "/var/lib/slipway"
	DefaultAPIPort      = 6443
	DefaultRegistryPort = 5000
)

// Options say where a daemon keeps things and where it listens.
type Options struct {
	DataDir      string
	RunDir       string
	APIPort      int          // 0: any free one
	RegistryPort int          // 0: any free one
	Warden       string       // the slipway-warden program
	Init         string       // the program that --init runs as process 1; empty: the warden's own
	PodRange     netip.Prefix // of a new data directory; invalid: one that is free
	ServiceRange netip.Prefix // likewise
	HostPolicy   bool         // other tools' firewalls are not asked to let our traffic through
	Log          *slog.Logger
	Dump         io.Writer // where the goroutines of a daemon that does not end are written; nil: nowhere
	// Ready, when not nil, is called once everything is served.
	Ready func(rundir.Record)
}

// instanceID tells daemons of one machine apart in everything that the host can see.
func instanceID(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return hex.EncodeToString(sum[:3])
}

// prepare makes the directories and takes the data directory's lock, which the process holds until it ends.
func (o *Options) prepare() (lock *os.File, err error) {
	for _, dir := range []*string{&o.DataDir, &o.RunDir} {
		if err := os.MkdirAll(*dir, 0o711); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", *dir, err)
		}
		// One directory has one name, whatever links lead there.
		if *dir, err = filepath.EvalSymlinks(*dir); err != nil {
			return nil, err
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	if err := checkFilesystem(o.DataDir); err != nil {
		return nil, err
	}
	return lockDir(o.DataDir, o.RunDir)
}

// holder is what the lock file tells of the daemon that has it, or had it last.
type holder struct {
	PID    int    `json:"pid"`
	RunDir string `json:"runDir"`
}

func lockPath(dataDir string) string { return filepath.Join(dataDir, "lock") }

// startPoll is how often a daemon that somebody else starts is looked at.
const startPoll = 20 * time.Millisecond

// AwaitOther finds the daemon of o's directories that another process runs, or is starting just now, as systemd does
// when the machine boots and people are already typing. It returns that one's process id when it is ready, and 0
// when there is none.
func AwaitOther(ctx context.Context, o Options) (pid int, err error) {
	for {
		h, alive := readHolder(o)
		if !alive {
			return 0, nil
		}
		if r, err := rundir.Read(o.RunDir); err == nil && r.PID == h.PID {
			return r.PID, nil
		}
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(startPoll):
		}
	}
}

// readHolder finds the living daemon that has o's data directory and serves o's run directory.
func readHolder(o Options) (h holder, alive bool) {
	raw, err := os.ReadFile(lockPath(o.DataDir))
	if err != nil || json.Unmarshal(raw, &h) != nil {
		return h, false
	}
	runDir, err := filepath.EvalSymlinks(o.RunDir)
	if err != nil {
		return h, false
	}
	runDir, err = filepath.Abs(runDir)
	return h, err == nil && h.RunDir == runDir && isDaemon(h.PID)
}

// errInUse says that another daemon has the data directory.
var errInUse = errors.New("another daemon uses this data directory: stop it with `slipway stop-daemon`, or choose another with --data-dir")

func lockDir(dir, runDir string) (*os.File, error) {
	path := lockPath(dir)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", dir, errInUse)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := (holder{os.Getpid(), runDir}).write(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

// write overwrites what is there before it cuts the rest off: a full disk has room for that.
func (h holder) write(f *os.File) error {
	raw, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(raw, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(raw)))
}

// Magic numbers of file systems whose directories cannot be an overlay's upper layer.
var unfit = map[int64]string{0x794c7630: "overlay", 0x6969: "nfs", 0x65735546: "fuse"}

// checkFilesystem says early what would otherwise be a strange failure of the first mount.
func checkFilesystem(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if name, bad := unfit[int64(st.Type)]; bad {
		return fmt.Errorf("data directory %s is on %s, which cannot hold container file systems: choose a directory on ext4, xfs or btrfs with --data-dir (in a container: mount a volume there)", dir, name)
	}
	return nil
}

// nodeName is this machine's name as a node: its host name, as a DNS name.
func nodeName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "localhost"
	}
	name = strings.Map(func(r rune) rune {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	return strings.Trim(name, "-.")
}

// closer undoes one step of opening; run in reverse.
type closer struct {
	what string
	fn   func(context.Context) error
}

type closers []closer

func (c *closers) add(what string, fn func(context.Context) error) {
	*c = append(*c, closer{what, fn})
}

// close runs all, the newest first; running hears of each.
func (c closers) close(ctx context.Context, log *slog.Logger, running *tasks) {
	for i := len(c) - 1; i >= 0; i-- {
		leave := running.enter("closing " + c[i].what)
		if err := c[i].fn(ctx); err != nil {
			log.Error("close "+c[i].what, "error", err)
		}
		leave()
	}
}
