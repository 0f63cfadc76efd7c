//lint:file-ignore SA1019 Endpoints are deprecated for new code, but people write them for services without a selector.

package endpointslice

import (
	"cmp"
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/net"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	mirrorName = "endpointslicemirroring-controller"
	mirroredBy = "endpointslicemirroring-controller.k8s.io"
)

// Mirror keeps slices of the Endpoints that people write by hand for services without a
// selector: balancers and DNS read slices only.
type Mirror struct {
	*controller.Loop
	deps controller.Deps
}

// NewMirror makes the controller.
func NewMirror(d controller.Deps) *Mirror {
	m := &Mirror{deps: d.For(mirrorName)}
	m.Loop = &controller.Loop{
		ControllerName: mirrorName, Reader: d.Reader, Log: m.deps.Log, Sync: m.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Services, Keys: controller.Self},
			{Resource: kinds.Endpoints, Keys: controller.Self},
			{Resource: kinds.EndpointSlices, Keys: slicesOf(mirroredBy)},
		},
	}
	return m
}

func (m *Mirror) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	existing := managed(m.deps.Reader, key, mirroredBy)
	svc, ok := store.Get[*corev1.Service](m.deps.Reader, kinds.Services, ns, n)
	ep, exists := store.Get[*corev1.Endpoints](m.deps.Reader, kinds.Endpoints, ns, n)
	if !ok || !exists || len(svc.Spec.Selector) > 0 || ep.DeletionTimestamp != nil || ep.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return 0, changes{remove: existing}.write(ctx, m.deps.Writer)
	}
	labels := maps.Clone(ep.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[discoveryv1.LabelServiceName], labels[discoveryv1.LabelManagedBy] = svc.Name, mirroredBy
	h := home{ns, n, labels, *metav1.NewControllerRef(ep, corev1.SchemeGroupVersion.WithKind("Endpoints"))}
	return 0, arrange(h, mirrored(ep), existing).write(ctx, m.deps.Writer)
}

// mirrored is what Endpoints say in the terms of slices.
func mirrored(ep *corev1.Endpoints) []*group {
	var groups []*group
	add := func(ports []discoveryv1.EndpointPort, a *corev1.EndpointAddress, ready bool) {
		family := discoveryv1.AddressTypeIPv4
		if net.IsIPv6String(a.IP) {
			family = discoveryv1.AddressTypeIPv6
		}
		e := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
		if a.Hostname != "" {
			e.Hostname = &a.Hostname
		}
		for _, g := range groups {
			if g.family == family && equality.Semantic.DeepEqual(g.ports, ports) {
				g.endpoints = append(g.endpoints, e)
				return
			}
		}
		groups = append(groups, &group{family, ports, []discoveryv1.Endpoint{e}})
	}
	for i := range ep.Subsets {
		s := &ep.Subsets[i]
		ports := []discoveryv1.EndpointPort{}
		for _, p := range s.Ports {
			proto := cmp.Or(p.Protocol, corev1.ProtocolTCP)
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &proto, AppProtocol: p.AppProtocol})
		}
		for j := range s.Addresses {
			add(ports, &s.Addresses[j], true)
		}
		for j := range s.NotReadyAddresses {
			add(ports, &s.NotReadyAddresses[j], false)
		}
	}
	return groups
}
