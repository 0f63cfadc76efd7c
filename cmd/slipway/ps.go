package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
)

// filterQuery turns --filter key=value into the API's filters parameter.
func filterQuery(pairs []string) (string, error) {
	if len(pairs) == 0 {
		return "", nil
	}
	f := map[string]map[string]bool{}
	for _, p := range pairs {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return "", usageError{fmt.Errorf("--filter %q: want KEY=VALUE", p)}
		}
		key = strings.ToLower(strings.TrimSpace(key))
		if f[key] == nil {
			f[key] = map[string]bool{}
		}
		f[key][value] = true
	}
	raw, err := json.Marshal(f)
	return string(raw), err
}

func (c *cli) psCommand() *cobra.Command {
	var (
		output           outputFlags
		all, noTrunc, sz bool
		last             int
		latest           bool
		filter           []string
	)
	cmd := &cobra.Command{
		Use: "ps", Aliases: []string{"list"}, Short: "List containers (in a Compose project: its services; -a: all containers)",
		Example: `  slipway ps -a
  slipway ps --filter status=exited -q
  slipway ps --format '{{.Names}}\t{{.Status}}'`,
		Args: cobra.NoArgs, GroupID: groupContainers,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			if all {
				q.Set("all", "1")
			}
			if latest {
				last = 1
			}
			if last > 0 {
				q.Set("limit", strconv.Itoa(last))
			}
			if sz {
				q.Set("size", "1")
			}
			filters, err := filterQuery(filter)
			if err != nil {
				return err
			}
			if filters != "" {
				q.Set("filters", filters)
			}
			var list []container.Summary
			if err := c.client.get(cmd.Context(), "/containers/json", q, &list); err != nil {
				return err
			}
			return containerListing(list, time.Now(), !noTrunc, sz).print(c.out, output)
		},
	}
	output.register(cmd, "ids")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "do not shorten ids and commands")
	cmd.Flags().BoolVarP(&sz, "size", "s", false, "show how much each has written")
	cmd.Flags().IntVarP(&last, "last", "n", 0, "the `N` created last, whatever their state")
	cmd.Flags().BoolVarP(&latest, "latest", "l", false, "the one created last")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "`KEY=VALUE`: status, name, label, ancestor, network, volume, health, exited, publish, before, since, id")
	return checked(cmd, &output)
}

// checked refuses unknown output forms before the verb does anything.
func checked(cmd *cobra.Command, f *outputFlags) *cobra.Command {
	cmd.PreRunE = func(*cobra.Command, []string) error { return f.check() }
	return cmd
}

func containerListing(list []container.Summary, now time.Time, short, sizes bool) *listing {
	l := &listing{raw: list, columns: []column{
		{name: "ID", title: "CONTAINER ID"}, {name: "Image", title: "IMAGE"}, {name: "Command", title: "COMMAND"},
		{name: "CreatedAt", title: "CREATED AT", hidden: true}, {name: "RunningFor", title: "CREATED"}, {name: "Status", title: "STATUS"}, {name: "Ports", title: "PORTS"},
		{name: "Names", title: "NAMES"}, {name: "Size", title: "SIZE", hidden: !sizes}, {name: "State", title: "STATE", hidden: true},
		{name: "Labels", title: "LABELS", hidden: true}, {name: "Mounts", title: "MOUNTS", hidden: true}, {name: "Networks", title: "NETWORKS", hidden: true},
	}}
	for _, s := range list {
		id, command := s.ID, strconv.Quote(s.Command)
		if short {
			id, command = shortID(id), strconv.Quote(ellipsis(s.Command, 20))
		}
		image := s.Image
		if strings.HasPrefix(image, "sha256:") && short {
			image = shortID(image)
		}
		created := time.Unix(s.Created, 0)
		l.add(id, id, image, command, created.Format(time.RFC3339), ago(created, now), s.Status, portList(s.Ports), names(s.Names),
			size(s.SizeRw)+" (virtual "+size(s.SizeRootFs)+")", string(s.State), labelList(s.Labels), mountList(s.Mounts), networkList(s))
	}
	return l
}

func names(list []string) string {
	trimmed := make([]string, 0, len(list))
	for _, n := range list {
		trimmed = append(trimmed, strings.TrimPrefix(n, "/"))
	}
	return strings.Join(trimmed, ",")
}

func labelList(labels map[string]string) string {
	var list []string
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

func mountList(mounts []container.MountPoint) string {
	var list []string
	for _, m := range mounts {
		if m.Name != "" {
			list = append(list, m.Name)
		} else {
			list = append(list, m.Source)
		}
	}
	return strings.Join(list, ",")
}

func networkList(s container.Summary) string {
	if s.NetworkSettings == nil {
		return ""
	}
	var list []string
	for name := range s.NetworkSettings.Networks {
		list = append(list, name)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// portList shows ports as in 0.0.0.0:8080->80/tcp, neighbours joined: 8080-8082->80-82/tcp.
func portList(ports []container.PortSummary) string {
	ports = slices.Clone(ports)
	sortPorts(ports)
	var parts []string
	for i := 0; i < len(ports); {
		j := i + 1
		for j < len(ports) && follows(ports[j-1], ports[j]) {
			j++
		}
		parts = append(parts, portRange(ports[i], ports[j-1]))
		i = j
	}
	return strings.Join(parts, ", ")
}

func sortPorts(ports []container.PortSummary) {
	slices.SortFunc(ports, func(a, b container.PortSummary) int {
		return cmp.Or(
			strings.Compare(a.Type, b.Type), a.IP.Compare(b.IP), cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.PublicPort, b.PublicPort),
		)
	})
}

func follows(a, b container.PortSummary) bool {
	return a.Type == b.Type && a.IP == b.IP && b.PrivatePort == a.PrivatePort+1 &&
		(a.PublicPort == 0) == (b.PublicPort == 0) && (a.PublicPort == 0 || b.PublicPort == a.PublicPort+1)
}

func portRange(first, last container.PortSummary) string {
	span := func(a, b uint16) string {
		if a == b {
			return strconv.Itoa(int(a))
		}
		return fmt.Sprintf("%d-%d", a, b)
	}
	private := span(first.PrivatePort, last.PrivatePort) + "/" + first.Type
	if first.PublicPort == 0 {
		return private
	}
	host := ""
	if first.IP != (netip.Addr{}) {
		host = first.IP.String()
		if first.IP.Is6() {
			host = "[" + host + "]"
		}
		host += ":"
	}
	return host + span(first.PublicPort, last.PublicPort) + "->" + private
}
