package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"
)

func (c *cli) objectCommands(root *cobra.Command) {
	root.AddCommand(c.networkCommand(), c.volumeCommand(), c.systemCommand(), c.eventsCommand(), c.infoCommand(), c.inspectCommand())
}

func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, GroupID: groupObjects,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(sub...)
	return cmd
}

func (c *cli) networkCommand() *cobra.Command {
	return group("network", "Manage networks",
		c.networkList(), c.networkCreate(), c.networkConnect(), c.networkDisconnect(), c.networkRemove(),
		c.networkInspect(), c.pruneCommand("networks", "unused networks", "/networks/prune", false),
	)
}

func (c *cli) networkList() *cobra.Command {
	var output outputFlags
	var filter []string
	var noTrunc bool
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterValues(filter)
			if err != nil {
				return err
			}
			var list []network.Summary
			if err := c.client.get(cmd.Context(), "/networks", q, &list); err != nil {
				return err
			}
			slices.SortFunc(list, func(a, b network.Summary) int { return strings.Compare(a.Name, b.Name) })
			l := &listing{raw: list, columns: []column{
				{name: "ID", title: "NETWORK ID"}, {name: "Name", title: "NAME"}, {name: "Driver", title: "DRIVER"}, {name: "Subnet", title: "SUBNET"},
				{name: "Internal", title: "INTERNAL", hidden: true}, {name: "Labels", title: "LABELS", hidden: true},
			}}
			for _, n := range list {
				id := n.ID
				if !noTrunc {
					id = shortID(id)
				}
				l.add(id, id, n.Name, n.Driver, subnets(n.Network), strconv.FormatBool(n.Internal), labelList(n.Labels))
			}
			return l.print(c.out, output)
		},
	}
	output.register(cmd, "ids")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "`KEY=VALUE`: driver, id, label, name, dangling")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids")
	return checked(cmd, &output)
}

func subnets(n network.Network) string {
	var list []string
	for _, c := range n.IPAM.Config {
		list = append(list, c.Subnet.String())
	}
	return strings.Join(list, ",")
}

func filterValues(filter []string) (url.Values, error) {
	q := url.Values{}
	text, err := filterQuery(filter)
	if text != "" {
		q.Set("filters", text)
	}
	return q, err
}

func (c *cli) networkCreate() *cobra.Command {
	var (
		req                           network.CreateRequest
		subnet, ipRange, gateway      string
		options, labels, auxAddresses []string
	)
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a network",
		Example: "  slipway network create --subnet 10.7.0.0/24 --internal backend",
		Args:    exactly(1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if req.Options, err = keyValues("--opt", options, nil); err != nil {
				return usageError{err}
			}
			if req.Labels, err = keyValues("--label", labels, nil); err != nil {
				return usageError{err}
			}
			if req.IPAM, err = ipam(subnet, ipRange, gateway, auxAddresses); err != nil {
				return usageError{err}
			}
			var created network.CreateResponse
			if err := c.client.post(cmd.Context(), "/networks/create", nil, req, &created); err != nil {
				return err
			}
			fmt.Fprintln(c.out, created.ID)
			return nil
		},
	}
	s := cmd.Flags()
	s.StringVarP(&req.Driver, "driver", "d", "bridge", "bridge")
	s.StringVar(&subnet, "subnet", "", "addresses, such as 10.7.0.0/24 (default: chosen)")
	s.StringVar(&ipRange, "ip-range", "", "part of the subnet for containers")
	s.StringVar(&gateway, "gateway", "", "address of the gateway")
	s.StringArrayVar(&auxAddresses, "aux-address", nil, "`NAME=IP` that containers do not get")
	s.BoolVar(&req.Internal, "internal", false, "no way out and no published ports")
	s.BoolVar(&req.Attachable, "attachable", false, "containers may join by hand")
	s.StringArrayVarP(&options, "opt", "o", nil, "`KEY=VALUE` of the driver")
	s.StringArrayVar(&labels, "label", nil, "`KEY=VALUE`")
	return cmd
}

func ipam(subnet, ipRange, gateway string, aux []string) (*network.IPAM, error) {
	if subnet == "" && ipRange == "" && gateway == "" && len(aux) == 0 {
		return nil, nil
	}
	if subnet == "" {
		return nil, errors.New("--ip-range, --gateway and --aux-address need --subnet")
	}
	var conf network.IPAMConfig
	var err error
	if conf.Subnet, err = netip.ParsePrefix(subnet); err != nil {
		return nil, fmt.Errorf("--subnet %q: want addresses such as 10.7.0.0/24", subnet)
	}
	if ipRange != "" {
		if conf.IPRange, err = netip.ParsePrefix(ipRange); err != nil {
			return nil, fmt.Errorf("--ip-range %q: want addresses such as 10.7.0.128/25", ipRange)
		}
	}
	if gateway != "" {
		if conf.Gateway, err = netip.ParseAddr(gateway); err != nil {
			return nil, fmt.Errorf("--gateway %q: want an address", gateway)
		}
	}
	for _, a := range aux {
		name, value, _ := strings.Cut(a, "=")
		addr, err := netip.ParseAddr(value)
		if err != nil {
			return nil, fmt.Errorf("--aux-address %q: want NAME=IP", a)
		}
		if conf.AuxAddress == nil {
			conf.AuxAddress = map[string]netip.Addr{}
		}
		conf.AuxAddress[name] = addr
	}
	return &network.IPAM{Config: []network.IPAMConfig{conf}}, nil
}

