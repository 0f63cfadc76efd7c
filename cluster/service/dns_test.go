package service

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/network/networktest"
)

// oneName is an upstream that knows example.test.
type oneName struct{}

func (oneName) Exchange(_ context.Context, q *dns.Msg) (*dns.Msg, error) {
	r := new(dns.Msg)
	r.SetReply(q)
	if q.Question[0].Name != "example.test." {
		r.Rcode = dns.RcodeNameError
		return r, nil
	}
	r.Answer = []dns.RR{&dns.A{Hdr: header("example.test.", dns.TypeA), A: netip.MustParseAddr("203.0.113.7").AsSlice()}}
	return r, nil
}

// nameServer answers from a store with one service of each kind, without a kernel.
func nameServer(t testing.TB) *Server {
	st, err := store.Open(context.Background(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true})
	check(t, err)
	t.Cleanup(func() { check(t, st.Close()) })
	w := store.Direct(st)
	s := &Server{opts: Options{
		Reader: st, Domain: "cluster.local", Upstream: oneName{},
		ServiceRange: netip.MustParsePrefix("10.96.0.0/16"), PodRange: netip.MustParsePrefix("10.160.0.0/16"),
	}}
	s.log = networktest.Log(t)
	s.names.reset()
	create := func(o store.Object) {
		_, err := w.Create(context.Background(), o)
		check(t, err)
		if svc, ok := o.(*corev1.Service); ok {
			s.names.set(store.KeyOf(svc), svc)
		}
	}
	create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	web := service("web", "10.96.0.20", port("http", 80), udpPort("dns", 53))
	create(web)
	db := service("my-db", "10.96.0.21", port("sql", 5432))
	db.Annotations = map[string]string{DNSAliases: "my_db, Old.DB"}
	create(db)
	peers := service("peers", "None", port("raft", 7000))
	create(peers)
	slice := endpointSlice(peers, 7001, pod{addr: netip.MustParseAddr("10.160.0.5")}, pod{addr: netip.MustParseAddr("10.160.0.6")}, pod{addr: netip.MustParseAddr("10.160.0.7")})
	host, no := "peers-0", false
	slice.Endpoints[0].Hostname = &host
	slice.Endpoints[2].Conditions = discoveryv1.EndpointConditions{Ready: &no}
	create(slice)
	outside := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "outside"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.test"}}
	create(outside)
	inside := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "inside"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "web.shop.svc.cluster.local"}}
	create(inside)
	loop := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "loop"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "loop.shop.svc.cluster.local"}}
	create(loop)
	return s
}

func short(r *dns.Msg) string {
	var all []string
	for _, rr := range r.Answer {
		fields := strings.Fields(rr.String())
		all = append(all, strings.Join(fields[3:], " "))
	}
	slices.Sort(all)
	return dns.RcodeToString[r.Rcode] + " " + strings.Join(all, ", ")
}

func TestNames(t *testing.T) {
	s := nameServer(t)
	for _, tt := range []struct{ typ, name, want string }{
		{"A", "web.shop.svc.cluster.local.", "NOERROR A 10.96.0.20"},
		{"A", "WEB.Shop.SVC.cluster.LOCAL.", "NOERROR A 10.96.0.20"},
		{"AAAA", "web.shop.svc.cluster.local.", "NOERROR "},
		{"A", "web.nowhere.svc.cluster.local.", "NXDOMAIN "},
		{"A", "nothing.shop.svc.cluster.local.", "NXDOMAIN "},
		{"A", "x.web.shop.svc.cluster.local.", "NXDOMAIN "},
		{"A", "shop.svc.cluster.local.", "NOERROR "},
		{"A", "nowhere.svc.cluster.local.", "NXDOMAIN "},
		{"A", "svc.cluster.local.", "NOERROR "},
		{"A", "cluster.local.", "NOERROR "},
		{"A", "notcluster.local.", "NXDOMAIN "},
		{"A", "my_db.shop.svc.cluster.local.", "NOERROR A 10.96.0.21"},
		{"A", "old.db.shop.svc.cluster.local.", "NOERROR A 10.96.0.21"},
		{"SRV", "_http._tcp.web.shop.svc.cluster.local.", "NOERROR SRV 0 100 80 web.shop.svc.cluster.local."},
		{"SRV", "_dns._udp.web.shop.svc.cluster.local.", "NOERROR SRV 0 100 53 web.shop.svc.cluster.local."},
		{"SRV", "_dns._tcp.web.shop.svc.cluster.local.", "NXDOMAIN "},
		{"A", "_http._tcp.web.shop.svc.cluster.local.", "NOERROR "},
		{"A", "peers.shop.svc.cluster.local.", "NOERROR A 10.160.0.5, A 10.160.0.6"},
		{"A", "peers-0.peers.shop.svc.cluster.local.", "NOERROR A 10.160.0.5"},
		{"A", "10-160-0-6.peers.shop.svc.cluster.local.", "NOERROR A 10.160.0.6"},
		{"A", "peers-9.peers.shop.svc.cluster.local.", "NXDOMAIN "},
		{"SRV", "_raft._tcp.peers.shop.svc.cluster.local.", "NOERROR SRV 0 100 7001 10-160-0-6.peers.shop.svc.cluster.local., SRV 0 100 7001 peers-0.peers.shop.svc.cluster.local."},
		{"A", "outside.shop.svc.cluster.local.", "NOERROR A 203.0.113.7, CNAME example.test."},
		{"CNAME", "outside.shop.svc.cluster.local.", "NOERROR CNAME example.test."},
		{"A", "inside.shop.svc.cluster.local.", "NOERROR A 10.96.0.20, CNAME web.shop.svc.cluster.local."},
		{"A", "loop.shop.svc.cluster.local.", "NOERROR CNAME loop.shop.svc.cluster.local."},
		{"A", "10-160-0-9.shop.pod.cluster.local.", "NOERROR A 10.160.0.9"},
		{"A", "10-160-0-9.nowhere.pod.cluster.local.", "NXDOMAIN "},
		{"TXT", "dns-version.cluster.local.", `NOERROR TXT "1.1.0"`},
		{"PTR", "20.0.96.10.in-addr.arpa.", "NOERROR PTR web.shop.svc.cluster.local."},
		{"PTR", "5.0.160.10.in-addr.arpa.", "NOERROR PTR peers-0.peers.shop.svc.cluster.local."},
		{"PTR", "99.0.96.10.in-addr.arpa.", "NXDOMAIN "},
		{"A", "example.test.", "NOERROR A 203.0.113.7"},
		{"A", "web.shop.svc.cluster.local.shop.svc.cluster.local.", "NXDOMAIN "}, // the client's search list
	} {
		q := new(dns.Msg)
		q.SetQuestion(tt.name, dns.StringToType[tt.typ])
		if got := short(s.answer(t.Context(), q)); got != tt.want {
			t.Errorf("%s %s: got %s, want %s", tt.typ, tt.name, got, tt.want)
		}
	}
}

