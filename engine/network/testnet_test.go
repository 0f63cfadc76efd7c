package network

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"slipway.dev/slipway/engine/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }

// Shorter names for what every test here uses.
var (
	sh           = networktest.Sh
	in           = networktest.In
	check        = networktest.Check
	call         = networktest.Call
	knock        = networktest.Knock
	greet        = networktest.Greet
	ask          = networktest.Ask
	answers      = networktest.Answers
	unreachable4 = networktest.Unreachable
	newNetNS     = networktest.NetNS
	rawNetNS     = networktest.RawNetNS
	testLog      = networktest.Log
	needRoot     = networktest.NeedRoot
	newMemoryFDs = networktest.NewFDs
)

const (
	hostAddr    = networktest.HostAddr
	outsideAddr = networktest.OutsideAddr
)

// machine is a networktest.Machine that runs Managers.
type machine struct{ *networktest.Machine }

func newMachine(t testing.TB) *machine { return &machine{networktest.NewMachine(t)} }

// open starts a Manager on the machine and tears it down at the end of the test.
func (m *machine) open(change ...func(*Options)) *Manager {
	m.T.Helper()
	opts := Options{Dir: m.Dir, Instance: "ab12cd", FDs: m.FDs, Log: testLog(m.T)}
	for _, c := range change {
		c(&opts)
	}
	mgr, err := Open(m.T.Context(), opts)
	check(m.T, err)
	m.T.Cleanup(func() {
		if !mgr.closed {
			check(m.T, mgr.Teardown(context.Background()))
		}
	})
	return mgr
}

// box is a container as far as the network is concerned.
type box struct {
	id string
	ns *os.File
	ep Endpoint
}

func (m *machine) box(mgr *Manager, spec AttachSpec) box {
	m.T.Helper()
	b := box{id: newID(), ns: newNetNS(m.T)}
	spec.ContainerID = b.id
	var err error
	b.ep, err = mgr.Attach(m.T.Context(), b.ns, spec)
	check(m.T, err)
	return b
}

func (b box) ip() string { return b.ep.Addr.Addr().String() }

// answered checks who answers a call; want "": nobody does.
func answered(t *testing.T, what string, from *os.File, network, to, want string) {
	t.Helper()
	ask := call
	if want == "" {
		ask = knock
	}
	if got := ask(t, from, network, to); want == "" && !unreachable4(got) || want != "" && got != want {
		t.Errorf("%s (%s): got %q, want %q", what, to, got, want)
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }
