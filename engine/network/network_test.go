package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"slipway.dev/slipway/engine/network/networktest"
)

// Every way into and out of a container, under each kind of host.
func TestTrafficOfContainers(t *testing.T) {
	needRoot(t)
	for _, bridgeNF := range []string{"0", "1"} {
		for _, forward := range []string{"accept", "drop", "drop with docker"} {
			t.Run(fmt.Sprintf("bridge-nf-call-iptables=%s, FORWARD %s", bridgeNF, forward), func(t *testing.T) {
				m := newMachine(t)
				check(t, writeSysctl("net/bridge/bridge-nf-call-iptables", bridgeNF))
				setForward(t, forward)
				testTraffic(t, m)
			})
		}
	}
}

func setForward(t *testing.T, how string) {
	if how == "accept" {
		return
	}
	sh(t, "iptables -w -P FORWARD DROP && iptables -w -P INPUT DROP && iptables -w -A INPUT -i lo -j ACCEPT && iptables -w -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
	if how == "drop with docker" {
		sh(t, "iptables -w -N DOCKER-USER && iptables -w -A DOCKER-USER -j RETURN && iptables -w -I FORWARD -j DOCKER-USER")
	}
	before := sh(t, "iptables -w -S")
	t.Cleanup(func() {
		if after := sh(t, "iptables -w -S"); after != before {
			t.Errorf("iptables rules after Teardown:\n%s\nbefore:\n%s", after, before)
		}
		sh(t, "nft delete table ip filter")
	})
}

func testTraffic(t *testing.T, m *machine) {
	mgr := m.open()
	a := m.box(mgr, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 8080, ContainerPort: 80, Proto: "udp"},
		{HostPort: 8081, ContainerPort: 80, HostIP: addr("127.0.0.1")},
	}})
	b := m.box(mgr, AttachSpec{Network: "bridge", Name: "b"})
	other, err := mgr.Create(t.Context(), Spec{Name: "other"})
	check(t, err)
	c := m.box(mgr, AttachSpec{Network: "other", Name: "c"})
	greet(t, m.Outside, outsideAddr+":9000", "outside sees")
	greet(t, a.ns, "0.0.0.0:80", "a sees")

	for _, tt := range []struct{ what, network, from, to, want string }{
		{"container to the internet, with the host's address", "tcp", "b", outsideAddr + ":9000", "outside sees " + hostAddr},
		{"container to the internet over UDP", "udp", "b", outsideAddr + ":9000", "outside sees " + hostAddr},
		{"container to its neighbour", "tcp", "b", a.ip() + ":80", "a sees " + b.ip()},
		{"container to itself by a published port", "tcp", "a", hostAddr + ":8080", "a sees " + a.ep.Gateway.String()},
		{"neighbour by a published port", "tcp", "b", hostAddr + ":8080", "a sees " + a.ep.Gateway.String()},
		{"host to container", "tcp", "host", a.ip() + ":80", "a sees " + a.ep.Gateway.String()},
		{"internet by a published port", "tcp", "outside", hostAddr + ":8080", "a sees " + outsideAddr},
		{"internet by a published UDP port", "udp", "outside", hostAddr + ":8080", "a sees " + outsideAddr},
		{"localhost by a published port", "tcp", "host", "127.0.0.1:8080", "a sees " + a.ep.Gateway.String()},
		{"localhost by a published UDP port", "udp", "host", "127.0.0.1:8080", "a sees " + a.ep.Gateway.String()},
		{"localhost by a port bound to it", "tcp", "host", "127.0.0.1:8081", "a sees " + a.ep.Gateway.String()},
		{"host by its own address", "tcp", "host", hostAddr + ":8080", "a sees " + hostAddr},
		{"another network by a published port", "tcp", "c", hostAddr + ":8080", "a sees " + c.ip()},
		{"internet by a port bound to localhost", "tcp", "outside", hostAddr + ":8081", ""},
		{"another network", "tcp", "c", a.ip() + ":80", ""},
	} {
		from := map[string]box{"a": a, "b": b, "c": c, "outside": {ns: m.Outside}}[tt.from].ns
		answered(t, tt.what, from, tt.network, tt.to, tt.want)
	}
	greet(t, nil, "0.0.0.0:9001", "this machine sees")
	fromContainer := "this machine sees " + b.ip()
	if strings.Contains(sh(t, "nft list tables"), "table ip filter") {
		fromContainer = "" // what this machine does not let in from elsewhere it does not let in from containers
	}
	answered(t, "a port of this machine", b.ns, "tcp", hostAddr+":9001", fromContainer)
	if got := answers(ask(t, c.ns, "127.0.0.11:53", "c", dns.TypeA)); fmt.Sprint(got) != "["+c.ip()+"]" {
		t.Errorf("a name: %v", got)
	}
	if got := networktest.KnockLoopback(t, m.Outside, hostAddr, "8081"); !unreachable4(got) {
		t.Errorf("a neighbour that routes 127.0.0.1 to this machine reached a port bound to it: %q", got)
	}
	routeThroughUs(t, m, other, c)
	if t.Failed() {
		t.Log(sh(t, "nft list ruleset; ip -br addr; ip route"))
	}
}

