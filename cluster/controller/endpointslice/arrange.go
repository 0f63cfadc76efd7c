package endpointslice

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/net"

	"slipway.dev/slipway/cluster/controller"
)

// perSlice bounds a slice: a change to one endpoint costs every reader one slice.
const perSlice = 100

// group is what shares slices: one address family, one list of resolved ports.
type group struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

func (g *group) key() string { return groupKey(g.family, g.ports) }

func groupKey(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
	if len(ports) == 0 {
		ports = nil // the stored form does not tell none from empty
	}
	return string(family) + controller.Hash(ports, nil)
}

// desired says which endpoints a service has. Pods of one service may resolve a named
// port differently, and then live in different groups. There is at least one group per
// family, be it empty: its slice tells readers that the service is known.
func desired(svc *corev1.Service, pods []*corev1.Pod, zone func(node string) string) []*group {
	var groups []*group
	find := func(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *group {
		for _, g := range groups {
			if g.family == family && equality.Semantic.DeepEqual(g.ports, ports) {
				return g
			}
		}
		g := &group{family: family, ports: ports}
		groups = append(groups, g)
		return g
	}
	for _, family := range families(svc) {
		n := len(groups)
		for _, pod := range pods {
			if e, ok := endpoint(svc, pod, family, zone); ok {
				g := find(family, portsFor(svc, pod))
				g.endpoints = append(g.endpoints, e)
			}
		}
		if len(groups) == n {
			find(family, []discoveryv1.EndpointPort{})
		}
	}
	return groups
}

func families(svc *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, f := range svc.Spec.IPFamilies {
		out = append(out, discoveryv1.AddressType(f))
	}
	if len(out) == 0 {
		out = append(out, discoveryv1.AddressTypeIPv4)
	}
	return out
}

func endpoint(svc *corev1.Service, pod *corev1.Pod, family discoveryv1.AddressType, zone func(string) string) (discoveryv1.Endpoint, bool) {
	if pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return discoveryv1.Endpoint{}, false
	}
	address := AddressOf(pod, family == discoveryv1.AddressTypeIPv6)
	if address == "" {
		return discoveryv1.Endpoint{}, false
	}
	serving, terminating := controller.Ready(pod), pod.DeletionTimestamp != nil
	ready := svc.Spec.PublishNotReadyAddresses || (serving && !terminating)
	e := discoveryv1.Endpoint{
		Addresses:  []string{address},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		e.NodeName = &pod.Spec.NodeName
		if z := zone(pod.Spec.NodeName); z != "" {
			e.Zone = &z
		}
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		e.Hostname = &pod.Spec.Hostname
	}
	return e, true
}

// AddressOf is a pod's address of one family, or "".
func AddressOf(pod *corev1.Pod, v6 bool) string {
	for _, ip := range pod.Status.PodIPs {
		if net.IsIPv6String(ip.IP) == v6 {
			return ip.IP
		}
	}
	if ip := pod.Status.PodIP; ip != "" && len(pod.Status.PodIPs) == 0 && net.IsIPv6String(ip) == v6 {
		return ip
	}
	return ""
}

// portsFor resolves a service's ports on one pod; those that the pod does not have are left out.
func portsFor(svc *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	ports := []discoveryv1.EndpointPort{}
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		number, ok := TargetPort(pod, p)
		if !ok {
			continue
		}
		ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
	}
	return ports
}

// TargetPort is the number of the container port that a service port means on a pod.
func TargetPort(pod *corev1.Pod, p *corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		if p.TargetPort.IntVal == 0 {
			return p.Port, true
		}
		return p.TargetPort.IntVal, true
	}
	if p.TargetPort.StrVal == "" {
		return p.Port, true
	}
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, sidecars(pod)} {
		for i := range containers {
			for _, cp := range containers[i].Ports {
				if cp.Name == p.TargetPort.StrVal && (cp.Protocol == p.Protocol || cp.Protocol == "") {
					return cp.ContainerPort, true
				}
			}
		}
	}
	return 0, false
}

func sidecars(pod *corev1.Pod) (out []corev1.Container) {
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}

// changes turn the existing slices into the desired ones.
type changes struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// home is whom slices belong to, and what they carry for it.
type home struct {
	namespace, name string
	labels          map[string]string
	owner           metav1.OwnerReference
}

// homeOf is a service's.
func homeOf(svc *corev1.Service) home {
	return home{svc.Namespace, svc.Name, labelsFor(svc), *metav1.NewControllerRef(svc, corev1.SchemeGroupVersion.WithKind("Service"))}
}

