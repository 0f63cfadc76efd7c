package dockerapi

import (
	"context"

	"slipway.dev/slipway/engine/container"
)

// EngineContainers makes the container manager serve as Containers.
func EngineContainers(m *container.Manager) Containers { return engineContainers{m} }

type engineContainers struct{ *container.Manager }

func (e engineContainers) Logs(ctx context.Context, ref string, o container.LogOptions) (LogReader, error) {
	logs, err := e.Manager.Logs(ctx, ref, o)
	if err != nil {
		return nil, err // not a nil *LogReader in an interface
	}
	return logs, nil
}
