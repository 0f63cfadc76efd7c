package nodelifecycle_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/nodelifecycle"
)

func state(c *controllertest.Cluster) string {
	n := controllertest.Get(c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	var out []string
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			out = append(out, fmt.Sprintf("Ready=%s(%s)", cond.Status, cond.Reason))
		}
	}
	var taints []string
	for _, t := range n.Spec.Taints {
		taints = append(taints, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(taints)
	return strings.Join(append(out, taints...), " ")
}

func names(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		mark := ""
		if p.DeletionTimestamp != nil {
			mark = "-"
		}
		out = append(out, p.Name+mark)
	}
	return strings.Join(out, " ")
}

func TestSilentNodesAreUnknownAndTheirPodsLeave(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		controllertest.Create(c, controllertest.Node("a", "1", "1Gi", 10))
		now := metav1.NowMicro()
		l := controllertest.Create(c, &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: "a"}, Spec: coordinationv1.LeaseSpec{RenewTime: &now}})
		seconds := int64(60)
		for _, p := range []*corev1.Pod{
			{ObjectMeta: metav1.ObjectMeta{Name: "firm"}, Spec: corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "patient"}, Spec: corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, TolerationSeconds: &seconds}}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "touchy"}},
		} {
			p.Namespace, p.Spec.NodeName, p.Status.Phase = "shop", "a", corev1.PodRunning
			controllertest.SetReady(p, true)
			controllertest.Create(c, p)
		}
		// The controller begins long after the last heartbeat: it has to wait all the same.
		time.Sleep(time.Hour)
		c.Start(nodelifecycle.New(c.Deps))
		for range 5 {
			c.Sleep(30 * time.Second)
			controllertest.Edit(c, l, func(l *coordinationv1.Lease) { n := metav1.NowMicro(); l.Spec.RenewTime = &n })
		}
		if got, want := state(c), "Ready=True(KubeletReady)"; got != want {
			t.Errorf("while it is heard of: %s; want %s", got, want)
		}
		c.Sleep(51 * time.Second)
		if got, want := state(c), "Ready=Unknown(NodeStatusUnknown) unreachable:NoExecute unreachable:NoSchedule"; got != want {
			t.Errorf("when it is silent: %s; want %s", got, want)
		}
		if got, want := names(c), "firm patient touchy-"; got != want {
			t.Errorf("pods = %s; want %s", got, want)
		}
		for _, cond := range c.Pods("shop")[0].Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status != corev1.ConditionFalse {
				t.Errorf("a pod of the silent node is still ready")
			}
		}
		c.Sleep(61 * time.Second)
		if got, want := names(c), "firm patient- touchy-"; got != want {
			t.Errorf("a minute later, pods = %s; want %s", got, want)
		}
		controllertest.EditStatus(c, controllertest.Node("a", "1", "1Gi", 10), func(n *corev1.Node) {
			for i := range n.Status.Conditions {
				n.Status.Conditions[i].Status, n.Status.Conditions[i].LastHeartbeatTime = corev1.ConditionFalse, metav1.Now()
			}
			n.Status.Conditions[0].Status, n.Status.Conditions[0].Reason = corev1.ConditionTrue, "KubeletReady"
		})
		c.Settle()
		if got, want := state(c), "Ready=True(KubeletReady)"; got != want {
			t.Errorf("when it is back: %s; want %s", got, want)
		}
	})
}

func TestCordonsAndPressureTaint(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(nodelifecycle.New(c.Deps))
		n := controllertest.Node("a", "1", "1Gi", 10)
		n.Spec.Taints = []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}}
		n.Spec.Unschedulable = true
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue})
		controllertest.Create(c, n)
		c.Settle()
		if got, want := state(c), "Ready=True(KubeletReady) disk-pressure:NoSchedule mine:NoSchedule unschedulable:NoSchedule"; got != want {
			t.Errorf("%s; want %s", got, want)
		}
		controllertest.Edit(c, n, func(n *corev1.Node) { n.Spec.Unschedulable = false })
		c.Settle()
		if got, want := state(c), "Ready=True(KubeletReady) disk-pressure:NoSchedule mine:NoSchedule"; got != want {
			t.Errorf("uncordoned: %s; want %s", got, want)
		}
	})
}

// TestTaintsOfPeopleHaveNoTime: kubectl taint gives none, and pods that tolerate the taint for a while leave all the same.
func TestTaintsOfPeopleHaveNoTime(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(nodelifecycle.New(c.Deps))
		n := controllertest.Create(c, controllertest.Node("a", "1", "1Gi", 10))
		seconds := int64(30)
		controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "patient"}, Spec: corev1.PodSpec{
			NodeName: "a", Tolerations: []corev1.Toleration{{Key: "repair", Operator: corev1.TolerationOpExists, TolerationSeconds: &seconds}}}})
		controllertest.Edit(c, n, func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "repair", Effect: corev1.TaintEffectNoExecute}}
		})
		c.Sleep(20 * time.Second)
		if got, want := names(c), "patient"; got != want {
			t.Errorf("after 20 s: %s; want %s", got, want)
		}
		c.Sleep(11 * time.Second)
		if got, want := names(c), "patient-"; got != want {
			t.Errorf("after 31 s: %s; want %s", got, want)
		}
		if got, want := state(c), "Ready=True(KubeletReady) repair:NoExecute"; got != want {
			t.Errorf("the node is %s; want %s", got, want)
		}
	})
}
