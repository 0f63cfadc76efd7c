package dockerapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/http"

	containertypes "github.com/moby/moby/api/types/container"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
)

func archivePath(r *request) (string, error) {
	p := r.query.Get("path")
	if p == "" {
		return "", invalid("bad parameter: 'path' cannot be empty")
	}
	return p, nil
}

// setPathStat puts a file's description where `docker cp` looks for it.
func setPathStat(h http.Header, st container.PathStat) error {
	raw, err := json.Marshal(containertypes.PathStat{Name: st.Name, Size: st.Size, Mode: st.Mode, Mtime: st.Mtime, LinkTarget: st.LinkTarget})
	if err != nil {
		return err
	}
	h.Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(raw))
	return nil
}

func (s *Server) statArchive(w *reply, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	st, err := s.containers.StatPath(r.Context(), r.vars["id"], p)
	if err != nil {
		return err
	}
	if err := setPathStat(w.Header(), st); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) getArchive(w *reply, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	content, st, err := s.containers.CopyFrom(r.Context(), r.vars["id"], p)
	if err != nil {
		return err
	}
	defer content.Close()
	if err := setPathStat(w.Header(), st); err != nil {
		return err
	}
	return sendTar(w, content)
}

// sendTar streams an archive. When reading fails half way the connection is cut, so that the client does not take
// what it has for all of it.
func sendTar(w *reply, content io.Reader) error {
	w.Header().Set("Content-Type", "application/x-tar")
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, content); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (s *Server) putArchive(w *reply, r *request) error {
	p, err := archivePath(r)
	if err != nil {
		return err
	}
	o := container.CopyToOptions{NoOverwriteDirNonDir: r.flag("noOverwriteDirNonDir"), CopyUIDGID: r.flag("copyUIDGID")}
	if err := s.containers.CopyTo(r.Context(), r.vars["id"], p, r.Body, o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) containerChanges(w *reply, r *request) error {
	changes, err := s.containers.Changes(r.Context(), r.vars["id"])
	if err != nil {
		return err
	}
	list := make([]containertypes.FilesystemChange, 0, len(changes))
	for _, c := range changes {
		list = append(list, containertypes.FilesystemChange{Kind: containertypes.ChangeType(c.Kind), Path: c.Path})
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) exportContainer(w *reply, r *request) error {
	content, err := s.containers.Export(r.Context(), r.vars["id"])
	if err != nil {
		return err
	}
	defer content.Close()
	return sendTar(w, content)
}

// publishContainer announces what this package does to a container by itself.
func (s *Server) publishContainer(info container.Info, action string, more map[string]string) {
	attributes := map[string]string{}
	maps.Copy(attributes, info.Spec.Labels)
	attributes["name"], attributes["image"] = info.Name, info.Spec.Image
	if info.Spec.Owner != container.OwnerDocker {
		attributes[event.OwnerAttribute] = info.Spec.Owner
	}
	maps.Copy(attributes, more)
	s.events.Publish(event.Event{Type: event.Container, Action: action, Actor: event.Actor{ID: info.ID, Attributes: attributes}})
}
