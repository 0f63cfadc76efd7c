package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"slipway.dev/slipway/compose/apply"
)

func changeOptions(services []string, noWait bool, b *board) apply.ChangeOptions {
	return apply.ChangeOptions{Services: services, NoWait: noWait, Settle: settle, Patience: patience, Progress: b}
}

// changes are what can be done to running services.
type changes = func(c *apply.Cluster, ctx context.Context, namespace string, o apply.ChangeOptions) error

func (a *app) restartCommand() *cobra.Command {
	return a.changeCommand("restart", "Replace the replicas of services, as an update does", `Replace the replicas of services, as an update does: a service with several stays up. What ran to completion runs again.`,
		"  slipway restart\n  slipway restart web", (*apply.Cluster).Restart)
}

func (a *app) stopCommand() *cobra.Command {
	return a.changeCommand("stop", "Stop services without removing them", `Stop services without removing them: slipway start brings them back, and so does slipway up.`,
		"  slipway stop\n  slipway stop -t 1 worker", (*apply.Cluster).Stop)
}

func (a *app) startCommand() *cobra.Command {
	return a.changeCommand("start", "Start services that were stopped", `Start services that were stopped, with as many replicas as they had. What ran to completion runs again.`,
		"  slipway start\n  slipway start worker", (*apply.Cluster).Start)
}

func (a *app) changeCommand(verb, short, long, example string, do changes) *cobra.Command {
	var noWait bool
	var timeout string
	cmd := &cobra.Command{
		Use: verb + " [SERVICE...]", Short: short, Long: long, Example: example,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, services []string) error {
			limit, err := grace(timeout)
			if err != nil {
				return err
			}
			namespace, c, err := a.project(cmd.Context(), services...)
			if err != nil {
				return err
			}
			b := newBoard(a.err, false)
			o := changeOptions(services, noWait, b)
			o.Grace = limit
			return b.failure(do(c, cmd.Context(), namespace, o))
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return before it is done")
	if verb == "stop" {
		cmd.Flags().StringVarP(&timeout, "timeout", "t", "", "how many `SECONDS` services have to stop (default: as the file says)")
	}
	return cmd
}

// rmCommand is docker compose's word for taking services away.
func (a *app) rmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm SERVICE...", Short: "Stop services and remove them (as down SERVICE)",
		Example:           "  slipway rm worker",
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, services []string) error {
			if len(services) == 0 {
				return usageError{fmt.Errorf("%s needs a service: `slipway down` removes the whole project", cmd.CommandPath())}
			}
			return a.down(cmd.Context(), &downFlags{}, services)
		},
	}
	cmd.Flags().BoolP("force", "f", false, "as always")
	cmd.Flags().BoolP("stop", "s", false, "as always")
	_ = cmd.Flags().MarkHidden("force")
	_ = cmd.Flags().MarkHidden("stop")
	return cmd
}

func (a *app) lsCommand() *cobra.Command {
	var quiet bool
	var output string
	cmd := &cobra.Command{
		Use: "ls", Short: "List the projects that are up", Args: noOperands,
		Example: "  slipway ls\n  slipway ls -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := tableOrJSON(output); err != nil {
				return err
			}
			c, err := a.cluster(cmd.Context())
			if err != nil {
				return err
			}
			projects, err := c.Projects(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" && !quiet {
				return printJSON(a.out, projects)
			}
			return a.printProjects(projects, quiet)
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only names")
	outputFlag(cmd.Flags(), &output)
	cmd.Flags().BoolP("all", "a", true, "as always")
	_ = cmd.Flags().MarkHidden("all")
	return cmd
}

func (a *app) printProjects(projects []apply.Project, quiet bool) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 3, ' ', 0)
	if !quiet {
		fmt.Fprintln(t, "NAME\tSTATUS\tCONFIG FILES")
	}
	for _, p := range projects {
		if quiet {
			fmt.Fprintln(a.out, p.Name)
			continue
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", p.Name, p.Status, strings.Join(p.Files, ","))
	}
	return t.Flush()
}

func (a *app) portCommand() *cobra.Command {
	protocol := "tcp"
	cmd := &cobra.Command{
		Use: "port SERVICE [PORT[/PROTO]]", Short: "Show where a service's ports are published",
		Example: "  slipway port web\n  slipway port web 80",
		Args:    cobra.RangeArgs(1, 2), ValidArgsFunction: a.completeServices(1, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, c, err := a.project(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			all, err := c.PublishedPorts(cmd.Context(), namespace)
			if err != nil {
				return err
			}
			return a.ports(args, all[args[0]], protocol)
		},
	}
	cmd.Flags().StringVar(&protocol, "protocol", "tcp", "tcp or udp")
	return cmd
}

// ports prints what is published of a service, or where one of its ports is.
func (a *app) ports(args, published []string, protocol string) error {
	if len(args) == 1 {
		for _, p := range published {
			fmt.Fprintln(a.out, p)
		}
		return nil
	}
	port, proto, found := strings.Cut(args[1], "/")
	if !found {
		proto = protocol
	}
	told := false
	for _, p := range published {
		if host, target, _ := strings.Cut(p, "->"); target == port+"/"+proto {
			fmt.Fprintln(a.out, host)
			told = true
		}
	}
	if !told {
		return fmt.Errorf("port %s/%s of service %s is not published", port, proto, args[0])
	}
	return nil
}

func (a *app) pullCommand() *cobra.Command {
	return a.transferCommand("pull", "Fetch the images of services", imageOptions{pull: "always"}, func(built bool) bool { return !built })
}

func (a *app) pushCommand() *cobra.Command {
	return a.transferCommand("push", "Send the images of services that have build: to their registries", imageOptions{only: true, push: true}, func(built bool) bool { return built })
}

func (a *app) transferCommand(verb, short string, o imageOptions, takes func(built bool) bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " [SERVICE...]", Short: short, Example: "  slipway " + verb + "\n  slipway " + verb + " web",
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, names []string) error {
			p, err := a.load(cmd.Context())
			if err != nil {
				return err
			}
			if p, err = selected(p, names, false); err != nil {
				return err
			}
			for _, name := range p.ServiceNames() {
				if !takes(p.Services[name].Build != nil) {
					delete(p.Services, name)
				}
			}
			if len(p.Services) == 0 {
				return fmt.Errorf("no service that is selected has an image to %s", verb)
			}
			if err := a.startDaemon(cmd.Context()); err != nil {
				return err
			}
			_, err = a.images(cmd.Context(), p, o, newBoard(a.err, false))
			return err
		},
	}
}
