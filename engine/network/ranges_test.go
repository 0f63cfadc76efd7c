package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Two instances whose search for ranges begins at the same place.
const oneInstance, otherInstance = "ab12cd", "ffee0d"

func (m *machine) other() *Manager {
	dir := m.T.TempDir()
	return m.open(func(o *Options) { o.Instance, o.Dir, o.FDs = otherInstance, dir+"/other", newMemoryFDs(m.T) })
}

// While nobody ran, another program took the subnets of networks.
func TestSubnetsTakenMeanwhile(t *testing.T) {
	m := newMachine(t)
	first := m.open()
	want := map[string]Network{}
	for _, spec := range []Spec{{Name: "unused"}, {Name: "chosen", Subnet: netip.MustParsePrefix("10.9.0.0/24")}, {Name: "used"}, {Name: "partly"}, {Name: "spared"}} {
		n, err := first.Create(t.Context(), spec)
		check(t, err)
		want[spec.Name] = n
	}
	c := m.box(first, AttachSpec{Network: "used", Name: "c"})
	check(t, first.Close())
	part := netip.PrefixFrom(want["partly"].Subnet.Addr(), 24)
	sh(t, "ip link add theirs0 type bridge && ip link set theirs0 up")
	t.Cleanup(func() { sh(t, "ip link del theirs0") })
	for _, p := range []netip.Prefix{want["unused"].Subnet, want["chosen"].Subnet, want["used"].Subnet, part} {
		sh(t, fmt.Sprintf("ip addr add %s/%d dev theirs0", p.Addr().Next().Next(), p.Bits()))
	}
	sh(t, fmt.Sprintf("ip link del %s && ip link del %s", want["partly"].Bridge, want["spared"].Bridge)) // as after a restart

	second := m.open()
	moved := map[string]Network{}
	for _, name := range []string{"unused", "partly"} {
		now, err := second.Get(name)
		check(t, err)
		if now.Subnet.Overlaps(want[name].Subnet) || now.ID != want[name].ID {
			t.Errorf("network %s was %s and is %s %s; want a free subnet for the same network", name, want[name].Subnet, now.ID[:12], now.Subnet)
		}
		if addrs := strings.Fields(sh(t, "ip -4 -br addr show dev "+now.Bridge)); len(addrs) != 3 || !strings.HasPrefix(addrs[2], now.Gateway.String()+"/") {
			t.Errorf("the bridge of network %s has %q; want the gateway %s alone", name, addrs, now.Gateway)
		}
		moved[name] = now
	}
	for _, name := range []string{"chosen", "used", "spared"} {
		if now, err := second.Get(name); err != nil || now.Subnet != want[name].Subnet {
			t.Errorf("network %s: %s, %v; want %s as before", name, now.Subnet, err, want[name].Subnet)
		}
	}
	warnings := second.Warnings()
	slices.Sort(warnings)
	for i, name := range []string{"chosen", "used"} {
		text := fmt.Sprintf("network %s has the subnet %s, and interface theirs0 of another program has taken %[2]s", name, want[name].Subnet)
		if len(warnings) != 2 || !strings.HasPrefix(warnings[i], text) {
			t.Errorf("warnings are %q; want one that begins with %q", warnings, text)
		}
	}
	check(t, second.Close())
	mgr := m.open()
	for name, n := range moved {
		if now, err := mgr.Get(name); err != nil || now.Subnet != n.Subnet {
			t.Errorf("network %s got %s, and %s at the next start (%v)", name, n.Subnet, now.Subnet, err)
		}
	}
	greet(t, m.Outside, outsideAddr+":9000", "outside sees")
	a, b := m.box(mgr, AttachSpec{Network: "unused", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}}), m.box(mgr, AttachSpec{Network: "unused", Name: "b"})
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	answered(t, "on a network that got another subnet", b.ns, "tcp", a.ip()+":80", "a sees "+b.ip())
	answered(t, "from there to outside", b.ns, "tcp", outsideAddr+":9000", "outside sees "+hostAddr)
	if got := answers(ask(t, b.ns, "127.0.0.11:53", "a", dns.TypeA)); fmt.Sprint(got) != "["+a.ip()+"]" {
		t.Errorf("a name of that network: %v", got)
	}
	check(t, mgr.Release(t.Context(), c.id))
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
