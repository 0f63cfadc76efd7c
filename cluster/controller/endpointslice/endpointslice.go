// Package endpointslice keeps, for every Service with a selector, the list of the pods
// behind it: who can be reached, where, and whether it is ready.
//
// Balancers, DNS and the daemon's own proxies read these slices, so a pod that becomes
// ready or starts to end is here with one write. desired says who belongs into the slices
// and arrange how they are spread over them, changing as few slices as possible; both are
// pure.
package endpointslice

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "endpointslice-controller"
	// ManagedBy marks the slices of this controller, by upstream's name for it.
	ManagedBy = "endpointslice-controller.k8s.io"
)

// Controller reconciles the slices of Services.
type Controller struct {
	*controller.Loop
	deps controller.Deps
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	c := &Controller{deps: d.For(name)}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Workers: 4, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Services, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: func(e store.Event) []string { return ServicesOf(d.Reader, e) }},
			{Resource: kinds.EndpointSlices, Keys: slicesOf(ManagedBy)},
		},
	}
	return c
}

// ServicesOf are the services that a pod's event concerns: those that select it or did.
func ServicesOf(r store.Reader, e store.Event) []string {
	pod := e.Object.(*corev1.Pod)
	prev, _ := e.Prev.(*corev1.Pod)
	if e.Type == store.Modified && prev != nil && same(prev, pod) {
		return nil
	}
	var keys []string
	for o := range r.Snapshot(kinds.Services).All(pod.Namespace) {
		svc := o.(*corev1.Service)
		if len(svc.Spec.Selector) == 0 {
			continue
		}
		selector := labels.SelectorFromSet(svc.Spec.Selector)
		if selector.Matches(labels.Set(pod.Labels)) || (prev != nil && selector.Matches(labels.Set(prev.Labels))) {
			keys = append(keys, store.KeyOf(svc))
		}
	}
	return keys
}

// same says whether nothing has changed that an endpoint shows.
func same(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName && a.Status.Phase == b.Status.Phase &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && controller.Ready(a) == controller.Ready(b) &&
		slices.Equal(a.Status.PodIPs, b.Status.PodIPs) && a.Status.PodIP == b.Status.PodIP && equality.Semantic.DeepEqual(a.Labels, b.Labels)
}

// slicesOf are the keys of the services whose slices somebody has changed or removed.
func slicesOf(manager string) func(store.Event) []string {
	return func(e store.Event) []string {
		if e.Type == store.Added || e.Object.GetLabels()[discoveryv1.LabelManagedBy] != manager {
			return nil
		}
		if svc := e.Object.GetLabels()[discoveryv1.LabelServiceName]; svc != "" {
			return []string{store.Key(e.Object.GetNamespace(), svc)}
		}
		return nil
	}
}

// managed are a service's slices that a controller has made.
func managed(r store.Reader, key, manager string) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, s := range store.Indexed[*discoveryv1.EndpointSlice](r, kinds.EndpointSlices, kinds.ByService, key) {
		if s.Labels[discoveryv1.LabelManagedBy] == manager && s.DeletionTimestamp == nil {
			out = append(out, s)
		}
	}
	return out
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	svc, ok := store.Get[*corev1.Service](c.deps.Reader, kinds.Services, ns, n)
	if !ok || svc.DeletionTimestamp != nil {
		return 0, nil // the garbage collector takes the slices
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return 0, nil
	}
	changes := arrange(homeOf(svc), desired(svc, SelectedPods(c.deps.Reader, svc), c.zone), managed(c.deps.Reader, key, ManagedBy))
	return 0, changes.write(ctx, c.deps.Writer)
}

// SelectedPods are the pods that a service's selector matches, in the order of names.
func SelectedPods(r store.Reader, svc *corev1.Service) []*corev1.Pod {
	selector := labels.SelectorFromSet(svc.Spec.Selector)
	var out []*corev1.Pod
	for o := range r.Snapshot(kinds.Pods).All(svc.Namespace) {
		if selector.Matches(labels.Set(o.GetLabels())) {
			out = append(out, o.(*corev1.Pod))
		}
	}
	return out
}

func (c *Controller) zone(node string) string {
	o, ok := c.deps.Reader.Snapshot(kinds.Nodes).Get("", node)
	if !ok {
		return ""
	}
	return o.GetLabels()[corev1.LabelTopologyZone]
}

func (ch changes) write(ctx context.Context, w store.Writer) error {
	for _, s := range ch.update {
		if _, err := w.Update(ctx, s); err != nil {
			return fmt.Errorf("update endpoint slice %q: %w", s.Name, err)
		}
	}
	for _, s := range ch.create {
		if _, err := w.Create(ctx, s); err != nil {
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			return fmt.Errorf("create an endpoint slice for service %q: %w", s.Labels[discoveryv1.LabelServiceName], err)
		}
	}
	for _, s := range ch.remove {
		err := w.Delete(ctx, kinds.EndpointSlices, s.Namespace, s.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &s.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete endpoint slice %q: %w", s.Name, err)
		}
	}
	return nil
}
