package api

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// An object that a controller made has no managed fields until somebody applies to it.
func TestFirstApplyOfAnUntrackedObject(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	create(t, i, podOf("a"))
	cs := kubernetes.NewForConfigOrDie(i.config)
	got, err := cs.CoreV1().Pods("default").Apply(t.Context(), corev1apply.Pod("a", "default").WithLabels(map[string]string{"mine": "yes"}), metav1.ApplyOptions{FieldManager: "me"})
	if err != nil {
		t.Fatal(err)
	}
	var managers []string
	for _, m := range got.ManagedFields {
		managers = append(managers, m.Manager)
	}
	sort.Strings(managers)
	if fmt.Sprint(managers) != "[before-first-apply me]" || got.Labels["mine"] != "yes" || got.Labels["app"] != "web" {
		t.Errorf("managers %v, labels %v", managers, got.Labels)
	}
	_, err = cs.CoreV1().Pods("default").Apply(t.Context(), corev1apply.Pod("a", "default").WithLabels(map[string]string{"app": "other"}), metav1.ApplyOptions{FieldManager: "me"})
	if !apierrors.IsConflict(err) {
		t.Errorf("apply of a label that was there before: %v; want a conflict", err)
	}
}

func TestDeleteCollection(t *testing.T) {
	i := start(t)
	for n := range 30 {
		create(t, i, configMap(fmt.Sprint("c", n), map[string]string{"odd": fmt.Sprint(n%2 == 1)}))
	}
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	if err := cm.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "odd=true"}); err != nil {
		t.Fatal(err)
	}
	if n := i.store.Snapshot(kinds.ConfigMaps).Len(); n != 15 {
		t.Errorf("%d are left; want 15", n)
	}
	if err := cm.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name=c0"}); err != nil {
		t.Fatal(err)
	}
	if n := i.store.Snapshot(kinds.ConfigMaps).Len(); n != 14 {
		t.Errorf("%d are left; want 14", n)
	}
	if err := cm.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := i.store.Snapshot(kinds.ConfigMaps).Len(); n != 0 {
		t.Errorf("%d are left; want none", n)
	}
}

