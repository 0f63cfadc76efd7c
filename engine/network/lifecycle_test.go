package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
)

func TestRestartKeepsEverything(t *testing.T) {
	m := newMachine(t)
	first := m.open()
	_, err := first.Create(t.Context(), Spec{Name: "app", Labels: map[string]string{"a": "b"}})
	check(t, err)
	a := m.box(first, AttachSpec{Network: "app", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	b := m.box(first, AttachSpec{Network: "app", Name: "b"})
	gone := m.box(first, AttachSpec{Network: "app", Name: "gone", Ports: []PortMapping{{HostPort: 8090, ContainerPort: 80}}})
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	before, pods, services := first.List(), first.PodRange(), first.ServiceRange()
	check(t, first.Close())

	// While nobody runs: published ports answer, and a query waits for the next daemon.
	if got := call(t, m.Outside, "tcp", hostAddr+":8080"); got != "a sees "+outsideAddr {
		t.Errorf("published port without a daemon: %q", got)
	}
	waiting := make(chan []string)
	go func() { waiting <- answers(ask(t, b.ns, "127.0.0.11:53", "a", dns.TypeA)) }()
	check(t, gone.ns.Close()) // the last reference: the kernel removes its interface
	check(t, first.waitGone(gone.ep.HostIf))

	second := m.open()
	if got := <-waiting; fmt.Sprint(got) != "["+a.ip()+"]" {
		t.Errorf("query sent while no daemon ran: %v", got)
	}
	if after := second.List(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("networks after a restart:\n%v\nbefore:\n%v", after, before)
	}
	if second.PodRange() != pods || second.ServiceRange() != services {
		t.Errorf("ranges changed: %s %s", second.PodRange(), second.ServiceRange())
	}
	if eps := second.Endpoints(gone.id); len(eps) != 0 {
		t.Errorf("endpoint of a container whose namespace is gone: %v", eps)
	}
	_, err = second.ReservePort(t.Context(), "x", "tcp", netip.Addr{}, 8080)
	if err == nil || err.Error() != "Bind for 0.0.0.0:8080 failed: port is already allocated" {
		t.Errorf("reserving a published port after a restart: %v", err)
	}
	check(t, second.Retain(t.Context(), func(id string) bool { return id == a.id }))
	second.SettlePorts(t.Context())
	if eps, err := second.NetworkEndpoints("app"); err != nil || len(eps) != 1 || eps[0].Name != "a" {
		t.Errorf("after Retain(a): %v, %v", eps, err)
	}
	for _, name := range m.FDs.Names() {
		if strings.Contains(name, "8090") {
			t.Errorf("the port of a container that is gone is still held: %s", name)
		}
	}
	if got := call(t, m.Outside, "tcp", hostAddr+":8080"); got != "a sees "+outsideAddr {
		t.Errorf("published port after the restart: %q", got)
	}
	check(t, second.Teardown(t.Context()))
	if left := m.FDs.Names(); len(left) > 0 {
		t.Errorf("descriptors left after Teardown: %v", left)
	}
}

// waitGone waits for the kernel to delete an interface, by its own events.
func (m *Manager) waitGone(name string) error {
	done := make(chan struct{})
	defer close(done)
	events := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribe(events, done); err != nil {
		return err
	}
	for {
		if _, err := netlink.LinkByName(name); err != nil {
			return nil
		}
		<-events
	}
}

func TestFlushedRulesComeBack(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	a := m.box(mgr, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	sh(t, "nft flush ruleset; iptables -w -P FORWARD DROP")
	t.Cleanup(func() { sh(t, "nft delete table ip filter") })
	eventually(t, "a published port after flush ruleset and a new drop policy", func() bool {
		return knock(t, m.Outside, "tcp", hostAddr+":8080") == "a sees "+outsideAddr
	})
}

// eventually tries until a condition that follows from a kernel event holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("%s: still not after a minute", what)
		}
	}
}

