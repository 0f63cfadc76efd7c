package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

func (c *cli) containerCommands(root *cobra.Command) {
	root.AddCommand(
		c.runCommand(), c.createCommand(), c.psCommand(), c.execCommand(), c.attachCommand(), c.logsCommand(),
		c.startCommand(), c.stopCommand("stop", "Stop containers"), c.stopCommand("restart", "Restart containers"), c.killCommand(), c.rmCommand(),
		c.eachCommand("pause", "Pause all processes of containers", true), c.eachCommand("unpause", "Let paused containers go on", true),
		c.renameCommand(), c.waitCommand(), c.topCommand(), c.statsCommand(), c.portCommand(), c.cpCommand(), c.updateCommand(),
		c.commitCommand(), c.diffCommand(), c.exportCommand(),
	)
}

// decodeOne reads one JSON value.
func decodeOne(r io.Reader, v any) error { return json.NewDecoder(r).Decode(v) }

// atLeast demands n operands and names them in the error.
func atLeast(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) >= n {
			return nil
		}
		return usageError{fmt.Errorf("%s needs %s\nUsage: %s", cmd.CommandPath(), what, cmd.UseLine())}
	}
}

func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return usageError{fmt.Errorf("%s needs %s\nUsage: %s", cmd.CommandPath(), what, cmd.UseLine())}
	}
}

// errSkipped says that there was nothing to do and nothing to print.
var errSkipped = errors.New("nothing to do")

// each does something to every operand, prints those that it worked for, and fails if one did.
func (c *cli) each(args []string, do func(name string) error) error {
	var failures []error
	for _, name := range args {
		err := do(name)
		if errors.Is(err, errSkipped) {
			continue
		}
		if err != nil {
			failures = append(failures, err)
			continue
		}
		fmt.Fprintln(c.out, name)
	}
	return errors.Join(failures...)
}

func containerPath(name, verb string) string { return "/containers/" + url.PathEscape(name) + verb }

func (c *cli) eachCommand(verb, short string, running bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " CONTAINER...", Short: short, GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(running, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(args, func(name string) error {
				return c.client.post(cmd.Context(), containerPath(name, "/"+verb), nil, nil, nil)
			})
		},
	}
}

func (c *cli) startCommand() *cobra.Command {
	var attach, interactive, sigProxy bool
	var keys string
	cmd := &cobra.Command{
		Use: "start CONTAINER...", Short: "Start containers", GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(false, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !attach && !interactive {
				return c.each(args, func(name string) error {
					return c.client.post(cmd.Context(), containerPath(name, "/start"), nil, nil, nil)
				})
			}
			if len(args) > 1 {
				return usageError{errors.New("you cannot start and attach multiple containers at once")}
			}
			info, err := c.inspectContainer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.attachAndStart(cmd.Context(), attachment{
				id: info.ID, tty: info.Config.Tty, keys: keys, sigProxy: sigProxy && !info.Config.Tty, condition: endOf(info),
				want: attachSet{stdin: interactive && info.Config.OpenStdin, stdout: true, stderr: true},
			})
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "attach to its output and pass signals on")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "attach to its standard input")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the container")
	cmd.Flags().StringVar(&keys, "detach-keys", "", "keys that leave the container running")
	return cmd
}

func endOf(info container.InspectResponse) container.WaitCondition {
	if info.HostConfig != nil && info.HostConfig.AutoRemove {
		return container.WaitConditionRemoved
	}
	return container.WaitConditionNextExit
}

func (c *cli) inspectContainer(ctx context.Context, name string) (container.InspectResponse, error) {
	var info container.InspectResponse
	err := c.client.get(ctx, containerPath(name, "/json"), nil, &info)
	return info, err
}

// containerExists tells whether a container is called so, by its name or by an id as `ps` shows it. Shorter
// beginnings of ids do not count here: db is what many services are called, and one id in 256 begins like that.
func (c *cli) containerExists(name string) bool {
	client := c.client
	if client == nil {
		client = newClient(c.runDirectory(), nil) // only looks: a daemon that does not run has no containers
	}
	var info container.InspectResponse
	if client.get(context.Background(), containerPath(name, "/json"), nil, &info) != nil {
		return false
	}
	return strings.TrimPrefix(info.Name, "/") == strings.TrimPrefix(name, "/") || shortID(info.ID) == shortID(name)
}

