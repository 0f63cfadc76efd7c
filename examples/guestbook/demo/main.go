// Command demo shows what Slipway does with the guestbook, and checks it: `make demo` runs it.
//
// It drives the slipway command as a person would, keeps requests going meanwhile, prints what it does and
// what it saw, and fails when a promise does not hold. `demo down` takes everything away again and looks
// whether anything was left behind. The daemon has directories of its own, so nothing that already runs on
// the machine is touched.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// settings are where the demo's daemon and site are; each has a variable.
type settings struct {
	bin     string // SLIPWAY_BIN: where slipway is
	folder  string // the guestbook's
	dataDir string // SLIPWAY_DEMO_DATA
	runDir  string // SLIPWAY_DEMO_RUN
	port    int    // GUESTBOOK_PORT
}

func run(ctx context.Context, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("it starts a daemon that makes namespaces and networks: run it as root, with sudo")
	}
	s, err := configure()
	if err != nil {
		return err
	}
	d := &demo{settings: s}
	switch {
	case len(args) == 0:
		return d.up(ctx)
	case len(args) == 1 && args[0] == "down":
		return d.down(ctx)
	}
	return fmt.Errorf("unknown arguments %q: use none, or down", args)
}

func configure() (settings, error) {
	s := settings{
		bin: os.Getenv("SLIPWAY_BIN"), folder: os.Getenv("GUESTBOOK_DIR"),
		dataDir: or(os.Getenv("SLIPWAY_DEMO_DATA"), "/var/lib/slipway-demo"),
		runDir:  or(os.Getenv("SLIPWAY_DEMO_RUN"), "/run/slipway-demo"),
	}
	if s.bin == "" || s.folder == "" {
		return s, errors.New("SLIPWAY_BIN and GUESTBOOK_DIR are not set: run scripts/demo")
	}
	var err error
	if p := os.Getenv("GUESTBOOK_PORT"); p != "" {
		s.port, err = strconv.Atoi(p)
		return s, err
	}
	s.port, err = s.choosePort()
	return s, err
}

func or(value, otherwise string) string {
	if value != "" {
		return value
	}
	return otherwise
}

// choosePort is the one of an earlier run, or 8088, or whatever is free.
func (s settings) choosePort() (int, error) {
	if raw, err := os.ReadFile(s.portFile()); err == nil {
		return strconv.Atoi(string(raw))
	}
	for _, port := range []int{8088, 0} {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port, nil
	}
	return 0, errors.New("no port is free: set GUESTBOOK_PORT")
}

func (s settings) portFile() string { return filepath.Join(s.runDir, "guestbook.port") }

func (s settings) url() string { return fmt.Sprintf("http://localhost:%d", s.port) }

// demo is one run.
type demo struct {
	settings
	steps  int
	broken []string // promises that did not hold
}

// step announces what comes.
func (d *demo) step(title string) {
	d.steps++
	fmt.Printf("\n==> %d. %s\n", d.steps, title)
}

func (d *demo) saw(format string, args ...any) { fmt.Printf("    "+format+"\n", args...) }

// promise checks what was said to hold.
func (d *demo) promise(holds bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if holds {
		d.saw("ok: %s", text)
		return
	}
	d.saw("BROKEN PROMISE: %s", text)
	d.broken = append(d.broken, text)
}

func (d *demo) up(ctx context.Context) error {
	began := time.Now()
	for _, act := range []func(context.Context) error{
		d.start, d.build, d.spread, d.sign, d.kill, d.update, d.scale, d.restartStore, d.restartDaemon,
	} {
		if err := act(ctx); err != nil {
			return fmt.Errorf("step %d: %w", d.steps, err)
		}
	}
	if len(d.broken) > 0 {
		return fmt.Errorf("%d promises did not hold; the site is still at %s, take it down with `make demo-down`", len(d.broken), d.url())
	}
	fmt.Printf("\nEverything held, in %.0f seconds. The guestbook is up: %s\n%s", time.Since(began).Seconds(), d.url(), d.farewell())
	return nil
}

func (d *demo) farewell() string {
	return fmt.Sprintf(`
Look around:
  export SLIPWAY_RUN_DIR=%[1]s
  cd %[2]s
  %[3]s ps                  the replicas; also: logs -f, exec, scale web=5, up after a change
  %[3]s ps -a --filter label=slipway.owner=node
  kubectl --kubeconfig %[1]s/kubeconfig -n guestbook get all,networkpolicies
  docker -H unix://%[1]s/docker.sock images
Take it down, leaving nothing behind:
  sudo make demo-down
`, d.runDir, d.folder, filepath.Join(d.bin, "slipway"))
}
