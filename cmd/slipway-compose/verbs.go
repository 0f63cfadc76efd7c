package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"slipway.dev/slipway/compose/apply"
	"slipway.dev/slipway/daemon/rundir"
)

// downFlags are those of down.
type downFlags struct {
	volumes, all, quiet bool
	images, timeout     string
}

func (a *app) downCommand() *cobra.Command {
	var f downFlags
	cmd := &cobra.Command{
		Use: "down [SERVICE...]", Short: "Stop the project and remove what it made; volumes stay unless asked for",
		Example: `  slipway down
  slipway down -v       and remove its volumes
  slipway down web      only web; the rest goes on
  slipway down --all    stop everything on this machine, and the daemon`,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.all && len(args) > 0:
				return usageError{errors.New("--all is about everything on this machine: name no service")}
			case f.images != "":
				return usageError{errors.New("--rmi: images stay, since they may be shared: remove them with `slipway rmi`")}
			case f.all:
				return rundir.Teardown(a.runDirectory())
			}
			return a.down(cmd.Context(), &f, args)
		},
	}
	s := cmd.Flags()
	s.BoolVarP(&f.volumes, "volumes", "v", false, "remove its volumes too, with all that is in them")
	s.BoolVar(&f.all, "all", false, "stop every project, pod and container, and the daemon; images and volumes stay")
	s.BoolVar(&f.quiet, "quiet", false, "show no progress")
	s.StringVarP(&f.timeout, "timeout", "t", "", "how many `SECONDS` services have to stop (default: as the file says)")
	s.StringVar(&f.images, "rmi", "", "")
	s.Bool("remove-orphans", false, "as always")
	_ = s.MarkHidden("rmi")
	_ = s.MarkHidden("remove-orphans")
	return cmd
}

// grace reads --timeout: nil is what the file says.
func grace(text string) (*int64, error) {
	if text == "" {
		return nil, nil
	}
	d, err := seconds(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("--timeout %q: want a number of seconds", text)}
	}
	n := int64(d / time.Second)
	return &n, nil
}

func noOperands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%s takes no operands, but there is %q", cmd.CommandPath(), args[0])}
}

func (a *app) down(ctx context.Context, f *downFlags, services []string) error {
	limit, err := grace(f.timeout)
	if err != nil {
		return err
	}
	namespace, c, err := a.project(ctx, services...)
	if err != nil {
		return err
	}
	b := newBoard(a.err, f.quiet)
	exists, err := c.Exists(ctx, namespace)
	switch {
	case err != nil:
		return err
	case !exists:
		b.Say("", namespace+": not up")
		return nil
	case len(services) > 0 && f.volumes:
		return usageError{errors.New("-v removes the volumes of the whole project: name no service")}
	case len(services) > 0:
		return c.DownServices(ctx, namespace, apply.ChangeOptions{Services: services, Grace: limit, Progress: b})
	}
	return c.Down(ctx, namespace, apply.DownOptions{Volumes: f.volumes, Grace: limit, Progress: b})
}

// psFlags are those of ps.
type psFlags struct {
	quiet, services bool
	output          string
	status          []string
}

func (a *app) psCommand() *cobra.Command {
	var f psFlags
	cmd := &cobra.Command{
		Use: "ps [SERVICE...]", Short: "List the project's replicas",
		Example: `  slipway ps
  slipway ps -o json web
  slipway ps --status running -q`,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := tableOrJSON(f.output); err != nil {
				return err
			}
			return a.ps(cmd.Context(), args, &f)
		},
	}
	s := cmd.Flags()
	s.BoolVarP(&f.quiet, "quiet", "q", false, "print only names")
	s.BoolVar(&f.services, "services", false, "print only the names of services that have replicas")
	s.StringArrayVar(&f.status, "status", nil, "only those that are running, exited, pending, stopping or stopped (repeatable)")
	outputFlag(s, &f.output)
	s.BoolP("all", "a", true, "as always: those that have ended, too")
	s.Bool("no-trunc", true, "as always")
	_ = s.MarkHidden("all")
	_ = s.MarkHidden("no-trunc")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// outputFlag is --output, which docker calls --format.
func outputFlag(s *pflag.FlagSet, output *string) {
	s.StringVarP(output, "output", "o", "", "table or json")
	s.StringVar(output, "format", "", "as --output")
	_ = s.MarkHidden("format")
}

func tableOrJSON(output string) error {
	if output != "" && output != "json" && output != "table" {
		return usageError{fmt.Errorf("--output %q: use table or json", output)}
	}
	return nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (a *app) ps(ctx context.Context, services []string, f *psFlags) error {
	namespace, c, err := a.project(ctx, services...)
	if err != nil {
		return err
	}
	all, err := c.Replicas(ctx, namespace)
	if err != nil {
		return err
	}
	replicas := []apply.Replica{}
	for _, r := range all {
		word, _, _ := strings.Cut(r.Status, " ")
		if (len(services) == 0 || slices.Contains(services, r.Service)) && (len(f.status) == 0 || slices.Contains(f.status, word)) {
			replicas = append(replicas, r)
		}
	}
	switch {
	case f.services:
		last := ""
		for _, r := range replicas {
			if r.Service != last {
				last = r.Service
				fmt.Fprintln(a.out, last)
			}
		}
		return nil
	case f.quiet:
		for _, r := range replicas {
			fmt.Fprintln(a.out, r.Name)
		}
		return nil
	case f.output == "json":
		return printJSON(a.out, replicas)
	}
	return printReplicas(a.out, replicas)
}

func printReplicas(w io.Writer, replicas []apply.Replica) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSERVICE\tIMAGE\tSTATUS\tRESTARTS\tAGE\tPORTS")
	for _, r := range replicas {
		fmt.Fprintln(t, strings.TrimRight(fmt.Sprintf("%s\t%s\t%s\t%s\t%d\t%s\t%s",
			r.Name, r.Service, r.Image, r.Status, r.Restarts, r.Age, strings.Join(r.Ports, ", ")), "\t"))
	}
	return t.Flush()
}

