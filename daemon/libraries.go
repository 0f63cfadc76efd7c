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

// hungUp are the messages in which libraries call a client that closed its connection an error.
var hungUp = map[string]bool{"Error on socket receive": true}

// Handle lets through what is for the operator.
func (h atLeast) Handle(ctx context.Context, r slog.Record) error {
	if hungUp[r.Message] && !h.Handler.Enabled(ctx, slog.LevelDebug) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{h.Handler.WithAttrs(attrs), h.level}
}

func (h atLeast) WithGroup(name string) slog.Handler {
	return atLeast{h.Handler.WithGroup(name), h.level}
}
