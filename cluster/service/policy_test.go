package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/network/networktest"
)

// longName is as long as names may be, and longer than the kernel's.
var longName = strings.Repeat("p", 253)

// policy reads the spec of a network policy of namespace shop.
func policy(t testing.TB, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	if name == "p" {
		name = longName
	}
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
	check(t, yaml.UnmarshalStrict([]byte(spec), &np.Spec))
	return np
}

func TestPolicies(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	web := c.pod("shop", "web", map[string]string{"app": "web"}, corev1.ContainerPort{Name: "http", ContainerPort: 8000})
	api := c.pod("shop", "api", map[string]string{"app": "api"})
	far := c.pod("other", "far", map[string]string{"app": "far"})
	pods := map[string]pod{"web": web, "api": api, "far": far}
	for name, p := range pods {
		for _, n := range []int{8000, 8001, 8002} {
			greet(t, p.ns, fmt.Sprintf("0.0.0.0:%d", n), name)
		}
	}
	greet(t, c.Outside, networktest.OutsideAddr+":9000", "outside")
	svc := service("web", c.vip(20), port("http", 80))
	svc.Spec.Type = corev1.ServiceTypeLoadBalancer
	c.create(svc)
	c.create(endpointSlice(svc, 8000, web))
	c.reaches("the service before any policy", api.ns, "tcp", c.vip(20)+":80", "web")

	type want map[string]bool // "from to:port", true: reaches
	all := want{
		"api web:8000": true, "api web:8001": true, "far web:8000": true, "web api:8000": true, "web web:8000": true, "node web:8000": true,
		"outside lb:80": true, "web outside:9000": true, "api vip:80": true, "far api:8002": true,
	}
	for _, tt := range []struct {
		name, spec string
		but        want // differs from all
	}{
		{"nobody may come in", `{podSelector: {matchLabels: {app: web}}}`,
			want{"api web:8000": false, "api web:8001": false, "far web:8000": false, "outside lb:80": false, "api vip:80": false}},
		{"nobody may go out", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}`,
			want{"web api:8000": false, "web outside:9000": false}},
		{"pods of the namespace may come in", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`,
			want{"far web:8000": false, "outside lb:80": false, "far api:8002": false}},
		{"one app, one port", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 8000}]}]}`,
			want{"api web:8001": false, "far web:8000": false, "outside lb:80": false}},
		{"a named port", `{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}`,
			want{"api web:8001": false}},
		{"a range of ports", `{podSelector: {}, ingress: [{ports: [{port: 8001, endPort: 8002}]}]}`,
			want{"api web:8000": false, "far web:8000": false, "web api:8000": false, "outside lb:80": false, "api vip:80": false}},
		{"another namespace", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}}]}]}`,
			want{"api web:8000": false, "api web:8001": false, "outside lb:80": false, "api vip:80": false}},
		{"a pod of another namespace that does not match", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: other}}, podSelector: {matchLabels: {app: api}}}]}]}`,
			want{"api web:8000": false, "api web:8001": false, "far web:8000": false, "outside lb:80": false, "api vip:80": false}},
		{"an address block", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}`,
			want{"api web:8000": false, "api web:8001": false, "far web:8000": false, "api vip:80": false}},
		{"an address block with a hole", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.2/32]}}]}]}`,
			want{"api web:8000": false, "api web:8001": false, "far web:8000": false, "outside lb:80": false, "api vip:80": false}},
		{"out to one app by a service", `{podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]}`,
			want{"api web:8001": false}},
		{"out to nothing but the internet", `{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 198.51.100.0/24}}]}]}`,
			want{"web api:8000": false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			np := c.create(policy(t, "p", tt.spec))
			c.settled(t)
			var calls sync.WaitGroup // what is dropped takes a second
			for path, ok := range all {
				if differs, named := tt.but[path]; named {
					ok = differs
				}
				calls.Go(func() {
					ask := knock
					if ok {
						ask = call
					}
					if got := c.try(t, ask, pods, path); networktest.Unreachable(got) == ok {
						t.Errorf("%s: %q; want it to be let through: %t", path, got, ok)
					}
				})
			}
			calls.Wait()
			check(t, c.write.Delete(t.Context(), kinds.NetworkPolicies, "shop", longName, metav1.DeleteOptions{}))
			c.settled(t)
			if t.Failed() {
				t.Log(np, networktest.Sh(t, "nft list table ip slipway-ab12cd-svc"))
			}
		})
	}
	c.lessons(t, pods)
}

// settled waits until the Server has worked off what the store told it.
func (c *cluster) settled(t testing.TB) {
	t.Helper()
	eventually(t, "policies programmed", func() bool {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		snap := c.store.Snapshot(kinds.NetworkPolicies)
		if snap.Len() != len(c.server.policies.plans) {
			return false
		}
		for o := range snap.All("") {
			if !c.server.knows(store.KeyOf(o)) {
				return false
			}
		}
		return true
	})
}

func (c *cluster) try(t *testing.T, ask func(testing.TB, *os.File, string, string) string, pods map[string]pod, path string) string {
	from, to, _ := strings.Cut(path, " ")
	host, n, _ := strings.Cut(to, ":")
	addr := map[string]string{"outside": networktest.OutsideAddr, "lb": networktest.HostAddr, "vip": c.vip(20)}[host]
	if p, ok := pods[host]; ok {
		addr = p.ip()
	}
	ns := map[string]*os.File{"outside": c.Outside}[from]
	if p, ok := pods[from]; ok {
		ns = p.ns
	}
	return ask(t, ns, "tcp", addr+":"+n)
}

// lessons are the cases in which things change under a policy.
func (c *cluster) lessons(t *testing.T, pods map[string]pod) {
	c.create(policy(t, "p", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: friends}}}]}]}`))
	c.settled(t)
	if got := c.try(t, knock, pods, "far web:8000"); !networktest.Unreachable(got) {
		t.Errorf("a namespace without the label: %q", got)
	}
	ns, _ := store.Get[*corev1.Namespace](c.store, kinds.Namespaces, "", "other")
	friends := store.Copy(ns)
	friends.Labels = map[string]string{"team": "friends"}
	c.replace(friends)
	c.reaches("a namespace that got the label", pods["far"].ns, "tcp", pods["web"].ip()+":8000", "web")

	pod, _ := store.Get[*corev1.Pod](c.store, kinds.Pods, "shop", "web")
	renamed := store.Copy(pod)
	renamed.Labels = map[string]string{"app": "free"}
	c.replace(renamed)
	c.reaches("a pod that the policy no longer selects", pods["api"].ns, "tcp", pods["web"].ip()+":8000", "web")

	c.stop()
	c.create(policy(t, "q", `{podSelector: {matchLabels: {app: api}}}`))
	c.start()
	if got := c.try(t, knock, pods, "web api:8000"); !networktest.Unreachable(got) {
		t.Errorf("a policy made while no daemon ran: %q", got)
	}
}

