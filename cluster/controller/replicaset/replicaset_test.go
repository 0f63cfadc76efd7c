package replicaset_test

import (
	"fmt"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
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

// TestPodsOfOtherNamespacesDoNotCount: who may make pods in one namespace must not be able to take away those of another, by
// writing its replica set into theirs as the owner.
func TestPodsOfOtherNamespacesDoNotCount(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.StartKubelet(&controllertest.Kubelet{Bind: "n1"})
		c.Start(replicaset.New(c.Deps))
		one, labels := int32(1), map[string]string{"app": "web"}
		rs := controllertest.Create(c, &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec: appsv1.ReplicaSetSpec{
				Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}},
			},
		})
		c.Settle()
		mine := c.Pods("shop")[0].Name
		for i := range 3 {
			controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: fmt.Sprintf("false-%d", i), Labels: labels,
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}}})
		}
		controllertest.Edit(c, rs, func(rs *appsv1.ReplicaSet) { rs.Annotations = map[string]string{"look": "again"} })
		c.Settle()
		if pods := c.Pods("shop"); len(pods) != 1 || pods[0].Name != mine || pods[0].DeletionTimestamp != nil {
			t.Errorf("the set has %d pods; want the one that it had", len(pods))
		}
		if got := controllertest.Get(c, rs).Status.Replicas; got != 1 || len(c.Pods("other")) != 3 {
			t.Errorf("the status counts %d, and the other namespace has %d pods; want 1 and 3", got, len(c.Pods("other")))
		}
	})
}
