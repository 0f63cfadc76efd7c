// Package volume owns named volumes: directories that outlive the containers using them.
//
// A volume is D/volumes/NAME with its content in _data and its description in
// volume.json, which is on disk before Create returns. A volume whose options name a
// device (type, device, o: as Docker's local driver has them) is mounted on _data while
// something uses it. Who refers to a volume is told by the container manager (Use,
// Release) and kept in memory only: the containers' own records are the truth, and the
// manager repeats them when it starts.
//
// The package knows nothing of containers beyond the opaque ids of its users.
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/tree"
)

// Driver is the only driver there is.
const Driver = "local"

const (
	metaFile = "volume.json"
	dataDir  = "_data"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// Publisher hears what happens to volumes; *event.Bus is one.
type Publisher interface{ Publish(event.Event) }

// Options of Open.
type Options struct {
	Dir    string // the volumes directory
	Events Publisher
	Log    *slog.Logger
}

// Spec describes a volume to create.
type Spec struct {
	Name      string // empty: a random one, and Anonymous
	Driver    string // empty: local
	Labels    map[string]string
	Options   map[string]string // of the local driver: type, device, o
	Owner     string            // empty: docker
	Anonymous bool
}

// Volume is a volume as it is. It is a copy and shares nothing that changes.
type Volume struct {
	Name       string
	Driver     string
	Mountpoint string `json:"-"`
	Labels     map[string]string
	Options    map[string]string
	CreatedAt  time.Time
	Owner      string
	Anonymous  bool
	Users      int `json:"-"` // how many containers refer to it
}

// volume is the store's own entry. The store's lock guards users; mu serialises what
// touches the directory (mounting, populating, removing) and is taken first.
type volume struct {
	mu      sync.Mutex
	meta    Volume
	users   map[string]bool
	mounts  map[string]bool // users for whom the device is mounted
	removed bool
}

// Store is all volumes of one data directory.
type Store struct {
	dir    string
	events Publisher
	log    *slog.Logger

	mu      sync.Mutex
	volumes map[string]*volume
}

// Open reads the volumes under o.Dir. A volume whose description cannot be read is
// reported and kept out of the list, never deleted.
func Open(o Options) (*Store, error) {
	if err := os.MkdirAll(o.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	s := &Store{dir: o.Dir, events: o.Events, log: o.Log, volumes: map[string]*volume{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			_ = tree.Remove(filepath.Join(o.Dir, e.Name())) // a creation or removal that a crash interrupted
			continue
		}
		meta, err := s.read(e.Name())
		if err != nil {
			s.log.Error("volume is unreadable: restore or remove its directory", "volume", e.Name(), "dir", filepath.Join(o.Dir, e.Name()), "error", err)
			continue
		}
		s.volumes[e.Name()] = newEntry(meta)
	}
	return s, nil
}

func newEntry(meta Volume) *volume {
	return &volume{meta: meta, users: map[string]bool{}, mounts: map[string]bool{}}
}

func (s *Store) read(name string) (Volume, error) {
	var v Volume
	b, err := os.ReadFile(filepath.Join(s.dir, name, metaFile))
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, err
	}
	if v.Name != name {
		return v, fmt.Errorf("%s describes volume %q", metaFile, v.Name)
	}
	return v, nil
}

// Path returns where the content of the named volume is (or would be).
func (s *Store) Path(name string) string { return filepath.Join(s.dir, name, dataDir) }

// Create makes a volume. One that exists already under that name is returned unchanged,
// as Docker does.
func (s *Store) Create(ctx context.Context, spec Spec) (Volume, error) {
	if spec.Name == "" {
		spec.Name, spec.Anonymous = randomName(), true
	}
	if err := check(spec); err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.volumes[spec.Name]; v != nil {
		return s.viewLocked(v), nil
	}
	meta := Volume{
		Name: spec.Name, Driver: Driver, Labels: maps.Clone(spec.Labels), Options: maps.Clone(spec.Options),
		CreatedAt: time.Now().UTC(), Owner: spec.Owner, Anonymous: spec.Anonymous,
	}
	if meta.Owner == "" {
		meta.Owner = "docker"
	}
	if err := s.write(meta); err != nil {
		return Volume{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	v := newEntry(meta)
	s.volumes[spec.Name] = v
	s.publish(meta, "create", nil)
	return s.viewLocked(v), nil
}

func check(spec Spec) error {
	if !validName.MatchString(spec.Name) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", spec.Name, spec.Name))
	}
	if spec.Driver != "" && spec.Driver != Driver && spec.Driver != "default" {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("create volume %q: no volume driver %q: only %q exists", spec.Name, spec.Driver, Driver))
	}
	for k := range spec.Options {
		if k != "type" && k != "device" && k != "o" && k != "size" {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("create volume %q: invalid option: %q (the local driver has type, device and o)", spec.Name, k))
		}
	}
	o := spec.Options
	for _, need := range []string{"device", "type"} {
		if o[need] == "" && (o["device"] != "" || o["type"] != "" || o["o"] != "") {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("create volume %q: missing required option: %q", spec.Name, need))
		}
	}
	return nil
}