func (c *cli) networkConnect() *cobra.Command {
	var f createFlags
	var driverOpts []string
	cmd := &cobra.Command{
		Use: "connect NETWORK CONTAINER", Short: "Connect a container to a network",
		Args: exactly(2, "a network and a container"), ValidArgsFunction: c.completeNetworkThenContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			e := &network.EndpointSettings{Links: f.links}
			if err := f.refine(e); err != nil {
				return usageError{err}
			}
			var err error
			if e.DriverOpts, err = keyValues("--driver-opt", driverOpts, nil); err != nil {
				return usageError{err}
			}
			return c.client.post(cmd.Context(), networkPath(args[0], "/connect"), nil, network.ConnectRequest{Container: args[1], EndpointConfig: e}, nil)
		},
	}
	s := cmd.Flags()
	s.StringArrayVar(&f.aliases, "alias", nil, "one more name on the network")
	s.StringVar(&f.ip, "ip", "", "IPv4 address")
	s.StringVar(&f.ip6, "ip6", "", "IPv6 address")
	s.StringArrayVar(&f.links, "link", nil, "`CONTAINER[:ALIAS]`")
	s.StringArrayVar(&driverOpts, "driver-opt", nil, "`KEY=VALUE`")
	return cmd
}

func networkPath(name, verb string) string { return "/networks/" + url.PathEscape(name) + verb }

func (c *cli) completeNetworkThenContainer(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.completeNetworks(cmd, args, word)
	}
	return c.completeContainers(false, 2)(cmd, args, word)
}

func (c *cli) networkDisconnect() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "disconnect NETWORK CONTAINER", Short: "Disconnect a container from a network",
		Args: exactly(2, "a network and a container"), ValidArgsFunction: c.completeNetworkThenContainer,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.client.post(cmd.Context(), networkPath(args[0], "/disconnect"), nil, network.DisconnectRequest{Container: args[1], Force: force}, nil)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "even if the container is in trouble")
	return cmd
}

func (c *cli) networkRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm NETWORK...", Aliases: []string{"remove"}, Short: "Remove networks",
		Args: atLeast(1, "a network"), ValidArgsFunction: c.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.each(args, func(name string) error {
				err := c.client.delete(cmd.Context(), networkPath(name, ""), nil, nil)
				if force && isStatus(err, 404) {
					return errSkipped
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not complain about networks that do not exist")
	return cmd
}

func (c *cli) networkInspect() *cobra.Command {
	return c.inspector("inspect NETWORK...", "Show networks in full", c.completeNetworks, func(ctx context.Context, name string, _ url.Values) (json.RawMessage, error) {
		var raw json.RawMessage
		return raw, c.client.get(ctx, networkPath(name, ""), nil, &raw)
	})
}

func (c *cli) volumeCommand() *cobra.Command {
	return group("volume", "Manage volumes",
		c.volumeList(), c.volumeCreate(), c.volumeRemove(), c.volumeInspect(), c.pruneCommand("volumes", "unused anonymous volumes", "/volumes/prune", true),
	)
}

func (c *cli) volumeList() *cobra.Command {
	var output outputFlags
	var filter []string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List volumes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterValues(filter)
			if err != nil {
				return err
			}
			var list volume.ListResponse
			if err := c.client.get(cmd.Context(), "/volumes", q, &list); err != nil {
				return err
			}
			slices.SortFunc(list.Volumes, func(a, b volume.Volume) int { return strings.Compare(a.Name, b.Name) })
			l := &listing{raw: list.Volumes, columns: []column{
				{name: "Driver", title: "DRIVER"}, {name: "Name", title: "VOLUME NAME"},
				{name: "Mountpoint", title: "MOUNTPOINT", hidden: true}, {name: "Labels", title: "LABELS", hidden: true},
			}}
			for _, v := range list.Volumes {
				l.add(v.Name, v.Driver, v.Name, v.Mountpoint, labelList(v.Labels))
			}
			return l.print(c.out, output)
		},
	}
	output.register(cmd, "names")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "`KEY=VALUE`: dangling, driver, label, name")
	return checked(cmd, &output)
}

