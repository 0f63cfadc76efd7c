package builtin_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/api"
	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/controller/builtin"
	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/volume"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// cluster is the real API server, all controllers writing through it as their own service
// accounts, and a node that says its pods run.
type cluster struct {
	t      *testing.T
	store  *store.Store
	client *api.Client
}

var errEnd = errors.New("the test is over")

func start(t *testing.T) *cluster {
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix("10.96.0.0/16")
	ca, err := auth.OpenAuthority(filepath.Join(dir, "pki"), auth.Names{IPs: []net.IP{api.ServiceIP(prefix).AsSlice()}})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := api.New(t.Context(), api.Options{Store: s, Authority: ca, ServiceRange: prefix, Endpoint: netip.MustParseAddrPort("192.0.2.1:6443"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	<-srv.Ready()
	c := &cluster{t, s, srv.Client()}

	ctx, cancel := context.WithCancelCause(context.Background())
	sink := record.NewSink(log)
	all := builtin.All(builtin.Options{
		Deps:  controller.Deps{Reader: s, Writer: srv.Client(), Events: sink, Log: log},
		Kinds: kinds.All(), RootCA: ca.CA(), Volumes: volume.Directory{Root: filepath.Join(dir, "volumes"), Node: "n1"},
	})
	ended := make(chan error, 3)
	go func() { ended <- builtin.Run(ctx, all) }()
	go func() { ended <- sink.Run(ctx) }()
	kubelet := &controllertest.Kubelet{Reader: s, Writer: srv.Client().ActAs("system:node:n1"), Exit: func(p *corev1.Pod) (int32, time.Duration, bool) {
		return 0, 0, p.Labels["ends"] == "yes"
	}}
	go func() { ended <- kubelet.Run(ctx) }()
	t.Cleanup(func() {
		cancel(errEnd)
		for range 3 {
			if err := <-ended; !errors.Is(err, errEnd) {
				t.Errorf("something ended with %v", err)
			}
		}
		shut, done := context.WithTimeout(context.Background(), time.Minute)
		defer done()
		if err := srv.Close(shut); err != nil {
			t.Errorf("close the API server: %v", err)
		}
		if err := s.CheckFrozen(); err != nil {
			t.Error(err)
		}
		_ = s.Close()
	})
	return c
}

func (c *cluster) create(o store.Object) {
	c.t.Helper()
	if _, err := c.client.Create(c.t.Context(), o); err != nil {
		c.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
}

// await follows a resource until ok holds of the object of that name; nil means it is gone.
func await[T store.Object](c *cluster, gr schema.GroupResource, ns, name, what string, ok func(T) bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cursor, err := c.store.Watch(gr, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		cur, found := store.Get[T](c.store, gr, ns, name)
		if (!found && ok == nil) || (found && ok != nil && ok(cur)) {
			return
		}
		if _, err := cursor.Next(ctx); err != nil {
			c.t.Fatalf("%s %s/%s is never %s; now it is %+v", gr, ns, name, what, cur)
		}
	}
}

// awaitEndpoints follows the slices of a service, which another controller makes than its Endpoints, until they have so
// many endpoints.
func (c *cluster) awaitEndpoints(service string, want int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cursor, err := c.store.Watch(kinds.EndpointSlices, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		have := 0
		for _, s := range store.Indexed[*discoveryv1.EndpointSlice](c.store, kinds.EndpointSlices, kinds.ByService, service) {
			have += len(s.Endpoints)
		}
		if have == want {
			return
		}
		if _, err := cursor.Next(ctx); err != nil {
			c.t.Fatalf("the slices of service %s have %d endpoints; want %d", service, have, want)
		}
	}
}

func template(image string, labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image, Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
	}
}

func TestControllersThroughTheRealAPI(t *testing.T) {
	c := start(t)
	c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
	await(c, kinds.ServiceAccounts, "shop", "default", "made", func(*corev1.ServiceAccount) bool { return true })
	await(c, kinds.ConfigMaps, "shop", "kube-root-ca.crt", "made", func(*corev1.ConfigMap) bool { return true })
	c.create(controllertest.Node("n1", "8", "16Gi", 100))
	await(c, kinds.Nodes, "", "n1", "untainted", func(n *corev1.Node) bool { return len(n.Spec.Taints) == 0 })

	web, three := map[string]string{"app": "web"}, int32(3)
	c.create(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: appsv1.DeploymentSpec{
		Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: web}, Template: template("web:1", web),
	}})
	c.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: corev1.ServiceSpec{
		Selector: web, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("web")}},
	}})
	available := func(image string) func(d *appsv1.Deployment) bool {
		return func(d *appsv1.Deployment) bool {
			return d.Spec.Template.Spec.Containers[0].Image == image && d.Status.ObservedGeneration == d.Generation && d.Status.UpdatedReplicas == 3 &&
				d.Status.Replicas == 3 && d.Status.AvailableReplicas == 3
		}
	}
	await(c, kinds.Deployments, "shop", "web", "available", available("web:1"))
	//lint:ignore SA1019 the legacy object is kept beside the slices
	await(c, kinds.Endpoints, "shop", "web", "complete", func(e *corev1.Endpoints) bool {
		return len(e.Subsets) == 1 && len(e.Subsets[0].Addresses) == 3 && e.Subsets[0].Ports[0].Port == 8080
	})
	c.awaitEndpoints("shop/web", 3)

	d, _ := store.Get[*appsv1.Deployment](c.store, kinds.Deployments, "shop", "web")
	next := store.Copy(d)
	next.ResourceVersion = ""
	next.Spec.Template.Spec.Containers[0].Image = "web:2"
	if _, err := c.client.Update(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	await(c, kinds.Deployments, "shop", "web", "updated", available("web:2"))
	await(c, kinds.Deployments, "shop", "web", "at revision 2", func(d *appsv1.Deployment) bool {
		return d.Annotations["deployment.kubernetes.io/revision"] == "2"
	})

	db, two := map[string]string{"app": "db"}, int32(2)
	c.create(&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"}, Spec: appsv1.StatefulSetSpec{
		Replicas: &two, ServiceName: "db", Selector: &metav1.LabelSelector{MatchLabels: db}, Template: template("db:1", db),
		VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		}}},
	}})
	await(c, kinds.StatefulSets, "shop", "db", "ready", func(s *appsv1.StatefulSet) bool { return s.Status.ReadyReplicas == 2 && s.Status.CurrentReplicas == 2 })
	await(c, kinds.PersistentVolumeClaims, "shop", "data-db-1", "bound", func(p *corev1.PersistentVolumeClaim) bool { return p.Status.Phase == corev1.ClaimBound })

	job := template("job:1", map[string]string{"ends": "yes"})
	job.Spec.RestartPolicy = corev1.RestartPolicyNever
	ttl := int32(0)
	c.create(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "once"}, Spec: batchv1.JobSpec{Template: job}})
	await(c, kinds.Jobs, "shop", "once", "complete", func(j *batchv1.Job) bool { return j.Status.CompletionTime != nil && j.Status.Succeeded == 1 })
	c.create(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "fleeting"}, Spec: batchv1.JobSpec{Template: job, TTLSecondsAfterFinished: &ttl}})
	await[*batchv1.Job](c, kinds.Jobs, "shop", "fleeting", "gone", nil)

	foreground := metav1.DeletePropagationForeground
	if err := c.client.Delete(t.Context(), kinds.Deployments, "shop", "web", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	await[*appsv1.Deployment](c, kinds.Deployments, "shop", "web", "gone", nil)
	if n := len(store.List[*appsv1.ReplicaSet](c.store, kinds.ReplicaSets, "shop")); n != 0 {
		t.Errorf("%d replica sets outlive their deployment, which was deleted in the foreground", n)
	}
	if err := c.client.Delete(t.Context(), kinds.Namespaces, "", "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	await[*corev1.Namespace](c, kinds.Namespaces, "", "shop", "gone", nil)
	for _, gr := range []schema.GroupResource{kinds.Pods, kinds.PersistentVolumeClaims, kinds.Events, kinds.Secrets} {
		for o := range c.store.Snapshot(gr).All("shop") {
			t.Errorf("%s %s outlives its namespace", gr, o.GetName())
		}
	}
}
