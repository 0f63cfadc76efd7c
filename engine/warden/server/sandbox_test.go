package server

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

// Who gives up while a sandbox is made still learns whether there is one: else it would be left behind.
func TestCancelledSandboxIsNotForgotten(t *testing.T) {
	h := newHouse(t)
	for i := range 50 {
		ctx, cancel := context.WithCancel(h.ctx)
		id := fmt.Sprintf("pod%d", i)
		go cancel()
		netns, err := h.client.CreateSandbox(ctx, warden.SandboxSpec{ID: id, Net: true})
		if err != nil {
			continue
		}
		netns.Close()
		if err := h.client.RemoveSandbox(h.ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := h.client.Sandboxes(h.ctx); err != nil || len(left) > 0 {
		t.Errorf("sandboxes that nobody knows of: %v, %v", left, err)
	}
}

// The init of a shared pid namespace is process 1 of every container in it, and one that may trace others (as people
// who debug their pods let it) may look into it: there must be nothing to see, and nothing to take over.
func TestSharedInitIsConfined(t *testing.T) {
	h := newHouse(t)
	box := warden.SandboxSpec{ID: "pod", Net: true, IPC: true, UTS: true, SharePID: true, Hostname: "podname"}
	if _, err := h.client.CreateSandbox(h.ctx, box); err != nil {
		t.Fatal(err)
	}
	script := `echo root: $(ls -A /proc/1/root/)
		echo mounts: $(cat /proc/1/mountinfo)
		for ns in net ipc uts; do test $(readlink /proc/1/ns/$ns) = $(readlink /proc/self/ns/$ns) && echo same $ns; done
		cat /proc/1/status
		echo end`
	_, a := h.run(script, attached, func(s *warden.ContainerSpec) {
		s.Sandbox = "pod"
		s.Bundle.Hostname = ""
		for i := range s.Bundle.Linux.Namespaces {
			if ns := &s.Bundle.Linux.Namespaces[i]; ns.Type != specs.MountNamespace {
				ns.Path = warden.SandboxPath
			}
		}
		caps := []string{"CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"}
		s.Bundle.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	})
	got, stderr := output(t, a)
	if stderr != "" {
		t.Errorf("the container could not look: %s", stderr)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(got) {
		lines[strings.Join(strings.Fields(line), " ")] = true
	}
	for _, want := range []string{
		"root:", "same net", "same ipc", "same uts", "Name: slipway-init", "Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534", "Groups:",
		"CapInh: 0000000000000000", "CapPrm: 0000000000000000", "CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "end",
	} {
		if !lines[want] {
			t.Errorf("no line %q", want)
		}
	}
	if strings.Contains(got, h.dir) {
		t.Errorf("process 1 shows the machine's mounts")
	}
	if t.Failed() {
		t.Logf("process 1 looks like this:\n%s", got)
	}
	if err := h.client.RemoveSandbox(h.ctx, "pod"); err != nil {
		t.Error(err)
	}
}

// A daemon that connects while a sandbox goes is greeted all the same.
func TestGoneSandboxHoldsNothing(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	sb := &sandbox{key: warden.Key{Kind: warden.HoldSandbox, ID: "pod"}, ns: map[string]*os.File{warden.RoleNet: f}}
	m, err := sb.hold()
	if err != nil || len(m.FDs) != 1 {
		t.Fatalf("hold of a sandbox = %v, %v; want its namespace", m, err)
	}
	m.Discard()
	sb.close()
	if m, err := sb.hold(); m != nil || err != nil {
		t.Errorf("hold of a sandbox that is gone = %v, %v; want nothing", m, err)
	}
}
