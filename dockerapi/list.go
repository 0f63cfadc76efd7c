package dockerapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"

	"slipway.dev/slipway/engine/container"
)

var containerFilters = []string{
	"ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name", "network",
	"publish", "since", "status", "volume",
}

func (s *Server) listContainers(w *reply, r *request) error {
	f, err := parseFilters(r, containerFilters...)
	if err != nil {
		return err
	}
	filter, err := containerFilter(f)
	if err != nil {
		return err
	}
	limit, err := r.int("limit")
	if err != nil {
		return err
	}
	filter.Limit = int(limit)
	filter.All = r.flag("all") || limit > 0 || f.has("status") || f.has("exited")
	infos, err := s.containers.List(filter)
	if err != nil {
		return err
	}
	list := make([]containertypes.Summary, 0, len(infos))
	now := time.Now()
	for _, info := range infos {
		summary := s.containerSummary(r.Context(), info, now)
		if r.flag("size") {
			if summary.SizeRw, summary.SizeRootFs, err = s.containers.Size(r.Context(), info.ID); err != nil {
				return err
			}
		}
		list = append(list, summary)
	}
	return writeJSON(w, http.StatusOK, list)
}

func containerFilter(f filters) (container.Filter, error) {
	filter := container.Filter{
		Owner: container.OwnerDocker,
		ID:    f["id"], Name: f["name"], Label: f["label"], Status: f["status"], Health: f["health"],
		Ancestor: f["ancestor"], Before: f["before"], Since: f["since"],
		Volume: f["volume"], Network: f["network"], Publish: f["publish"], Expose: f["expose"],
	}
	if showsNode(f) {
		filter.Owner = container.OwnerNode
		filter.Label = slices.DeleteFunc(slices.Clone(filter.Label), func(l string) bool { return l == nodeLabel })
	}
	for _, state := range f["status"] {
		if err := containertypes.ValidateContainerState(containertypes.ContainerState(state)); err != nil {
			return filter, invalid("invalid filter 'status=%s'", state)
		}
	}
	for _, health := range f["health"] {
		if err := containertypes.ValidateHealthStatus(containertypes.HealthStatus(health)); err != nil {
			return filter, invalid("invalid filter 'health=%s'", health)
		}
	}
	for _, code := range f["exited"] {
		n, err := strconv.Atoi(code)
		if err != nil {
			return filter, invalid("invalid filter 'exited=%s': must be an integer", code)
		}
		filter.Exited = append(filter.Exited, n)
	}
	if task, set, err := f.boolean("is-task"); err != nil {
		return filter, err
	} else if set && task {
		filter.ID = []string{"no swarm, no tasks"}
	}
	return filter, nil
}

// dockerContainers lists all of Docker's containers, or of those that run.
func (s *Server) dockerContainers(running *bool) []container.Info {
	infos, err := s.containers.List(container.Filter{Owner: container.OwnerDocker, All: running == nil || !*running})
	if err != nil {
		s.log.Warn("list containers", "err", err)
	}
	return infos
}

func (s *Server) containerSummary(ctx context.Context, info container.Info, now time.Time) containertypes.Summary {
	summary := containertypes.Summary{
		ID: info.ID, Names: []string{"/" + info.Name}, ImageID: info.ImageID, Image: s.imageShown(ctx, info),
		Command: commandLine(info.Path, info.Args), Created: info.Created.Unix(),
		Ports: portSummaries(info), Labels: info.Spec.Labels,
		State: containertypes.ContainerState(info.State.Status), Status: statusLine(info.State, now),
		NetworkSettings: &containertypes.NetworkSettingsSummary{Networks: endpointsJSON(info)},
		Mounts:          mountPoints(info.Mounts),
	}
	if summary.Labels == nil {
		summary.Labels = map[string]string{}
	}
	if h := info.State.Health; h != nil && h.Status != "" {
		summary.Health = &containertypes.HealthSummary{Status: containertypes.HealthStatus(h.Status), FailingStreak: h.FailingStreak}
	}
	summary.HostConfig.NetworkMode = info.Spec.NetworkMode
	if summary.HostConfig.NetworkMode == "" || summary.HostConfig.NetworkMode == networktypes.NetworkDefault {
		summary.HostConfig.NetworkMode = networktypes.NetworkBridge
	}
	return summary
}

// imageShown is the name that a container's image was given, unless that name means another image, or none, by now.
func (s *Server) imageShown(ctx context.Context, info container.Info) string {
	img, err := s.images.Get(ctx, info.Spec.Image)
	if err != nil || img.ID.String() != info.ImageID {
		return info.ImageID
	}
	return info.Spec.Image
}

func commandLine(path string, args []string) string {
	var b strings.Builder
	b.WriteString(path)
	for _, a := range args {
		b.WriteByte(' ')
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		b.WriteString(a)
	}
	return b.String()
}

// statusLine is the human state in `docker ps`.
func statusLine(st container.State, now time.Time) string {
	switch {
	case st.Status == container.StatusRemoving:
		return "Removal In Progress"
	case st.Dead:
		return "Dead"
	case st.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, units.HumanDuration(now.Sub(st.FinishedAt)))
	case st.Running && st.Paused:
		return fmt.Sprintf("Up %s (Paused)", units.HumanDuration(now.Sub(st.StartedAt)))
	case st.Running:
		return "Up " + units.HumanDuration(now.Sub(st.StartedAt)) + healthNote(st.Health)
	case st.StartedAt.IsZero():
		return "Created"
	case st.FinishedAt.IsZero():
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(now.Sub(st.FinishedAt)))
}

func healthNote(h *container.HealthState) string {
	switch {
	case h == nil || h.Status == "":
		return ""
	case h.Status == container.HealthStarting:
		return " (health: starting)"
	}
	return " (" + h.Status + ")"
}

// portSummaries lists published ports, then those only exposed.
func portSummaries(info container.Info) []containertypes.PortSummary {
	list := []containertypes.PortSummary{}
	if !info.State.Running {
		return list
	}
	published := map[string]bool{}
	for _, p := range info.Ports {
		if p.HostPort == 0 {
			continue
		}
		published[fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto)] = true
		list = append(list, containertypes.PortSummary{IP: hostIP(p.HostIP), PrivatePort: p.ContainerPort, PublicPort: p.HostPort, Type: p.Proto})
	}
	for _, e := range info.Spec.Exposed {
		port, err := networktypes.ParsePort(e)
		if err == nil && !published[port.String()] {
			list = append(list, containertypes.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
	}
	return list
}
