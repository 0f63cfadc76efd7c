package deployment_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/deployment"
	"slipway.dev/slipway/cluster/controller/replicaset"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func web(replicas int32, image string) *appsv1.Deployment {
	surge, unavailable := intstr.FromInt32(1), intstr.FromInt32(0)
	deadline, history := int32(600), int32(10)
	labels := map[string]string{"app": "web"}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", Annotations: map[string]string{"team": "a"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, ProgressDeadlineSeconds: &deadline, RevisionHistoryLimit: &history,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: image}}},
			},
		},
	}
}

func start(c *controllertest.Cluster, k *controllertest.Kubelet) {
	if k.Bind == "" {
		k.Bind = "n1"
	}
	c.StartKubelet(k)
	c.Start(deployment.New(c.Deps), replicaset.New(c.Deps))
}

// images counts the pods by image, those that are going away with a minus.
func images(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		sign := ""
		if p.DeletionTimestamp != nil {
			sign = "-"
		}
		out = append(out, sign+p.Spec.Containers[0].Image)
	}
	counts := map[string]int{}
	for _, s := range out {
		counts[s]++
	}
	return fmt.Sprint(counts)
}

func sets(c *controllertest.Cluster) []*appsv1.ReplicaSet {
	return store.List[*appsv1.ReplicaSet](c.Store, kinds.ReplicaSets, "shop")
}

func condition(d *appsv1.Deployment, t appsv1.DeploymentConditionType) string {
	for _, c := range d.Status.Conditions {
		if c.Type == t {
			return string(c.Status) + " " + c.Reason + ": " + c.Message
		}
	}
	return "none"
}

func TestDeploymentComesUp(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{ReadyAfter: time.Second})
		d := controllertest.Create(c, web(3, "web:1"))
		c.Settle()
		if got := images(c); got != "map[web:1:3]" {
			t.Errorf("pods = %s; want three of web:1", got)
		}
		d = controllertest.Get(c, d)
		rs := sets(c)[0]
		if got, want := condition(d, appsv1.DeploymentProgressing), fmt.Sprintf("True ReplicaSetUpdated: ReplicaSet %q is progressing.", rs.Name); got != want {
			t.Errorf("while pods start, Progressing = %s; want %s", got, want)
		}
		if got, want := condition(d, appsv1.DeploymentAvailable), "False MinimumReplicasUnavailable: Deployment does not have minimum availability."; got != want {
			t.Errorf("while pods start, Available = %s; want %s", got, want)
		}
		c.Sleep(time.Second)
		d = controllertest.Get(c, d)
		if s := d.Status; s.Replicas != 3 || s.UpdatedReplicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.UnavailableReplicas != 0 || s.ObservedGeneration != 1 {
			t.Errorf("status = %+v; want 3 of everything at generation 1", s)
		}
		if got, want := condition(d, appsv1.DeploymentProgressing), fmt.Sprintf("True NewReplicaSetAvailable: ReplicaSet %q has successfully progressed.", rs.Name); got != want {
			t.Errorf("Progressing = %s; want %s", got, want)
		}
		if d.Annotations["deployment.kubernetes.io/revision"] != "1" || rs.Annotations["team"] != "a" || rs.Annotations["deployment.kubernetes.io/desired-replicas"] != "3" || rs.Annotations["deployment.kubernetes.io/max-replicas"] != "4" {
			t.Errorf("annotations of the deployment %v and its set %v", d.Annotations, rs.Annotations)
		}
		hash := controller.TemplateHash(&d.Spec.Template, nil)
		if rs.Name != "web-"+hash || rs.Spec.Selector.MatchLabels["pod-template-hash"] != hash || c.Pods("shop")[0].Labels["pod-template-hash"] != hash {
			t.Errorf("set %s selects %v; want hash %s in both and in the pods' labels", rs.Name, rs.Spec.Selector.MatchLabels, hash)
		}
		if got, want := c.Events("web"), "ScalingReplicaSet: Scaled up replica set "+rs.Name+" from 0 to 3"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
	})
}

