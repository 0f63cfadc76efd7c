package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Init turns this process into the first process of a container when libcontainer started it as one; it then does not
// return. Call it from an init function, on the startup thread.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}

// Main is slipway-warden's main function. The caller has locked itself to the startup thread: libcontainer lets threads
// enter a container's mount namespace and die there, and the startup thread cannot die, so it must never be one of them.
func Main(args []string) int {
	fs := flag.NewFlagSet("slipway-warden", flag.ContinueOnError)
	var opts Options
	fs.StringVar(&opts.Socket, "socket", "", "unix socket to listen on")
	fs.StringVar(&opts.StateDir, "state-dir", "", "directory for records, on a tmpfs")
	fs.StringVar(&opts.RootDir, "root-dir", "", "directory below which root file systems are mounted")
	fs.StringVar(&opts.Cgroup, "cgroup", "", "cgroup to move to")
	ready := fs.Int("ready-fd", -1, "descriptor to close when connections are accepted")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if opts.Socket == "" || opts.StateDir == "" {
		fmt.Fprintln(os.Stderr, "slipway-warden: it is started by slipwayd, with --socket and --state-dir")
		return 2
	}
	if err := seal(); err != nil {
		fmt.Fprintln(os.Stderr, "slipway-warden: run from a sealed copy:", err)
		return 1
	}
	if err := serve(opts, *ready); err != nil {
		fmt.Fprintln(os.Stderr, "slipway-warden:", err)
		return 1
	}
	return 0
}

// seal goes on in a sealed copy of this executable in memory. Then libcontainer need not make a copy for every container
// (against CVE-2019-5736), and an upgrade may replace the file under us.
func seal() error {
	if exeseal.IsSelfExeCloned() {
		return nil
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	st, err := exe.Stat()
	if err != nil {
		return err
	}
	sealed, err := exeseal.CloneBinary(exe, st.Size(), "slipway-warden", os.TempDir())
	if err != nil {
		return err
	}
	if !exeseal.IsCloned(sealed) {
		return errors.New("this kernel has no sealed memory files (memfd_create)")
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", sealed.Fd()), os.Args, os.Environ())
}

func serve(opts Options, ready int) error {
	log, err := openOwnLog(opts.StateDir)
	if err != nil {
		return err
	}
	opts.Log = slog.New(slog.NewTextHandler(log, nil))
	logrus.SetOutput(log) // libcontainer's
	logrus.SetLevel(logrus.WarnLevel)
	unix.Umask(0o022) // processes started by exec inherit it
	if opts.OOMFloor, err = guardSelf("/proc/self/oom_score_adj"); err != nil || opts.OOMFloor > oomScoreWarden {
		opts.Log.Warn("the kernel may choose the warden when memory is short", "score", opts.OOMFloor, "error", err)
	}
	if err := privateRoot(opts.RootDir); err != nil {
		return fmt.Errorf("root directory %s: %w", opts.RootDir, err)
	}
	leave, err := joinCgroup(opts.Cgroup)
	if err != nil {
		opts.Log.Warn("the warden stays in the cgroup of the daemon, and may be killed with it", "error", err)
		opts.Cgroup = ""
	}
	defer leave()
	opts.Ready = func() {
		if ready >= 0 {
			unix.Write(ready, []byte{1})
			unix.Close(ready)
		}
	}
	s, err := New(opts)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	// The daemon's terminal is not ours, and neither is its end. They are caught and not ignored: an ignored
	// signal stays ignored in every container, whose shells could then not be interrupted.
	unwanted := make(chan os.Signal, 1)
	signal.Notify(unwanted, unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)
	defer signal.Stop(unwanted)
	return s.Run(ctx)
}

// openOwnLog makes standard output and error lead to the warden's own log: a pipe to the daemon would kill us with it.
func openOwnLog(dir string) (io.Writer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "warden.log")
	if st, err := os.Stat(path); err == nil && st.Size() > 1<<20 {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Dup3(int(f.Fd()), fd, 0); err != nil {
			return nil, err
		}
	}
	return f, nil
}