func (c *cli) volumeCreate() *cobra.Command {
	var req volume.CreateRequest
	var options, labels []string
	cmd := &cobra.Command{
		Use: "create [NAME]", Short: "Create a volume", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				req.Name = args[0]
			}
			if req.DriverOpts, err = keyValues("--opt", options, nil); err != nil {
				return usageError{err}
			}
			if req.Labels, err = keyValues("--label", labels, nil); err != nil {
				return usageError{err}
			}
			var v volume.Volume
			if err := c.client.post(cmd.Context(), "/volumes/create", nil, req, &v); err != nil {
				return err
			}
			fmt.Fprintln(c.out, v.Name)
			return nil
		},
	}
	cmd.Flags().StringVarP(&req.Driver, "driver", "d", "local", "local")
	cmd.Flags().StringArrayVarP(&options, "opt", "o", nil, "`KEY=VALUE` of the driver: type, device, o")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "`KEY=VALUE`")
	return cmd
}

func volumePath(name string) string { return "/volumes/" + url.PathEscape(name) }

func (c *cli) volumeRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm VOLUME...", Aliases: []string{"remove"}, Short: "Remove volumes",
		Args: atLeast(1, "a volume"), ValidArgsFunction: c.completeVolumes,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if force {
				q.Set("force", "1")
			}
			return c.each(args, func(name string) error {
				err := c.client.delete(cmd.Context(), volumePath(name), q, nil)
				if force && isStatus(err, 404) {
					return errSkipped
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not complain about volumes that do not exist")
	return cmd
}

func (c *cli) volumeInspect() *cobra.Command {
	return c.inspector("inspect VOLUME...", "Show volumes in full", c.completeVolumes, func(ctx context.Context, name string, _ url.Values) (json.RawMessage, error) {
		var raw json.RawMessage
		return raw, c.client.get(ctx, volumePath(name), nil, &raw)
	})
}

// inspector shows objects as the API has them, or through a template.
func (c *cli) inspector(use, short string, complete completer, find func(context.Context, string, url.Values) (json.RawMessage, error)) *cobra.Command {
	var format string
	var sizes bool
	cmd := &cobra.Command{
		Use: use, Short: short, Args: atLeast(1, "an object"), ValidArgsFunction: complete,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if sizes {
				q.Set("size", "1")
			}
			var found []json.RawMessage
			var failures []error
			for _, name := range args {
				raw, err := find(cmd.Context(), name, q)
				if err != nil {
					failures = append(failures, err)
					continue
				}
				found = append(found, raw)
			}
			return errors.Join(append([]error{c.printObjects(found, format)}, failures...)...)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, or a Go template such as '{{.State.Status}}'")
	cmd.Flags().BoolVarP(&sizes, "size", "s", false, "show sizes of containers")
	return cmd
}

func (c *cli) printObjects(found []json.RawMessage, format string) error {
	if format == "" || format == "json" {
		if found == nil {
			found = []json.RawMessage{}
		}
		enc := json.NewEncoder(c.out)
		enc.SetEscapeHTML(false)
		if format == "" {
			enc.SetIndent("", "    ")
		}
		return enc.Encode(found)
	}
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	for _, raw := range found {
		var v any
		dec := json.NewDecoder(strings.NewReader(string(raw)))
		dec.UseNumber() // sizes stay as they are
		if err := dec.Decode(&v); err != nil {
			return err
		}
		if err := runTemplate(c.out, t, v); err != nil {
			return err
		}
	}
	return nil
}

// inspectCommand finds out what kind of object a name means, in docker's order.
func (c *cli) inspectCommand() *cobra.Command {
	kind := ""
	places := []struct{ kind, path string }{
		{"container", "/containers/%s/json"}, {"image", "/images/%s/json"}, {"network", "/networks/%s"}, {"volume", "/volumes/%s"},
	}
	cmd := c.inspector("inspect NAME...", "Show containers, images, networks or volumes in full", c.completeContainers(false, 0),
		func(ctx context.Context, name string, q url.Values) (json.RawMessage, error) {
			for _, p := range places {
				if kind != "" && kind != p.kind {
					continue
				}
				var raw json.RawMessage
				err := c.client.get(ctx, fmt.Sprintf(p.path, name), q, &raw)
				if err == nil || !isStatus(err, 404) {
					return raw, err
				}
			}
			if kind != "" {
				return nil, fmt.Errorf("no such %s: %s", kind, name)
			}
			return nil, fmt.Errorf("no such object: %s", name)
		})
	cmd.GroupID = groupObjects
	cmd.Flags().StringVar(&kind, "type", "", "container, image, network or volume")
	return cmd
}

// pruneCommand removes what is not used, after asking.
func (c *cli) pruneCommand(what, means, path string, hasAll bool) *cobra.Command {
	var force, all bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove " + means, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force && !c.confirm("This removes "+means+". Continue?") {
				return nil
			}
			if all {
				filter = append(filter, "all=1")
			}
			q, err := filterValues(filter)
			if err != nil {
				return err
			}
			report, err := c.prune(cmd.Context(), path, q)
			if err != nil {
				return err
			}
			report.print(c.out, what)
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&filter, "filter", nil, "`KEY=VALUE`: until, label, label!")
	if hasAll {
		cmd.Flags().BoolVarP(&all, "all", "a", false, "named ones too")
	}
	return cmd
}
