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

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }

var (
	check = networktest.Check
	call  = networktest.Call
	knock = networktest.Knock
	greet = networktest.Greet
)

// cluster is one node: a machine, its networks, a store and a Server.
type cluster struct {
	*networktest.Machine
	t      testing.TB
	net    *network.Manager
	store  *store.Store
	write  store.Writer
	server *Server
	stop   func()
	before string // what another tool did to the machine
}

func newCluster(t testing.TB) *cluster {
	c := &cluster{Machine: networktest.NewMachine(t), t: t}
	var err error
	c.net, err = network.Open(t.Context(), network.Options{Dir: c.Dir, Instance: "ab12cd", FDs: c.FDs, Log: networktest.Log(t)})
	check(t, err)
	t.Cleanup(func() { check(t, c.net.Teardown(context.Background())) })
	c.store, err = store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true})
	check(t, err)
	t.Cleanup(func() { check(t, c.store.Close()) })
	c.write = store.Direct(c.store)
	c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"kubernetes.io/metadata.name": "shop"}}})
	c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"team": "other"}}})
	t.Cleanup(func() {
		c.stop()
		check(t, c.server.Teardown(context.Background()))
	})
	c.start()
	return c
}

// start runs a Server, as a daemon would after its start.
func (c *cluster) start() {
	udp, tcp, err := c.net.ListenDNS(context.Background())
	check(c.t, err)
	c.server, err = New(Options{
		Reader: c.store, Writer: c.write, Instance: "ab12cd", NodeName: "n1", NodeAddr: c.net.NodeAddr(),
		PodRange: c.net.PodRange(), ServiceRange: c.net.ServiceRange(), DNSAddr: c.net.DNSAddr(),
		Ports: c.net, DNSUDP: udp, DNSTCP: tcp, Upstream: c.net, Log: networktest.Log(c.t),
	})
	check(c.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	server := c.server
	go func() { ended <- server.Run(ctx) }()
	c.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Errorf("Run ended with %v", err)
		}
		c.stop = func() {}
	}
	<-c.server.Ready()
}

func (c *cluster) create(o store.Object) store.Object {
	c.t.Helper()
	made, err := c.write.Create(c.t.Context(), o)
	check(c.t, err)
	return made
}

// pod is a running pod: in the store, on the network, admitted.
type pod struct {
	name string
	ns   *os.File
	addr netip.Addr
	obj  *corev1.Pod
}

func (p pod) ip() string { return p.addr.String() }

func (c *cluster) pod(namespace, name string, labels map[string]string, ports ...corev1.ContainerPort) pod {
	c.t.Helper()
	obj := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, UID: types.UID("uid-" + name)},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "i", Ports: ports}}},
	}
	p := pod{name: name, ns: networktest.NetNS(c.t), obj: c.create(obj).(*corev1.Pod)}
	var err error
	p.addr, err = c.net.AttachPod(c.t.Context(), p.ns, network.PodAttach{ID: string(p.obj.UID)})
	check(c.t, err)
	check(c.t, c.server.Admit(c.t.Context(), p.obj, p.addr))
	running := store.Copy(p.obj)
	running.Status.Phase, running.Status.PodIP = corev1.PodRunning, p.ip()
	made, err := c.write.UpdateStatus(c.t.Context(), running)
	check(c.t, err)
	p.obj = made.(*corev1.Pod)
	return p
}

// vip is the n-th address of the service range.
func (c *cluster) vip(n int) string {
	a := c.net.ServiceRange().Addr()
	for range n {
		a = a.Next()
	}
	return a.String()
}

func service(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: ports},
	}
}

func port(name string, n int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: n, Protocol: corev1.ProtocolTCP}
}

func udpPort(name string, n int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Port: n, Protocol: corev1.ProtocolUDP}
}

