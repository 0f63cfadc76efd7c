package dockerapi

import (
	"context"
	"net/http"
	"time"

	volumetypes "github.com/moby/moby/api/types/volume"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/volume"
)

// Volumes is what this package needs of engine/volume.
type Volumes interface {
	Create(ctx context.Context, spec volume.Spec) (volume.Volume, error)
	Get(name string) (volume.Volume, error)
	List() []volume.Volume
	Remove(ctx context.Context, name string, force bool) error
	Prune(ctx context.Context, selects func(volume.Volume) bool) (removed []string, reclaimed int64, err error)
	Size(ctx context.Context, name string) (int64, error)
}

func (s *Server) volumeRoutes(t *router) {
	t.add("GET", "/volumes", s.listVolumes)
	t.add("POST", "/volumes/create", s.createVolume)
	t.add("POST", "/volumes/prune", s.pruneVolumes)
	t.add("GET", "/volumes/{name}", s.inspectVolume)
	t.add("DELETE", "/volumes/{name}", s.removeVolume)
}

func (s *Server) listVolumes(w *reply, r *request) error {
	f, err := parseFilters(r, "dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	dangling, filtered, err := f.boolean("dangling")
	if err != nil {
		return err
	}
	list := []volumetypes.Volume{}
	for _, v := range s.volumes.List() {
		if v.Owner == container.OwnerNode || filtered && dangling != (v.Users == 0) {
			continue
		}
		if f.exact("driver", v.Driver) && f.name("name", v.Name) && f.labels(v.Labels) {
			list = append(list, volumeJSON(v))
		}
	}
	return writeJSON(w, http.StatusOK, volumetypes.ListResponse{Volumes: list, Warnings: []string{}})
}

// anonymousLabel marks volumes that nobody named, as Docker does; prune goes by it.
const anonymousLabel = "com.docker.volume.anonymous"

func volumeJSON(v volume.Volume) volumetypes.Volume {
	j := volumetypes.Volume{
		Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint, Labels: map[string]string{}, Options: v.Options,
		Scope: "local", CreatedAt: v.CreatedAt.Format(time.RFC3339),
	}
	for key, value := range v.Labels {
		j.Labels[key] = value
	}
	if v.Anonymous {
		j.Labels[anonymousLabel] = ""
	}
	return j
}

func (s *Server) inspectVolume(w *reply, r *request) error {
	v, err := s.volumes.Get(r.vars["name"])
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, volumeJSON(v))
}

func (s *Server) createVolume(w *reply, r *request) error {
	var req volumetypes.CreateRequest
	if err := readOptionalJSON(r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return invalid("cluster volumes are not supported")
	}
	v, err := s.volumes.Create(r.Context(), volume.Spec{
		Name: req.Name, Driver: req.Driver, Labels: req.Labels, Options: req.DriverOpts, Owner: container.OwnerDocker,
		Anonymous: req.Name == "",
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, volumeJSON(v))
}

func (s *Server) removeVolume(w *reply, r *request) error {
	if err := s.volumes.Remove(r.Context(), r.vars["name"], r.flag("force")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pruneVolumes removes unused volumes: since 1.42 only anonymous ones, unless all are asked for.
func (s *Server) pruneVolumes(w *reply, r *request) error {
	f, err := parseFilters(r, "all", "label", "label!")
	if err != nil {
		return err
	}
	all, set, err := f.boolean("all")
	if err != nil {
		return err
	}
	if !set {
		all = r.version.less(apiVersion{1, 42})
	}
	removed, reclaimed, err := s.volumes.Prune(r.Context(), func(v volume.Volume) bool {
		return v.Owner != container.OwnerNode && (all || v.Anonymous) && f.labels(volumeJSON(v).Labels)
	})
	if err != nil {
		return err
	}
	s.publishPrune("volume", reclaimed)
	return writeJSON(w, http.StatusOK, volumetypes.PruneReport{VolumesDeleted: nonNil(removed), SpaceReclaimed: uint64(reclaimed)})
}