// Pods ask over the network, and the server's sockets outlive the daemon.
func TestPodsResolveNames(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	client := c.pod("shop", "client", nil)
	c.create(service("web", c.vip(20), port("http", 80)))
	server := c.net.DNSAddr().String() + ":53"
	for range 2 {
		got := networktest.Answers(networktest.Ask(t, client.ns, server, "web.shop.svc.cluster.local", dns.TypeA))
		if fmt.Sprint(got) != "["+c.vip(20)+"]" {
			t.Errorf("web.shop: %v; want %s", got, c.vip(20))
		}
		c.stop()
		c.start()
	}
	networktest.In(t, c.Outside, func() {
		networktest.Sh(t, "ip route add "+c.net.ServiceRange().String()+" via "+networktest.HostAddr)
	})
	if got := knock(t, c.Outside, "tcp", server); !networktest.Unreachable(got) {
		t.Errorf("a neighbour reached the cluster's DNS: %q", got)
	}
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"web.shop.svc.cluster.local.", "_http._tcp.web.shop.svc.cluster.local.", "outside.shop.svc.cluster.local.", "5.0.160.10.in-addr.arpa.", "10-0-0-1.shop.pod.cluster.local.", "cluster.local.", "."} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY} {
			q := new(dns.Msg)
			q.SetQuestion(name, typ)
			b, err := q.Pack()
			check(f, err)
			f.Add(b)
		}
	}
	s := nameServer(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			t.Skip()
		}
		r := s.answer(t.Context(), q)
		if r.Id != q.Id || !r.Response {
			t.Errorf("answer %v does not belong to query %v", r, q)
		}
		r.Truncate(dns.MinMsgSize)
		if _, err := r.Pack(); err != nil && len(q.Question) == 1 {
			t.Errorf("answer to %v cannot be sent: %v", q, err)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := nameServer(b)
	q := new(dns.Msg)
	q.SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		s.answer(b.Context(), q)
	}
}

// The cluster's DNS is for this machine, its pods and its containers, not for who routes to it.
func TestClusterDNSIsNotForNeighbours(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	pod := c.pod("shop", "a", nil)
	id := strings.Repeat("c", 64)
	container := networktest.NetNS(t)
	_, err := c.net.Attach(t.Context(), container, network.AttachSpec{Network: "bridge", ContainerID: id, Name: "c"})
	check(t, err)
	t.Cleanup(func() { check(t, c.net.Release(context.Background(), id)) })
	networktest.In(t, c.Outside, func() { networktest.Sh(t, "ip route add default via "+networktest.HostAddr) })
	ask := func(proto string, wait time.Duration) string {
		q := new(dns.Msg)
		q.SetQuestion("dns-version.cluster.local.", dns.TypeTXT)
		reply, _, err := (&dns.Client{Net: proto, Timeout: wait}).Exchange(q, net.JoinHostPort(c.net.DNSAddr().String(), "53"))
		if err != nil {
			return ""
		}
		return short(reply)
	}
	const version = `NOERROR TXT "1.1.0"`
	for _, proto := range []string{"udp", "tcp"} {
		if got := ask(proto, 20*time.Second); got != version {
			t.Errorf("this machine over %s: %q", proto, got)
		}
		for who, ns := range map[string]*os.File{"a pod": pod.ns, "a container": container} {
			networktest.In(t, ns, func() {
				if got := ask(proto, 20*time.Second); got != version {
					t.Errorf("%s over %s: %q", who, proto, got)
				}
			})
		}
		networktest.In(t, c.Outside, func() {
			if got := ask(proto, time.Second); got != "" {
				t.Errorf("a neighbour over %s: %q", proto, got)
			}
		})
	}
}