// endpointSlice leads all ports of a service to targetPort of the pods.
func endpointSlice(svc *corev1.Service, targetPort int32, pods ...pod) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	for i := range svc.Spec.Ports {
		p := svc.Spec.Ports[i]
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &targetPort})
	}
	yes, node := true, "n1"
	for _, p := range pods {
		e := discoveryv1.Endpoint{Addresses: []string{p.ip()}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}, NodeName: &node}
		if p.obj != nil && p.obj.Spec.Hostname != "" {
			e.Hostname = &p.obj.Spec.Hostname
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// replace updates an object whatever its version is.
func (c *cluster) replace(o store.Object) {
	c.t.Helper()
	_, err := c.write.Update(c.t.Context(), o)
	check(c.t, err)
}

// eventually tries until a condition that follows from an event in the store holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		if ctx.Err() != nil {
			t.Fatalf("%s: still not after 20 s\n%s", what, networktest.Sh(t, "nft list ruleset"))
		}
	}
}

// reaches waits for a call to be answered by a greeting.
func (c *cluster) reaches(what string, from *os.File, network, to, greeting string) {
	c.t.Helper()
	var got string
	eventually(c.t, fmt.Sprintf("%s (%s %s)", what, network, to), func() bool {
		got = knock(c.t, from, network, to)
		return strings.HasPrefix(got, greeting)
	})
}

func TestServices(t *testing.T) {
	for _, tt := range []struct{ name, bridgeNF, before string }{
		{"on a plain machine", "0", "true"},
		{"with br_netfilter and another tool's drop policy", "1", "iptables -w -P FORWARD DROP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			networktest.NeedRoot(t)
			check(t, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(tt.bridgeNF), 0o644))
			networktest.Sh(t, tt.before)
			t.Cleanup(func() { networktest.Sh(t, "nft flush ruleset") })
			c := newCluster(t)
			c.before = tt.before
			testServices(t, c)
		})
	}
}