// arrange fits the groups into the existing slices: an endpoint stays where it is, a new
// one goes where there is room, and a slice that is left empty goes away unless it is the
// only one.
func arrange(h home, groups []*group, existing []*discoveryv1.EndpointSlice) changes {
	byGroup := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		key := groupKey(s.AddressType, s.Ports)
		byGroup[key] = append(byGroup[key], s)
	}
	var ch changes
	for _, g := range groups {
		mine := byGroup[g.key()]
		delete(byGroup, g.key())
		ch.add(h, g, mine)
	}
	// Slices of ports that are no longer served. One of them can be reused when the
	// service has gained a group: fewer objects come and go.
	for _, key := range slices.Sorted(maps.Keys(byGroup)) {
		ch.remove = append(ch.remove, byGroup[key]...)
	}
	ch.reuse()
	return ch
}

func (ch *changes) add(h home, g *group, mine []*discoveryv1.EndpointSlice) {
	waiting := map[string]discoveryv1.Endpoint{}
	for _, e := range g.endpoints {
		waiting[identity(&e)] = e
	}
	filled := make([][]discoveryv1.Endpoint, len(mine))
	for i, s := range mine {
		for j := range s.Endpoints {
			id := identity(&s.Endpoints[j])
			if e, ok := waiting[id]; ok {
				filled[i] = append(filled[i], e)
				delete(waiting, id)
			}
		}
	}
	var rest []discoveryv1.Endpoint
	for _, e := range g.endpoints {
		if _, ok := waiting[identity(&e)]; ok {
			rest = append(rest, e)
		}
	}
	for i := range filled {
		n := min(perSlice-len(filled[i]), len(rest))
		if n > 0 {
			filled[i] = append(filled[i], rest[:n]...)
			rest = rest[n:]
		}
	}
	kept := 0
	for i, s := range mine {
		if len(filled[i]) == 0 && (kept > 0 || i < len(mine)-1 || len(rest) > 0) {
			ch.remove = append(ch.remove, s)
			continue
		}
		kept++
		if next := renew(h, g, s, filled[i]); next != nil {
			ch.update = append(ch.update, next)
		}
	}
	for len(rest) > 0 || kept == 0 {
		n := min(perSlice, len(rest))
		ch.create = append(ch.create, newSlice(h, g, rest[:n]))
		rest = rest[n:]
		kept++
	}
}

// identity is what makes two endpoints the same one, whatever state it is in. Who writes endpoints by hand may well
// leave out a pod's UID.
func identity(e *discoveryv1.Endpoint) string {
	id := strings.Join(e.Addresses, " ")
	if e.TargetRef != nil {
		id += " " + string(e.TargetRef.UID)
	}
	return id
}

// renew is the slice as it should be, or nil if it is so already.
func renew(h home, g *group, s *discoveryv1.EndpointSlice, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	if maps.Equal(s.Labels, h.labels) && equality.Semantic.DeepEqual(s.Endpoints, endpoints) && equality.Semantic.DeepEqual(s.Ports, g.ports) {
		return nil
	}
	next := s.DeepCopy()
	next.Labels, next.Endpoints, next.Ports = h.labels, endpoints, g.ports
	return next
}

func newSlice(h home, g *group, endpoints []discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	if endpoints == nil {
		endpoints = []discoveryv1.Endpoint{}
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: h.namespace, GenerateName: h.name + "-", Labels: h.labels, OwnerReferences: []metav1.OwnerReference{h.owner},
		},
		AddressType: g.family, Endpoints: endpoints, Ports: g.ports,
	}
}

func labelsFor(svc *corev1.Service) map[string]string {
	out := maps.Clone(svc.Labels)
	if out == nil {
		out = map[string]string{}
	}
	out[discoveryv1.LabelServiceName] = svc.Name
	out[discoveryv1.LabelManagedBy] = ManagedBy
	delete(out, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		out[corev1.IsHeadlessService] = ""
	}
	return out
}

// reuse turns a removal and a creation into an update where the family is the same.
func (ch *changes) reuse() {
	var create []*discoveryv1.EndpointSlice
	slices.SortFunc(ch.remove, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range ch.create {
		i := slices.IndexFunc(ch.remove, func(old *discoveryv1.EndpointSlice) bool { return old.AddressType == s.AddressType })
		if i < 0 {
			create = append(create, s)
			continue
		}
		next := ch.remove[i].DeepCopy()
		next.Labels, next.Endpoints, next.Ports = s.Labels, s.Endpoints, s.Ports
		ch.update = append(ch.update, next)
		ch.remove = slices.Delete(ch.remove, i, i+1)
	}
	ch.create = create
}