// write makes the directory under a hidden name and renames it, so that a crash leaves
// either the whole volume or nothing.
func (s *Store) write(meta Volume) error {
	b, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	tmp := filepath.Join(s.dir, ".new-"+meta.Name)
	os.RemoveAll(tmp)
	if err := os.MkdirAll(filepath.Join(tmp, dataDir), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o701); err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(tmp, metaFile), b); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(s.dir, meta.Name)); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// Get returns a volume by name.
func (s *Store) Get(name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.lookupLocked(name)
	if err != nil {
		return Volume{}, err
	}
	return s.viewLocked(v), nil
}

func (s *Store) lookupLocked(name string) (*volume, error) {
	if v := s.volumes[name]; v != nil {
		return v, nil
	}
	return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", name))
}

func (s *Store) viewLocked(v *volume) Volume {
	out := v.meta
	out.Mountpoint, out.Users = s.Path(v.meta.Name), len(v.users)
	out.Labels, out.Options = maps.Clone(v.meta.Labels), maps.Clone(v.meta.Options)
	return out
}

// List returns all volumes by name.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Volume, 0, len(s.volumes))
	for _, v := range s.volumes {
		out = append(out, s.viewLocked(v))
	}
	slices.SortFunc(out, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Remove deletes a volume and its content. One that a container refers to is refused;
// one that does not exist is an error unless force.
func (s *Store) Remove(ctx context.Context, name string, force bool) error {
	erase, err := s.Discard(name)
	if force && errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	erase()
	return nil
}

// Discard removes a volume and leaves it to the caller when its files are erased; the
// next Open erases what a crash left.
func (s *Store) Discard(name string) (erase func(), err error) {
	s.mu.Lock()
	v, err := s.lookupLocked(name)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	trash, err := s.remove(v)
	if err != nil {
		return nil, err
	}
	return func() {
		if err := tree.Remove(trash); err != nil {
			s.log.Warn("volume's files are not all deleted", "volume", name, "dir", trash, "error", err)
		}
	}, nil
}

func (s *Store) remove(v *volume) (trash string, err error) {
	name := v.meta.Name
	trash = filepath.Join(s.dir, ".old-"+randomName()[:12])
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.removed {
		return "", errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", name))
	}
	if len(v.users) > 0 {
		return "", errdefs.ErrConflict.WithMessage(fmt.Sprintf("remove %s: volume is in use - [%s]", name, strings.Join(slices.Sorted(maps.Keys(v.users)), ", ")))
	}
	if err := unmountData(s.Path(name), v.meta); err != nil {
		return "", fmt.Errorf("remove volume %q: %w", name, err)
	}
	if err := os.Rename(filepath.Join(s.dir, name), trash); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("remove volume %q: %w", name, err)
	}
	delete(s.volumes, name)
	v.removed = true
	s.publish(v.meta, "destroy", nil)
	return trash, nil
}

// Prune removes volumes of docker that nothing uses and that keep selects; it reports
// names and bytes freed.
func (s *Store) Prune(ctx context.Context, selects func(Volume) bool) (removed []string, reclaimed int64, err error) {
	for _, v := range s.List() {
		if v.Users > 0 || v.Owner != "docker" || !selects(v) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, reclaimed, err
		}
		size, _ := s.Size(ctx, v.Name)
		if err := s.Remove(ctx, v.Name, false); err != nil {
			s.log.Warn("volume is not pruned", "volume", v.Name, "error", err)
			continue
		}
		removed, reclaimed = append(removed, v.Name), reclaimed+size
	}
	return removed, reclaimed, nil
}

// Size adds up the bytes that the volume's files occupy.
func (s *Store) Size(ctx context.Context, name string) (int64, error) {
	var total int64
	err := filepath.WalkDir(s.Path(name), func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // it vanished while we looked
		}
		if info, err := d.Info(); err == nil {
			total += info.Size()
		}
		return ctx.Err()
	})
	return total, err
}

// Use notes that a container refers to the volume, which must exist.
func (s *Store) Use(name, user string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.lookupLocked(name)
	if err != nil {
		return err
	}
	v.users[user] = true
	return nil
}

// Release forgets a reference that Use noted; it is not an error when there is none.
func (s *Store) Release(name, user string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.volumes[name]; v != nil {
		delete(v.users, user)
	}
}

func (s *Store) publish(v Volume, action string, more map[string]string) {
	if s.events == nil {
		return
	}
	attrs := map[string]string{"driver": v.Driver}
	maps.Copy(attrs, more)
	if v.Owner != "docker" {
		attrs[event.OwnerAttribute] = v.Owner
	}
	s.events.Publish(event.Event{Type: event.Volume, Action: action, Actor: event.Actor{ID: v.Name, Attributes: attrs}})
}

func randomName() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