func testServices(t *testing.T, c *cluster) {
	a, b := c.pod("shop", "a", nil), c.pod("shop", "b", nil)
	client := c.pod("shop", "client", nil)
	greet(t, a.ns, "0.0.0.0:8000", "a sees")
	greet(t, b.ns, "0.0.0.0:8000", "b sees")
	greet(t, a.ns, "0.0.0.0:9999", "a's undeclared port sees")

	web := service("web", c.vip(20), port("http", 80), udpPort("dns", 53))
	c.create(web)
	c.create(endpointSlice(web, 8000, a, b))
	public := service("public", c.vip(21), port("http", 8080))
	public.Spec.Type = corev1.ServiceTypeLoadBalancer
	public.Spec.Ports[0].NodePort = 30080
	c.create(public)
	c.create(endpointSlice(public, 8000, a))
	private := service("private", c.vip(22), port("http", 8081))
	private.Spec.Type = corev1.ServiceTypeLoadBalancer
	private.Annotations = map[string]string{HostIP: "127.0.0.1"}
	c.create(private)
	c.create(endpointSlice(private, 8000, a))
	every := service("every", c.vip(23), port("http", 80))
	every.Annotations = map[string]string{AllPorts: "true"}
	c.create(every)
	c.create(endpointSlice(every, 8000, a))
	c.create(service("empty", c.vip(24), port("http", 80)))
	container := networktest.NetNS(t)
	_, err := c.net.Attach(t.Context(), container, network.AttachSpec{Network: "bridge", ContainerID: strings.Repeat("c", 64), Name: "c"})
	check(t, err)
	t.Cleanup(func() { check(t, c.net.Release(context.Background(), strings.Repeat("c", 64))) })

	node := c.net.NodeAddr().String()
	c.reaches("a service with several pods", client.ns, "tcp", c.vip(20)+":80", "a sees "+client.ip())
	c.reaches("the other of its pods", client.ns, "tcp", c.vip(20)+":80", "b sees "+client.ip())
	c.reaches("a UDP service", client.ns, "udp", c.vip(20)+":53", "b sees "+client.ip())
	c.reaches("a service from the node", nil, "tcp", c.vip(20)+":80", "a sees "+node)
	c.reaches("a service from a Docker container", container, "tcp", c.vip(20)+":80", "a sees 172.17.0.2")
	c.reaches("a pod its own service", a.ns, "tcp", c.vip(21)+":8080", "a sees")
	c.reaches("a load balancer from outside", c.Outside, "tcp", networktest.HostAddr+":8080", "a sees "+networktest.OutsideAddr)
	c.reaches("a load balancer from localhost", nil, "tcp", "127.0.0.1:8080", "a sees")
	c.reaches("a load balancer from the node", nil, "tcp", networktest.HostAddr+":8080", "a sees "+networktest.HostAddr)
	c.reaches("a load balancer from a pod", b.ns, "tcp", node+":8080", "a sees "+b.ip())
	c.reaches("a load balancer from its own pod", a.ns, "tcp", node+":8080", "a sees")
	c.reaches("a node port from outside", c.Outside, "tcp", networktest.HostAddr+":30080", "a sees "+networktest.OutsideAddr)
	c.reaches("a load balancer on localhost only", nil, "tcp", "127.0.0.1:8081", "a sees")
	c.reaches("a declared port of a service for every port", client.ns, "tcp", c.vip(23)+":80", "a sees "+client.ip())
	c.reaches("an undeclared port of it", client.ns, "tcp", c.vip(23)+":9999", "a's undeclared port sees "+client.ip())
	for what, to := range map[string]string{
		"a service without pods":              c.vip(24) + ":80",
		"a port that a service does not have": c.vip(20) + ":81",
		"an address that no service has":      c.vip(99) + ":80",
	} {
		for from, ns := range map[string]*os.File{"a pod": client.ns, "the node": nil, "a container": container} {
			if got := call(t, ns, "tcp", to); !strings.Contains(got, "connection refused") {
				t.Errorf("%s from %s: %q; want a refusal at once", what, from, got)
			}
		}
	}
	if got := knock(t, c.Outside, "tcp", networktest.HostAddr+":8081"); !networktest.Unreachable(got) {
		t.Errorf("a load balancer on localhost only, from outside: %q", got)
	}
	if got := networktest.KnockLoopback(t, c.Outside, networktest.HostAddr, "8081"); !networktest.Unreachable(got) {
		t.Errorf("the same, by a neighbour that routes 127.0.0.1 to this machine: %q", got)
	}
	c.statusOf(t, "public", node)
	c.statusOf(t, "private", "127.0.0.1")
	c.changes(t, client, a, b, web, public)
}

func (c *cluster) statusOf(t *testing.T, name, want string) {
	t.Helper()
	eventually(t, "status of service "+name, func() bool {
		svc, _ := store.Get[*corev1.Service](c.store, kinds.Services, "shop", name)
		in := svc.Status.LoadBalancer.Ingress
		return len(in) == 1 && in[0].IP == want
	})
}

