// Package serviceaccount gives every namespace what its pods take for granted: the service
// account "default", and the certificate authority of the cluster as config map
// kube-root-ca.crt. Deleting or changing them brings them back.
package serviceaccount

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	defaultAccount = "default"
	// RootCA is the config map that pods find the cluster's certificate authority in.
	RootCA            = "kube-root-ca.crt"
	rootCAKey         = "ca.crt"
	rootCADescription = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
	descriptionKey    = "kubernetes.io/description"
)

// NewAccounts makes the controller that keeps the default service accounts.
func NewAccounts(d controller.Deps) controller.Controller {
	const name = "service-account-controller"
	d = d.For(name)
	return &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: d.Log,
		Watches: []controller.Watch{
			{Resource: kinds.Namespaces, Keys: controller.Self},
			{Resource: kinds.ServiceAccounts, Keys: gone(defaultAccount)},
		},
		Sync: func(ctx context.Context, ns string) (time.Duration, error) {
			if !lives(d.Reader, ns) {
				return 0, nil
			}
			if _, ok := d.Reader.Snapshot(kinds.ServiceAccounts).Get(ns, defaultAccount); ok {
				return 0, nil
			}
			_, err := d.Writer.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: defaultAccount}})
			return 0, created(err, "service account", ns)
		},
	}
}

// NewRootCA makes the controller that publishes the certificate authority, in PEM.
func NewRootCA(d controller.Deps, bundle []byte) controller.Controller {
	const name = "root-ca-cert-publisher"
	d = d.For(name)
	p := publisher{d, string(bundle)}
	return &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: d.Log, Sync: p.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Namespaces, Keys: controller.Self},
			{Resource: kinds.ConfigMaps, Keys: func(e store.Event) []string {
				if e.Object.GetName() != RootCA || e.Type == store.Added {
					return nil
				}
				return []string{e.Object.GetNamespace()}
			}},
		},
	}
}

type publisher struct {
	deps   controller.Deps
	bundle string
}

func (p publisher) sync(ctx context.Context, ns string) (time.Duration, error) {
	if !lives(p.deps.Reader, ns) {
		return 0, nil
	}
	cur, ok := store.Get[*corev1.ConfigMap](p.deps.Reader, kinds.ConfigMaps, ns, RootCA)
	if !ok {
		_, err := p.deps.Writer.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: RootCA, Annotations: map[string]string{descriptionKey: rootCADescription}},
			Data:       map[string]string{rootCAKey: p.bundle},
		})
		return 0, created(err, "config map "+RootCA, ns)
	}
	if len(cur.Data) == 1 && cur.Data[rootCAKey] == p.bundle && cur.Annotations[descriptionKey] != "" {
		return 0, nil
	}
	next := store.Copy(cur)
	next.Data = map[string]string{rootCAKey: p.bundle}
	if next.Annotations == nil {
		next.Annotations = map[string]string{}
	}
	next.Annotations[descriptionKey] = rootCADescription
	_, err := p.deps.Writer.Update(ctx, next)
	return 0, err
}

// gone is the namespace of an object of that name that has been deleted.
func gone(name string) func(store.Event) []string {
	return func(e store.Event) []string {
		if e.Type != store.Deleted || e.Object.GetName() != name {
			return nil
		}
		return []string{e.Object.GetNamespace()}
	}
}

func lives(r store.Reader, ns string) bool {
	o, ok := store.Get[*corev1.Namespace](r, kinds.Namespaces, "", ns)
	return ok && o.DeletionTimestamp == nil && o.Status.Phase != corev1.NamespaceTerminating
}

func created(err error, what, ns string) error {
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return fmt.Errorf("create the %s of namespace %q: %w", what, ns, err)
}
