package api

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const saPrefix = "system:serviceaccount:kube-system:"

func podOf(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "nginx", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}},
	}
}

// makeDefaultAccount does what the service account controller does.
func makeDefaultAccount(t testing.TB, i *instance) {
	t.Helper()
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default", Namespace: "default"}}
	if _, err := i.Client().As(saPrefix+"service-account-controller").Create(t.Context(), sa); err != nil {
		t.Fatal(err)
	}
}

func TestClientWritesGoThroughAdmission(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	ctx := t.Context()
	w := i.Client().As(saPrefix + "replicaset-controller")

	o, err := w.Create(ctx, podOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	pod := o.(*corev1.Pod)
	if pod.Spec.ServiceAccountName != "default" || len(pod.Spec.Volumes) != 1 || pod.Spec.Volumes[0].Projected == nil {
		t.Errorf("created pod has account %q and volumes %v; want the default account and its token", pod.Spec.ServiceAccountName, pod.Spec.Volumes)
	}
	if pod.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways || pod.Status.Phase != corev1.PodPending || pod.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("created pod is not defaulted: %v %v", pod.Spec.Containers[0].ImagePullPolicy, pod.Status)
	}
	if len(pod.ManagedFields) != 0 {
		t.Errorf("created pod has managed fields %v; want none", pod.ManagedFields)
	}

	if err := i.Client().As("system:kube-scheduler").Bind(ctx, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"},
	}); err != nil {
		t.Fatal("bind:", err)
	}
	bound, _ := store.Get[*corev1.Pod](i.store, kinds.Pods, "default", "a")
	if bound.Spec.NodeName != "n1" {
		t.Errorf("bound pod is on %q; want n1", bound.Spec.NodeName)
	}

	node := i.Client().As("system:node:n1")
	next := store.Copy(bound)
	next.Status.Phase = corev1.PodRunning
	next.Spec.NodeName = "elsewhere" // a status write changes nothing else
	o, err = node.UpdateStatus(ctx, next)
	if err != nil {
		t.Fatal("update status:", err)
	}
	if got := o.(*corev1.Pod); got.Status.Phase != corev1.PodRunning || got.Spec.NodeName != "n1" {
		t.Errorf("after the status write the pod is %v on %q; want Running on n1", got.Status.Phase, got.Spec.NodeName)
	}
	if _, err := node.UpdateStatus(ctx, next); !apierrors.IsConflict(err) {
		t.Errorf("a status write against an old version gave %v; want a conflict", err)
	}

	grace := int64(0)
	if err := node.Delete(ctx, kinds.Pods, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		t.Fatal("delete:", err)
	}
	if _, ok := i.store.Snapshot(kinds.Pods).Get("default", "a"); ok {
		t.Error("the pod is still there after a delete without grace")
	}
}

func TestClientIsRefusedWhatItsRoleLacks(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	_, err := i.Client().As(saPrefix+"endpoint-controller").Create(t.Context(), podOf("a"))
	want := `pods is forbidden: User "system:serviceaccount:kube-system:endpoint-controller" cannot create resource "pods" in API group "" in the namespace "default"`
	if !apierrors.IsForbidden(err) || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	_, err = i.Client().Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "nowhere"}})
	if !apierrors.IsNotFound(err) || err.Error() != `namespaces "nowhere" not found` {
		t.Errorf("create in a missing namespace gave %v", err)
	}
	_, err = i.Client().Create(t.Context(), podOf("Not a name"))
	if !apierrors.IsInvalid(err) {
		t.Errorf("create with a bad name gave %v; want Invalid", err)
	}
}

// What the API's clients have created keeps its managed fields when controllers write to it.
func TestControllersAreTrackedOnAppliedObjects(t *testing.T) {
	i := start(t)
	ctx := t.Context()
	cs := kubernetes.NewForConfigOrDie(i.config)
	one := int32(1)
	d, err := cs.AppsV1().Deployments("default").Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}, Spec: podOf("x").Spec},
		},
	}, metav1.CreateOptions{FieldManager: "me"})
	if err != nil {
		t.Fatal(err)
	}
	stored, _ := store.Get[*appsv1.Deployment](i.store, kinds.Deployments, "default", "web")
	next := store.Copy(stored)
	next.Status.Replicas, next.Status.ObservedGeneration = 1, d.Generation
	o, err := i.Client().As(saPrefix+"deployment-controller").UpdateStatus(ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	var managers []string
	for _, m := range o.GetManagedFields() {
		managers = append(managers, m.Manager+"/"+m.Subresource)
	}
	if fmt.Sprint(managers) != "[deployment-controller/status me/]" && fmt.Sprint(managers) != "[me/ deployment-controller/status]" {
		t.Errorf("managers are %v; want me and deployment-controller/status", managers)
	}
}