// changes: endpoints come and go, and the daemon restarts, without a refused call.
func (c *cluster) changes(t *testing.T, client, a, b pod, web, public *corev1.Service) {
	slice := endpointSlice(web, 8000, a, b)
	no, yes := false, true
	slice.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	c.replace(slice)
	inRow := 0
	eventually(t, "calls go to the ready pod only", func() bool {
		if inRow++; knock(t, client.ns, "tcp", c.vip(20)+":80") != "b sees "+client.ip() {
			inRow = 0
		}
		return inRow == 8
	})
	slice = endpointSlice(web, 8000, a)
	slice.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	c.replace(slice)
	c.reaches("the last pod, terminating but serving", client.ns, "tcp", c.vip(20)+":80", "a sees "+client.ip())

	c.stop()
	c.reaches("a service while no daemon runs", client.ns, "tcp", c.vip(20)+":80", "a sees "+client.ip())
	c.start()
	c.reaches("a service after a restart", client.ns, "tcp", c.vip(20)+":80", "a sees "+client.ip())
	networktest.Sh(t, "nft flush ruleset; "+c.before)
	c.reaches("a service after somebody flushed all rules", client.ns, "tcp", c.vip(20)+":80", "a sees "+client.ip())
	c.reaches("a node port after that", c.Outside, "tcp", networktest.HostAddr+":30080", "a sees "+networktest.OutsideAddr)

	check(t, c.write.Delete(t.Context(), kinds.EndpointSlices, "shop", "public-1", metav1.DeleteOptions{}))
	eventually(t, "a load balancer without pods refuses", func() bool {
		return strings.Contains(knock(t, c.Outside, "tcp", networktest.HostAddr+":8080"), "connection refused")
	})
	check(t, c.write.Delete(t.Context(), kinds.Services, "shop", "public", metav1.DeleteOptions{}))
	eventually(t, "the port of a deleted service is free", func() bool {
		_, err := c.net.ReservePort(t.Context(), "test", "tcp", netip.Addr{}, 8080)
		return err == nil
	})
	c.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "late"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, ClusterIPs: []string{c.vip(30)}, Ports: []corev1.ServicePort{port("http", 8080)}},
	})
	eventually(t, "a service whose port is taken says so", func() bool {
		svc, _ := store.Get[*corev1.Service](c.store, kinds.Services, "shop", "late")
		cond := svc.Status.Conditions
		return len(cond) == 1 && strings.HasSuffix(cond[0].Message, "Bind for 0.0.0.0:8080 failed: port is already allocated (by test)") && len(svc.Status.LoadBalancer.Ingress) == 0
	})
	c.net.ReleasePort(t.Context(), "test", "tcp", netip.Addr{}, 8080)
	c.statusOf(t, "late", c.net.NodeAddr().String())
}

func TestClientAffinity(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	var pods []pod
	for _, name := range []string{"a", "b", "d", "e"} {
		p := c.pod("shop", name, nil)
		greet(t, p.ns, "0.0.0.0:80", name)
		pods = append(pods, p)
	}
	client := c.pod("shop", "client", nil)
	svc := service("web", c.vip(20), port("http", 80))
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	c.create(svc)
	c.create(endpointSlice(svc, 80, pods...))
	c.reaches("a service with affinity", client.ns, "tcp", c.vip(20)+":80", "")
	var first string
	eventually(t, "a first answer", func() bool {
		first = knock(t, client.ns, "tcp", c.vip(20)+":80")
		return !networktest.Unreachable(first)
	})
	for range 12 {
		if got := call(t, client.ns, "tcp", c.vip(20)+":80"); got != first {
			t.Fatalf("a client went to %q first and then to %q\n%s", first, got, networktest.Sh(t, "nft list ruleset; nft --debug=netlink list chain ip slipway-ab12cd-svc svc/shop/web/tcp/80"))
		}
	}
	var rest []pod
	for _, p := range pods {
		if !strings.HasPrefix(first, p.name+" ") {
			rest = append(rest, p)
		}
	}
	c.replace(endpointSlice(svc, 80, rest...))
	var second string
	eventually(t, "another pod when the first is gone", func() bool {
		second = knock(t, client.ns, "tcp", c.vip(20)+":80")
		return second != first && !networktest.Unreachable(second)
	})
	for range 12 {
		if got := call(t, client.ns, "tcp", c.vip(20)+":80"); got != second {
			t.Fatalf("a client went to %q and then to %q", second, got)
		}
	}
}

// A service whose memory of its clients is full serves new ones all the same.
func TestClientAffinityWithoutRoom(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	a, client := c.pod("shop", "a", nil), c.pod("shop", "client", nil)
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	svc := service("web", c.vip(20), port("http", 80))
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	c.create(svc)
	c.create(endpointSlice(svc, 80, a))
	c.settledServices(t, "shop/web")
	var clients strings.Builder
	for i := range maxAffinityClients {
		fmt.Fprintf(&clients, "add element ip slipway-ab12cd-svc clients/10800/svc/shop/web/tcp/80 { 198.18.%d.%d : %s . 80 }\n", i/256, i%256, a.ip())
	}
	script := t.TempDir() + "/full"
	check(t, os.WriteFile(script, []byte(clients.String()), 0o600))
	networktest.Sh(t, "nft -f "+script)
	if got := call(t, client.ns, "tcp", c.vip(20)+":80"); got != "a sees "+client.ip() {
		t.Errorf("one client more than there is room for: %q", got)
	}
}