// A pod that was given an address and not yet admitted sends and receives nothing.
func TestPodsWaitForTheirPolicies(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	old := c.pod("shop", "old", nil)
	greet(t, old.ns, "0.0.0.0:80", "old")
	greet(t, c.Outside, networktest.OutsideAddr+":9000", "outside")
	ns := networktest.NetNS(t)
	addr, err := c.net.AttachPod(t.Context(), ns, network.PodAttach{ID: "new"})
	check(t, err)
	greet(t, ns, "0.0.0.0:80", "new")
	for what, got := range map[string]string{
		"to a pod":      knock(t, ns, "tcp", old.ip()+":80"),
		"to outside":    knock(t, ns, "tcp", networktest.OutsideAddr+":9000"),
		"from a pod":    knock(t, old.ns, "tcp", addr.String()+":80"),
		"by a false ip": c.spoof(t, ns, old.ip()),
	} {
		if !networktest.Unreachable(got) {
			t.Errorf("%s before Admit: %q", what, got)
		}
	}
	c.create(policy(t, "deny", `{podSelector: {matchLabels: {app: new}}}`))
	obj := c.create(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new", UID: "new", Labels: map[string]string{"app": "new"}}, Spec: corev1.PodSpec{NodeName: "n1"}})
	check(t, c.server.Admit(t.Context(), obj.(*corev1.Pod), addr)) // the policy's event may still be on its way
	if got := call(t, ns, "tcp", networktest.OutsideAddr+":9000"); got != "outside "+networktest.HostAddr {
		t.Errorf("to outside after Admit: %q", got)
	}
	if got := knock(t, old.ns, "tcp", addr.String()+":80"); !networktest.Unreachable(got) {
		t.Errorf("a pod's first packets came before its policy: %q", got)
	}
	if got := call(t, nil, "tcp", addr.String()+":80"); !strings.HasPrefix(got, "new") {
		t.Errorf("the node's probe: %q", got)
	}
	now := int64(0)
	check(t, c.write.Delete(t.Context(), kinds.Pods, "shop", "new", metav1.DeleteOptions{GracePeriodSeconds: &now}))
	eventually(t, "a deleted pod is cut off", func() bool {
		return networktest.Unreachable(knock(t, ns, "tcp", networktest.OutsideAddr+":9000"))
	})
}

// Policies go by addresses: nobody is taken for a pod, and no container for somebody else. A datagram needs no answer,
// so its sender can claim any address.
func TestNobodyPassesForAnother(t *testing.T) {
	for _, bridgeNF := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+bridgeNF, func(t *testing.T) {
			networktest.NeedRoot(t)
			check(t, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(bridgeNF), 0o644))
			testFalseSources(t, newCluster(t))
		})
	}
}

