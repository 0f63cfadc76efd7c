// Command slipwayd is the daemon: one node of Slipway. `slipway serve` runs it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"

	"slipway.dev/slipway/daemon"
	"slipway.dev/slipway/daemon/rundir"
	"slipway.dev/slipway/daemon/version"
)

func main() { os.Exit(run(os.Args[1:])) }

// flags are what `slipway serve` takes.
type flags struct {
	options  daemon.Options
	detach   bool
	teardown bool
	stop     bool
	version  bool
	level    string
}

func parse(args []string) (flags, error) {
	var f flags
	set := pflag.NewFlagSet("slipwayd", pflag.ContinueOnError)
	set.SortFlags = false
	set.StringVar(&f.options.DataDir, "data-dir", daemon.DefaultDataDir, "where images, containers, volumes and the cluster's state are kept")
	set.StringVar(&f.options.RunDir, "run-dir", rundir.Chosen(), "where sockets and the kubeconfig are ($SLIPWAY_RUN_DIR)")
	set.IntVar(&f.options.APIPort, "api-port", daemon.DefaultAPIPort, "port of the Kubernetes API; 0: any free one")
	set.IntVar(&f.options.RegistryPort, "registry-port", daemon.DefaultRegistryPort, "port of the registry, on localhost; 0: any free one")
	set.Func("pod-range", "where pods have their addresses, such as 10.160.0.0/18: kept by the data directory once it is chosen; without it, one that this machine does not route", rangeOf(&f.options.PodRange))
	set.Func("service-range", "where services have theirs, likewise", rangeOf(&f.options.ServiceRange))
	set.BoolVar(&f.options.HostPolicy, "host-firewall", false, "let this machine's own firewall decide about forwarded traffic, instead of asking it to accept ours")
	set.BoolVar(&f.detach, "detach", false, "return when everything is ready, leaving the daemon in the background")
	set.StringVar(&f.level, "log-level", "info", "debug, info, warn or error")
	set.BoolVar(&f.stop, "stop", false, "stop the daemon of --run-dir; its containers go on")
	set.BoolVar(&f.teardown, "teardown", false, "stop the daemon of --run-dir and remove everything that runs")
	set.BoolVar(&f.version, "version", false, "print the version")
	set.Usage = func() {
		fmt.Fprintf(os.Stderr, "Usage: slipway serve [flags]\n\nRuns the daemon in the foreground; its log goes to standard error.\n\n%s", set.FlagUsages())
	}
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		return f, fmt.Errorf("unexpected argument %q: see --help", set.Arg(0))
	}
	return f, nil
}

// rangeOf reads an IPv4 range that has room for something.
func rangeOf(to *netip.Prefix) func(string) error {
	return func(text string) error {
		p, err := netip.ParsePrefix(text)
		if err != nil || !p.Addr().Is4() || p.Bits() > 24 || p.Masked() != p {
			return fmt.Errorf("%q is not an IPv4 range of at least 256 addresses, such as 10.160.0.0/18", text)
		}
		*to = p
		return nil
	}
}

func run(args []string) int {
	f, err := parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = f.act()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "slipwayd:", err)
		return 1
	}
	return 0
}

func (f flags) act() error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	context.AfterFunc(ctx, cancel) // the second signal ends the process as if nobody listened
	switch {
	case f.version:
		fmt.Println("slipwayd", version.Version)
		return nil
	case f.stop:
		return daemon.Stop(ctx, f.options.RunDir)
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon makes namespaces, mounts and networks, and needs root: try sudo")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	syscall.Umask(0o022) // what images and volumes hold must not depend on who starts us; sockets rely on it
	f.options.Log = slog.New(slog.NewTextHandler(openLog(f.options.RunDir), &slog.HandlerOptions{Level: level}))
	f.options.Dump = os.Stderr
	var err error
	if f.options.Warden, err = rundir.Program("slipway-warden"); err != nil {
		return err
	}
	switch {
	case f.teardown:
		return daemon.Teardown(ctx, f.options)
	case f.detach:
		return f.background(ctx)
	}
	if report := readyPipe(); report != nil {
		f.options.Ready = func(rundir.Record) {
			report.WriteString("ready\n")
			report.Close()
		}
	}
	return daemon.Run(ctx, f.options)
}
