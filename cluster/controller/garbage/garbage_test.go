package garbage_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/garbage"
	"slipway.dev/slipway/cluster/controller/namespace"
	"slipway.dev/slipway/cluster/controller/serviceaccount"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func owner(o store.Object, kind, version string, block bool) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: version, Kind: kind, Name: o.GetName(), UID: o.GetUID(), BlockOwnerDeletion: &block}
}

// family is a deployment, its replica set, and the set's two pods on a node.
func family(c *controllertest.Cluster) (*appsv1.Deployment, *appsv1.ReplicaSet, []*corev1.Pod) {
	d := controllertest.Create(c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
	rs := controllertest.Create(c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-1",
		OwnerReferences: []metav1.OwnerReference{owner(d, "Deployment", "apps/v1", true)}}})
	var pods []*corev1.Pod
	for i := range 2 {
		pods = append(pods, controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("web-1-", i),
			OwnerReferences: []metav1.OwnerReference{owner(rs, "ReplicaSet", "apps/v1", true)}}, Spec: corev1.PodSpec{NodeName: "n1"}}))
	}
	return d, rs, pods
}

// living names what is left, with a minus for what is being deleted.
func living(c *controllertest.Cluster) string {
	var out []string
	add := func(o store.Object) {
		sign := ""
		if o.GetDeletionTimestamp() != nil {
			sign = "-"
		}
		out = append(out, sign+o.GetName())
	}
	for o := range c.Store.Snapshot(kinds.Deployments).All("shop") {
		add(o)
	}
	for o := range c.Store.Snapshot(kinds.ReplicaSets).All("shop") {
		add(o)
	}
	for o := range c.Store.Snapshot(kinds.Pods).All("shop") {
		add(o)
	}
	return strings.Join(out, " ")
}

func TestDependentsFollowTheirOwner(t *testing.T) {
	for _, tt := range []struct {
		policy            metav1.DeletionPropagation
		during, afterward string
	}{
		{metav1.DeletePropagationBackground, "-web-1-0 -web-1-1", ""},
		{metav1.DeletePropagationForeground, "-web -web-1 -web-1-0 -web-1-1", ""},
		{metav1.DeletePropagationOrphan, "web-1 web-1-0 web-1-1", "web-1 web-1-0 web-1-1"},
	} {
		t.Run(string(tt.policy), func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				c.Start(garbage.New(c.Deps, kinds.All()))
				c.StartKubelet(&controllertest.Kubelet{StopAfter: 10 * time.Second})
				d, rs, _ := family(c)
				c.Settle()
				c.Delete(d, tt.policy)
				c.Sleep(5 * time.Second)
				if got := living(c); got != tt.during {
					t.Errorf("while pods end: %q; want %q", got, tt.during)
				}
				c.Sleep(10 * time.Second)
				if got := living(c); got != tt.afterward {
					t.Errorf("afterwards: %q; want %q", got, tt.afterward)
				}
				if tt.policy == metav1.DeletePropagationOrphan && len(controllertest.Get(c, rs).OwnerReferences) != 0 {
					t.Errorf("the orphan's owners = %v; want none", controllertest.Get(c, rs).OwnerReferences)
				}
			})
		})
	}
}

func TestOneOfTwoOwnersKeepsADependent(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(garbage.New(c.Deps, kinds.All()))
		a := controllertest.Create(c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}})
		b := controllertest.Create(c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "b"}})
		pod := controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p",
			OwnerReferences: []metav1.OwnerReference{owner(a, "ReplicaSet", "apps/v1", true), owner(b, "ReplicaSet", "apps/v1", false)}}})
		c.Settle()
		c.Delete(a, metav1.DeletePropagationForeground)
		c.Settle()
		if c.Exists(a) {
			t.Errorf("owner a still waits for a dependent that has another owner")
		}
		if refs := controllertest.Get(c, pod).OwnerReferences; len(refs) != 1 || refs[0].Name != "b" {
			t.Errorf("owners of the pod = %v; want b alone", refs)
		}
		c.Delete(b, "")
		c.Settle()
		if c.Exists(pod) {
			t.Errorf("the pod outlives its last owner")
		}
	})
}

func TestUnknownOwnersAndStrangersAreLeftAlone(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(garbage.New(c.Deps, kinds.All()))
		custom := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Gadget", Name: "g", UID: "1"}
		controllertest.Create(c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "kept", OwnerReferences: []metav1.OwnerReference{custom}}})
		// An owner of the same name but another UID is not the owner.
		rs := controllertest.Create(c, &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}})
		ref := owner(rs, "ReplicaSet", "apps/v1", false)
		ref.UID = "of its predecessor"
		stale := controllertest.Create(c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "stale", OwnerReferences: []metav1.OwnerReference{ref}}})
		c.Settle()
		if !c.Exists(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "kept"}}) {
			t.Errorf("an object whose owner's kind is unknown was deleted")
		}
		if c.Exists(stale) {
			t.Errorf("an object whose owner was replaced was kept")
		}
	})
}

