package container

import (
	"context"

	"slipway.dev/slipway/engine/warden"
)

// FromClient makes a warden's client what Options.Warden wants.
func FromClient(c *warden.Client) Warden { return client{c} }

// client narrows attachments to streams.
type client struct{ *warden.Client }

func (c client) Start(ctx context.Context, spec warden.ContainerSpec) (warden.ProcessState, Stream, error) {
	st, a, err := c.Client.Start(ctx, spec)
	return st, streamOf(a), err
}

func (c client) Exec(ctx context.Context, spec warden.ExecSpec) (warden.ProcessState, Stream, error) {
	st, a, err := c.Client.Exec(ctx, spec)
	return st, streamOf(a), err
}

func (c client) Attach(ctx context.Context, containerID, execID string) (Stream, error) {
	a, err := c.Client.Attach(ctx, containerID, execID)
	return streamOf(a), err
}

// streamOf keeps a nil attachment a nil interface.
func streamOf(a *warden.Attachment) Stream {
	if a == nil {
		return nil
	}
	return a
}
