package scheduler_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/scheduler"
)

func start(c *controllertest.Cluster, nodes ...*corev1.Node) {
	for _, n := range nodes {
		controllertest.Create(c, n)
	}
	c.Start(scheduler.New(scheduler.Options{Reader: c.Store, Writer: c.Writer, Events: c.Deps.Events, Log: c.Deps.Log}))
	c.Settle()
}

func pod(name, cpu, memory string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{SchedulerName: scheduler.DefaultName, Containers: []corev1.Container{{Name: "c",
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
			}}}}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := controllertest.Node(name, "4", "8Gi", 10)
	for _, f := range change {
		f(n)
	}
	return n
}

func nodeLabel(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func taint(key string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect}) }
}

func labelled(labels map[string]string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = labels }
}

func antiAffinity(app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		}}}}
	}
}

func affinity(app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
			TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
		}}}}
	}
}

func hostPort(port int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: port, Protocol: corev1.ProtocolTCP}}
	}
}

func spread(key string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		}}
	}
}

func claim(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
	}
}

// where is the node of each pod of the namespace.
func where(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		out = append(out, p.Name+"@"+p.Spec.NodeName)
	}
	return strings.Join(out, " ")
}

func TestUnschedulablePodsAreToldWhyInKubernetesWords(t *testing.T) {
	for _, tt := range []struct {
		name  string
		nodes []*corev1.Node
		first []*corev1.Pod
		pod   *corev1.Pod
		want  string
	}{
		{"no nodes", nil, nil, pod("p", "1", "1Gi"), "no nodes available to schedule pods"},
		{"cpu", []*corev1.Node{node("a")}, nil, pod("p", "5", "1Gi"), "0/1 nodes are available: 1 Insufficient cpu."},
		{"cpu and memory", []*corev1.Node{node("a"), node("b")}, nil, pod("p", "5", "16Gi"), "0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient memory."},
		{"extended resource", []*corev1.Node{node("a")}, nil, pod("p", "1", "1Gi", func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("1")
		}), "0/1 nodes are available: 1 Insufficient example.com/gpu."},
		{"too many pods", []*corev1.Node{controllertest.Node("a", "4", "8Gi", 0)}, nil, pod("p", "1", "1Gi"), "0/1 nodes are available: 1 Too many pods."},
		{"taints and cordons", []*corev1.Node{node("a", taint("gpu", corev1.TaintEffectNoSchedule)), node("b", func(n *corev1.Node) { n.Spec.Unschedulable = true })}, nil,
			pod("p", "1", "1Gi"), "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable."},
		{"node selector", []*corev1.Node{node("a"), node("b"), node("c", taint("x", corev1.TaintEffectNoExecute))}, nil, pod("p", "1", "1Gi", func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
		}), "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match Pod's node affinity/selector."},
		{"host port", []*corev1.Node{node("a")}, []*corev1.Pod{pod("q", "1", "1Gi", hostPort(80))}, pod("p", "1", "1Gi", hostPort(80)),
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		{"anti-affinity", []*corev1.Node{node("a")}, []*corev1.Pod{pod("q", "1", "1Gi")}, pod("p", "1", "1Gi", antiAffinity("web")),
			"0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules."},
		{"anti-affinity of others", []*corev1.Node{node("a")}, []*corev1.Pod{pod("q", "1", "1Gi", labelled(map[string]string{"app": "db"}), antiAffinity("web"))}, pod("p", "1", "1Gi"),
			"0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."},
		{"affinity", []*corev1.Node{node("a")}, nil, pod("p", "1", "1Gi", affinity("db")), "0/1 nodes are available: 1 node(s) didn't match pod affinity rules."},
		{"spread", []*corev1.Node{node("a", nodeLabel("zone", "1")), node("b", nodeLabel("zone", "2"), func(n *corev1.Node) { n.Spec.Unschedulable = true }), node("c")},
			[]*corev1.Pod{pod("q", "1", "1Gi", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "1"} })}, pod("p", "1", "1Gi", spread("zone")),
			"0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, 1 node(s) didn't match pod topology spread constraints (missing required label), 1 node(s) were unschedulable."},
		{"claim", []*corev1.Node{node("a")}, nil, pod("p", "1", "1Gi", claim("data")), `0/1 nodes are available: persistentvolumeclaim "data" not found.`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, tt.nodes...)
				for _, p := range tt.first {
					controllertest.Create(c, p)
					c.Settle()
				}
				p := controllertest.Create(c, tt.pod)
				c.Settle()
				p = controllertest.Get(c, p)
				got := "nothing"
				for _, cond := range p.Status.Conditions {
					if cond.Type == corev1.PodScheduled {
						got = fmt.Sprint(cond.Status, " ", cond.Reason, " ", cond.Message)
					}
				}
				if want := "False Unschedulable " + tt.want; got != want {
					t.Errorf("condition PodScheduled = %s\nwant %s", got, want)
				}
				if got, want := c.Events("p"), "FailedScheduling: "+tt.want; got != want {
					t.Errorf("events = %s; want %s", got, want)
				}
			})
		})
	}
}