// watchAvailability fails the test when fewer than min pods are ready or more than max exist.
func watchAvailability(c *controllertest.Cluster, min, max int) func() {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Everything else happens at whole multiples of ten milliseconds: between them the reflexes have settled,
		// and a set that is about to lose a pod has lost it.
		time.Sleep(7 * time.Millisecond)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			ready, all := 0, 0
			for _, p := range c.Pods("shop") {
				if controller.Active(p) {
					all++
					if controller.Ready(p) {
						ready++
					}
				}
			}
			if ready < min || all > max {
				c.T.Errorf("%d pods ready of %d; want at least %d and at most %d", ready, all, min, max)
			}
		}
	}()
	return func() { close(stop); <-done }
}

func TestRollingUpdateKeepsItsBounds(t *testing.T) {
	for _, tt := range []struct {
		name               string
		surge, unavailable intstr.IntOrString
		min, max           int
	}{
		{"one more", intstr.FromInt32(1), intstr.FromInt32(0), 8, 9},
		{"one less", intstr.FromInt32(0), intstr.FromInt32(1), 7, 8},
		{"quarters", intstr.FromString("25%"), intstr.FromString("25%"), 6, 10},
		{"both round to nothing", intstr.FromInt32(0), intstr.FromString("1%"), 7, 8},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, &controllertest.Kubelet{ReadyAfter: time.Second, StopAfter: 3 * time.Second})
				d := web(8, "web:1")
				d.Spec.Strategy.RollingUpdate.MaxSurge, d.Spec.Strategy.RollingUpdate.MaxUnavailable = &tt.surge, &tt.unavailable
				d = controllertest.Create(c, d)
				c.Sleep(5 * time.Second)
				end := watchAvailability(c, tt.min, tt.max)
				controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "web:2" })
				c.Sleep(2 * time.Minute)
				end()
				if got := images(c); got != "map[web:2:8]" {
					t.Errorf("pods after the update = %s; want eight of web:2", got)
				}
				d = controllertest.Get(c, d)
				if !strings.HasPrefix(condition(d, appsv1.DeploymentProgressing), "True NewReplicaSetAvailable") || d.Annotations["deployment.kubernetes.io/revision"] != "2" {
					t.Errorf("Progressing = %s, annotations %v; want done at revision 2", condition(d, appsv1.DeploymentProgressing), d.Annotations)
				}
			})
		})
	}
}

func TestBadUpdateTimesOutAndIsUndone(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{NeverReady: func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "web:bad" }})
		d := controllertest.Create(c, web(3, "web:1"))
		c.Sleep(time.Second)
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "web:bad" })
		c.Sleep(9 * time.Minute)
		if got := images(c); got != "map[web:1:3 web:bad:1]" {
			t.Errorf("pods during a bad update = %s; want the old three and one new", got)
		}
		if got := condition(controllertest.Get(c, d), appsv1.DeploymentProgressing); !strings.HasPrefix(got, "True") {
			t.Errorf("Progressing before the deadline = %s; want True", got)
		}
		c.Sleep(2 * time.Minute)
		if got := condition(controllertest.Get(c, d), appsv1.DeploymentProgressing); !strings.HasPrefix(got, "False ProgressDeadlineExceeded: ReplicaSet") {
			t.Errorf("Progressing after the deadline = %s; want ProgressDeadlineExceeded", got)
		}
		// kubectl rollout undo: the old set's template, without the hash.
		old := d.Spec.Template
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template = *old.DeepCopy() })
		c.Sleep(time.Minute)
		if got := images(c); got != "map[web:1:3]" {
			t.Errorf("pods after undo = %s; want the old three", got)
		}
		d = controllertest.Get(c, d)
		if d.Annotations["deployment.kubernetes.io/revision"] != "3" {
			t.Errorf("revision after undo = %s; want 3", d.Annotations["deployment.kubernetes.io/revision"])
		}
		if !strings.HasPrefix(condition(d, appsv1.DeploymentProgressing), "True NewReplicaSetAvailable") {
			t.Errorf("Progressing after undo = %s; want done", condition(d, appsv1.DeploymentProgressing))
		}
		for _, rs := range sets(c) {
			if rs.Spec.Template.Spec.Containers[0].Image == "web:1" && rs.Annotations["deployment.kubernetes.io/revision-history"] != "1" {
				t.Errorf("the set rolled back to remembers revisions %q; want 1", rs.Annotations["deployment.kubernetes.io/revision-history"])
			}
		}
	})
}

