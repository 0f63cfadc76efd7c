//lint:file-ignore SA1019 Endpoints are deprecated for new code, but people write them for services without a selector.

package endpointslice_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/endpointslice"
)

// mirrored is what the slices say: address:port, with a ! where it is not ready.
func mirrored(c *controllertest.Cluster) string {
	var out []string
	for _, s := range slicesOf(c) {
		for _, e := range s.Endpoints {
			text := fmt.Sprintf("%s:%d", e.Addresses[0], *s.Ports[0].Port)
			if !*e.Conditions.Ready {
				text += "!"
			}
			out = append(out, text)
		}
	}
	return strings.Join(out, " ")
}

func TestEndpointsWrittenByHandReachTheBalancers(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(endpointslice.New(c.Deps), endpointslice.NewMirror(c.Deps))
		expect := func(when, want string) {
			t.Helper()
			c.Settle()
			if got := mirrored(c); got != want {
				t.Errorf("%s: slices have %q; want %q", when, got, want)
			}
		}
		svc := service()
		svc.Spec.Selector = nil
		svc = controllertest.Create(c, svc)
		ep := controllertest.Create(c, &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Subsets: []corev1.EndpointSubset{{
				Ports:     []corev1.EndpointPort{{Name: "http", Port: 8080}},
				Addresses: []corev1.EndpointAddress{{IP: "10.9.0.1"}}, NotReadyAddresses: []corev1.EndpointAddress{{IP: "10.9.0.2"}},
			}},
		})
		expect("at first", "10.9.0.1:8080 10.9.0.2:8080!")
		ep = controllertest.Edit(c, ep, func(ep *corev1.Endpoints) { ep.Subsets[0].NotReadyAddresses = nil })
		expect("with an address less", "10.9.0.1:8080")
		controllertest.Edit(c, ep, func(ep *corev1.Endpoints) {
			ep.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
		})
		expect("when its writer keeps slices itself", "")
		ep = controllertest.Edit(c, ep, func(ep *corev1.Endpoints) { ep.Labels = nil })
		expect("again", "10.9.0.1:8080")
		controllertest.Edit(c, svc, func(svc *corev1.Service) { svc.Spec.Selector = map[string]string{"app": "web"} })
		expect("when the service selects pods", "")
		controllertest.Edit(c, svc, func(svc *corev1.Service) { svc.Spec.Selector = nil })
		c.Settle()
		ref := func(name string) *corev1.ObjectReference { return &corev1.ObjectReference{Kind: "Pod", Name: name} }
		ep = controllertest.Edit(c, ep, func(ep *corev1.Endpoints) {
			ep.Subsets[0].Addresses = []corev1.EndpointAddress{{IP: "10.9.0.1", TargetRef: ref("a")}, {IP: "10.9.0.2", TargetRef: ref("b")}}
		})
		expect("with pods named without their UIDs", "10.9.0.1:8080 10.9.0.2:8080")
		ep = controllertest.Edit(c, ep, func(ep *corev1.Endpoints) { ep.Annotations = map[string]string{"look": "again"} })
		expect("the same, looked at again", "10.9.0.1:8080 10.9.0.2:8080")
		c.Delete(ep, "")
		expect("without endpoints", "")
	})
}
