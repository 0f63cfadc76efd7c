package disruption_test

import (
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/disruption"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func readyPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": "web"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
}

// seen is the status as a sentence.
func seen(c *controllertest.Cluster) string {
	b, ok := store.Get[*policyv1.PodDisruptionBudget](c.Store, kinds.PodDisruptionBudgets, "shop", "web")
	if !ok {
		return "none"
	}
	s := b.Status
	condition := "no condition"
	for _, k := range s.Conditions {
		condition = k.Type + "=" + string(k.Status)
	}
	return fmt.Sprintf("%d of %d healthy, %d needed, %d may go, %d claimed, %s", s.CurrentHealthy, s.ExpectedPods, s.DesiredHealthy, s.DisruptionsAllowed, len(s.DisruptedPods), condition)
}

func TestTheStatusFollowsThePods(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(disruption.New(c.Deps))
		least := intstr.FromInt32(1)
		b := controllertest.Create(c, &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &least, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
		})
		expect := func(when, want string) {
			t.Helper()
			if got := seen(c); got != want {
				t.Errorf("%s: %s; want %s", when, got, want)
			}
		}
		c.Settle()
		expect("without pods", "0 of 0 healthy, 1 needed, 0 may go, 0 claimed, DisruptionAllowed=False")
		controllertest.Create(c, readyPod("a"))
		second := controllertest.Create(c, readyPod("b"))
		c.Settle()
		expect("with two pods", "2 of 2 healthy, 1 needed, 1 may go, 0 claimed, DisruptionAllowed=True")

		controllertest.EditStatus(c, b, func(b *policyv1.PodDisruptionBudget) {
			b.Status.DisruptedPods = map[string]metav1.Time{"a": metav1.Now()}
		})
		c.Settle()
		expect("with one claimed by an eviction", "1 of 2 healthy, 1 needed, 0 may go, 1 claimed, DisruptionAllowed=False")
		c.Sleep(2 * time.Minute)
		expect("when nobody has deleted it", "2 of 2 healthy, 1 needed, 1 may go, 0 claimed, DisruptionAllowed=True")

		c.Delete(second, "")
		c.Settle()
		expect("with one pod", "1 of 1 healthy, 1 needed, 0 may go, 0 claimed, DisruptionAllowed=False")
	})
}

// TestAMissingPodIsUnavailable: between an eviction and the pod that replaces the evicted one, nothing is left to be allowed.
func TestAMissingPodIsUnavailable(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(disruption.New(c.Deps))
		three, one := int32(3), intstr.FromInt32(1)
		set := controllertest.Create(c, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: appsv1.StatefulSetSpec{Replicas: &three}})
		controllertest.Create(c, &policyv1.PodDisruptionBudget{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
			Spec:       policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
		})
		var last *corev1.Pod
		for _, name := range []string{"web-0", "web-1", "web-2"} {
			p := readyPod(name)
			p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
			last = controllertest.Create(c, p)
		}
		c.Settle()
		if got, want := seen(c), "3 of 3 healthy, 2 needed, 1 may go, 0 claimed, DisruptionAllowed=True"; got != want {
			t.Errorf("with all three: %s; want %s", got, want)
		}
		c.Delete(last, "")
		c.Settle()
		if got, want := seen(c), "2 of 3 healthy, 2 needed, 0 may go, 0 claimed, DisruptionAllowed=False"; got != want {
			t.Errorf("with one gone: %s; want %s", got, want)
		}
	})
}
