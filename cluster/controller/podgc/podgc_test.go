package podgc

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
)

func names(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

func pod(name, node string, phase corev1.PodPhase) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
}

func TestPodsOfLostNodesGo(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(New(c.Deps))
		n := controllertest.Create(c, controllertest.Node("a", "1", "1Gi", 10))
		controllertest.Create(c, controllertest.Node("b", "1", "1Gi", 10))
		controllertest.Create(c, pod("on-a", "a", corev1.PodRunning))
		controllertest.Create(c, pod("on-b", "b", corev1.PodRunning))
		controllertest.Create(c, pod("nowhere", "", corev1.PodPending))
		c.Settle()
		c.Delete(n, "")
		c.Sleep(30 * time.Second)
		if got, want := names(c), "nowhere on-a on-b"; got != want {
			t.Errorf("pods in quarantine = %s; want %s", got, want)
		}
		c.Sleep(20 * time.Second)
		if got, want := names(c), "nowhere on-b"; got != want {
			t.Errorf("pods afterwards = %s; want %s", got, want)
		}
	})
}

func TestEndedPodsAreBounded(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		gc := New(c.Deps)
		gc.keep = 3
		c.Start(gc)
		for i := range 6 {
			controllertest.Create(c, pod(fmt.Sprint("done-", i), "", corev1.PodSucceeded))
			c.Sleep(time.Second)
		}
		if got, want := names(c), "done-3 done-4 done-5"; got != want {
			t.Errorf("ended pods = %s; want the newest three: %s", got, want)
		}
	})
}