// A neighbour on the wire that routes to container addresses gets nowhere.
func routeThroughUs(t *testing.T, m *machine, n Network, c box) {
	greet(t, c.ns, "0.0.0.0:80", "c sees")
	in(t, m.Outside, func() { sh(t, fmt.Sprintf("ip route add %s via %s", n.Subnet, hostAddr)) })
	if got := knock(t, m.Outside, "tcp", c.ip()+":80"); !unreachable4(got) {
		t.Errorf("a neighbour reached a container that publishes nothing: %q", got)
	}
}

// Without ICC containers of a network do not reach each other's own ports: not on the bridge, and not by way of its
// gateway.
func TestNoTrafficBetweenContainers(t *testing.T) {
	for _, bridgeNF := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+bridgeNF, func(t *testing.T) {
			m := newMachine(t)
			check(t, writeSysctl("net/bridge/bridge-nf-call-iptables", bridgeNF))
			mgr := m.open()
			n, err := mgr.Create(t.Context(), Spec{Name: "apart", Options: map[string]string{OptionICC: "false"}})
			check(t, err)
			a := m.box(mgr, AttachSpec{Network: "apart", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
			b := m.box(mgr, AttachSpec{Network: "apart", Name: "b"})
			greet(t, a.ns, "0.0.0.0:80", "a sees")
			answered(t, "on the bridge", b.ns, "tcp", a.ip()+":80", "")
			for _, c := range []box{a, b} {
				in(t, c.ns, func() {
					sh(t, fmt.Sprintf("ip route add %s dev eth0 && ip route del %s && ip route add %s via %s", n.Gateway, n.Subnet, n.Subnet, n.Gateway))
				})
			}
			answered(t, "by the gateway", b.ns, "tcp", a.ip()+":80", "")
			answered(t, "from outside", m.Outside, "tcp", hostAddr+":8080", "a sees "+outsideAddr)
			if bridgeNF == "0" { // else the kernel bridges what was translated, and the isolation of the ports stops that, too
				answered(t, "by a published port", b.ns, "tcp", hostAddr+":8080", "a sees "+n.Gateway.String())
			}
		})
	}
}

