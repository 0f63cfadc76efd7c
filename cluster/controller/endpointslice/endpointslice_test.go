package endpointslice_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/endpoints"
	"slipway.dev/slipway/cluster/controller/endpointslice"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func service() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Labels: map[string]string{"tier": "front"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": "web"}, ClusterIP: "10.96.0.7", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")}},
		},
	}
}

func pod(n int, ready bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprintf("web-%03d", n), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{
			Name: "web", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: fmt.Sprintf("10.1.%d.%d", n/250, n%250+1)},
	}
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	controllertest.SetReady(p, ready)
	return p
}

func slicesOf(c *controllertest.Cluster) []*discoveryv1.EndpointSlice {
	return store.Indexed[*discoveryv1.EndpointSlice](c.Store, kinds.EndpointSlices, kinds.ByService, "shop/web")
}

// show is every endpoint as address:port with r(eady), s(erving), t(erminating).
func show(c *controllertest.Cluster) string {
	var out []string
	for _, s := range slicesOf(c) {
		for _, e := range s.Endpoints {
			flags := ""
			for _, f := range []struct {
				on   *bool
				name string
			}{{e.Conditions.Ready, "r"}, {e.Conditions.Serving, "s"}, {e.Conditions.Terminating, "t"}} {
				if *f.on {
					flags += f.name
				}
			}
			out = append(out, fmt.Sprintf("%s:%d %s", e.Addresses[0], *s.Ports[0].Port, flags))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func subsets(c *controllertest.Cluster) string {
	//lint:ignore SA1019 the legacy object is kept beside the slices
	e := controllertest.Get(c, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
	var out []string
	for _, s := range e.Subsets {
		for _, a := range s.Addresses {
			out = append(out, fmt.Sprintf("%s:%d", a.IP, s.Ports[0].Port))
		}
		for _, a := range s.NotReadyAddresses {
			out = append(out, fmt.Sprintf("(%s:%d)", a.IP, s.Ports[0].Port))
		}
	}
	return strings.Join(out, ", ")
}

func start(c *controllertest.Cluster) {
	c.Start(endpointslice.New(c.Deps), endpoints.New(c.Deps))
}

func TestEndpointsFollowThePods(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		c.StartKubelet(&controllertest.Kubelet{StopAfter: time.Second})
		controllertest.Create(c, service())
		c.Settle()
		if got := slicesOf(c); len(got) != 1 || len(got[0].Endpoints) != 0 || got[0].Labels["tier"] != "front" || got[0].OwnerReferences[0].Kind != "Service" {
			t.Fatalf("slices of a service without pods = %+v; want an empty one", got)
		}
		one := controllertest.Create(c, pod(1, true))
		controllertest.Create(c, pod(2, false))
		c.Settle()
		if got, want := show(c), "10.1.0.2:8080 rs, 10.1.0.3:8080 "; got != want {
			t.Errorf("endpoints = %q; want %q", got, want)
		}
		if got, want := subsets(c), "10.1.0.2:8080, (10.1.0.3:8080)"; got != want {
			t.Errorf("Endpoints = %q; want %q", got, want)
		}
		c.Delete(one, "")
		c.Settle()
		if got, want := show(c), "10.1.0.2:8080 st, 10.1.0.3:8080 "; got != want {
			t.Errorf("endpoints while a pod ends = %q; want %q", got, want)
		}
		if got, want := subsets(c), "(10.1.0.3:8080)"; got != want {
			t.Errorf("Endpoints while a pod ends = %q; want %q", got, want)
		}
		c.Sleep(2 * time.Second)
		if got, want := show(c), "10.1.0.3:8080 "; got != want {
			t.Errorf("endpoints afterwards = %q; want %q", got, want)
		}
		if n := len(slicesOf(c)); n != 1 {
			t.Errorf("%d slices; want the first one, kept", n)
		}
	})
}

func TestManyEndpointsAreSpread(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		controllertest.Create(c, service())
		for i := range 250 {
			controllertest.Create(c, pod(i, true))
		}
		c.Settle()
		sizes := func() string {
			var out []int
			for _, s := range slicesOf(c) {
				out = append(out, len(s.Endpoints))
			}
			slices.Sort(out)
			return fmt.Sprint(out)
		}
		if got := sizes(); got != "[50 100 100]" {
			t.Errorf("250 endpoints are spread as %s; want 100, 100 and 50", got)
		}
		before := map[string]string{}
		for _, s := range slicesOf(c) {
			before[s.Name] = s.ResourceVersion
		}
		controllertest.EditStatus(c, pod(7, true), func(p *corev1.Pod) { controllertest.SetReady(p, false) })
		c.Settle()
		changed := 0
		for _, s := range slicesOf(c) {
			if before[s.Name] != s.ResourceVersion {
				changed++
			}
		}
		if changed != 1 {
			t.Errorf("%d slices were written when one pod changed; want 1", changed)
		}
	})
}

func TestNamedPortsMayDiffer(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c)
		controllertest.Create(c, service())
		controllertest.Create(c, pod(1, true))
		other := pod(2, true)
		other.Spec.Containers[0].Ports[0].ContainerPort = 9090
		controllertest.Create(c, other)
		c.Settle()
		if got, want := show(c), "10.1.0.2:8080 rs, 10.1.0.3:9090 rs"; got != want {
			t.Errorf("endpoints = %q; want %q", got, want)
		}
	})
}
