package container

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/volume"
	"slipway.dev/slipway/engine/warden"
)

// Images is what the manager needs of the image store; *image.Store is one.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	Rootfs(ctx context.Context, img image.Image) (image.Chain, error)
	Chain(id digest.Digest) (image.Chain, error)
	NewLayer(ctx context.Context, parent digest.Digest) (*image.LayerDraft, error)
	Containers() containers.Store
	Context(ctx context.Context) context.Context
}

// Networks is what the manager needs of the network manager; *network.Manager is one.
type Networks interface {
	Get(ref string) (network.Network, error)
	Attach(ctx context.Context, netns *os.File, spec network.AttachSpec) (network.Endpoint, error)
	Detach(ctx context.Context, netns *os.File, containerID, ref string) error
	Release(ctx context.Context, containerID string) error
	Rename(ctx context.Context, containerID, name string) error
	Endpoints(containerID string) []network.Endpoint
	Retain(ctx context.Context, alive func(containerID string) bool) error
}

// Stream is the output and input of one process, for one client.
type Stream interface {
	Next() (stream byte, p []byte, err error) // io.EOF at the end; p is valid until the next call
	Write(p []byte) (int, error)
	CloseStdin() error
	Close() error
}

// Warden supervises processes; FromClient makes one of a *warden.Client.
type Warden interface {
	Start(ctx context.Context, spec warden.ContainerSpec) (warden.ProcessState, Stream, error)
	Exec(ctx context.Context, spec warden.ExecSpec) (warden.ProcessState, Stream, error)
	Attach(ctx context.Context, containerID, execID string) (Stream, error)
	Signal(ctx context.Context, containerID, execID string, sig syscall.Signal) error
	Resize(ctx context.Context, containerID, execID string, rows, cols uint16) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Update(ctx context.Context, id string, r *specs.LinuxResources) error
	Stats(ctx context.Context, id string) (*warden.Stats, error)
	Processes(ctx context.Context, id string) ([]int, error)
	Delete(ctx context.Context, id string) error
	DeleteExec(ctx context.Context, id, execID string) error
	List(ctx context.Context) ([]warden.ProcessState, error)
	Subscribe(ctx context.Context) <-chan warden.Event
	CreateSandbox(ctx context.Context, spec warden.SandboxSpec) (*os.File, error)
	Sandbox(ctx context.Context, id string) (*os.File, error)
	RemoveSandbox(ctx context.Context, id string) error
	Sandboxes(ctx context.Context) ([]string, error)
}

// Publisher hears what happens to containers; *event.Bus is one.
type Publisher interface{ Publish(event.Event) }

// Options wire a Manager. Dir, Instance, Images, Networks, Volumes and Warden are required.
type Options struct {
	Dir      string // D/containers
	Rootfs   string // where the warden mounts root file systems: its RootDir; empty: rootfs beside Dir
	Instance string // six hexadecimal characters, in cgroup names
	Images   Images
	Networks Networks
	Volumes  *volume.Store
	Warden   Warden
	Events   Publisher
	Log      *slog.Logger
	// Init is the static program that --init runs as process 1. Empty: one that the machine
	// has (docker-init, catatonit or tini-static); without any, --init is refused.
	Init string
	// HostGateway is what "host-gateway" means in ExtraHosts; invalid: the gateway of
	// the container's first network.
	HostGateway netip.Addr
}

// errClosed is why work of a closing manager is cancelled.
var errClosed = errors.New("the container manager is closing")

// Manager owns the containers of one data directory. Its methods may be called from any
// goroutine. Lock order: instance.op, then Manager.mu, then instance.mu.
type Manager struct {
	Options
	host   hostFacts
	ctx    context.Context
	cancel context.CancelCauseFunc
	tasks  sync.WaitGroup
	reaper *reaper
	files  *follower

	mu    sync.RWMutex
	byID  map[string]*instance
	names map[string]string // name to id
	execs map[string]*execution
}