func TestHostPolicyModeLeavesOthersRulesAlone(t *testing.T) {
	m := newMachine(t)
	sh(t, "iptables -w -P FORWARD DROP")
	t.Cleanup(func() { sh(t, "nft delete table ip filter") })
	before := sh(t, "iptables -w -S")
	mgr := m.open(func(o *Options) { o.HostPolicy = true })
	if after := sh(t, "iptables -w -S"); after != before {
		t.Errorf("rules were added:\n%s", after)
	}
	if w := mgr.Warnings(); len(w) != 1 || !strings.Contains(w[0], "FORWARD") {
		t.Errorf("warnings: %q", w)
	}
}

func TestTwoInstancesSideBySide(t *testing.T) {
	m := newMachine(t)
	one := m.open()
	two := m.open(func(o *Options) { o.Instance, o.Dir, o.FDs = "ffee00", t.TempDir()+"/two", newMemoryFDs(t) })
	a := m.box(one, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	b := m.box(two, AttachSpec{Network: "bridge", Name: "b"})
	if a.ep.Addr.Overlaps(b.ep.Addr) || one.PodRange().Overlaps(two.PodRange()) || one.ServiceRange().Overlaps(two.ServiceRange()) {
		t.Errorf("ranges overlap: %s %s, %s %s, %s %s", a.ep.Addr, b.ep.Addr, one.PodRange(), two.PodRange(), one.ServiceRange(), two.ServiceRange())
	}
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	if got := knock(t, b.ns, "tcp", a.ip()+":80"); !unreachable4(got) {
		t.Errorf("another instance's container was reached: %q", got)
	}
	if got := call(t, b.ns, "tcp", hostAddr+":8080"); unreachable4(got) {
		t.Errorf("another instance's published port: %q", got)
	}
	_, err := two.Attach(t.Context(), newNetNS(t), AttachSpec{Network: "bridge", ContainerID: newID(), Name: "c", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	if err == nil || !strings.HasSuffix(err.Error(), "failed to bind host port 0.0.0.0:8080/tcp: address already in use") {
		t.Errorf("a port of another program: %v", err)
	}
	check(t, two.Teardown(t.Context()))
	if got := call(t, m.Outside, "tcp", hostAddr+":8080"); got != "a sees "+outsideAddr {
		t.Errorf("after the other instance's teardown: %q", got)
	}
}

func TestPods(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	greet(t, m.Outside, outsideAddr+":9000", "outside sees")
	var ns []*box
	for _, id := range []string{"uid-1", "uid-2"} {
		b := &box{id: id, ns: newNetNS(t)}
		a, err := mgr.AttachPod(t.Context(), b.ns, PodAttach{ID: id})
		check(t, err)
		again, err := mgr.AttachPod(t.Context(), b.ns, PodAttach{ID: id})
		if err != nil || again != a {
			t.Errorf("attached again: %s, %v; want %s", again, err, a)
		}
		b.ep.Addr = netip.PrefixFrom(a, 32)
		ns = append(ns, b)
	}
	one, two := ns[0], ns[1]
	docker := m.box(mgr, AttachSpec{Network: "bridge", Name: "d"})
	greet(t, one.ns, "0.0.0.0:80", "pod sees")
	greet(t, docker.ns, "0.0.0.0:80", "container sees")
	for _, tt := range []struct {
		what string
		from *box
		to   string
		want string
	}{
		{"pod to pod", two, one.ip() + ":80", "pod sees " + two.ip()},
		{"node to pod", &box{}, one.ip() + ":80", "pod sees " + mgr.NodeAddr().String()},
		{"pod to the internet", one, outsideAddr + ":9000", "outside sees " + hostAddr},
		{"pod to a container", one, docker.ip() + ":80", ""},
		{"container to pod", &docker, one.ip() + ":80", ""},
	} {
		answered(t, tt.what, tt.from.ns, "tcp", tt.to, tt.want)
	}
	check(t, mgr.Close())
	mgr = m.open()
	if pods := mgr.Pods(); fmt.Sprint(pods) != fmt.Sprintf("map[uid-1:%s uid-2:%s]", one.ip(), two.ip()) {
		t.Errorf("pods after a restart: %v", pods)
	}
	check(t, mgr.DetachPod(t.Context(), "uid-1"))
	check(t, mgr.DetachPod(t.Context(), "uid-1"))
	third, err := mgr.AttachPod(t.Context(), newNetNS(t), PodAttach{ID: "uid-3"})
	if err != nil || third.String() == one.ip() {
		t.Errorf("a released address was given out at once: %s, %v", third, err)
	}
}

func TestClusterDNSSocketsSurvive(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	for range 2 {
		udp, tcp, err := mgr.ListenDNS(t.Context())
		check(t, err)
		if got, want := udp.LocalAddr().String(), net.JoinHostPort(mgr.DNSAddr().String(), "53"); got != want || tcp.Addr().String() != want {
			t.Errorf("cluster DNS at %s and %s, want %s", got, tcp.Addr(), want)
		}
		check(t, errors.Join(udp.Close(), tcp.Close(), mgr.Close()))
		mgr = m.open()
	}
}

// The errors that front doors pass on.
func TestErrors(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	_, err := mgr.Create(t.Context(), Spec{Name: "app", Subnet: netip.MustParsePrefix("10.9.0.0/29")})
	check(t, err)
	a := m.box(mgr, AttachSpec{Network: "app", Name: "a", IPv4: addr("10.9.0.5"), Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	create := func(s Spec) func() error {
		return func() error { _, err := mgr.Create(t.Context(), s); return err }
	}
	attach := func(s AttachSpec) func() error {
		if s.ContainerID == "" {
			s.ContainerID = newID()
		}
		return func() error { _, err := mgr.Attach(t.Context(), newNetNS(t), s); return err }
	}
	for _, tt := range []struct {
		do   func() error
		is   func(error) bool
		text string
	}{
		{create(Spec{Name: "app"}), errdefs.IsAlreadyExists, "network with name app already exists"},
		{create(Spec{Name: "a b"}), errdefs.IsInvalidArgument, `invalid network name "a b"`},
		{create(Spec{Name: "host"}), errdefs.IsPermissionDenied, "operation is not permitted on predefined host network"},
		{create(Spec{Name: "other", Driver: DriverHost}), errdefs.IsPermissionDenied, `only one instance of "host" network is allowed`},
		{create(Spec{Name: "other", Driver: DriverNone}), errdefs.IsPermissionDenied, `only one instance of "null" network is allowed`},
		{create(Spec{Name: "x", Driver: "overlay"}), errdefs.IsNotFound, "could not find plugin overlay"},
		{create(Spec{Name: "x", EnableIPv6: true}), errdefs.IsInvalidArgument, "IPv6 networks are not supported"},
		{create(Spec{Name: "x", Subnet: netip.MustParsePrefix("10.9.0.0/24")}), errdefs.IsPermissionDenied, "Pool overlaps with other one on this address space"},
		{create(Spec{Name: "x", Subnet: netip.MustParsePrefix("10.8.0.0/24"), Gateway: addr("10.7.0.1")}), errdefs.IsInvalidArgument, "no matching subnet for gateway 10.7.0.1"},
		{create(Spec{Name: "x", Options: map[string]string{OptionMTU: "big"}}), errdefs.IsInvalidArgument, `="big"`},
		{create(Spec{Name: "x", Options: map[string]string{OptionBridgeName: "br-x"}}), errdefs.IsInvalidArgument, OptionBridgeName},
		{attach(AttachSpec{Network: "nope"}), errdefs.IsNotFound, "network nope not found"},
		{attach(AttachSpec{Network: "app", IPv4: addr("10.9.0.5")}), errdefs.IsPermissionDenied, "Address already in use"},
		{attach(AttachSpec{Network: "app", IPv4: addr("10.10.0.5")}), errdefs.IsInvalidArgument, "no configured subnet contains IP address 10.10.0.5"},
		{attach(AttachSpec{Network: "app", ContainerID: a.id}), errdefs.IsPermissionDenied, "already exists in network app"},
		{attach(AttachSpec{Network: "bridge", Name: "b", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}}), isPortError, "Bind for 0.0.0.0:8080 failed: port is already allocated"},
		{attach(AttachSpec{Network: "bridge", Name: "b", Ports: []PortMapping{{HostPort: 8080, HostIP: addr("127.0.0.1"), ContainerPort: 80}}}), isPortError, "Bind for 127.0.0.1:8080 failed: port is already allocated"},
		{attach(AttachSpec{Network: "bridge", Ports: []PortMapping{{HostPort: 80, ContainerPort: 80, Proto: "sctp"}}}), errdefs.IsInvalidArgument, `protocol "sctp" is not supported`},
		{attach(AttachSpec{Network: "bridge", Ports: []PortMapping{{HostPort: 80, HostIP: addr("203.0.113.9"), ContainerPort: 80}}}), isPortError, "cannot assign requested address"},
		{func() error { return mgr.Remove(t.Context(), "app") }, errdefs.IsPermissionDenied, "error while removing network: network app has active endpoints"},
		{func() error { return mgr.Remove(t.Context(), "bridge") }, errdefs.IsPermissionDenied, "bridge is a pre-defined network and cannot be removed"},
		{func() error { return mgr.Detach(t.Context(), nil, a.id, "bridge") }, errdefs.IsPermissionDenied, "is not connected to network bridge"},
	} {
		err := tt.do()
		if err == nil || !tt.is(err) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("got error %q; want one that says %q (kind matched: %t)", fmt.Sprint(err), tt.text, err != nil && tt.is(err))
		}
	}
	for range 4 { // .1 is the gateway's, .5 taken: four are left
		m.box(mgr, AttachSpec{Network: "app"})
	}
	if err := attach(AttachSpec{Network: "app"})(); !errdefs.IsUnavailable(err) {
		t.Errorf("no address left: %v", err)
	}
}

func isPortError(err error) bool { var pe *PortError; return errors.As(err, &pe) }

func TestPortsOfContainers(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	a := m.box(mgr, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{
		{ContainerPort: 80}, {ContainerPort: 81, HostPort: 8000, HostPortEnd: 8001}, {ContainerPort: 82, HostPort: 8000, HostPortEnd: 8001},
	}})
	if p := a.ep.Ports; p[0].HostPort == 0 || p[2].HostPort != 8000 || p[4].HostPort != 8001 { // each by IPv4 and by IPv6
		t.Errorf("published %v; want any, 8000, 8001", p)
	}
	_, err := mgr.Create(t.Context(), Spec{Name: "second"})
	check(t, err)
	ep, err := mgr.Attach(t.Context(), a.ns, AttachSpec{Network: "second", ContainerID: a.id, Name: "a", Ports: a.ep.WantPorts})
	if err != nil || len(ep.Ports) > 0 || ep.IfName != "eth1" {
		t.Errorf("second network: %v on %s, %v; want no ports on eth1", ep.Ports, ep.IfName, err)
	}
	greet(t, a.ns, "0.0.0.0:81", "a sees")
	check(t, mgr.Detach(t.Context(), a.ns, a.id, "bridge"))
	if got := call(t, m.Outside, "tcp", hostAddr+":8000"); got != "a sees "+outsideAddr {
		t.Errorf("after leaving the network that published: %q", got)
	}
	check(t, mgr.Release(t.Context(), a.id))
	check(t, mgr.Release(t.Context(), a.id))
	if got := knock(t, m.Outside, "tcp", hostAddr+":8000"); !unreachable4(got) {
		t.Errorf("after Release: %q", got)
	}
}

// A client that already talks to a UDP port gets the container once it is there.
func TestUDPFlowsFollowTheContainer(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	var client net.Conn
	in(t, m.Outside, func() {
		var err error
		client, err = net.Dial("udp4", hostAddr+":5300")
		check(t, err)
	})
	defer client.Close()
	says := func() string {
		buf := make([]byte, 100)
		_, _ = client.Write([]byte("hi"))
		_ = client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, _ := client.Read(buf)
		return string(buf[:n])
	}
	says() // now the kernel tracks a flow without translation
	for _, name := range []string{"one", "two"} {
		b := m.box(mgr, AttachSpec{Network: "bridge", Name: name, Ports: []PortMapping{{HostPort: 5300, ContainerPort: 53, Proto: "udp"}}})
		greet(t, b.ns, "0.0.0.0:53", name)
		eventually(t, "an answer of container "+name, func() bool { return says() == name+" "+outsideAddr })
		check(t, mgr.Release(t.Context(), b.id))
	}
}

func TestPruneTouchesOneOwnersNetworks(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	for _, s := range []Spec{{Name: "a"}, {Name: "used"}, {Name: "kept"}, {Name: "theirs", Owner: "node"}} {
		_, err := mgr.Create(t.Context(), s)
		check(t, err)
	}
	m.box(mgr, AttachSpec{Network: "used"})
	removed, err := mgr.Prune(t.Context(), "docker", func(n Network) bool { return n.Name == "kept" })
	if err != nil || len(removed) != 1 || removed[0].Name != "a" {
		t.Errorf("pruned %v, %v; want a alone", removed, err)
	}
	var names []string
	for _, n := range mgr.List() {
		names = append(names, n.Name)
	}
	if slices.Sort(names); fmt.Sprint(names) != "[bridge host kept none theirs used]" {
		t.Errorf("networks left: %v", names)
	}
}

func BenchmarkAttachRelease(b *testing.B) {
	m := newMachine(b)
	mgr := m.open()
	for b.Loop() {
		b.StopTimer()
		c := box{id: newID(), ns: rawNetNS(b)}
		b.StartTimer()
		_, err := mgr.Attach(b.Context(), c.ns, AttachSpec{Network: "bridge", ContainerID: c.id, Name: c.id[:8], Ports: []PortMapping{{ContainerPort: 80}}})
		check(b, err)
		check(b, mgr.Release(b.Context(), c.id))
		b.StopTimer()
		c.ns.Close()
		b.StartTimer()
	}
}

func BenchmarkAttachDetachPod(b *testing.B) {
	m := newMachine(b)
	mgr := m.open()
	for b.Loop() {
		b.StopTimer()
		ns, id := rawNetNS(b), newID()
		b.StartTimer()
		_, err := mgr.AttachPod(b.Context(), ns, PodAttach{ID: id})
		check(b, err)
		check(b, mgr.DetachPod(b.Context(), id))
		b.StopTimer()
		ns.Close()
		b.StartTimer()
	}
}

// A change that is made while the table is being rewritten is in the new table: nobody
// would ever add it again.
func TestRewritingTheTableLosesNoChange(t *testing.T) {
	mgr := newMachine(t).open()
	added := make(chan error, 1)
	err := mgr.table.rebuild(func() rangesAndPorts {
		want := mgr.want()
		go func() {
			added <- mgr.table.addNetwork(Network{Driver: DriverBridge, Bridge: "later", Subnet: netip.MustParsePrefix("192.0.2.0/24"), Gateway: addr("192.0.2.1")})
		}()
		for range 100_000 { // time enough to come in between, were that possible
			runtime.Gosched()
		}
		return want
	})
	if err := errors.Join(err, <-added); err != nil {
		t.Fatal(err)
	}
	claimed, err := mgr.table.claimedBy(mgr.table.name)
	if err != nil || !slices.Contains(claimed, netip.MustParsePrefix("192.0.2.0/24")) {
		t.Errorf("the table has %v (%v), want 192.0.2.0/24 in it", claimed, err)
	}
}
