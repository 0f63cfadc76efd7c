// Package apply brings a translated Compose project to a Kubernetes API and looks after it there.
//
// Everything goes through the public API: server-side apply, watches, logs and exec. So the same code
// works against Slipway and against any other cluster. What belongs to a project is an ApplySet (its
// parent is a ConfigMap): members that a new version of the file no longer names are pruned, and `down`
// deletes the members but for the claims.
package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// fieldManager owns the fields that a Compose file sets.
const fieldManager = "slipway"

// Object is an API object.
type Object interface {
	runtime.Object
	metav1.Object
}

// Cluster is the API that a project is applied to.
type Cluster struct {
	config *rest.Config
	client dynamic.Interface
	// Slipway tells that the API is this machine's own daemon.
	Slipway bool
}

// Connect uses the daemon's own kubeconfig, or else a context of the user's.
func Connect(kubeconfig, kubeContext string) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	overrides := &clientcmd.ConfigOverrides{}
	if kubeContext != "" {
		overrides.CurrentContext = kubeContext
	} else {
		rules = &clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	// A person waits: the client must not hold requests back. The server has its own limits.
	config.QPS, config.Burst = -1, -1
	config.UserAgent = "slipway"
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &Cluster{config: config, client: client, Slipway: kubeContext == ""}, nil
}

// Reach tells whether the API answers, and knows us.
func (c *Cluster) Reach(ctx context.Context) error {
	stream, err := c.raw(ctx, "/version")
	if err != nil {
		return fmt.Errorf("cluster at %s: %w", c.config.Host, err)
	}
	return stream.Close()
}

// kind is what is known of a kind that projects are made of.
type kind struct {
	gvr        schema.GroupVersionResource
	gk         string // Kind.group, as ApplySets write it
	namespaced bool
}

// The kinds in the order in which they are pruned and deleted: workloads first, so that nothing runs
// without its policies.
var kinds = []kind{
	{schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}, "Deployment.apps", true},
	{schema.GroupVersionResource{Group: "batch", Version: "v1", Resource: "jobs"}, "Job.batch", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "Service", true},
	{schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}, "NetworkPolicy.networking.k8s.io", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "ConfigMap", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, "Secret", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}, "PersistentVolumeClaim", true},
	{schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumes"}, "PersistentVolume", false},
}

var (
	podsGVR        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	namespacesGVR  = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	configMapsGVR  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	replicaSetsGVR = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}
	deploymentsGVR = kinds[0].gvr
	jobsGVR        = kinds[1].gvr
	servicesGVR    = kinds[2].gvr
	claimsGVR      = kinds[6].gvr
)

func kindOf(o Object) (kind, error) {
	gk := o.GetObjectKind().GroupVersionKind().GroupKind().String()
	for _, k := range kinds {
		if k.gk == gk {
			return k, nil
		}
	}
	return kind{}, fmt.Errorf("no project holds objects of kind %s", gk)
}

func (c *Cluster) in(k kind, namespace string) dynamic.ResourceInterface {
	if k.namespaced {
		return c.client.Resource(k.gvr).Namespace(namespace)
	}
	return c.client.Resource(k.gvr)
}

// apply server-side-applies one object.
func (c *Cluster) apply(ctx context.Context, o Object, dryRun bool) (*unstructured.Unstructured, error) {
	k, err := kindOf(o)
	if err != nil {
		return nil, err
	}
	raw, err := encode(o)
	if err != nil {
		return nil, err
	}
	force := true
	opts := metav1.PatchOptions{FieldManager: fieldManager, Force: &force}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	out, err := c.in(k, o.GetNamespace()).Patch(ctx, o.GetName(), types.ApplyPatchType, raw, opts)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", o.GetObjectKind().GroupVersionKind().Kind, o.GetName(), err)
	}
	return out, nil
}

// encode leaves out what only the server may set.
func encode(o Object) ([]byte, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	delete(m, "status")
	unstructured.RemoveNestedField(m, "metadata", "creationTimestamp")
	unstructured.RemoveNestedField(m, "spec", "template", "metadata", "creationTimestamp")
	return json.Marshal(m)
}

// typed decodes an answer into its Go type.
func typed[T any](u *unstructured.Unstructured) (*T, error) {
	out := new(T)
	return out, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, out)
}

// ensureNamespace makes the project's namespace, waiting for one of the same name that is going away.
func (c *Cluster) ensureNamespace(ctx context.Context, name, project string) error {
	r := c.client.Resource(namespacesGVR)
	for {
		have, err := r.Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{
				"name": name, "labels": map[string]any{labelManagedBy: fieldManager, labelProject: project}}}}
			if _, err = r.Create(ctx, ns, metav1.CreateOptions{FieldManager: fieldManager}); apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		case err != nil:
			return err
		case have.GetDeletionTimestamp() == nil:
			return nil
		}
		if err := c.awaitGone(ctx, namespacesGVR, "", name); err != nil {
			return fmt.Errorf("namespace %s is being deleted: %w", name, err)
		}
	}
}

// awaitGone waits until an object does not exist.
func (c *Cluster) awaitGone(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) error {
	var r dynamic.ResourceInterface = c.client.Resource(gvr)
	if namespace != "" {
		r = c.client.Resource(gvr).Namespace(namespace)
	}
	only := metav1.ListOptions{FieldSelector: "metadata.name=" + name}
	for {
		list, err := r.List(ctx, only)
		if err != nil {
			return err
		}
		if len(list.Items) == 0 {
			return nil
		}
		only.ResourceVersion = list.GetResourceVersion()
		w, err := r.Watch(ctx, only)
		if err != nil {
			return err
		}
		for e := range w.ResultChan() {
			if e.Type == "DELETED" {
				w.Stop()
				return nil
			}
		}
		w.Stop()
		if err := ctx.Err(); err != nil {
			return err
		}
		only.ResourceVersion = ""
	}
}

// Node is the node of this machine, the only one or the one with this host name, and its address for pods.
func (c *Cluster) Node(ctx context.Context, hostname string) (name, address string, err error) {
	list, err := c.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "nodes"}).List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", "", fmt.Errorf("nodes: %w", err)
	}
	if len(list.Items) == 0 {
		return "", "", fmt.Errorf("the cluster has no node yet: is its daemon ready?")
	}
	found := &list.Items[0]
	for i := range list.Items {
		if list.Items[i].GetLabels()[corev1.LabelHostname] == hostname {
			found = &list.Items[i]
		}
	}
	node, err := typed[corev1.Node](found)
	if err != nil {
		return "", "", err
	}
	for _, a := range node.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			address = a.Address
		}
	}
	return node.Labels[corev1.LabelHostname], address, nil
}

// since is a rounded age for tables.
func since(t time.Time) string {
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
