package network

import (
	"net/netip"
	"strings"
	"testing"
)

// Two instances whose search for ranges begins at the same place.
const oneInstance, otherInstance = "ab12cd", "ffee0d"

func (m *machine) other() *Manager {
	dir := m.T.TempDir()
	return m.open(func(o *Options) { o.Instance, o.Dir, o.FDs = otherInstance, dir+"/other", newMemoryFDs(m.T) })
}

// loseInterfaces is what a tidy administrator, or a restart of the machine, does to a daemon that does not run.
func loseInterfaces(t *testing.T) {
	t.Helper()
	sh(t, `for l in $(ip -o link | grep -o 'sw[0-9a-f]*-[a-z0-9]*'); do ip link del $l; done; ip route flush type unreachable`)
}

func TestRangesOfTheDeadAreAvoided(t *testing.T) {
	m := newMachine(t)
	dead := m.open()
	_, err := dead.Create(t.Context(), Spec{Name: "app"})
	check(t, err)
	check(t, dead.Close())
	loseInterfaces(t)
	// Its tables are still there, and translate what is sent to its services.
	next := m.other()
	mine := []netip.Prefix{next.PodRange(), next.ServiceRange()}
	for _, n := range next.List() {
		if n.Driver == DriverBridge {
			mine = append(mine, n.Subnet)
		}
	}
	theirs := []netip.Prefix{dead.PodRange(), dead.ServiceRange()}
	for _, n := range dead.List() {
		if n.Driver == DriverBridge {
			theirs = append(theirs, n.Subnet)
		}
	}
	for _, p := range mine {
		if overlapsAny(p, theirs) {
			t.Errorf("%s is one of the ranges %v that the tables of a dead daemon translate", p, theirs)
		}
	}
	check(t, m.open().Teardown(t.Context()))
}

func TestRangesChosenByAnotherMeanwhileAreAnError(t *testing.T) {
	m := newMachine(t)
	resting := m.open()
	check(t, resting.Close())
	loseInterfaces(t)
	sh(t, "nft flush ruleset")
	running := m.other()
	if running.PodRange() != resting.PodRange() {
		t.Fatalf("the other daemon chose %s; this test is about %s", running.PodRange(), resting.PodRange())
	}
	mgr, err := Open(t.Context(), Options{Dir: m.Dir, Instance: oneInstance, FDs: m.FDs, Log: testLog(t)})
	if err == nil {
		check(t, mgr.Close())
		t.Fatal("two daemons have the same ranges")
	}
	if want := "is in use by another Slipway daemon on this machine (interface sw" + otherInstance + "-node)"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error is %q; want one that says %q", err, want)
	}
	check(t, running.Teardown(t.Context()))
	check(t, m.open().Teardown(t.Context())) // now it may
}

func TestRangesElsewhereWhereAllOfTenIsRouted(t *testing.T) {
	m := newMachine(t)
	sh(t, "ip link add vpn type bridge; ip link set vpn up; ip route add 10.0.0.0/8 dev vpn")
	t.Cleanup(func() { sh(t, "ip link del vpn") })
	mgr := m.open()
	for _, p := range []netip.Prefix{mgr.PodRange(), mgr.ServiceRange()} {
		if p.Overlaps(netip.MustParsePrefix("10.0.0.0/8")) {
			t.Errorf("range %s is inside the route of another interface", p)
		}
	}
	check(t, mgr.Close())
	// It may come up later, too, and take the default route; ours are narrower.
	sh(t, "ip route add 96.0.0.0/5 dev vpn; ip route add 0.0.0.0/1 dev vpn; ip route add 128.0.0.0/1 dev vpn")
	again := m.open()
	if _, err := again.Create(t.Context(), Spec{Name: "app"}); err != nil {
		t.Errorf("a network beside a VPN's default route: %v", err)
	}
	check(t, again.Teardown(t.Context()))
}