func TestRecreateEndsOldPodsFirst(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{StopAfter: 10 * time.Second})
		d := web(2, "web:1")
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
		d = controllertest.Create(c, d)
		c.Sleep(time.Second)
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "web:2" })
		c.Sleep(5 * time.Second)
		if got := images(c); got != "map[-web:1:2]" {
			t.Errorf("pods while the old ones stop = %s; want only those", got)
		}
		c.Sleep(10 * time.Second)
		if got := images(c); got != "map[web:2:2]" {
			t.Errorf("pods afterwards = %s; want two of web:2", got)
		}
	})
}

func TestPauseScaleAndHistory(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{})
		limit := int32(2)
		d := web(2, "web:0")
		d.Spec.RevisionHistoryLimit = &limit
		d = controllertest.Create(c, d)
		c.Sleep(time.Second)
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Paused = true })
		controllertest.Edit(c, d, func(d *appsv1.Deployment) {
			d.Spec.Template.Spec.Containers[0].Image = "web:1"
			*d.Spec.Replicas = 4
		})
		c.Sleep(time.Second)
		if got := images(c); got != "map[web:0:4]" {
			t.Errorf("pods of a paused, scaled deployment = %s; want four of the old image", got)
		}
		if got := condition(controllertest.Get(c, d), appsv1.DeploymentProgressing); got != "Unknown DeploymentPaused: Deployment is paused" {
			t.Errorf("Progressing = %s; want paused", got)
		}
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Paused = false })
		c.Sleep(time.Minute)
		if got := images(c); got != "map[web:1:4]" {
			t.Errorf("pods after resuming = %s; want four of the new image", got)
		}
		for i := 2; i < 6; i++ {
			controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("web:", i) })
			c.Sleep(time.Minute)
		}
		if got := len(sets(c)); got != 3 {
			t.Errorf("%d replica sets are kept; want the newest and a history of 2", got)
		}
	})
}

func TestScalingKeepsTheProportionsOfARollout(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{NeverReady: func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "web:2" }})
		surge, unavailable := intstr.FromInt32(3), intstr.FromInt32(2)
		d := web(10, "web:1")
		d.Spec.Strategy.RollingUpdate.MaxSurge, d.Spec.Strategy.RollingUpdate.MaxUnavailable = &surge, &unavailable
		d = controllertest.Create(c, d)
		c.Sleep(time.Second)
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "web:2" })
		c.Sleep(time.Second)
		if got := images(c); got != "map[web:1:8 web:2:5]" {
			t.Errorf("pods of the stuck rollout = %s; want 8 and 5", got)
		}
		controllertest.Edit(c, d, func(d *appsv1.Deployment) { *d.Spec.Replicas = 15 })
		c.Sleep(time.Second)
		// The example of the Kubernetes documentation: 3 more for the old set, 2 for the new.
		if got := images(c); got != "map[web:1:11 web:2:7]" {
			t.Errorf("pods after scaling to 15 = %s; want 11 and 7", got)
		}
	})
}

func TestReplicaSetReplacesAdoptsAndReleases(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, &controllertest.Kubelet{})
		controllertest.Create(c, web(3, "web:1"))
		c.Sleep(time.Second)
		pods := c.Pods("shop")
		c.Delete(pods[0], "")
		c.Settle()
		if got := images(c); got != "map[web:1:3]" {
			t.Errorf("pods after one was deleted = %s; want three", got)
		}
		released := c.Pods("shop")[0]
		controllertest.Edit(c, released, func(p *corev1.Pod) { p.Labels["app"] = "debug" })
		c.Settle()
		if got := images(c); got != "map[web:1:4]" {
			t.Errorf("pods after one was relabelled = %s; want it and three more", got)
		}
		if refs := controllertest.Get(c, released).OwnerReferences; len(refs) != 0 {
			t.Errorf("the relabelled pod's owners = %v; want none", refs)
		}
		controllertest.Edit(c, released, func(p *corev1.Pod) { p.Labels["app"] = "web" })
		c.Settle()
		if got := images(c); got != "map[web:1:3]" {
			t.Errorf("pods after relabelling it back = %s; want one surplus pod deleted", got)
		}
	})
}