func (c *cli) attachCommand() *cobra.Command {
	var noStdin, sigProxy bool
	var keys string
	cmd := &cobra.Command{
		Use: "attach CONTAINER", Short: "Connect to a running container's standard streams", GroupID: groupContainers,
		Args: exactly(1, "a container"), ValidArgsFunction: c.completeContainers(true, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := c.inspectContainer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if !info.State.Running {
				return errors.New("you cannot attach to a stopped container, start it first")
			}
			if info.State.Paused {
				return errors.New("you cannot attach to a paused container, unpause it first")
			}
			a := attachment{
				id: info.ID, tty: info.Config.Tty, keys: keys, sigProxy: sigProxy && !info.Config.Tty, condition: endOf(info),
				want: attachSet{stdin: !noStdin && info.Config.OpenStdin, stdout: true, stderr: true},
			}
			ctx := context.WithoutCancel(cmd.Context())
			exited, err := c.wait(ctx, a.id, a.condition)
			if err != nil {
				return err
			}
			s, err := c.openAttachment(ctx, a)
			if err != nil {
				return err
			}
			if a.sigProxy {
				defer c.proxySignals(ctx, a.id)()
			}
			return c.follow(ctx, a, s, exited)
		},
	}
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not attach standard input")
	cmd.Flags().BoolVar(&sigProxy, "sig-proxy", true, "pass signals on to the container")
	cmd.Flags().StringVar(&keys, "detach-keys", "", "keys that leave the container running")
	return cmd
}

func (c *cli) stopCommand(verb, short string) *cobra.Command {
	var seconds int
	var signal string
	cmd := &cobra.Command{
		Use: verb + " CONTAINER...", Short: short, GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(verb == "stop", 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if cmd.Flags().Changed("timeout") {
				q.Set("t", strconv.Itoa(seconds))
			}
			if signal != "" {
				q.Set("signal", signal)
			}
			return c.each(args, func(name string) error {
				return c.client.post(cmd.Context(), containerPath(name, "/"+verb), q, nil, nil)
			})
		},
	}
	cmd.Flags().IntVarP(&seconds, "timeout", "t", 10, "seconds to wait before killing (-1: for ever)")
	cmd.Flags().StringVarP(&signal, "signal", "s", "", "signal to send (default: the container's stop signal)")
	return cmd
}

func (c *cli) killCommand() *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use: "kill CONTAINER...", Short: "Send a signal to containers", GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(true, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(args, func(name string) error {
				return c.client.post(cmd.Context(), containerPath(name, "/kill"), url.Values{"signal": {signal}}, nil, nil)
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal to send")
	return cmd
}

func (c *cli) rmCommand() *cobra.Command {
	var force, volumes bool
	cmd := &cobra.Command{
		Use: "rm CONTAINER...", Aliases: []string{"remove"}, Short: "Remove containers", GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(false, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			if volumes {
				q.Set("v", "1")
			}
			return c.each(args, func(name string) error {
				err := c.client.delete(cmd.Context(), containerPath(name, ""), q, nil)
				if force && isStatus(err, 404) {
					return errSkipped
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill those that run")
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove their anonymous volumes too")
	return cmd
}

func (c *cli) renameCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rename CONTAINER NAME", Short: "Rename a container", GroupID: groupContainers,
		Args: exactly(2, "a container and its new name"), ValidArgsFunction: c.completeContainers(false, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client.post(cmd.Context(), containerPath(args[0], "/rename"), url.Values{"name": {args[1]}}, nil, nil)
		},
	}
}

func (c *cli) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers stop and print their exit codes", GroupID: groupContainers,
		Args: atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(true, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failures []error
			for _, name := range args {
				exited, err := c.wait(cmd.Context(), url.PathEscape(name), container.WaitConditionNotRunning)
				if err != nil {
					failures = append(failures, err)
					continue
				}
				status := <-exited
				if status.err != nil {
					failures = append(failures, status.err)
					continue
				}
				fmt.Fprintln(c.out, status.code)
			}
			return errors.Join(failures...)
		},
	}
}

func (c *cli) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTO]]", Short: "Show where a container's ports are published", GroupID: groupContainers,
		Args: cobra.RangeArgs(1, 2), ValidArgsFunction: c.completeContainers(true, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := c.inspectContainer(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			want := ""
			if len(args) == 2 {
				want = args[1]
				if !strings.Contains(want, "/") {
					want += "/tcp"
				}
			}
			lines := portLines(info, want)
			if want != "" && len(lines) == 0 {
				return fmt.Errorf("no public port '%s' published for %s", want, args[0])
			}
			for _, line := range lines {
				fmt.Fprintln(c.out, line)
			}
			return nil
		},
	}
}