// settledServices waits until a service's program, with a target, is in the kernel.
func (c *cluster) settledServices(t testing.TB, key string) {
	t.Helper()
	eventually(t, "service "+key+" programmed", func() bool {
		c.server.mu.Lock()
		defer c.server.mu.Unlock()
		for _, be := range c.server.balancer.programs[serviceOwner+key].backends {
			return len(be.targets) > 0
		}
		return false
	})
}

// A UDP client that keeps sending from one port gets to another pod when its own is gone, and to the first one that comes.
func TestUDPFlowsMoveOn(t *testing.T) {
	networktest.NeedRoot(t)
	c := newCluster(t)
	a, b, client := c.pod("shop", "a", nil), c.pod("shop", "b", nil), c.pod("shop", "client", nil)
	for _, p := range []pod{a, b} {
		greet(t, p.ns, "0.0.0.0:53", p.name)
		greet(t, p.ns, "0.0.0.0:5353", p.name)
	}
	inside := []flow{
		newFlow(t, "a pod", client.ns, c.vip(20)+":53"),
		newFlow(t, "a pod that uses a port that is not declared", client.ns, c.vip(20)+":5353"),
	}
	public := []flow{
		newFlow(t, "a neighbour", c.Outside, networktest.HostAddr+":30053"),
		newFlow(t, "this machine", nil, "127.0.0.1:30053"),
	}
	for _, f := range public {
		f.ask() // before there is a service: the kernel tracks a flow without translation
	}
	svc := service("names", c.vip(20), udpPort("dns", 53))
	svc.Spec.Type, svc.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30053
	svc.Annotations = map[string]string{AllPorts: "true"}
	c.create(svc)
	c.create(endpointSlice(svc, 53, a))
	all := slices.Concat(inside, public)
	answers := func(when string, by pod) {
		t.Helper()
		for _, f := range all {
			eventually(t, fmt.Sprintf("an answer of %s to %s %s", by.name, f.who, when), func() bool { return f.ask() == by.name })
		}
	}
	answers("after the service was made", a)
	c.replace(endpointSlice(svc, 53, b))
	answers("after the first pod went", b)
	c.replace(endpointSlice(svc, 53))
	for _, f := range all {
		eventually(t, "no answer to "+f.who+" without pods", func() bool { return f.ask() == "" })
	}
	c.replace(endpointSlice(svc, 53, a))
	answers("after a pod came back", a)
	c.stop()
	c.replace(endpointSlice(svc, 53, b))
	c.start()
	answers("after the pods changed while no daemon ran", b)
}

// flow is a UDP client that goes on sending from one port.
type flow struct {
	who  string
	conn net.Conn
}

func newFlow(t *testing.T, who string, from *os.File, to string) flow {
	f := flow{who: who}
	dial := func() {
		var err error
		f.conn, err = net.Dial("udp4", to)
		check(t, err)
	}
	if from == nil {
		dial()
	} else {
		networktest.In(t, from, dial)
	}
	t.Cleanup(func() { f.conn.Close() })
	return f
}

// ask says who answers; nobody may.
func (f flow) ask() string {
	buf := make([]byte, 100)
	_, _ = f.conn.Write([]byte("hi"))
	_ = f.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n, _ := f.conn.Read(buf)
	who, _, _ := strings.Cut(string(buf[:n]), " ")
	return who
}

