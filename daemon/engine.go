package daemon

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"slipway.dev/slipway/dockerapi"
	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/volume"
	"slipway.dev/slipway/engine/warden"
)

// eventsKept is how far back `docker events --since` reaches.
const eventsKept = 1024

// engine is the wing of one machine.
type engine struct {
	cpu        *semaphore.Weighted // of the heavy work; see openEngine
	events     *event.Bus
	warden     *warden.Client
	images     *image.Store
	networks   *network.Manager
	volumes    *volume.Store
	containers *container.Manager
	builder    *build.Builder
}

// openEngine opens the rooms of the engine; what it opened is in closers, also when it fails.
func (d *daemon) openEngine(ctx context.Context) error {
	e := &d.engine
	// Hashing, compressing and tarring leave a processor to the API and to raft.
	e.cpu = semaphore.NewWeighted(int64(max(runtime.GOMAXPROCS(0)-1, 1)))
	e.events = event.NewBus(eventsKept)
	// Pods' tmpfs volumes and parts of volumes are mounted there, and the warden has to see them.
	for _, dir := range []string{"pods", "subpaths"} {
		if err := shareMounts(filepath.Join(d.DataDir, dir)); err != nil {
			return err
		}
	}
	var err error
	e.warden, err = warden.Connect(ctx, warden.Options{
		Socket: filepath.Join(d.RunDir, "warden.sock"), Executable: d.Warden,
		StateDir: filepath.Join(d.RunDir, "warden"), RootDir: filepath.Join(d.DataDir, "rootfs"), Log: d.Log.With("room", "warden"),
		// Beside the containers' parent, not below it, and outside of our own unit or session.
		Cgroup: "/slipway-" + d.instance + "-warden",
	})
	if err != nil {
		return fmt.Errorf("warden: %w", err)
	}
	d.closers.add("warden", func(context.Context) error { return e.warden.Close() })
	d.closers.add("sockets of a daemon that was killed", d.forgetSockets)
	if d.Init == "" {
		d.Init = filepath.Join(d.DataDir, "init")
		if err := warden.InstallInit(d.Warden, d.Init); err != nil {
			return err
		}
	}
	var rooms errgroup.Group
	rooms.Go(func() (err error) {
		e.images, err = image.Open(ctx, image.Options{
			Root: d.DataDir, Log: d.Log.With("room", "image"), Events: e.events, CPU: e.cpu, Registries: d.isRegistry})
		return err
	})
	rooms.Go(func() (err error) {
		e.networks, err = network.Open(ctx, network.Options{
			Dir: filepath.Join(d.DataDir, "network"), Instance: d.instance, FDs: e.warden, Log: d.Log, Events: e.events, HostPolicy: d.HostPolicy,
			PodPool: asked(d.PodRange), ServicePool: asked(d.ServiceRange)})
		return err
	})
	rooms.Go(func() (err error) {
		e.volumes, err = volume.Open(volume.Options{Dir: filepath.Join(d.DataDir, "volumes"), Events: e.events, Log: d.Log.With("room", "volume")})
		return err
	})
	err = rooms.Wait()
	if e.images != nil {
		d.closers.add("images", func(context.Context) error { return e.images.Close() })
	}
	if e.networks != nil {
		d.closers.add("networks", func(context.Context) error { return e.networks.Close() })
	}
	if err != nil {
		return err
	}
	e.containers, err = container.Open(ctx, container.Options{
		Dir: filepath.Join(d.DataDir, "containers"), Instance: d.instance, Images: e.images, Networks: e.networks, Volumes: e.volumes,
		Warden: container.FromClient(e.warden), Events: e.events, Log: d.Log.With("room", "container"), Init: d.Init,
	})
	if err != nil {
		return err
	}
	d.closers.add("containers", func(context.Context) error { return e.containers.Close() })
	e.images.SetUsers(e.imageUsers)
	return nil
}

// asked is a pool of the one range that was asked for, if any.
func asked(p netip.Prefix) []netip.Prefix {
	if !p.IsValid() {
		return nil
	}
	return []netip.Prefix{p}
}

// imageUsers tells the image store which images containers need.
func (e *engine) imageUsers() []image.User {
	infos, err := e.containers.List(container.Filter{All: true})
	if err != nil {
		return nil
	}
	users := make([]image.User, 0, len(infos))
	for _, info := range infos {
		users = append(users, image.User{Container: info.ID, Image: digest.Digest(info.ImageID), Running: info.State.Running})
		for _, m := range info.Spec.Mounts {
			if m.ImageID != "" { // mounted in it
				users = append(users, image.User{Container: info.ID, Image: digest.Digest(m.ImageID), Running: info.State.Running})
			}
		}
	}
	return users
}

// isRegistry tells whether a registry host is this daemon's own.
func (d *daemon) isRegistry(host string) bool {
	name, p, err := net.SplitHostPort(host)
	if err != nil || d.registry == nil || p != strconv.Itoa(port(d.registry)) {
		return false
	}
	return name == "localhost" || strings.HasPrefix(name, "127.")
}

// registryHost is how people on this machine call the registry.
func (d *daemon) registryHost() string { return "localhost:" + strconv.Itoa(port(d.registry)) }

// dockerContainers fits the container manager to the Docker front door's interface: concrete results
// become the interfaces that the door declares.
type dockerContainers struct{ *container.Manager }

// Logs is container.Manager.Logs.
func (c dockerContainers) Logs(ctx context.Context, ref string, o container.LogOptions) (dockerapi.LogReader, error) {
	r, err := c.Manager.Logs(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	return r, nil
}

var _ io.Closer = (dockerapi.LogReader)(nil)