func (a *app) logsCommand() *cobra.Command {
	var follow, timestamps, noPrefix bool
	var tail, since string
	cmd := &cobra.Command{
		Use: "logs [SERVICE...]", Short: "Show what the project's replicas printed",
		Example: `  slipway logs -f web
  slipway logs --since 10m -n 20`,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := apply.LogOptions{Services: args, Follow: follow, Timestamps: timestamps, Tail: -1}
			if tail != "all" {
				n, err := strconv.ParseInt(tail, 10, 64)
				if err != nil || n < 0 {
					return usageError{fmt.Errorf("--tail %q: want a number of lines, or all", tail)}
				}
				o.Tail = n
			}
			if since != "" {
				d, err := sinceWhen(since, time.Now())
				if err != nil {
					return usageError{err}
				}
				o.Since = d
			}
			return a.logs(cmd.Context(), o, !noPrefix)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what they print from now on, also those to come")
	cmd.Flags().BoolVarP(&timestamps, "timestamps", "t", false, "show when each line was printed")
	cmd.Flags().BoolVar(&noPrefix, "no-log-prefix", false, "do not show whose line it is")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "only the last `N` lines of each")
	cmd.Flags().Bool("no-color", false, "")
	_ = cmd.Flags().MarkHidden("no-color")
	cmd.Flags().StringVar(&since, "since", "", "only since a `TIME`, or for a duration such as 10m")
	return cmd
}

// sinceWhen reads a duration before now, or a date.
func sinceWhen(s string, now time.Time) (time.Duration, error) {
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return d, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil && t.Before(now) {
			return now.Sub(t), nil
		}
	}
	return 0, fmt.Errorf("--since %q: want a past time such as 2026-01-02T15:04:05, or a duration such as 10m", s)
}

func (a *app) logs(ctx context.Context, o apply.LogOptions, prefix bool) error {
	namespace, c, err := a.project(ctx, o.Services...)
	if err != nil {
		return err
	}
	p := &prefixer{colours: terminal(a.out) != nil && os.Getenv("NO_COLOR") == ""}
	o.Line = func(source, line string) {
		if prefix {
			line = p.prefix(source) + line
		}
		fmt.Fprintln(a.out, line)
	}
	err = c.Logs(ctx, namespace, o)
	if ctx.Err() != nil {
		return nil // interrupted while following
	}
	return err
}

// prefixer says whose a line is; on a terminal each source has a colour of its own.
type prefixer struct {
	colours bool
	width   int
	known   []string
}

// palette are the terminal's colours that can be read on light and dark ground.
var palette = []string{"36", "33", "32", "35", "34", "96", "93", "92", "95", "94"}

func (p *prefixer) prefix(source string) string {
	at := slices.Index(p.known, source)
	if at < 0 {
		at = len(p.known)
		p.known = append(p.known, source)
		p.width = max(p.width, len(source))
	}
	text := fmt.Sprintf("%-*s | ", p.width, source)
	if !p.colours {
		return text
	}
	return "\x1b[" + palette[at%len(palette)] + "m" + text + "\x1b[0m"
}

func (a *app) buildCommand() *cobra.Command {
	var noCache, pull, quiet bool
	cmd := &cobra.Command{
		Use: "build [SERVICE...]", Short: "Build the images of services that have build:",
		Example:           "  slipway build\n  slipway build --no-cache web",
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			if p, err = selected(p, args, false); err != nil {
				return err
			}
			if len(p.ServicesWithBuild()) == 0 {
				return errors.New("no service that is selected has build")
			}
			for _, name := range p.ServiceNames() {
				if p.Services[name].Build == nil {
					delete(p.Services, name)
				}
			}
			if err := a.startDaemon(cmd.Context()); err != nil {
				return err
			}
			_, err = a.images(cmd.Context(), p, imageOptions{only: true, noCache: noCache, pullBases: pull, verbose: !quiet}, newBoard(a.err, quiet))
			return err
		},
	}
	cmd.Flags().BoolVar(&noCache, "no-cache", false, "do every step again")
	cmd.Flags().BoolVar(&pull, "pull", false, "look for newer base images")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "show no progress")
	return cmd
}

func (a *app) scaleCommand() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "scale SERVICE=N...", Short: "Change how many replicas services have, until the next up",
		Example: "  slipway scale web=5 worker=2",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s needs SERVICE=N, such as web=3", cmd.CommandPath())}
			}
			return nil
		},
		ValidArgsFunction: a.completeServices(0, "="),
		RunE: func(cmd *cobra.Command, args []string) error {
			counts, err := scales(args)
			if err != nil {
				return err
			}
			namespace, c, err := a.project(cmd.Context(), sortedKeys(counts)...)
			if err != nil {
				return err
			}
			replicas := map[string]int32{}
			for service, n := range counts {
				replicas[service] = int32(n)
			}
			b := newBoard(a.err, false)
			return b.failure(c.Scale(cmd.Context(), namespace, replicas, changeOptions(nil, noWait, b)))
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return before they run")
	return cmd
}