func TestPlanService(t *testing.T) {
	lb := service("web", "10.96.0.20", port("http", 80), udpPort("dns", 53))
	lb.Spec.Type = corev1.ServiceTypeLoadBalancer
	lb.Spec.Ports[0].NodePort = 30080
	lb.Spec.ExternalIPs = []string{"203.0.113.5"}
	lb.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	lb.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
	far := "n2"
	slice := endpointSlice(lb, 8000, pod{addr: netip.MustParseAddr("10.1.0.1")}, pod{addr: netip.MustParseAddr("10.1.0.2")})
	slice.Endpoints[1].NodeName = &far
	p, err := planService(lb, []*discoveryv1.EndpointSlice{slice}, where{name: "n1", addr: netip.MustParseAddr("10.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]string{
		"10.96.0.20 TCP 80":    "[10.1.0.1:8000 10.1.0.2:8000] []",
		"10.96.0.20 UDP 53":    "[10.1.0.1:8000 10.1.0.2:8000] []",
		"203.0.113.5 TCP 80":   "[10.1.0.1:8000] []",
		"invalid IP TCP 30080": "[10.1.0.1:8000] []",
		"invalid IP TCP 80":    "[10.1.0.1:8000] [203.0.113.0/24]",
		"invalid IP UDP 53":    "[10.1.0.1:8000] [203.0.113.0/24]",
	} {
		found := false
		for front, chain := range p.fronts {
			if fmt.Sprintf("%s %s %d", front.addr, front.proto, front.port) == f {
				b := p.backends[chain]
				found = true
				if got := fmt.Sprintf("%v %v", b.targets, b.sources); got != want {
					t.Errorf("%s leads to %s; want %s", f, got, want)
				}
			}
		}
		if !found {
			t.Errorf("nothing at %s in %v", f, p.fronts)
		}
	}
	lb.Spec.LoadBalancerSourceRanges = []string{"2001:db8::/32"}
	p, err = planService(lb, []*discoveryv1.EndpointSlice{slice}, where{name: "n1", addr: netip.MustParseAddr("10.0.0.1")})
	if b := p.backends[p.fronts[front{proto: corev1.ProtocolTCP, port: 80}]]; err != nil || len(b.targets) > 0 {
		t.Errorf("a load balancer for IPv6 clients alone leads IPv4 ones to %v, %v", b.targets, err)
	}
	bad := service("web", "10.96.0.20", port("http", 80))
	bad.Annotations = map[string]string{HostIP: "127.0.0.1,localhost"}
	if _, err := planService(bad, nil, where{}); err == nil || !strings.Contains(err.Error(), `annotation slipway.dev/host-ip of service shop/web: "localhost" is not an IPv4 address`) {
		t.Errorf("host name as host address: %v", err)
	}
	// Who may write services in one namespace must not be able to take the calls of those of another.
	thief := service("web", "10.96.0.20", port("http", 80))
	thief.Spec.ExternalIPs = []string{"10.96.0.99", "203.0.113.5"}
	p, err = planService(thief, nil, where{own: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	if want := "spec.externalIPs of service shop/web: 10.96.0.99 is one of the cluster's own addresses"; err == nil || err.Error() != want {
		t.Errorf("an address of another service: %v; want %s", err, want)
	}
	if len(p.fronts) != 2 {
		t.Errorf("it has the fronts %v; want its own and 203.0.113.5", p.fronts)
	}
}

func BenchmarkEndpointChange(b *testing.B) {
	networktest.NeedRoot(b)
	c := newCluster(b)
	c.server.mu.Lock() // the Server has nothing to do
	defer c.server.mu.Unlock()
	model := c.server.model
	targets := func(n, from int) backend {
		var be backend
		for i := range n {
			be.targets = append(be.targets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(from + i)}), 80))
		}
		return be
	}
	bal := c.server.balancer
	i := 0
	for b.Loop() {
		i++
		bal.set("shop/web", program{backends: map[string]backend{"svc/shop/web": targets(10, i%2)}, fronts: map[front]string{{netip.MustParseAddr("10.96.0.9"), corev1.ProtocolTCP, 80}: "svc/shop/web"}})
		check(b, model.Commit())
	}
}
