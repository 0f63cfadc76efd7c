package server

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// TestAfterShutdown calls everything without a deadline once the warden was shut down: nothing may wait for it.
func TestAfterShutdown(t *testing.T) {
	h := newHouse(t)
	st, _ := h.run("sleep 1000")
	if err := h.client.Shutdown(h.ctx); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("shutdown of a warden with a container: %v; want FailedPrecondition", err)
	}
	h.delete(st.ContainerID) // a refused shutdown changes nothing
	pid := h.client.Pid()
	if err := h.client.RemoveCgroup(h.ctx, h.parent); err != nil {
		t.Fatal(err)
	}
	if err := h.client.Shutdown(h.ctx); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && len(b) > 0 {
		t.Errorf("after shutdown the warden still runs: %q", b)
	}
	ctx := context.Background()
	for name, call := range map[string]func() error{
		"drop":     func() error { return h.client.Drop(ctx, "x") },
		"keep":     func() error { return h.client.Keep(ctx, "x", os.Stdin) },
		"fetch":    func() error { _, err := h.client.Fetch(ctx, ""); return err },
		"list":     func() error { _, err := h.client.List(ctx); return err },
		"wait":     func() error { _, err := h.client.Wait(ctx, "x", ""); return err },
		"delete":   func() error { return h.client.Delete(ctx, "x") },
		"signal":   func() error { return h.client.Signal(ctx, "x", "", syscall.SIGTERM) },
		"start":    func() error { _, _, err := h.client.Start(ctx, h.spec("true")); return err },
		"shutdown": func() error { return h.client.Shutdown(ctx) },
		"subscribe": func() error {
			for e := range h.client.Subscribe(ctx) {
				return fmt.Errorf("event %v", e)
			}
			return errdefs.ErrUnavailable // the channel is closed
		},
	} {
		if err := call(); !errdefs.IsUnavailable(err) {
			t.Errorf("%s after shutdown: %v; want Unavailable", name, err)
		}
	}
	h.client.Close()
	h.client = h.connect() // another warden
}