// A container on two networks answers by its default route what it was asked on the other network.
func TestAnswersByAnotherNetwork(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	for _, name := range []string{"z", "a"} {
		_, err := mgr.Create(t.Context(), Spec{Name: name})
		check(t, err)
	}
	c := m.box(mgr, AttachSpec{Network: "z", Name: "c", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	_, err := mgr.Attach(t.Context(), c.ns, AttachSpec{Network: "a", ContainerID: c.id, Name: "c"})
	check(t, err)
	if gw := mgr.gatewayEndpoint(c.id); gw.NetworkName != "a" {
		t.Fatalf("the default route is on network %s; this test needs it on the one without ports", gw.NetworkName)
	}
	greet(t, c.ns, "0.0.0.0:80", "c sees")
	pod := newNetNS(t)
	ip, err := mgr.AttachPod(t.Context(), pod, PodAttach{ID: "uid-1"})
	check(t, err)
	answered(t, "from outside", m.Outside, "tcp", hostAddr+":8080", "c sees "+outsideAddr)
	answered(t, "from a pod", pod, "tcp", hostAddr+":8080", "c sees "+ip.String())
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	_, err := mgr.Create(t.Context(), Spec{Name: "inner", Internal: true})
	check(t, err)
	a := m.box(mgr, AttachSpec{Network: "inner", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	b := m.box(mgr, AttachSpec{Network: "inner", Name: "b"})
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	greet(t, m.Outside, outsideAddr+":9000", "outside sees")
	if got := call(t, b.ns, "tcp", a.ip()+":80"); got != "a sees "+b.ip() {
		t.Errorf("inside an internal network: %q", got)
	}
	in(t, b.ns, func() { sh(t, "ip route add default via "+a.ep.Addr.Masked().Addr().Next().String()) })
	if got := knock(t, b.ns, "tcp", outsideAddr+":9000"); !unreachable4(got) {
		t.Errorf("from an internal network to the outside: %q", got)
	}
	if len(a.ep.Ports) > 0 {
		t.Errorf("an internal network publishes %v", a.ep.Ports)
	}
}

func TestNamesOfContainers(t *testing.T) {
	m := newMachine(t)
	upstream := netip.AddrPortFrom(addr(outsideAddr), 53)
	serveExample(t, m)
	mgr := m.open(func(o *Options) { o.DNSUpstreams = []netip.AddrPort{upstream} })
	for _, s := range []Spec{{Name: "front"}, {Name: "back"}, {Name: "inner", Internal: true}} {
		_, err := mgr.Create(t.Context(), s)
		check(t, err)
	}
	web := m.box(mgr, AttachSpec{Network: "front", Name: "web", Aliases: []string{"www", "app_1.local"}})
	web2, err := mgr.Attach(t.Context(), web.ns, AttachSpec{Network: "back", ContainerID: web.id, Name: "web"})
	check(t, err)
	db := m.box(mgr, AttachSpec{Network: "back", Name: "DB"})
	cell := m.box(mgr, AttachSpec{Network: "inner", Name: "cell"})

	for _, tt := range []struct {
		from box
		name string
		typ  uint16
		want string
	}{
		{web, "db", dns.TypeA, "NOERROR [" + db.ip() + "]"},
		{web, "Db.Back", dns.TypeA, "NOERROR [" + db.ip() + "]"},
		{web, "web", dns.TypeA, "NOERROR [" + web.ip() + " " + web2.Addr.Addr().String() + "]"},
		{db, "web", dns.TypeA, "NOERROR [" + web2.Addr.Addr().String() + "]"},
		{db, "www", dns.TypeA, "NXDOMAIN []"}, // an alias on front only
		{web, "www", dns.TypeA, "NOERROR [" + web.ip() + "]"},
		{web, "app_1.local", dns.TypeA, "NOERROR [" + web.ip() + "]"},
		{db, web.id[:12], dns.TypeA, "NXDOMAIN []"},
		{db, "web", dns.TypeAAAA, "NOERROR []"},
		{db, "example.test", dns.TypeA, "NOERROR [203.0.113.7]"},
		{cell, "cell", dns.TypeA, "NOERROR [" + cell.ip() + "]"},
		{cell, "example.test", dns.TypeA, "SERVFAIL []"},
		{cell, "db", dns.TypeA, "SERVFAIL []"},
	} {
		if tt.name == web.id[:12] {
			tt.want = "NOERROR [" + web2.Addr.Addr().String() + "]"
		}
		reply := ask(t, tt.from.ns, "127.0.0.11:53", tt.name, tt.typ)
		if got := fmt.Sprintf("%s %v", dns.RcodeToString[reply.Rcode], answers(reply)); got != tt.want {
			t.Errorf("%s asks for %s %s: got %s, want %s", tt.from.ep.Name, dns.TypeToString[tt.typ], tt.name, got, tt.want)
		}
	}
	reverse, _ := dns.ReverseAddr(db.ip())
	if got := answers(ask(t, web.ns, "127.0.0.11:53", reverse, dns.TypePTR)); fmt.Sprint(got) != "[DB.back.]" {
		t.Errorf("name of %s: got %v", db.ip(), got)
	}
	check(t, mgr.Rename(t.Context(), db.id, "store"))
	if got := answers(ask(t, web.ns, "127.0.0.11:53", "store", dns.TypeA)); fmt.Sprint(got) != "["+db.ip()+"]" {
		t.Errorf("renamed container: got %v", got)
	}
	greet(t, db.ns, "0.0.0.0:53", "db sees") // a DNS server of its own may bind the port

	check(t, mgr.Detach(t.Context(), web.ns, web.id, "front"))
	if got := answers(ask(t, web.ns, "127.0.0.11:53", "store", dns.TypeA)); fmt.Sprint(got) != "["+db.ip()+"]" {
		t.Errorf("after leaving its first network, a container resolves %v", got)
	}
}

// Resolvers are for this machine and its containers, not for who routes to them.
func TestResolversAreNotForNeighbours(t *testing.T) {
	m := newMachine(t)
	check(t, m.open().Close())
	mgr := m.open() // networks that were there before are guarded like new ones
	_, err := mgr.Create(t.Context(), Spec{Name: "app"})
	check(t, err)
	in(t, m.Outside, func() { sh(t, "ip route add default via "+hostAddr) })
	for _, network := range []string{"bridge", "app"} {
		c := m.box(mgr, AttachSpec{Network: network, Name: "c", Aliases: []string{"c"}})
		for _, proto := range []string{"udp", "tcp"} {
			for _, from := range []struct {
				who  string
				ns   *os.File
				want string
				wait time.Duration
			}{{"a container", c.ns, "NOERROR", 20 * time.Second}, {"this machine", nil, "NOERROR", 20 * time.Second}, {"a neighbour", m.Outside, "", time.Second}} {
				var got string
				query := func() {
					q := new(dns.Msg)
					q.SetQuestion("c.", dns.TypeA)
					reply, _, err := (&dns.Client{Net: proto, Timeout: from.wait}).Exchange(q, net.JoinHostPort(c.ep.Gateway.String(), "53"))
					if err == nil {
						got = dns.RcodeToString[reply.Rcode]
					}
				}
				if from.ns == nil {
					query()
				} else {
					in(t, from.ns, query)
				}
				if got != from.want {
					t.Errorf("%s asks the resolver of network %s over %s: got %q, want %q", from.who, network, proto, got, from.want)
				}
			}
		}
	}
}

// serveExample is a DNS server in the outside that knows one name, and needs TCP for
// another.
func serveExample(t *testing.T, m *machine) {
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		switch name := q.Question[0].Name; {
		case strings.EqualFold(name, "example.test."):
			r.Answer = []dns.RR{&dns.A{Hdr: header(name, dns.TypeA), A: addr("203.0.113.7").AsSlice()}}
		case name == "long.test." && w.RemoteAddr().Network() == "udp":
			r.Truncated = true
		case name == "long.test.":
			for i := range 100 {
				r.Answer = append(r.Answer, &dns.A{Hdr: header(name, dns.TypeA), A: addr(fmt.Sprintf("203.0.113.%d", i)).AsSlice()})
			}
		default:
			r.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(r)
	})
	in(t, m.Outside, func() {
		udp, tcp, err := listenBoth(context.Background(), addr(outsideAddr), 53)
		check(t, err)
		t.Cleanup(serveDNS(udp, tcp, h, func(err error) { t.Error(err) }))
	})
}

func TestLongAnswersComeOverTCP(t *testing.T) {
	m := newMachine(t)
	serveExample(t, m)
	mgr := m.open(func(o *Options) {
		o.DNSUpstreams = []netip.AddrPort{netip.AddrPortFrom(addr("198.51.100.77"), 53), netip.AddrPortFrom(addr(outsideAddr), 53)}
	})
	b := m.box(mgr, AttachSpec{Network: "bridge", Name: "b"})
	if reply := ask(t, b.ns, "127.0.0.11:53", "long.test", dns.TypeA); !reply.Truncated {
		t.Errorf("100 addresses in one UDP packet: %d answers, not marked truncated", len(reply.Answer))
	}
	in(t, b.ns, func() {
		q := new(dns.Msg)
		q.SetQuestion("long.test.", dns.TypeA)
		reply, _, err := (&dns.Client{Net: "tcp"}).Exchange(q, "127.0.0.11:53")
		if err != nil || len(reply.Answer) != 100 {
			t.Errorf("over TCP: %v, %v", reply, err)
		}
	})
}