// Open loads the containers under o.Dir, adopts those that the warden still runs,
// finishes what a killed daemon left half done, and starts what its restart policy asks
// for.
func Open(ctx context.Context, o Options) (*Manager, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Rootfs == "" {
		o.Rootfs = filepath.Join(filepath.Dir(o.Dir), "rootfs")
	}
	if o.Init == "" {
		o.Init = findInit()
	}
	if err := errors.Join(os.MkdirAll(o.Dir, 0o710), os.MkdirAll(o.Rootfs, 0o711)); err != nil {
		return nil, fmt.Errorf("open containers: %w", err)
	}
	m := &Manager{
		Options: o, host: probeHost(), reaper: newReaper(), files: newFollower(),
		byID: map[string]*instance{}, names: map[string]string{}, execs: map[string]*execution{},
	}
	m.ctx, m.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := m.dropAllSubpaths(); err != nil {
		m.Log.Warn("parts of volumes stay mounted", "error", err)
	}
	if err := m.adopt(ctx); err != nil {
		m.Close()
		return nil, fmt.Errorf("open containers: %w", err)
	}
	return m, nil
}

// Close stops looking after containers, which run on, and waits for all work under way,
// the reaper's included.
func (m *Manager) Close() error {
	m.cancel(errClosed)
	m.mu.RLock()
	all := slices.Collect(maps.Values(m.byID))
	m.mu.RUnlock()
	for _, c := range all {
		c.mu.Lock()
		c.stopTimersLocked()
		c.mu.Unlock()
	}
	m.tasks.Wait()
	m.reaper.close()
	return m.files.close()
}

// Drain waits until nothing that was stopped or removed has anything left to clean up.
func (m *Manager) Drain() { m.reaper.drain() }

// goes runs fn as a task that Close waits for.
func (m *Manager) goes(fn func()) { m.tasks.Go(fn) }

func newID() string {
	b := make([]byte, 32)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// find looks a container up by id, name or unique prefix of its id.
func (m *Manager) find(ref string) (*instance, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c := m.byID[ref]; c != nil {
		return c, nil
	}
	if id, ok := m.names[strings.TrimPrefix(ref, "/")]; ok {
		return m.byID[id], nil
	}
	var found *instance
	if ref != "" {
		for id, c := range m.byID {
			if !strings.HasPrefix(id, ref) {
				continue
			}
			if found != nil {
				return nil, errdefs.ErrInvalidArgument.WithMessage("multiple IDs found with provided prefix: " + ref)
			}
			found = c
		}
	}
	if found == nil {
		return nil, errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	}
	return found, nil
}

// hold finds a container and takes its operation lock. One that was removed while the
// lock was waited for is not there.
func (m *Manager) hold(ctx context.Context, ref string) (c *instance, unlock func(), err error) {
	if c, err = m.find(ref); err != nil {
		return nil, nil, err
	}
	if unlock, err = c.lock(ctx); err != nil {
		return nil, nil, err
	}
	if c.isGone() {
		unlock()
		return nil, nil, errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	}
	return c, unlock, nil
}

// Get returns a container as it is now.
func (m *Manager) Get(ref string) (Info, error) {
	c, err := m.find(ref)
	if err != nil {
		return Info{}, err
	}
	return c.info(), nil
}

func (m *Manager) all() []*instance {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.AppendSeq(make([]*instance, 0, len(m.byID)), maps.Values(m.byID))
}

// claim enters a new container and its name, or explains who has the name.
func (m *Manager) claim(c *instance) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := c.rec.Spec.Name
	if id, taken := m.names[name]; taken {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, id))
	}
	m.names[name] = c.id
	m.byID[c.id] = c
	return nil
}

// forget drops a container from the maps; its name is free from now on.
func (m *Manager) forget(c *instance) {
	name := c.record().Spec.Name
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, c.id)
	if m.names[name] == c.id {
		delete(m.names, name)
	}
	for id, e := range m.execs {
		if e.container == c {
			delete(m.execs, id)
		}
	}
}

func (m *Manager) dir(id string) string { return filepath.Join(m.Dir, id) }

// mountpoint is where the warden mounts a container's root file system.
func (m *Manager) mountpoint(id string) string { return filepath.Join(m.Rootfs, id) }

// publish tells the world about a container, with Docker's attributes.
func (m *Manager) publish(c *instance, action string, more map[string]string) {
	if m.Events == nil {
		return
	}
	r := c.record()
	attrs := make(map[string]string, len(r.Spec.Labels)+len(more)+3)
	maps.Copy(attrs, r.Spec.Labels)
	attrs["image"], attrs["name"] = r.Spec.Image, r.Spec.Name
	if r.Spec.Owner != OwnerDocker {
		attrs[event.OwnerAttribute] = r.Spec.Owner
	}
	maps.Copy(attrs, more)
	m.Events.Publish(event.Event{Type: event.Container, Action: action, Actor: event.Actor{ID: c.id, Attributes: attrs}})
}
