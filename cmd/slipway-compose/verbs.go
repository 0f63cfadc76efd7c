package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"slipway.dev/slipway/compose/apply"
)

func (a *app) downCommand() *cobra.Command {
	var volumes, all, quiet bool
	cmd := &cobra.Command{
		Use: "down", Short: "Stop the project and remove what it made; volumes stay unless asked for",
		Example: `  slipway down
  slipway down -v       and remove its volumes
  slipway down --all    stop everything on this machine, and the daemon`,
		Args: noOperands,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all {
				return a.teardown()
			}
			return a.down(cmd.Context(), volumes, quiet)
		},
	}
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove its volumes too, with all that is in them")
	cmd.Flags().BoolVar(&all, "all", false, "stop every project, pod and container, and the daemon; images and volumes stay")
	cmd.Flags().BoolVar(&quiet, "quiet", false, "show no progress")
	return cmd
}

func noOperands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usageError{fmt.Errorf("%s takes no operands, but there is %q", cmd.CommandPath(), args[0])}
}

func (a *app) down(ctx context.Context, volumes, quiet bool) error {
	namespace, err := a.namespace(ctx)
	if err != nil {
		return err
	}
	c, err := a.cluster(ctx)
	if err != nil {
		return err
	}
	b := newBoard(a.err, quiet)
	exists, err := c.Exists(ctx, namespace)
	if err != nil {
		return err
	}
	if !exists {
		b.Say("", namespace+": not up")
		return nil
	}
	return c.Down(ctx, namespace, apply.DownOptions{Volumes: volumes, Progress: b})
}

func (a *app) psCommand() *cobra.Command {
	var quiet bool
	var output string
	cmd := &cobra.Command{
		Use: "ps [SERVICE...]", Short: "List the project's replicas",
		Example:           "  slipway ps\n  slipway ps -o json web",
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" && output != "table" {
				return usageError{fmt.Errorf("--output %q: use table or json", output)}
			}
			return a.ps(cmd.Context(), args, quiet, output)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only names")
	cmd.Flags().StringVarP(&output, "output", "o", "", "table or json")
	cmd.Flags().StringVar(&output, "format", "", "as --output")
	cmd.Flags().BoolP("all", "a", true, "as always: those that have ended, too")
	_ = cmd.Flags().MarkHidden("format")
	_ = cmd.Flags().MarkHidden("all")
	return cmd
}

func (a *app) ps(ctx context.Context, services []string, quiet bool, output string) error {
	namespace, err := a.namespace(ctx)
	if err != nil {
		return err
	}
	c, err := a.cluster(ctx)
	if err != nil {
		return err
	}
	all, err := c.Replicas(ctx, namespace)
	if err != nil {
		return err
	}
	replicas := []apply.Replica{}
	for _, r := range all {
		if len(services) == 0 || contains(services, r.Service) {
			replicas = append(replicas, r)
		}
	}
	switch {
	case quiet:
		for _, r := range replicas {
			fmt.Fprintln(a.out, r.Name)
		}
		return nil
	case output == "json":
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(replicas)
	}
	return printReplicas(a.out, replicas)
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
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
		Example:           "  slipway logs -f web\n  slipway logs --since 10m -n 20",
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
	namespace, err := a.namespace(ctx)
	if err != nil {
		return err
	}
	c, err := a.cluster(ctx)
	if err != nil {
		return err
	}
	width := 0
	o.Line = func(source, line string) {
		if !prefix {
			fmt.Fprintln(a.out, line)
			return
		}
		width = max(width, len(source))
		fmt.Fprintf(a.out, "%-*s | %s\n", width, source, line)
	}
	err = c.Logs(ctx, namespace, o)
	if ctx.Err() != nil {
		return nil // interrupted while following
	}
	return err
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
			namespace, err := a.namespace(cmd.Context())
			if err != nil {
				return err
			}
			c, err := a.cluster(cmd.Context())
			if err != nil {
				return err
			}
			replicas := map[string]int32{}
			for service, n := range counts {
				replicas[service] = int32(n)
			}
			return c.Scale(cmd.Context(), namespace, replicas, !noWait, newBoard(a.err, false))
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return before they run")
	return cmd
}

func (a *app) configCommand() *cobra.Command {
	var services, images, volumes, quiet bool
	var output string
	cmd := &cobra.Command{
		Use: "config [SERVICE...]", Short: "Check the Compose file and print it as it is understood",
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			if p, err = selected(p, args, true); err != nil {
				return err
			}
			switch {
			case quiet:
				return nil
			case services:
				for _, name := range p.ServiceNames() {
					fmt.Fprintln(a.out, name)
				}
				return nil
			case images:
				for _, name := range p.ServiceNames() {
					s := p.Services[name]
					fmt.Fprintln(a.out, imageName(p, &s))
				}
				return nil
			case volumes:
				for _, name := range p.VolumeNames() {
					fmt.Fprintln(a.out, name)
				}
				return nil
			}
			raw, err := p.MarshalYAML()
			if output == "json" {
				raw, err = p.MarshalJSON()
			}
			if err != nil {
				return err
			}
			_, err = a.out.Write(raw)
			return err
		},
	}
	cmd.Flags().BoolVar(&services, "services", false, "print only the services' names")
	cmd.Flags().BoolVar(&images, "images", false, "print only the images' names")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "print only the volumes' names")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only check")
	cmd.Flags().StringVar(&output, "format", "yaml", "yaml or json")
	return cmd
}
