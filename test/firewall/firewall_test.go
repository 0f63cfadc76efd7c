// Package firewall runs a whole daemon on a machine where another tool drops what is forwarded and what nobody asked for,
// as Docker, ufw and many administrators set it up: builds, containers, published ports, projects and pods have their
// network and their names all the same.
//
// The machine is a network namespace with another machine at the end of a wire (networktest), so the real one's
// rules are neither changed nor needed.
package firewall

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

func TestMain(m *testing.M) { networktest.Main(m) }

// project has a service that asks another by its name for each connection; both are pods.
const project = `name: walled
services:
  front:
    image: base:1
    pull_policy: never
    command: ["nc", "-ll", "-p", "7000", "-e", "nc", "-w", "10", "back", "7000"]
    ports: ["18091:7000"]
    depends_on: { back: { condition: service_healthy } }
  back:
    image: base:1
    pull_policy: never
    command: ["nc", "-ll", "-p", "7000", "-e", "echo", "back answers"]
    expose: ["7000"]
    healthcheck: { test: ["CMD-SHELL", "nc -w 5 127.0.0.1 7000 | grep -q back"], interval: 2s, timeout: 6s }
`

func TestForwardDroppedByAnotherTool(t *testing.T) {
	harness.Binaries(t)
	for _, tt := range []struct{ iptables, bridgeNF string }{
		{nftAlone, "0"},
		{nftAlone, "1"},
		{"iptables-nft", "0"},
		{"iptables-nft", "1"},
		{"iptables-legacy", "1"},
	} {
		t.Run(tt.iptables+", bridge-nf-call-iptables="+tt.bridgeNF, func(t *testing.T) {
			m := networktest.NewMachine(t)
			if tt.iptables == nftAlone {
				hideIptables(t)
			}
			bridged(t, tt.bridgeNF)
			dropForwarded(t, tt.iptables)
			networktest.Greet(t, m.Outside, "0.0.0.0:9000", "outside sees")
			d := harness.Start(t)
			d.BaseImage(t)
			builds(t, d)
			runs(t, d, m)
			goesUp(t, d, m)
		})
	}
}

// bridged says whether iptables sees what only crosses a bridge; where the kernel has no such code, it does not.
func bridged(t *testing.T, value string) {
	t.Helper()
	const path = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil && value != "0" {
		t.Skipf("this kernel does not show bridged packets to iptables (modprobe br_netfilter): %v", err)
	}
}

// nftAlone is a machine whose administrator writes nftables rules, and has no iptables of any kind.
const nftAlone = "nft alone"

// hideIptables gives the test, and the daemon that it starts, a PATH on which all programs but iptables are.
func hideIptables(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		programs, _ := os.ReadDir(from) // not every entry of PATH exists
		for _, p := range programs {
			if !strings.Contains(p.Name(), "tables-") && !strings.HasSuffix(p.Name(), "tables") {
				os.Symlink(filepath.Join(from, p.Name()), filepath.Join(dir, p.Name())) // the first one of a name wins
			}
		}
	}
	t.Setenv("PATH", dir)
	if path, err := exec.LookPath("iptables"); err == nil {
		t.Fatalf("iptables is still there: %s", path)
	}
}

// dropForwarded is the other tool. It wants its rules back as they were.
func dropForwarded(t *testing.T, iptables string) {
	t.Helper()
	if iptables == nftAlone {
		networktest.Sh(t, `nft 'table inet filter { chain forward { type filter hook forward priority filter; policy drop; ct state invalid drop; }; chain input { type filter hook input priority filter; policy drop; iif lo accept; ct state established,related accept; }; }'`)
		before := networktest.Sh(t, "nft list table inet filter")
		t.Cleanup(func() {
			if after := networktest.Sh(t, "nft list table inet filter"); after != before {
				t.Errorf("the administrator's table after the daemon's end:\n%s\nbefore its start:\n%s", after, before)
			}
			networktest.Sh(t, "nft delete table inet filter")
		})
		return
	}
	if out, err := exec.Command(iptables, "-w", "-S").CombinedOutput(); err != nil {
		t.Skipf("no %s on this machine, so nobody drops by it: %v: %s", iptables, err, out)
	}
	networktest.Sh(t, iptables+" -w -P FORWARD DROP && "+iptables+" -w -A INPUT -i lo -j ACCEPT && "+iptables+" -w -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT && "+iptables+" -w -P INPUT DROP")
	before := networktest.Sh(t, iptables+" -w -S")
	t.Cleanup(func() {
		if after := networktest.Sh(t, iptables+" -w -S"); after != before {
			t.Errorf("%s after the daemon's end:\n%s\nbefore its start:\n%s", iptables, after, before)
		}
		networktest.Sh(t, iptables+" -w -P FORWARD ACCEPT && "+iptables+" -w -P INPUT ACCEPT && "+iptables+" -w -F INPUT")
		if iptables == "iptables-nft" {
			networktest.Sh(t, "nft delete table ip filter")
		}
	})
}

