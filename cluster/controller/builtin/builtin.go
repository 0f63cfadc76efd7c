// Package builtin wires the controllers that a cluster runs by default. It is the one
// place that names them all.
package builtin

import (
	"context"
	"fmt"
	"sync"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/deployment"
	"slipway.dev/slipway/cluster/controller/endpoints"
	"slipway.dev/slipway/cluster/controller/endpointslice"
	"slipway.dev/slipway/cluster/controller/replicaset"
	"slipway.dev/slipway/cluster/scheduler"
)

// Options are what the controllers need beyond what all of them share.
type Options struct {
	controller.Deps
}

// All is every controller, and the scheduler. None of them has been started.
func All(o Options) []controller.Controller {
	d := o.Deps
	return []controller.Controller{
		deployment.New(d),
		replicaset.New(d),
		endpointslice.New(d),
		endpoints.New(d),
		scheduler.New(scheduler.Options{Reader: d.Reader, Writer: d.Writer, Events: d.Events, Log: d.Log}),
	}
}

// Run runs controllers until ctx ends, and waits for all of them. The first one that ends
// by itself ends the others.
func Run(ctx context.Context, controllers []controller.Controller) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var tasks sync.WaitGroup
	for _, c := range controllers {
		tasks.Go(func() { cancel(fmt.Errorf("controller %s ended: %w", c.Name(), c.Run(ctx))) })
	}
	tasks.Wait()
	return context.Cause(ctx)
}
