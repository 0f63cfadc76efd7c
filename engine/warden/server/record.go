package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/warden"
)

// record is what a fresh warden must know of a process. It is on a tmpfs, so it is renamed into place and never synced.
type record struct {
	State     warden.ProcessState `json:"state"`
	StartTime uint64              `json:"startTime,omitempty"` // absent: it was being started
	OOMBefore uint64              `json:"oomBefore,omitempty"`
	StdinOnce bool                `json:"stdinOnce,omitempty"`
	Container *containerRecord    `json:"container,omitempty"` // of a first process
}

// containerRecord is the rest of what is known of a container.
type containerRecord struct {
	Root       string          `json:"root"`
	Mounted    bool            `json:"mounted,omitempty"`
	Cgroup     string          `json:"cgroup"`
	PrivatePID bool            `json:"privatePID"`
	Log        *warden.LogSpec `json:"log,omitempty"`
	WatchOOM   bool            `json:"watchOOM,omitempty"`
}

func (s *Server) recordPath(key warden.Key) string {
	if key.Exec != "" {
		return filepath.Join(s.opts.StateDir, "execs", key.ID, key.Exec)
	}
	return filepath.Join(s.opts.StateDir, "containers", key.ID)
}

func (p *process) record() record {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := record{State: p.state, StartTime: p.startTime, OOMBefore: p.oomBefore, StdinOnce: p.stdinOnce}
	if p.key.Exec == "" {
		r.Container = &p.container.rec
	}
	return r
}

// saveRecord writes the record. It can only fail for lack of space, and then the process matters more.
func (p *process) saveRecord() {
	if err := writeJSON(p.srv.recordPath(p.key), p.record()); err != nil {
		p.srv.log.Warn("a record could not be written: the next warden will not know this process", "process", p.name(), "error", err)
	}
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// readRecords calls f for every record in dir. A broken one is reported and set aside, never dropped.
func readRecords[T any](s *Server, dir string, f func(name string, v T)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() || strings.HasSuffix(e.Name(), ".broken") {
			continue
		}
		if strings.HasSuffix(e.Name(), ".tmp") {
			os.Remove(path)
			continue
		}
		var v T
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err != nil {
			s.log.Error("a record cannot be read: set aside", "file", path, "error", err)
			os.Rename(path, path+".broken")
			continue
		}
		f(e.Name(), v)
	}
	return nil
}

// checkID accepts what is safe as a file name and as libcontainer's id.
func checkID(what, id string) error {
	ok := id != "" && len(id) <= 200 && id[0] != '.' && !strings.HasSuffix(id, ".tmp") && !strings.HasSuffix(id, ".broken")
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-', c == '.', c == '+':
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%s id %q: use 1 to 200 letters, digits, _ . + or -: %w", what, id, errdefs.ErrInvalidArgument)
	}
	return nil
}