func TestPodsGoWhereTheyMayAndSpread(t *testing.T) {
	for _, tt := range []struct {
		name  string
		nodes []*corev1.Node
		pods  []*corev1.Pod
		want  string
	}{
		{"the emptiest node", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("1", "2", "1Gi"), pod("2", "1", "1Gi"), pod("3", "1", "1Gi")}, "1@a 2@b 3@b"},
		{"a selected node", []*corev1.Node{node("a"), node("b", nodeLabel("disk", "ssd"))}, []*corev1.Pod{
			pod("1", "1", "1Gi", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			pod("2", "1", "1Gi", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
		}, "1@b 2@b"},
		{"a preferred node", []*corev1.Node{node("a"), node("b", nodeLabel("disk", "ssd"))}, []*corev1.Pod{pod("1", "1", "1Gi", func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
				Weight: 50, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpExists}}},
			}}}}
		})}, "1@b"},
		{"a tolerated taint", []*corev1.Node{node("a", taint("gpu", corev1.TaintEffectNoSchedule))}, []*corev1.Pod{pod("1", "1", "1Gi", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
		})}, "1@a"},
		{"not a soft taint", []*corev1.Node{node("a", taint("old", corev1.TaintEffectPreferNoSchedule)), node("b")}, []*corev1.Pod{pod("1", "1", "1Gi"), pod("2", "1", "1Gi")}, "1@b 2@b"},
		{"a free host port", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("1", "1", "1Gi", hostPort(80)), pod("2", "1", "1Gi", hostPort(80))}, "1@a 2@b"},
		{"apart", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("1", "1", "1Gi", antiAffinity("web")), pod("2", "1", "1Gi", antiAffinity("web"))}, "1@a 2@b"},
		{"together, beginning with itself", []*corev1.Node{node("a"), node("b")}, []*corev1.Pod{pod("1", "1", "1Gi", affinity("web")), pod("2", "1", "1Gi", affinity("web"))}, "1@a 2@a"},
		{"evenly", []*corev1.Node{node("a", nodeLabel("zone", "1")), node("b", nodeLabel("zone", "2"))}, []*corev1.Pod{
			pod("1", "100m", "1Gi", spread("zone")), pod("2", "100m", "1Gi", spread("zone")), pod("3", "100m", "1Gi", spread("zone")), pod("4", "100m", "1Gi", spread("zone")),
		}, "1@a 2@b 3@a 4@b"},
		{"nowhere while gated or another's", []*corev1.Node{node("a")}, []*corev1.Pod{
			pod("1", "1", "1Gi", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }),
			pod("2", "1", "1Gi", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }),
		}, "1@ 2@"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, tt.nodes...)
				for _, p := range tt.pods {
					controllertest.Create(c, p)
					c.Settle()
				}
				if got := where(c); got != tt.want {
					t.Errorf("pods are at %s; want %s", got, tt.want)
				}
			})
		})
	}
}

