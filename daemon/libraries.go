package daemon

import (
	"context"
	"log/slog"

	containerdlog "github.com/containerd/log"
	"k8s.io/klog/v2"
)

// quietLibraries sends what libraries log to the daemon's own log. What they call information (each
// allocated address, each request to a registry) is noise beside it: only warnings pass.
func quietLibraries(log *slog.Logger) {
	containerdlog.SetLevel("error")
	klog.SetSlogLogger(slog.New(atLeast{log.With("room", "library").Handler(), slog.LevelWarn}))
}

// atLeast drops records below a level.
type atLeast struct {
	slog.Handler
	level slog.Level
}

func (h atLeast) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= h.level && h.Handler.Enabled(ctx, l)
}

func (h atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(attrs), h.level}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