func (c *cli) updateCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use: "update CONTAINER...", Short: "Change limits and the restart policy of containers", GroupID: groupContainers,
		Example: "  slipway update --memory 512m --cpus 2 --restart always web",
		Args:    atLeast(1, "a container"), ValidArgsFunction: c.completeContainers(false, 0),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := container.CreateRequest{Config: &container.Config{}, HostConfig: &container.HostConfig{}}
			if err := f.setLimits(cmd.Flags(), &req); err != nil {
				return usageError{err}
			}
			update := container.UpdateConfig{Resources: req.HostConfig.Resources}
			if cmd.Flags().Changed("restart") {
				policy, err := restartPolicy(f.restart)
				if err != nil {
					return usageError{err}
				}
				update.RestartPolicy = policy
			}
			return c.each(args, func(name string) error {
				var answer container.UpdateResponse
				err := c.client.post(cmd.Context(), containerPath(name, "/update"), nil, update, &answer)
				for _, w := range answer.Warnings {
					fmt.Fprintln(c.err, "WARNING:", w)
				}
				return err
			})
		},
	}
	s := cmd.Flags()
	s.StringVarP(&f.memory, "memory", "m", "", "memory limit, such as 256m")
	s.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together; -1: no limit")
	s.StringVar(&f.memoryReservation, "memory-reservation", "", "soft memory limit")
	s.StringVar(&f.cpus, "cpus", "", "number of CPUs, such as 1.5")
	s.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight")
	s.Int64Var(&f.cpuPeriod, "cpu-period", 0, "scheduler period in µs")
	s.Int64Var(&f.cpuQuota, "cpu-quota", 0, "scheduler quota in µs")
	s.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs it may use, such as 0-2,4")
	s.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes it may use")
	s.Int64Var(&f.pidsLimit, "pids-limit", 0, "number of processes; -1: no limit")
	s.Uint16Var(&f.blkioWeight, "blkio-weight", 0, "10 to 1000")
	s.StringVar(&f.restart, "restart", "", "no, on-failure[:N], always or unless-stopped")
	return cmd
}

func portLines(info container.InspectResponse, want string) []string {
	if info.NetworkSettings == nil {
		return nil
	}
	var list []container.PortSummary
	for port, bindings := range info.NetworkSettings.Ports {
		if want != "" && port.String() != want {
			continue
		}
		for _, b := range bindings {
			public, _ := strconv.ParseUint(b.HostPort, 10, 16)
			list = append(list, container.PortSummary{IP: b.HostIP, PrivatePort: port.Num(), PublicPort: uint16(public), Type: string(port.Proto())})
		}
	}
	sortPorts(list)
	var lines []string
	for _, p := range list {
		address := fmt.Sprintf("%s:%d", p.IP, p.PublicPort)
		if p.IP.Is6() {
			address = fmt.Sprintf("[%s]:%d", p.IP, p.PublicPort)
		}
		if want == "" {
			address = fmt.Sprintf("%d/%s -> %s", p.PrivatePort, p.Type, address)
		}
		lines = append(lines, address)
	}
	return lines
}