func TestNamespacesAreEmptiedAndGo(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(garbage.New(c.Deps, kinds.All()), namespace.New(c.Deps, kinds.All()),
			serviceaccount.NewAccounts(c.Deps), serviceaccount.NewRootCA(c.Deps, []byte("PEM")))
		c.StartKubelet(&controllertest.Kubelet{StopAfter: 10 * time.Second})
		ns := controllertest.Create(c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		c.Settle()
		ca := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: serviceaccount.RootCA}}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "default"}}
		if !c.Exists(account) || controllertest.Get(c, ca).Data["ca.crt"] != "PEM" {
			t.Errorf("the namespace has no default account or no certificate authority")
		}
		controllertest.Edit(c, ca, func(cm *corev1.ConfigMap) { cm.Data["ca.crt"] = "forged" })
		c.Delete(account, "")
		c.Settle()
		if !c.Exists(account) || controllertest.Get(c, ca).Data["ca.crt"] != "PEM" {
			t.Errorf("the account or the certificate authority did not come back")
		}
		family(c)
		held := controllertest.Create(c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "held", Finalizers: []string{"example.com/hold"}}})
		c.Delete(ns, "")
		c.Sleep(5 * time.Second)
		condition := func(t corev1.NamespaceConditionType) string {
			for _, cond := range controllertest.Get(c, ns).Status.Conditions {
				if cond.Type == t {
					return string(cond.Status) + " " + cond.Message
				}
			}
			return "none"
		}
		if !c.Exists(ca) {
			t.Errorf("other content went before the pods")
		}
		c.Sleep(10 * time.Second)
		if got, want := condition(corev1.NamespaceContentRemaining), "True Some resources are remaining: configmaps. has 1 resource instances"; got != want {
			t.Errorf("NamespaceContentRemaining = %s; want %s", got, want)
		}
		if got, want := condition(corev1.NamespaceFinalizersRemaining), "True Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"; got != want {
			t.Errorf("NamespaceFinalizersRemaining = %s; want %s", got, want)
		}
		controllertest.Edit(c, held, func(cm *corev1.ConfigMap) { cm.Finalizers = nil })
		c.Settle()
		if c.Exists(ns) {
			t.Errorf("the namespace is still there: %+v", controllertest.Get(c, ns))
		}
		if got := living(c); got != "" {
			t.Errorf("left behind: %s", got)
		}
	})
}

// lateEvents writes another Event whenever one is deleted, as a recorder does whose write was on its way.
type lateEvents struct {
	store.Writer
	left *int
}

func (w lateEvents) As(string) store.Writer { return w }

func (w lateEvents) Delete(ctx context.Context, gr schema.GroupResource, ns, name string, opts metav1.DeleteOptions) error {
	err := w.Writer.Delete(ctx, gr, ns, name, opts)
	if gr == kinds.Events && *w.left > 0 {
		*w.left--
		_, err = w.Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprint("late-", *w.left)}})
	}
	return err
}

func TestLateEventsHoldNoNamespaceUp(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		left, deps := 2, c.Deps
		deps.Writer = lateEvents{c.Writer, &left}
		c.Start(namespace.New(deps, kinds.All()))
		ns := controllertest.Create(c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		controllertest.Create(c, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "first"}})
		c.Delete(ns, "")
		c.Sleep(5 * time.Second)
		if c.Exists(ns) {
			t.Errorf("the namespace is still there: %+v", controllertest.Get(c, ns).Status)
		}
	})
}

// TestOtherNamespacesHoldNobodyUp: an owner of another namespace is nobody's, and does not wait for whoever names it.
func TestOtherNamespacesHoldNobodyUp(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(garbage.New(c.Deps, kinds.All()))
		d := controllertest.Create(c, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}})
		controllertest.Create(c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "false", Finalizers: []string{"example.com/hold"},
			OwnerReferences: []metav1.OwnerReference{owner(d, "Deployment", "apps/v1", true)}}})
		c.Delete(d, metav1.DeletePropagationForeground)
		c.Settle()
		if c.Exists(d) {
			t.Errorf("the deployment waits for %v", controllertest.Get(c, d).Finalizers)
		}
	})
}

func TestACircleOfOwnersGoesAway(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(garbage.New(c.Deps, kinds.All()))
		c.StartKubelet(&controllertest.Kubelet{StopAfter: time.Second})
		var pods []*corev1.Pod
		for i := range 3 {
			pods = append(pods, controllertest.Create(c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: fmt.Sprint("ring-", i)}, Spec: corev1.PodSpec{NodeName: "n1"}}))
		}
		for i, p := range pods {
			before := pods[(i+2)%3]
			controllertest.Edit(c, p, func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{owner(before, "Pod", "v1", true)} })
		}
		c.Settle()
		c.Delete(pods[0], metav1.DeletePropagationForeground)
		c.Sleep(time.Minute)
		if got := living(c); got != "" {
			t.Errorf("a minute after one of them was deleted there are %q; want none", got)
		}
	})
}