func TestFinalizersAndGrace(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	cs := kubernetes.NewForConfigOrDie(i.config)
	c := configMap("held", nil)
	c.Finalizers = []string{"example.com/hold"}
	create(t, i, c)
	cm := cs.CoreV1().ConfigMaps("default")
	if err := cm.Delete(t.Context(), "held", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := cm.Get(t.Context(), "held", metav1.GetOptions{})
	if err != nil || got.DeletionTimestamp == nil {
		t.Fatalf("with a finalizer it stays and is marked: %v, %v", got, err)
	}
	if _, err := cm.Patch(t.Context(), "held", types.JSONPatchType, []byte(`[{"op":"remove","path":"/metadata/finalizers"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := cm.Get(t.Context(), "held", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("without its finalizer: %v; want it gone", err)
	}

	pod := podOf("a")
	pod.Spec.NodeName = "n1"
	create(t, i, pod)
	if err := cs.CoreV1().Pods("default").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := cs.CoreV1().Pods("default").Get(t.Context(), "a", metav1.GetOptions{})
	if err != nil || p.DeletionGracePeriodSeconds == nil || *p.DeletionGracePeriodSeconds != 30 {
		t.Errorf("a pod on a node is given its grace: %v, %v", p, err)
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: podOf("x").Spec},
	}}
	create(t, i, d)
	foreground := metav1.DeletePropagationForeground
	if err := cs.AppsV1().Deployments("default").Delete(t.Context(), "d", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	if got, err := cs.AppsV1().Deployments("default").Get(t.Context(), "d", metav1.GetOptions{}); err != nil || fmt.Sprint(got.Finalizers) != "[foregroundDeletion]" {
		t.Errorf("foreground deletion waits for the collector: %v, %v", got, err)
	}
}

// Sixteen clients add to one object: every addition is kept.
func TestOptimisticConcurrency(t *testing.T) {
	i := start(t)
	create(t, i, configMap("c", nil))
	cs := kubernetes.NewForConfigOrDie(i.config)
	cm := cs.CoreV1().ConfigMaps("default")
	done := make(chan error, workers)
	for w := range workers {
		go func() {
			for {
				c, err := cm.Get(t.Context(), "c", metav1.GetOptions{})
				if err != nil {
					done <- err
					return
				}
				c.Data[fmt.Sprint("w", w)] = "here"
				if _, err = cm.Update(t.Context(), c, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
					done <- err
					return
				}
			}
		}()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	c, err := cm.Get(t.Context(), "c", metav1.GetOptions{})
	if err != nil || len(c.Data) != workers+1 {
		t.Errorf("the object has %d entries, %v; want %d", len(c.Data), err, workers+1)
	}
}

// Patches are retried by the server when others are quicker.
func TestPatchesDoNotConflict(t *testing.T) {
	i := start(t)
	create(t, i, configMap("c", nil))
	cs := kubernetes.NewForConfigOrDie(i.config)
	done := make(chan error, workers)
	for w := range workers {
		go func() {
			_, err := cs.CoreV1().ConfigMaps("default").Patch(t.Context(), "c", types.MergePatchType, fmt.Appendf(nil, `{"data":{"w%d":"here"}}`, w), metav1.PatchOptions{})
			done <- err
		}()
	}
	for range workers {
		if err := <-done; err != nil && !apierrors.IsConflict(err) { // upstream gives up after five tries
			t.Error(err)
		}
	}
}

// What was acknowledged is there after a restart, exactly as it was shown.
func TestRestartOverEtcd(t *testing.T) {
	dir := t.TempDir()
	open := func() *instance {
		return startOn(t, dir, store.Etcd(store.EtcdOptions{Dir: filepath.Join(dir, "etcd"), Unsynced: true}))
	}
	i := open()
	makeDefaultAccount(t, i)
	create(t, i, podOf("a"))
	if code, _, body := i.raw(t, "POST", ns+"/services", "", `{"metadata":{"name":"s"},"spec":{"type":"NodePort","ports":[{"port":80}]}}`); code != 201 {
		t.Fatalf("%d %s", code, body)
	}
	paths := []string{ns + "/pods/a", ns + "/services/s", ns + "/services/kubernetes", "/api/v1/namespaces", "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/networking.k8s.io/v1/ipaddresses"}
	before := map[string]string{}
	for _, p := range paths {
		_, _, before[p] = i.raw(t, "GET", p, "application/json", "")
	}
	i.stop()
	i = open()
	for _, p := range paths {
		_, _, after := i.raw(t, "GET", p, "application/json", "")
		if listVersion.ReplaceAllString(after, "") != listVersion.ReplaceAllString(before[p], "") {
			t.Errorf("GET %s\nbefore %.500s\nafter  %.500s", p, before[p], after)
		}
	}
}

// A list's own version is that of the store, which has moved on.
var listVersion = regexp.MustCompile(`"metadata":\{"resourceVersion":"\d+"\},"items"`)

// Upstream's printers get the frozen objects without a copy: they must leave them alone, which
// the detector verifies at the end.
func TestTablesLeaveObjectsAlone(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	port, proto, name := int32(80), corev1.ProtocolTCP, "http"
	one, yes := int32(1), true
	pod := podOf("rich")
	pod.Labels = map[string]string{"b": "2", "a": "1"}
	pod.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "x", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": quantity.MustParse("1.5"), "memory": quantity.MustParse("1Gi")}}}}
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/z"}, {ConditionType: "example.com/a"}}
	create(t, i, pod)
	create(t, i, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"node-role.kubernetes.io/z": "", "node-role.kubernetes.io/a": ""}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}}})
	create(t, i, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ExternalIPs: []string{"192.0.2.9", "192.0.2.1"}, Selector: map[string]string{"b": "2", "a": "1"},
		Ports: []corev1.ServicePort{{Name: "b", Port: 81}, {Name: "a", Port: 80}}}})
	create(t, i, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Subsets: []corev1.EndpointSubset{
		{Addresses: []corev1.EndpointAddress{{IP: "10.0.0.9"}, {IP: "10.0.0.1"}}, Ports: []corev1.EndpointPort{{Name: "b", Port: 81, Protocol: proto}, {Name: "a", Port: 80, Protocol: proto}}}}})
	create(t, i, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}}})
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: podOf("x").Spec}
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}, MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"web", "api"}}}}
	create(t, i, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}, Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: selector, Template: template}})
	create(t, i, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "default"}, Spec: appsv1.StatefulSetSpec{Replicas: &one, Selector: selector, Template: template, ServiceName: "s"}})
	jobTemplate := *template.DeepCopy()
	jobTemplate.Spec.RestartPolicy = corev1.RestartPolicyNever
	create(t, i, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "default"}, Spec: batchv1.JobSpec{Template: jobTemplate}})
	create(t, i, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}, Spec: corev1.PersistentVolumeSpec{
		Capacity: corev1.ResourceList{corev1.ResourceStorage: quantity.MustParse("1.5Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadOnlyMany, corev1.ReadWriteOnce},
		PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x"}}}})
	create(t, i, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "rich", Namespace: "default"}, Reason: "R", Message: "m\n", Type: "Normal"})
	for _, include := range []string{"None", "Metadata", "Object"} {
		for gvr, r := range i.resources {
			if r.kind == nil {
				continue
			}
			path := "/apis/" + gvr.GroupVersion().String() + "/" + gvr.Resource
			if gvr.Group == "" {
				path = "/api/v1/" + gvr.Resource
			}
			code, _, body := i.raw(t, "GET", path+"?includeObject="+include, "application/json;as=Table;v=v1;g=meta.k8s.io", "")
			if code != http.StatusOK || !strings.HasPrefix(body, `{"kind":"Table"`) {
				t.Errorf("table of %s with %s: %d %.200s", path, include, code, body)
			}
		}
	}
}
