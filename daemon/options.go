package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The defaults of `slipway serve`.
const (
	DefaultDataDir      = "/var/lib/slipway"
	DefaultRunDir       = "/run/slipway"
	DefaultAPIPort      = 6443
	DefaultRegistryPort = 5000
)

// Options say where a daemon keeps things and where it listens.
type Options struct {
	DataDir      string
	RunDir       string
	APIPort      int    // 0: any free one
	RegistryPort int    // 0: any free one
	Warden       string // the slipway-warden program
	Init         string // the program that --init runs as process 1; empty: the warden's own
	HostPolicy   bool   // other tools' firewalls are not asked to let our traffic through
	Log          *slog.Logger
	// Ready, when not nil, is called once everything is served.
	Ready func(Record)
}

// Record is what others need to know of a running daemon: R/daemon.json.
type Record struct {
	PID          int    `json:"pid"`
	Version      string `json:"version"`
	DataDir      string `json:"dataDir"`
	RunDir       string `json:"runDir"`
	Instance     string `json:"instance"`
	APIPort      int    `json:"apiPort"`
	RegistryPort int    `json:"registryPort"`
}

func recordPath(runDir string) string { return filepath.Join(runDir, "daemon.json") }

// ReadRecord finds the daemon of a run directory; the error is os.ErrNotExist when none ever ran there.
func ReadRecord(runDir string) (Record, error) {
	var r Record
	raw, err := os.ReadFile(recordPath(runDir))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("%s: %w", recordPath(runDir), err)
	}
	return r, nil
}

func (r Record) write() error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := recordPath(r.RunDir) + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, recordPath(r.RunDir))
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
	return lockDir(o.DataDir)
}

// errInUse says that another daemon has the data directory.
var errInUse = errors.New("another daemon uses this data directory: stop it with `slipway stop-daemon`, or choose another with --data-dir")

func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
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
	return f, nil
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

// close runs all, the newest first.
func (c closers) close(ctx context.Context, log *slog.Logger) {
	for i := len(c) - 1; i >= 0; i-- {
		if err := c[i].fn(ctx); err != nil {
			log.Error("close "+c[i].what, "error", err)
		}
	}
}
