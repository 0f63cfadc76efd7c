package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/spf13/cobra"

	"slipway.dev/slipway/daemon/version"
)

func (c *cli) versionCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "version", Short: "Show the versions of this command and of the daemon", Args: cobra.NoArgs, GroupID: groupDaemon,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer := struct {
				Client struct{ Version, GoVersion, Os, Arch string }
				Server *system.VersionResponse
			}{}
			answer.Client.Version, answer.Client.GoVersion, answer.Client.Os, answer.Client.Arch = version.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH
			var server system.VersionResponse
			err := newClient(c.runDirectory(), nil).get(cmd.Context(), "/version", nil, &server) // asking does not start it
			if err == nil {
				answer.Server = &server
			}
			if format != "" {
				raw, merr := json.Marshal(answer)
				if merr != nil {
					return merr
				}
				return errors.Join(c.printOne(raw, format), err)
			}
			fmt.Fprintf(c.out, "slipway  %s (%s, %s/%s)\n", version.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.out, "slipwayd %s (%s, %s/%s), Docker API %s to %s, Linux %s\n", server.Version, server.GoVersion, server.Os, server.Arch,
				server.MinAPIVersion, server.APIVersion, server.KernelVersion)
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, or a Go template such as '{{.Server.Version}}'")
	return cmd
}

// printOne shows one JSON object, whole or through a template.
func (c *cli) printOne(raw json.RawMessage, format string) error {
	if format == "json" {
		_, err := fmt.Fprintln(c.out, string(raw))
		return err
	}
	return c.printObjects([]json.RawMessage{raw}, format)
}

func (c *cli) infoCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "info", Short: "Show the state of the daemon and its machine", Args: cobra.NoArgs, GroupID: groupObjects,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var raw json.RawMessage
			if err := c.client.get(cmd.Context(), "/info", nil, &raw); err != nil {
				return err
			}
			if format != "" {
				return c.printOne(raw, format)
			}
			var info system.Info
			if err := json.Unmarshal(raw, &info); err != nil {
				return err
			}
			printInfo(c.out, info)
			for _, w := range info.Warnings {
				fmt.Fprintln(c.err, "WARNING:", w)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "json, or a Go template such as '{{.NCPU}}'")
	return cmd
}

func printInfo(w io.Writer, i system.Info) {
	for _, line := range [][2]string{
		{"Version", i.ServerVersion},
		{"Containers", fmt.Sprintf("%d (%d running, %d paused, %d stopped)", i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped)},
		{"Images", fmt.Sprint(i.Images)},
		{"Data directory", i.DockerRootDir},
		{"Storage", i.Driver},
		{"Cgroups", "version " + i.CgroupVersion},
		{"Security", strings.Join(i.SecurityOptions, ", ")},
		{"System", fmt.Sprintf("%s, Linux %s, %s", i.OperatingSystem, i.KernelVersion, i.Architecture)},
		{"Machine", fmt.Sprintf("%s, %d CPUs, %s memory", i.Name, i.NCPU, size(i.MemTotal))},
	} {
		fmt.Fprintf(w, "%-15s %s\n", line[0]+":", line[1])
	}
}

func (c *cli) eventsCommand() *cobra.Command {
	var since, until, format string
	var filter []string
	cmd := &cobra.Command{
		Use: "events", Short: "Show what happens, as it happens", Args: cobra.NoArgs, GroupID: groupObjects,
		Example: "  slipway events --since 10m --filter type=container --filter event=die",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := filterValues(filter)
			if err != nil {
				return err
			}
			for name, value := range map[string]string{"since": since, "until": until} {
				if value == "" {
					continue
				}
				t, err := moment(value, time.Now())
				if err != nil {
					return usageError{fmt.Errorf("--%s: %w", name, err)}
				}
				q.Set(name, t)
			}
			resp, err := c.client.do(cmd.Context(), call{method: "GET", path: "/events", query: q})
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			err = c.printEvents(resp.Body, format)
			if cmd.Context().Err() != nil {
				return nil
			}
			return err
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "from a `TIME`, or for a duration such as 10m")
	cmd.Flags().StringVar(&until, "until", "", "until a `TIME`, then end")
	cmd.Flags().StringVar(&format, "format", "", "json, or a Go template such as '{{.Action}}'")
	cmd.Flags().StringArrayVarP(&filter, "filter", "f", nil, "`KEY=VALUE`: type, event, container, image, network, volume, label")
	return cmd
}