func TestReplicasOfOneControllerAreSpreadOverNodes(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		// One node is much larger: by balance alone it would get all.
		start(c, controllertest.Node("big", "64", "256Gi", 100), node("a"), node("b"))
		yes := true
		for i := range 3 {
			controllertest.Create(c, pod(fmt.Sprint(i), "100m", "100Mi", func(p *corev1.Pod) {
				p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "rs", Controller: &yes}}
			}))
			c.Settle()
		}
		at := map[string]bool{}
		for _, p := range c.Pods("shop") {
			at[p.Spec.NodeName] = true
		}
		if len(at) != 3 {
			t.Errorf("three replicas are at %s; want three nodes", where(c))
		}
	})
}

func TestWaitingPodsTryAgainWhenSomethingChanges(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pod    *corev1.Pod
		change func(*controllertest.Cluster)
		want   string
	}{
		{"a node comes", pod("p", "4", "1Gi"), func(c *controllertest.Cluster) { controllertest.Create(c, node("b")) }, "p@b q@a"},
		{"a pod goes", pod("p", "4", "1Gi"), func(c *controllertest.Cluster) {
			q := controllertest.Get(c, pod("q", "1", "1Gi"))
			controllertest.EditStatus(c, q, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		}, "p@a q@a"},
		{"a node is labelled", pod("p", "1", "1Gi", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"x": "y"} }), func(c *controllertest.Cluster) {
			controllertest.Edit(c, node("a"), nodeLabel("x", "y"))
		}, "p@a q@a"},
		{"a claim is bound", pod("p", "1", "1Gi", claim("data")), func(c *controllertest.Cluster) {
			controllertest.Create(c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}})
			controllertest.Create(c, &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"},
				Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
			})
		}, "p@a q@a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, node("a"))
				controllertest.Create(c, pod("q", "1", "1Gi"))
				c.Settle()
				controllertest.Create(c, tt.pod)
				c.Sleep(time.Minute)
				if got := where(c); !strings.Contains(got, "p@ ") {
					t.Fatalf("pods are at %s; want p to wait", got)
				}
				tt.change(c)
				c.Sleep(time.Minute) // a change that came too early to help costs a wait: the back-off
				if got := where(c); got != tt.want {
					t.Errorf("pods are at %s; want %s", got, tt.want)
				}
			})
		})
	}
}

// TestOnePodAtATime: what asks for ReadWriteOncePod is written by one pod, however many ask for it.
func TestOnePodAtATime(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, node("a"))
		controllertest.Create(c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}})
		controllertest.Create(c, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data"},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv", AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		})
		first := controllertest.Create(c, pod("first", "1", "1Gi", claim("data")))
		controllertest.Create(c, pod("second", "1", "1Gi", claim("data")))
		c.Sleep(time.Minute)
		if got := where(c); got != "first@a second@" {
			t.Errorf("pods are at %s; want the second to wait", got)
		}
		if got, want := c.Events("second"), "FailedScheduling: 0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
		controllertest.EditStatus(c, first, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		c.Sleep(time.Minute)
		if got := where(c); got != "first@a second@a" {
			t.Errorf("pods are at %s; want the second to follow the first", got)
		}
	})
}

func TestHigherPriorityGoesFirst(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		low, high := int32(1), int32(1000)
		c.Start(scheduler.New(scheduler.Options{Reader: c.Store, Writer: c.Writer}))
		controllertest.Create(c, pod("low", "3", "1Gi", func(p *corev1.Pod) { p.Spec.Priority = &low }))
		controllertest.Create(c, pod("high", "3", "1Gi", func(p *corev1.Pod) { p.Spec.Priority = &high }))
		c.Sleep(30 * time.Second)
		controllertest.Create(c, node("a"))
		c.Settle()
		if got := where(c); got != "high@a low@" {
			t.Errorf("pods are at %s; want the one of high priority to have the only place", got)
		}
	})
}