func TestPodTokens(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	ctx := t.Context()
	o, err := i.Client().Create(ctx, podOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	hour := int64(3600)
	tr, err := i.Client().ActAs("system:node:n1").Token(ctx, "default", "default", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &hour, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "a", UID: o.GetUID()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if time.Until(tr.Status.ExpirationTimestamp.Time) < 50*time.Minute {
		t.Errorf("the token expires at %v; want in an hour", tr.Status.ExpirationTimestamp)
	}
	as := rest.AnonymousClientConfig(i.config)
	as.BearerToken = tr.Status.Token
	cs := kubernetes.NewForConfigOrDie(as)
	if _, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("the token's list of pods gave %v; want Forbidden: the account has no role", err)
	}
	zero := int64(0)
	if err := i.Client().Delete(ctx, kinds.Pods, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	i.authn.Forget()
	if _, err := cs.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("the token of a deleted pod gave %v; want Unauthorized", err)
	}
}

// What the controllers of this cluster write, their bootstrap roles allow.
func TestControllersMayWriteWhatTheyWrite(t *testing.T) {
	i := start(t)
	for _, tt := range []struct{ user, writes string }{
		{saPrefix + "deployment-controller", "create,update,delete apps/replicasets; update apps/deployments/status; create,update events"},
		{saPrefix + "replicaset-controller", "create,update,delete pods; update apps/replicasets/status; create,update events"},
		{saPrefix + "statefulset-controller", "create,update,delete pods; create,update persistentvolumeclaims; create,update,delete apps/controllerrevisions; update apps/statefulsets/status; create,update events"},
		{saPrefix + "job-controller", "create,update,delete pods; update batch/jobs/status; create,update events"},
		{saPrefix + "ttl-after-finished-controller", "delete batch/jobs"},
		{saPrefix + "endpointslice-controller", "create,update,delete discovery.k8s.io/endpointslices"},
		{saPrefix + "endpoint-controller", "create,update,delete endpoints"},
		{saPrefix + "namespace-controller", "delete pods; delete apps/deployments; update namespaces/status; update namespaces/finalize"},
		{saPrefix + "generic-garbage-collector", "update,delete pods; update,delete apps/replicasets"},
		{saPrefix + "service-account-controller", "create serviceaccounts"},
		{saPrefix + "root-ca-cert-publisher", "create,update configmaps"},
		{saPrefix + "persistent-volume-binder", "create,update,delete persistentvolumes; update persistentvolumes/status; update persistentvolumeclaims; update persistentvolumeclaims/status; create,update events"},
		{saPrefix + "pod-garbage-collector", "delete pods; update pods/status"},
		{saPrefix + "node-controller", "update nodes; update nodes/status; update pods/status; delete pods; create,update events"},
		{saPrefix + "service-controller", "update services/status; create,update events"},
		{"system:kube-scheduler", "create pods/binding; update pods/status; create events"},
		{"system:node:n1", "create,update nodes; update nodes/status; update pods/status; delete pods; create,update coordination.k8s.io/leases; create serviceaccounts/token; create events"},
	} {
		for _, w := range strings.Split(tt.writes, "; ") {
			verbs, path, _ := strings.Cut(w, " ")
			gr := schema.GroupResource{Resource: path}
			if g, rest, ok := strings.Cut(path, "/"); ok && (strings.Contains(g, ".") || g == "apps" || g == "batch") {
				gr = schema.GroupResource{Group: g, Resource: rest}
			}
			resource, sub, _ := strings.Cut(gr.Resource, "/")
			gr.Resource = resource
			for _, verb := range strings.Split(verbs, ",") {
				namespace := "kube-node-lease"
				if _, err := i.Client().ActAs(tt.user).begin(t.Context(), gr, verb, sub, namespace, "x"); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func BenchmarkClientPodStatus(b *testing.B) {
	i := start(b)
	makeDefaultAccount(b, i)
	o, err := i.Client().Create(b.Context(), podOf("a"))
	if err != nil {
		b.Fatal(err)
	}
	node := i.Client().As("system:node:n1")
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		next := store.Copy(o.(*corev1.Pod))
		next.Status.Message = fmt.Sprint(n)
		if o, err = node.UpdateStatus(b.Context(), next); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkClientPodCreate(b *testing.B) {
	i := start(b)
	makeDefaultAccount(b, i)
	w := i.Client().As(saPrefix + "replicaset-controller")
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if _, err := w.Create(b.Context(), podOf(fmt.Sprint("p", n))); err != nil {
			b.Fatal(err)
		}
	}
}