func (c *cli) printEvents(r io.Reader, format string) error {
	dec := json.NewDecoder(r)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read events: %w", err)
		}
		if format != "" {
			if err := c.printOne(raw, format); err != nil {
				return err
			}
			continue
		}
		var e events.Message
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		fmt.Fprintln(c.out, eventLine(e))
	}
}

func eventLine(e events.Message) string {
	var attributes []string
	for key, value := range e.Actor.Attributes {
		attributes = append(attributes, key+"="+value)
	}
	slices.Sort(attributes)
	line := fmt.Sprintf("%s %s %s %s", time.Unix(0, e.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	if len(attributes) > 0 {
		line += " (" + strings.Join(attributes, ", ") + ")"
	}
	return line
}

func (c *cli) systemCommand() *cobra.Command {
	info := c.infoCommand()
	info.GroupID = ""
	ev := c.eventsCommand()
	ev.GroupID = ""
	return group("system", "Disk usage, clean-up, information", c.dfCommand(), c.systemPrune(), info, ev)
}

// usage is system df in the form of API 1.51.
type usage struct {
	LayersSize int64
	Images     []image.Summary
	Containers []container.Summary
	Volumes    []volume.Volume
	BuildCache []build.CacheRecord
}

func (c *cli) dfCommand() *cobra.Command {
	var output outputFlags
	cmd := &cobra.Command{
		Use: "df", Short: "Show what takes how much space", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var u usage
			if err := c.client.get(cmd.Context(), "/system/df", nil, &u); err != nil {
				return err
			}
			return usageListing(u).print(c.out, output)
		},
	}
	output.register(cmd, "")
	return checked(cmd, &output)
}

func usageListing(u usage) *listing {
	l := &listing{raw: u, columns: []column{
		{name: "Type", title: "TYPE"}, {name: "TotalCount", title: "TOTAL"}, {name: "Active", title: "ACTIVE"},
		{name: "Size", title: "SIZE"}, {name: "Reclaimable", title: "RECLAIMABLE"},
	}}
	row := func(kind string, total, active int, sum, free int64) {
		share := ""
		if sum > 0 {
			share = fmt.Sprintf(" (%d%%)", free*100/sum)
		}
		l.add(kind, kind, fmt.Sprint(total), fmt.Sprint(active), size(sum), size(free)+share)
	}
	active, free := 0, u.LayersSize
	for _, i := range u.Images {
		if i.Containers > 0 {
			active++
			free -= i.Size - max(i.SharedSize, 0)
		}
	}
	if active == len(u.Images) && active > 0 {
		free = 0
	}
	row("Images", len(u.Images), active, u.LayersSize, max(free, 0))
	active, free = 0, 0
	var sum int64
	for _, s := range u.Containers {
		sum += s.SizeRw
		if s.State == container.StateRunning || s.State == container.StatePaused || s.State == container.StateRestarting {
			active++
		} else {
			free += s.SizeRw
		}
	}
	row("Containers", len(u.Containers), active, sum, free)
	active, free, sum = 0, 0, 0
	for _, v := range u.Volumes {
		if v.UsageData == nil || v.UsageData.Size < 0 {
			continue
		}
		sum += v.UsageData.Size
		if v.UsageData.RefCount > 0 {
			active++
		} else {
			free += v.UsageData.Size
		}
	}
	row("Local Volumes", len(u.Volumes), active, sum, free)
	active, free, sum = 0, 0, 0
	for _, b := range u.BuildCache {
		if b.InUse {
			active++
		} else if !b.Shared {
			free += b.Size
		}
		if !b.Shared {
			sum += b.Size
		}
	}
	row("Build Cache", len(u.BuildCache), active, sum, free)
	return l
}

// pruneReport is the answer of all prunes.
type pruneReport struct {
	ContainersDeleted, NetworksDeleted, VolumesDeleted, CachesDeleted []string
	ImagesDeleted                                                     []image.DeleteResponse
	SpaceReclaimed                                                    uint64
}

func (c *cli) prune(ctx context.Context, path string, q url.Values) (pruneReport, error) {
	var report pruneReport
	err := c.client.post(ctx, path, q, nil, &report)
	return report, err
}

func (r pruneReport) print(w io.Writer, what string) {
	removed := slices.Concat(r.ContainersDeleted, r.NetworksDeleted, r.VolumesDeleted, r.CachesDeleted)
	for _, i := range r.ImagesDeleted {
		if i.Deleted != "" {
			removed = append(removed, "deleted: "+i.Deleted)
		} else {
			removed = append(removed, "untagged: "+i.Untagged)
		}
	}
	if len(removed) > 0 {
		fmt.Fprintf(w, "Deleted %s:\n%s\n\n", what, strings.Join(removed, "\n"))
	}
	fmt.Fprintf(w, "Reclaimed space: %s\n", size(int64(r.SpaceReclaimed)))
}

// confirm asks on a terminal; without one the answer is no.
func (c *cli) confirm(question string) bool {
	fmt.Fprintf(c.err, "%s [y/N] ", question)
	line, _ := bufio.NewReader(c.in).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

func (c *cli) systemPrune() *cobra.Command {
	var all, volumes, force bool
	var filter []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove stopped containers, unused networks, nameless images and the build cache", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			means := "all stopped containers, unused networks, nameless images and unused build cache"
			if all {
				means = strings.Replace(means, "nameless images", "images without a container", 1)
			}
			if volumes {
				means += ", and unused anonymous volumes"
			}
			if !force && !c.confirm("This removes "+means+". Continue?") {
				return nil
			}
			return c.pruneAll(cmd.Context(), filter, all, volumes)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all images without a container, not just nameless ones, and all of the build cache")
	cmd.Flags().BoolVar(&volumes, "volumes", false, "anonymous volumes too")
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&filter, "filter", nil, "`KEY=VALUE`: until, label, label!")
	return cmd
}

func (c *cli) pruneAll(ctx context.Context, filter []string, all, volumes bool) error {
	images := filter
	if all {
		images = append(slices.Clone(filter), "dangling=false")
	}
	var total uint64
	for _, p := range []struct {
		what, path string
		filter     []string
		wanted     bool
	}{
		{"Containers", "/containers/prune", filter, true}, {"Networks", "/networks/prune", filter, true},
		{"Volumes", "/volumes/prune", withoutUntil(filter), volumes},
		{"Images", "/images/prune", images, true}, {"Build cache", "/build/prune", untilOnly(filter), true},
	} {
		if !p.wanted {
			continue
		}
		q, err := filterValues(p.filter)
		if err != nil {
			return err
		}
		if all {
			q.Set("all", "1")
		}
		report, err := c.prune(ctx, p.path, q)
		if err != nil {
			return err
		}
		total += report.SpaceReclaimed
		report.SpaceReclaimed = 0
		var b strings.Builder
		report.print(&b, p.what)
		fmt.Fprint(c.out, strings.TrimSuffix(b.String(), "Reclaimed space: 0B\n"))
	}
	fmt.Fprintf(c.out, "Reclaimed space: %s\n", size(int64(total)))
	return nil
}

func withoutUntil(filter []string) []string {
	return slices.DeleteFunc(slices.Clone(filter), func(f string) bool { return strings.HasPrefix(f, "until=") })
}

func untilOnly(filter []string) []string {
	return slices.DeleteFunc(slices.Clone(filter), func(f string) bool { return !strings.HasPrefix(f, "until=") })
}