// outside is what a program sees of the other machine when it is let out behind this machine's address.
const outside = "outside sees " + networktest.HostAddr

const askOutside = "nc -w 10 " + networktest.OutsideAddr + " 9000"

func builds(t *testing.T, d *harness.Daemon) {
	t.Helper()
	said, err := d.Build(t.Context(), "asked", map[string]string{"Dockerfile": "FROM base:1\nRUN " + askOutside + " >/answer\n"})
	if err != nil {
		t.Fatalf("RUN with network: %v\n%s", err, said)
	}
	if got := d.Docker(t, "run", "--rm", "--network", "none", "asked", "cat", "/answer"); strings.TrimSpace(got) != outside {
		t.Errorf("RUN was answered %q; want %q", got, outside)
	}
}

func runs(t *testing.T, d *harness.Daemon, m *networktest.Machine) {
	t.Helper()
	if got := d.Docker(t, "run", "--rm", "base:1", "sh", "-c", askOutside); strings.TrimSpace(got) != outside {
		t.Errorf("run was answered %q; want %q", got, outside)
	}
	d.Docker(t, "network", "create", "lan")
	d.Docker(t, "run", "-d", "--name", "server", "--network", "lan", "-p", "18090:7000", "base:1", "nc", "-ll", "-p", "7000", "-e", "echo", "server answers")
	called(t, m, 18090, "server answers")
	if got := d.Docker(t, "run", "--rm", "--network", "lan", "base:1", "sh", "-c", "nc -w 10 server 7000"); strings.TrimSpace(got) != "server answers" {
		t.Errorf("the neighbour on a bridge was answered %q", got)
	}
}

func goesUp(t *testing.T, d *harness.Daemon, m *networktest.Machine) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "compose.yaml")
	networktest.Check(t, os.WriteFile(file, []byte(project), 0o644))
	if r := d.Try(t, "", "slipway", "-f", file, "up", "--wait-timeout", "50s"); r.Code != 0 {
		t.Fatalf("%v", r)
	}
	called(t, m, 18091, "back answers")
	if got := d.Kubectl(t, "-n", "walled", "exec", "deployment/front", "--", "sh", "-c", askOutside); strings.TrimSpace(got) != outside {
		t.Errorf("a pod was answered %q; want %q", got, outside)
	}
	// The API is a service whose pod is the node.
	d.Kubectl(t, "-n", "walled", "exec", "deployment/front", "--", "sh", "-c", "nc -w 10 kubernetes.default 443 </dev/null")
	if r := d.Try(t, "", "slipway", "-f", file, "down", "-v"); r.Code != 0 {
		t.Fatalf("%v", r)
	}
}

// called asks a published port from the other machine and from this one.
func called(t *testing.T, m *networktest.Machine, port int, want string) {
	t.Helper()
	for _, from := range []struct {
		who  string
		ns   *os.File
		addr string
	}{
		{"the other machine", m.Outside, networktest.HostAddr},
		{"this machine", nil, networktest.HostAddr},
		{"localhost", nil, "127.0.0.1"},
	} {
		harness.Eventually(t, fmt.Sprintf("port %d from %s", port, from.who), func() error {
			if got := networktest.Call(t, from.ns, "tcp4", fmt.Sprintf("%s:%d", from.addr, port)); strings.TrimSpace(got) != want {
				return fmt.Errorf("answered %q; want %q", got, want)
			}
			return nil
		})
	}
}
