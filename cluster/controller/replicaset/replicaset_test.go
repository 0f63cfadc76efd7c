package replicaset_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/replicaset"
)

func TestReplicationControllersKeepTheirNumberOfPods(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.StartKubelet(&controllertest.Kubelet{Bind: "n1"})
		c.Start(replicaset.New(c.Deps), replicaset.NewReplication(c.Deps))
		three, labels := int32(3), map[string]string{"app": "web"}
		orphan := controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orphan", Labels: labels}})
		rc := controllertest.Create(c, &corev1.ReplicationController{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: corev1.ReplicationControllerSpec{
				Replicas: &three, Selector: labels,
				Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
			},
		})
		expect := func(when, want string) {
			t.Helper()
			c.Settle()
			s := controllertest.Get(c, rc).Status
			if got := fmt.Sprintf("%d pods, status %d ready %d available %d", len(c.Pods("shop")), s.Replicas, s.ReadyReplicas, s.AvailableReplicas); got != want {
				t.Errorf("%s: %s; want %s", when, got, want)
			}
		}
		expect("at first", "3 pods, status 3 ready 3 available 3")
		if ref := metav1.GetControllerOf(controllertest.Get(c, orphan)); ref == nil || ref.Kind != "ReplicationController" || ref.UID != rc.UID {
			t.Errorf("the orphan's controller = %v; want the replication controller", ref)
		}
		// Nothing has changed: its status must not be written again and again.
		before := controllertest.Get(c, rc).ResourceVersion
		controllertest.Edit(c, orphan, func(p *corev1.Pod) { p.Annotations = map[string]string{"seen": "yes"} })
		c.Settle()
		if after := controllertest.Get(c, rc).ResourceVersion; after != before {
			t.Errorf("the status was written without need: resource version %s, before %s", after, before)
		}
		controllertest.Edit(c, rc, func(rc *corev1.ReplicationController) { *rc.Spec.Replicas = 1 })
		expect("scaled down", "1 pods, status 1 ready 1 available 1")
		controllertest.Edit(c, c.Pods("shop")[0], func(p *corev1.Pod) { p.Labels = nil })
		expect("with one pod released", "2 pods, status 1 ready 1 available 1")
	})
}
