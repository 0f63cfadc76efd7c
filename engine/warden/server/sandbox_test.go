package server

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

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