func testFalseSources(t *testing.T, c *cluster) {
	names := c.pod("shop", "names", map[string]string{"app": "names"})
	friend := c.pod("shop", "friend", map[string]string{"app": "friend"})
	stranger := c.pod("shop", "stranger", nil)
	id := strings.Repeat("c", 64)
	container := networktest.NetNS(t)
	ep, err := c.net.Attach(t.Context(), container, network.AttachSpec{Network: "bridge", ContainerID: id, Name: "c"})
	check(t, err)
	t.Cleanup(func() { check(t, c.net.Release(context.Background(), id)) })
	networktest.Sh(t, "ip route add 192.0.2.0/24 via "+ep.Addr.Addr().String()) // the container routes for these
	networktest.In(t, c.Outside, func() { networktest.Sh(t, "ip route add default via "+networktest.HostAddr) })

	svc := service("names", c.vip(20), udpPort("dns", 53))
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30053
	c.create(svc)
	c.create(endpointSlice(svc, 53, names))
	c.create(policy(t, "p", `{podSelector: {matchLabels: {app: names}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}, {ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}`))
	c.settled(t)
	greet(t, names.ns, "0.0.0.0:53", "names sees")
	c.reaches("the service from a pod that may call it", friend.ns, "udp", c.vip(20)+":53", "names sees "+friend.ip())

	var inbox net.PacketConn
	networktest.In(t, names.ns, func() {
		inbox, err = net.ListenPacket("udp4", "0.0.0.0:54")
		check(t, err)
	})
	defer inbox.Close()
	c.replace(endpointSlice(svc, 54, names))
	node := netip.AddrPortFrom(netip.MustParseAddr(networktest.HostAddr), 30053)
	vip := netip.AddrPortFrom(netip.MustParseAddr(c.vip(20)), 53)
	guest := netip.MustParseAddr("203.0.113.9") // somebody of the block, behind the machine outside
	eventually(t, "a datagram of the block", func() bool {
		networktest.Forge(t, c.Outside, netip.AddrPortFrom(guest, 999), node, "first")
		return said(t, inbox, time.Second) == "first"
	})
	for i, f := range []struct {
		what string
		ns   *os.File
		from netip.Addr
		to   netip.AddrPort
	}{
		{"a container as a pod, by a node port", container, friend.addr, node},
		{"a container as a pod, by the service", container, friend.addr, vip},
		{"a container as somebody outside", container, guest, node},
		{"a pod as another", stranger.ns, friend.addr, vip},
		{"a pod as somebody outside", stranger.ns, guest, node},
		{"a neighbour as a pod", c.Outside, friend.addr, node},
		{"a neighbour as the node", c.Outside, c.net.NodeAddr(), node},
	} {
		networktest.Forge(t, f.ns, netip.AddrPortFrom(f.from, uint16(1000+i)), f.to, f.what)
	}
	networktest.Forge(t, container, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), 2000), node, "routed")
	for got := said(t, inbox, 20*time.Second); got != "routed"; got = said(t, inbox, 20*time.Second) {
		if got == "" {
			t.Fatal("a datagram of a network behind a container did not come")
		}
		if got != "first" {
			t.Errorf("%s got through", got)
		}
	}
}

// said is the next datagram, or nothing when none comes.
func said(t *testing.T, inbox net.PacketConn, wait time.Duration) string {
	check(t, inbox.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 100)
	n, _, err := inbox.ReadFrom(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// spoof calls outside with another pod's address.
func (c *cluster) spoof(t *testing.T, ns *os.File, ip string) string {
	networktest.In(t, ns, func() {
		networktest.Sh(t, "ip addr add "+ip+"/32 dev lo && ip route replace default via 169.254.1.1 dev eth0 src "+ip)
	})
	got := knock(t, ns, "tcp", networktest.OutsideAddr+":9000")
	networktest.In(t, ns, func() {
		networktest.Sh(t, "ip route replace default via 169.254.1.1 dev eth0 && ip addr del "+ip+"/32 dev lo")
	})
	return got
}

func TestAdmitWaitsForTheFirstTable(t *testing.T) {
	s := &Server{ready: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Admit(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}, netip.Addr{})
	if err == nil || err.Error() != "admit pod shop/web to the network: services are not ready: context canceled" {
		t.Errorf("Admit before Run: %v", err)
	}
}

func BenchmarkAdmit(b *testing.B) {
	networktest.NeedRoot(b)
	c := newCluster(b)
	for i := range 20 {
		c.create(policy(b, fmt.Sprintf("p%d", i), fmt.Sprintf(`{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {n: "%d"}}}]}]}`, i)))
	}
	obj := c.create(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: "n1"}}).(*corev1.Pod)
	addr := c.net.PodRange().Addr().Next()
	for b.Loop() {
		addr = addr.Next()
		check(b, c.server.Admit(b.Context(), obj, addr))
	}
}
