package dockerapi

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/moby/moby/api/types/build"
	containertypes "github.com/moby/moby/api/types/container"
	imagetypes "github.com/moby/moby/api/types/image"
	volumetypes "github.com/moby/moby/api/types/volume"

	"slipway.dev/slipway/engine/container"
)

// diskUsage is system df in the form that 1.51 and older clients read.
type diskUsage struct {
	LayersSize  int64
	Images      []imagetypes.Summary
	Containers  []containertypes.Summary
	Volumes     []volumetypes.Volume
	BuildCache  []build.CacheRecord
	BuilderSize int64 `json:",omitempty"`
}

func (s *Server) getDiskUsage(w *reply, r *request) error {
	kinds := r.query["type"]
	for _, k := range kinds {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, k) {
			return invalid("unknown object type: %s", k)
		}
	}
	wants := func(kind string) bool { return len(kinds) == 0 || slices.Contains(kinds, kind) }
	usage := diskUsage{Images: []imagetypes.Summary{}, Containers: []containertypes.Summary{}, Volumes: []volumetypes.Volume{}, BuildCache: []build.CacheRecord{}}
	for _, part := range []struct {
		kind    string
		measure func(context.Context, *diskUsage) error
	}{
		{"image", s.imageUsage}, {"container", s.containerUsage}, {"volume", s.volumeUsage}, {"build-cache", s.buildUsage},
	} {
		if !wants(part.kind) {
			continue
		}
		if err := part.measure(r.Context(), &usage); err != nil {
			return err
		}
	}
	return writeJSON(w, http.StatusOK, usage)
}

func (s *Server) imageUsage(ctx context.Context, u *diskUsage) error {
	list, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	usage, err := s.images.Usage(ctx)
	if err != nil {
		return err
	}
	shared, users := map[string]int64{}, s.imageUsers()
	for _, per := range usage.PerImage {
		shared[per.ID.String()] = per.Shared
	}
	u.LayersSize = usage.Images
	for _, img := range list {
		summary := imageSummary(img, users[img.ID.String()])
		summary.SharedSize = shared[summary.ID]
		u.Images = append(u.Images, summary)
	}
	return nil
}

func (s *Server) containerUsage(ctx context.Context, u *diskUsage) error {
	now := time.Now()
	for _, info := range s.dockerContainers(nil) {
		summary := s.containerSummary(ctx, info, now)
		var err error
		if summary.SizeRw, summary.SizeRootFs, err = s.containers.Size(ctx, info.ID); err != nil {
			continue // removed meanwhile
		}
		u.Containers = append(u.Containers, summary)
	}
	return nil
}

func (s *Server) volumeUsage(ctx context.Context, u *diskUsage) error {
	for _, v := range s.volumes.List() {
		if v.Owner == container.OwnerNode {
			continue
		}
		size, err := s.volumes.Size(ctx, v.Name)
		if err != nil {
			size = -1 // unknown, as in Docker
		}
		j := volumeJSON(v)
		j.UsageData = &volumetypes.UsageData{Size: size, RefCount: int64(v.Users)}
		u.Volumes = append(u.Volumes, j)
	}
	return nil
}
