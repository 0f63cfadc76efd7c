package daemon

import (
	"context"
	"path/filepath"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/build/run"
)

// openBuilder opens the builder over the other rooms of the engine.
func (d *daemon) openBuilder(ctx context.Context) error {
	e := &d.engine
	dir := filepath.Join(d.DataDir, "build")
	runner, err := run.New(ctx, run.Options{
		Dir: filepath.Join(dir, "run"), Rootfs: filepath.Join(d.DataDir, "rootfs"), Instance: d.instance,
		Warden: e.warden, Networks: e.networks, Log: d.Log.With("room", "build"),
	})
	if err != nil {
		return err
	}
	e.builder, err = build.New(ctx, build.Options{Dir: dir, Images: e.images, Runner: runner, Log: d.Log.With("room", "build")})
	if err != nil {
		return err
	}
	d.closers.add("builder", func(context.Context) error { return e.builder.Close() })
	return nil
}

// warnings are what `info` tells about this machine.
func (d *daemon) warnings() []string { return d.engine.networks.Warnings() }
