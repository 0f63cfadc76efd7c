package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/daemon/rundir"
	"slipway.dev/slipway/daemon/version"
	"slipway.dev/slipway/dockerapi"
	"slipway.dev/slipway/registry"
)

// shutdownGrace is how long requests under way may take when the daemon stops.
const shutdownGrace = 5 * time.Second

// daemon is one node being put together. It exists while Run runs.
type daemon struct {
	Options
	instance string
	node     string
	engine   engine
	cluster  cluster
	closers  closers

	docker   net.Listener
	registry net.Listener
	api      net.Listener
	kubelet  net.Listener // in memory
	events   *record.Sink

	tasks  tasks
	failed context.CancelCauseFunc // a part that must run has ended
}

// errStopped is the cause of an orderly stop.
var errStopped = errors.New("the daemon is stopping")

// Run serves until ctx ends. Containers go on without it.
func Run(ctx context.Context, o Options) error {
	lock, err := o.prepare()
	if err != nil {
		return err
	}
	defer lock.Close()
	// The collector runs earlier than by default: this process is small and long-lived.
	debug.SetGCPercent(50)
	quietLibraries(o.Log)
	protect(o.Log)

	ctx, failed := context.WithCancelCause(ctx)
	defer failed(errStopped)
	d := &daemon{Options: o, instance: instanceID(o.DataDir), node: nodeName(), failed: failed}
	ended := make(chan error, 1)
	go func() { ended <- d.serve(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	return d.awaitEnd(ended, limit.C)
}

// serve is one daemon's life, from opening to the end of its last task.
func (d *daemon) serve(ctx context.Context) error {
	leave := d.tasks.enter("opening")
	err := d.open(ctx)
	if err == nil {
		err = d.announce()
	}
	leave()
	if err == nil {
		d.tasks.Go("settling", func() { d.settle(ctx) })
		<-ctx.Done()
		if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, errStopped) {
			err = cause
		}
	}
	d.failed(errStopped)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	d.closers.close(stop, d.Log, &d.tasks)
	d.tasks.Wait()
	return err
}

// settle does what can wait until everything is served.
func (d *daemon) settle(ctx context.Context) {
	select {
	case <-d.cluster.services.Ready():
		// Whoever still wants a host port has said so: what is held for others is given back.
		d.engine.networks.SettlePorts(ctx)
	case <-ctx.Done():
		return
	}
	if err := settle(ctx, d.DataDir); err != nil {
		d.Log.Warn("memory that work has left behind is kept", "error", err)
	}
}

// protect keeps the kernel from choosing this process when memory runs out: containers go first.
func protect(log *slog.Logger) {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0o644); err != nil {
		log.Warn("the daemon is not protected from the out-of-memory killer", "error", err)
	}
}

// open opens both wings at once, then the front doors.
func (d *daemon) open(ctx context.Context) error {
	var wings errgroup.Group
	wings.Go(func() error { return d.openStore(ctx) })
	err := d.openEngine(ctx)
	storeErr := wings.Wait()
	if storeErr == nil {
		d.closers.add("store", func(context.Context) error { return d.cluster.store.Close() })
	}
	if err := errors.Join(err, storeErr); err != nil {
		return err
	}
	if err := d.openBuilder(ctx); err != nil {
		return err
	}
	if err := d.openDoors(ctx); err != nil {
		return err
	}
	return d.openCluster(ctx)
}

// openDoors serves the Docker API and the registry.
func (d *daemon) openDoors(ctx context.Context) error {
	e := &d.engine
	var err error
	if d.docker, err = d.listen(ctx, "docker", "unix", filepath.Join(d.RunDir, "docker.sock")); err != nil {
		return fmt.Errorf("docker API: %w", err)
	}
	if d.registry, err = d.listen(ctx, "registry", "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(d.RegistryPort))); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	d.door("docker API", d.docker, dockerapi.New(dockerapi.Options{
		Containers: dockerContainers{e.containers}, Images: e.images, Networks: e.networks, Volumes: e.volumes,
		Builder: d.engine.builder, Events: e.events, Log: d.Log.With("room", "dockerapi"),
		Host: dockerapi.Host{ID: d.instance, Version: version.Version, DataDir: d.DataDir, Warnings: d.warnings},
	}))
	d.door("registry", d.registry, registry.New(registry.Options{
		Repositories: e.images.Repositories(), Host: d.registryHost, Log: d.Log.With("room", "registry")}))
	return nil
}

// door runs one plain HTTP server on a listener that the warden holds too.
func (d *daemon) door(name string, l net.Listener, h http.Handler) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug)}
	d.tasks.Go(name, func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			d.failed(fmt.Errorf("%s: %w", name, err))
		}
	})
	d.closers.add(name, func(ctx context.Context) error {
		// Attached and followed streams have no end of their own: they are cut.
		brief, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := srv.Shutdown(brief); err != nil {
			return srv.Close()
		}
		return nil
	})
}

// announce writes down what runs where.
func (d *daemon) announce() error {
	r := rundir.Record{PID: os.Getpid(), Version: version.Version, DataDir: d.DataDir, RunDir: d.RunDir, Instance: d.instance,
		APIPort: port(d.api), RegistryPort: port(d.registry)}
	if err := r.Write(); err != nil {
		return err
	}
	d.closers.add("record", func(context.Context) error { return r.Stopped() })
	d.Log.Info("ready", "version", r.Version, "docker", d.docker.Addr().String(), "api", d.api.Addr().String(),
		"registry", d.registry.Addr().String(), "data", d.DataDir)
	if d.Ready != nil {
		d.Ready(r)
	}
	return nil
}
