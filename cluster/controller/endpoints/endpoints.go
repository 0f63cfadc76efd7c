//lint:file-ignore SA1019 Endpoints are deprecated for new code, but clients and the conformance suite read them.

// Package endpoints keeps the legacy Endpoints object of every Service with a selector:
// the older, single-object form of what endpoint slices say. Nothing in Slipway reads it;
// clients and the conformance suite do.
package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/endpointslice"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "endpoint-controller"
	// maxAddresses is upstream's bound for what must fit into one object.
	maxAddresses = 1000
	managedBy    = "endpoints.kubernetes.io/managed-by"
)

// Controller reconciles Endpoints.
type Controller struct {
	*controller.Loop
	deps controller.Deps
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	c := &Controller{deps: d.For(name)}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Services, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: func(e store.Event) []string { return endpointslice.ServicesOf(d.Reader, e) }},
			{Resource: kinds.Endpoints, Keys: controller.Self},
		},
	}
	return c
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	cur, exists := store.Get[*corev1.Endpoints](c.deps.Reader, kinds.Endpoints, ns, n)
	svc, ok := store.Get[*corev1.Service](c.deps.Reader, kinds.Services, ns, n)
	if !ok {
		if exists && cur.Labels[managedBy] == name {
			err := c.deps.Writer.Delete(ctx, kinds.Endpoints, ns, n, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &cur.UID}})
			return 0, ignoreNotFound(err)
		}
		return 0, nil
	}
	if svc.Spec.Selector == nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.DeletionTimestamp != nil {
		return 0, nil
	}
	want := desired(svc, endpointslice.SelectedPods(c.deps.Reader, svc))
	if !exists {
		_, err := c.deps.Writer.Create(ctx, want)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return 0, nil
		}
		return 0, wrap(err, key)
	}
	if maps.Equal(cur.Labels, want.Labels) && equality.Semantic.DeepEqual(cur.Subsets, want.Subsets) {
		return 0, nil
	}
	next := store.Copy(cur)
	next.Labels, next.Subsets = want.Labels, want.Subsets
	_, err := c.deps.Writer.Update(ctx, next)
	return 0, wrap(err, key)
}

func wrap(err error, key string) error {
	if err != nil {
		return fmt.Errorf("endpoints %q: %w", key, err)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func desired(svc *corev1.Service, pods []*corev1.Pod) *corev1.Endpoints {
	labels := maps.Clone(svc.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[managedBy] = name
	delete(labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		labels[corev1.IsHeadlessService] = ""
	}
	return &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: labels},
		Subsets:    subsets(svc, pods),
	}
}

// subsets groups addresses by the ports they serve.
func subsets(svc *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset {
	byPorts := map[string]*corev1.EndpointSubset{}
	v6 := len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	for i, pod := range pods {
		if i >= maxAddresses {
			break
		}
		ip := endpointslice.AddressOf(pod, v6)
		terminating := pod.DeletionTimestamp != nil && !svc.Spec.PublishNotReadyAddresses
		if ip == "" || terminating || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		ports := portsFor(svc, pod)
		if len(ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue
		}
		key := fmt.Sprint(ports)
		s := byPorts[key]
		if s == nil {
			s = &corev1.EndpointSubset{Ports: ports}
			byPorts[key] = s
		}
		a := address(svc, pod, ip)
		if svc.Spec.PublishNotReadyAddresses || controller.Ready(pod) {
			s.Addresses = append(s.Addresses, a)
		} else {
			s.NotReadyAddresses = append(s.NotReadyAddresses, a)
		}
	}
	var out []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(byPorts)) {
		s := byPorts[key]
		byIP := func(a, b corev1.EndpointAddress) int { return cmp.Compare(a.IP, b.IP) }
		slices.SortFunc(s.Addresses, byIP)
		slices.SortFunc(s.NotReadyAddresses, byIP)
		out = append(out, *s)
	}
	return out
}

func portsFor(svc *corev1.Service, pod *corev1.Pod) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for i := range svc.Spec.Ports {
		p := &svc.Spec.Ports[i]
		if n, ok := endpointslice.TargetPort(pod, p); ok {
			out = append(out, corev1.EndpointPort{Name: p.Name, Port: n, Protocol: p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return out
}

func address(svc *corev1.Service, pod *corev1.Pod, ip string) corev1.EndpointAddress {
	a := corev1.EndpointAddress{
		IP:        ip,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID},
	}
	if pod.Spec.NodeName != "" {
		a.NodeName = &pod.Spec.NodeName
	}
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain == svc.Name {
		a.Hostname = pod.Spec.Hostname
	}
	return a
}
