package main

import (
	"context"

	"slipway.dev/slipway/compose/apply"
	"slipway.dev/slipway/compose/machine"
	"slipway.dev/slipway/daemon/rundir"
)

// startDaemon brings the daemon up if it is not, and returns when it is ready.
func (a *app) startDaemon(ctx context.Context) error {
	if rundir.Running(a.runDirectory()) {
		return nil
	}
	return rundir.Start(ctx, a.runDirectory(), a.err)
}

// engine is this machine's Docker API. The daemon must be there for it, also when another cluster is the target: images are built here.
func (a *app) engine() *machine.Client {
	return machine.Dial(rundir.Socket(a.runDirectory()))
}

// cluster is the API that the project is applied to; the daemon is started when it is its own.
func (a *app) cluster(ctx context.Context) (*apply.Cluster, error) {
	if a.kubeContext == "" {
		if err := a.startDaemon(ctx); err != nil {
			return nil, err
		}
	}
	return apply.Connect(rundir.Kubeconfig(a.runDirectory()), a.kubeContext)
}
