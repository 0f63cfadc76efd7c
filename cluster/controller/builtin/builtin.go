// Package builtin wires the controllers that a cluster runs by default. It is the one
// place that names them all.
package builtin

import (
	"context"
	"fmt"
	"sync"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/deployment"
	"slipway.dev/slipway/cluster/controller/disruption"
	"slipway.dev/slipway/cluster/controller/endpoints"
	"slipway.dev/slipway/cluster/controller/endpointslice"
	"slipway.dev/slipway/cluster/controller/garbage"
	"slipway.dev/slipway/cluster/controller/job"
	"slipway.dev/slipway/cluster/controller/namespace"
	"slipway.dev/slipway/cluster/controller/nodelifecycle"
	"slipway.dev/slipway/cluster/controller/podgc"
	"slipway.dev/slipway/cluster/controller/replicaset"
	"slipway.dev/slipway/cluster/controller/serviceaccount"
	"slipway.dev/slipway/cluster/controller/statefulset"
	"slipway.dev/slipway/cluster/controller/volume"
	"slipway.dev/slipway/cluster/scheduler"
	"slipway.dev/slipway/cluster/store"
)

// Options are what the controllers need beyond what all of them share.
type Options struct {
	controller.Deps
	// Kinds are all kinds of the store: what namespaces contain and owners own.
	Kinds []store.Kind
	// RootCA is the cluster's certificate authority in PEM, published to every namespace;
	// nil publishes none.
	RootCA []byte
	// Volumes is where claims of the storage class "local" get their volumes, such as
	// volume.Directory; nil: the cluster has no such class.
	Volumes volume.Storage
}

// All is every controller, and the scheduler. None of them has been started.
func All(o Options) []controller.Controller {
	d := o.Deps
	all := []controller.Controller{
		deployment.New(d),
		replicaset.New(d),
		replicaset.NewReplication(d),
		endpointslice.New(d),
		endpointslice.NewMirror(d),
		endpoints.New(d),
		statefulset.New(d),
		job.New(d),
		disruption.New(d),
		namespace.New(d, o.Kinds),
		garbage.New(d, o.Kinds),
		serviceaccount.NewAccounts(d),
		volume.New(d, o.Volumes),
		nodelifecycle.New(d),
		podgc.New(d),
		scheduler.New(scheduler.Options{Reader: d.Reader, Writer: d.Writer, Events: d.Events, Log: d.Log}),
	}
	if o.RootCA != nil {
		all = append(all, serviceaccount.NewRootCA(d, o.RootCA))
	}
	return all
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
