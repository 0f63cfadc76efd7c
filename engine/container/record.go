package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
)

// record is what a container is, as it is committed. It is replaced, never changed.
type record struct {
	ID      string
	Spec    *Spec
	ImageID string
	ChainID string
	Created time.Time
	Path    string
	Args    []string
	Mounts  []MountPoint
}

const (
	recordType    = "slipway.dev/container"
	runtimeName   = "slipway.dev/warden"
	extensionName = "slipway.dev/record"
	snapshotter   = "overlay" // the chain named by SnapshotKey is kept while the record exists
)

// document is a typed piece of JSON in containerd's record.
type document struct{ value []byte }

func (d document) GetTypeUrl() string { return recordType }
func (d document) GetValue() []byte   { return d.value }

func (r *record) pack() (containers.Container, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return containers.Container{}, err
	}
	c := containers.Container{
		ID: r.ID, Image: r.Spec.Image, Runtime: containers.RuntimeInfo{Name: runtimeName},
		Spec:       document{[]byte("{}")}, // the real one is made anew at each start
		Extensions: map[string]typeurl.Any{extensionName: document{b}},
		CreatedAt:  r.Created, UpdatedAt: r.Created,
	}
	if r.ChainID != "" {
		c.Snapshotter, c.SnapshotKey = snapshotter, r.ChainID
	}
	return c, nil
}

func unpackRecord(c containers.Container) (*record, error) {
	ext := c.Extensions[extensionName]
	if ext == nil {
		return nil, fmt.Errorf("container record %s: no %s in it", c.ID, extensionName)
	}
	var r record
	if err := json.Unmarshal(ext.GetValue(), &r); err != nil {
		return nil, fmt.Errorf("container record %s: %w", c.ID, err)
	}
	if r.ID != c.ID || r.Spec == nil {
		return nil, fmt.Errorf("container record %s: it describes %q", c.ID, r.ID)
	}
	return &r, nil
}

// saved is the state file: what must survive the death of this process but not that of
// the machine. It is written whole by rename and not synced.
type saved struct {
	State        State
	Run          int  // number of the current or last run; the warden's label repeats it
	Running      bool // a run was begun and its end was not noted yet: the intent before a start
	Manual       bool // stopped by a user: unless-stopped leaves it alone
	RestartCount int
	Removing     bool
	Endpoints    map[string]Endpoint
	Ports        []PortMapping
	Networks     map[string]EndpointSpec // connected and disconnected since creation; nil: as in the spec
}

const stateFile = "state.json"

func writeState(dir string, s saved) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, stateFile))
}

// readState returns the state file of a container; one that was never started has none.
func readState(dir string) (saved, error) {
	s := saved{State: State{Status: StatusCreated}}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", filepath.Join(dir, stateFile), err)
	}
	return s, nil
}
