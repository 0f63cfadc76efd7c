package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/service"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/daemon/rundir"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/tree"
)

// Stop ends the daemon of a run directory and waits for it. Its containers go on.
func Stop(ctx context.Context, runDir string) error {
	r, err := rundir.Read(runDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // none runs
	}
	if err != nil {
		return err
	}
	if r.PID == 0 {
		return nil // it was stopped
	}
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return r.Stopped() // it was killed
	}
	if err != nil {
		return fmt.Errorf("find the daemon: %w", err)
	}
	defer unix.Close(fd)
	if !isDaemon(r.PID) {
		return r.Stopped() // its number belongs to another process by now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	return awaitExit(ctx, fd)
}

func isDaemon(pid int) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && (filepath.Base(exe) == "slipwayd" || filepath.Base(exe) == "slipwayd (deleted)")
}

// awaitExit waits until the process behind a pidfd has ended.
func awaitExit(ctx context.Context, fd int) error {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, 500) // so that ctx is heard
		switch {
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// workloads are the kinds whose objects would bring containers back.
var workloads = []schema.GroupResource{
	kinds.Deployments, kinds.StatefulSets, kinds.CronJobs, kinds.ReplicaSets, kinds.ReplicationControllers, kinds.Jobs, kinds.DaemonSets, kinds.Pods}

// Teardown stops the daemon and removes all that it runs: workloads, containers, sandboxes, networks,
// and the warden itself. Images, volumes, configuration and secrets stay.
func Teardown(ctx context.Context, o Options) error {
	if r, err := rundir.Read(o.RunDir); err == nil {
		o.DataDir = r.DataDir
	}
	if err := Stop(ctx, o.RunDir); err != nil {
		return err
	}
	lock, err := o.prepare()
	if err != nil {
		return err
	}
	defer lock.Close()
	quietLibraries(o.Log)
	d := &daemon{Options: o, instance: instanceID(o.DataDir), node: nodeName(), failed: func(error) {}}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		d.closers.close(stop, o.Log, &d.tasks)
	}()
	if err := d.openStore(ctx); err != nil {
		return err
	}
	d.closers.add("store", func(context.Context) error { return d.cluster.store.Close() })
	if err := d.openEngine(ctx); err != nil {
		return err
	}
	if err := d.removeWorkloads(ctx); err != nil {
		return err
	}
	if err := d.removeAll(ctx); err != nil {
		return err
	}
	return d.engine.warden.Shutdown(ctx)
}

func (d *daemon) removeWorkloads(ctx context.Context) error {
	var errs []error
	for _, gr := range workloads {
		for o := range d.cluster.store.Snapshot(gr).All("") {
			if _, err := d.cluster.store.Delete(ctx, gr, o.GetNamespace(), o.GetName(), store.Preconditions{}); err != nil {
				errs = append(errs, fmt.Errorf("remove %s %s: %w", gr, store.KeyOf(o), err))
			}
		}
	}
	return errors.Join(errs...)
}

func (d *daemon) removeAll(ctx context.Context) error {
	e := &d.engine
	infos, err := e.containers.List(container.Filter{All: true})
	errs := []error{err}
	for _, info := range infos {
		if err := e.containers.Remove(ctx, info.ID, container.RemoveOptions{Force: true}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	boxes, err := e.warden.Sandboxes(ctx)
	errs = append(errs, err)
	for _, id := range boxes {
		errs = append(errs, e.warden.RemoveSandbox(ctx, id))
	}
	if err := errors.Join(errs...); err != nil {
		return err // what still runs keeps its volumes
	}
	for _, dir := range []string{filepath.Join(d.DataDir, "pods"), filepath.Join(d.DataDir, "subpaths"), filepath.Join(d.RunDir, "pods")} {
		if err := unmountAll(dir); err != nil {
			return err // below a mount is what is not ours to delete
		}
		errs = append(errs, tree.Remove(dir))
	}
	errs = append(errs, service.RemoveTable(d.instance), e.containers.Close(), e.networks.Teardown(ctx), e.warden.RemoveCgroup(ctx, "/slipway-"+d.instance))
	errs = append(errs, d.forgetSockets(ctx))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, name := range []string{"docker.sock", "kubeconfig", "daemon.json"} {
		os.Remove(filepath.Join(d.RunDir, name))
	}
	return nil
}
