package api

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	core "k8s.io/kubernetes/pkg/apis/core"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// admissionChain is what upstream's default admission plug-ins do, in their order, on reads of
// the store: upstream's own want informers, which would be a second copy of every object.
type admissionChain struct {
	mutating   []mutator
	validating []validator
}

// mutator may change the object of a request, or refuse it.
type mutator interface {
	admit(ctx context.Context, a admission.Attributes) error
}

// validator may refuse a request.
type validator interface {
	// concerns says whether the request is looked at at all: upstream copies both objects
	// for validators, which in-process writes need not pay for nothing.
	concerns(a admission.Attributes) bool
	validate(ctx context.Context, a admission.Attributes) error
}

var (
	_ admission.MutationInterface   = (*admissionChain)(nil)
	_ admission.ValidationInterface = (*admissionChain)(nil)
)

func newAdmission(objects store.Reader) *admissionChain {
	return &admissionChain{
		mutating: []mutator{
			namespaceLifecycle{objects}, abilities{}, serviceAccounts{objects}, tolerations{},
			priorities{objects}, storageClasses{objects},
		},
		validating: []validator{priorityClasses{objects}, podSecurity{objects}},
	}
}

// Handles says that every operation is looked at.
func (*admissionChain) Handles(admission.Operation) bool { return true }

// Admit runs the plug-ins that may change the object.
func (c *admissionChain) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	for _, m := range c.mutating {
		if err := m.admit(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// Validate runs the plug-ins that may refuse what has come out of it.
func (c *admissionChain) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	for _, v := range c.validating {
		if !v.concerns(a) {
			continue
		}
		if err := v.validate(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// validates says whether Validate would look at a request.
func (c *admissionChain) validates(a admission.Attributes) bool {
	return slices.ContainsFunc(c.validating, func(v validator) bool { return v.concerns(a) })
}

var (
	podResource   = schema.GroupResource{Resource: "pods"}
	claimResource = schema.GroupResource{Resource: "persistentvolumeclaims"}
)

// podCreated is the pod of a request that creates one.
func podCreated(a admission.Attributes) (*core.Pod, bool) {
	if a.GetOperation() != admission.Create || a.GetSubresource() != "" || a.GetResource().GroupResource() != podResource {
		return nil, false
	}
	pod, ok := a.GetObject().(*core.Pod)
	return pod, ok
}

// namespaceLifecycle keeps objects out of namespaces that do not exist or are going away.
type namespaceLifecycle struct{ objects store.Reader }

var immortal = map[string]bool{metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true}

func (p namespaceLifecycle) admit(_ context.Context, a admission.Attributes) error {
	isNamespace := a.GetKind().Group == "" && a.GetKind().Kind == "Namespace"
	if isNamespace && a.GetOperation() == admission.Delete && immortal[a.GetName()] {
		return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("this namespace may not be deleted"))
	}
	if isNamespace || a.GetNamespace() == "" || a.GetOperation() != admission.Create || isAccessReview(a) {
		return nil
	}
	ns, ok := store.Get[*corev1.Namespace](p.objects, kinds.Namespaces, "", a.GetNamespace())
	if !ok {
		return apierrors.NewNotFound(kinds.Namespaces, a.GetNamespace())
	}
	if ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	err := admission.NewForbidden(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.Name))
	if status, ok := err.(*apierrors.StatusError); ok {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{
			Type: corev1.NamespaceTerminatingCause, Field: "metadata.namespace",
			Message: fmt.Sprintf("namespace %s is being terminated", ns.Name),
		})
	}
	return err
}

// isAccessReview: the answer to "may I" must not depend on whether the namespace exists.
func isAccessReview(a admission.Attributes) bool {
	return a.GetResource().Group == "authorization.k8s.io" && a.GetResource().Resource == "localsubjectaccessreviews"
}

// tolerations lets pods stay five minutes on a node that has stopped answering.
type tolerations struct{}

const tolerationSeconds = int64(300)

// admit also looks at updates: one that replaces the list must not take away what was put there.
func (tolerations) admit(_ context.Context, a admission.Attributes) error {
	if a.GetSubresource() != "" || a.GetResource().GroupResource() != podResource {
		return nil
	}
	pod, ok := a.GetObject().(*core.Pod)
	if !ok || a.GetOperation() != admission.Create && a.GetOperation() != admission.Update {
		return nil
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !tolerates(pod, key) {
			seconds := tolerationSeconds
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, core.Toleration{
				Key: key, Operator: core.TolerationOpExists, Effect: core.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
	return nil
}

func tolerates(pod *core.Pod, key string) bool {
	for _, t := range pod.Spec.Tolerations {
		if (t.Key == key || t.Key == "") && (t.Effect == core.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}

// storageClasses gives claims that name no class the default one.
type storageClasses struct{ objects store.Reader }

const defaultClassAnnotation = "storageclass.kubernetes.io/is-default-class"

func (p storageClasses) admit(_ context.Context, a admission.Attributes) error {
	if a.GetOperation() != admission.Create || a.GetSubresource() != "" || a.GetResource().GroupResource() != claimResource {
		return nil
	}
	pvc, ok := a.GetObject().(*core.PersistentVolumeClaim)
	if !ok || pvc.Spec.StorageClassName != nil || pvc.Annotations[corev1.BetaStorageClassAnnotation] != "" {
		return nil
	}
	var best store.Object
	for o := range p.objects.Snapshot(kinds.StorageClasses).All("") {
		if o.GetAnnotations()[defaultClassAnnotation] != "true" {
			continue
		}
		// The newest wins, as upstream, so that a new default can be put beside the old one.
		if best == nil || o.GetCreationTimestamp().After(best.GetCreationTimestamp().Time) {
			best = o
		}
	}
	if best != nil {
		name := best.GetName()
		pvc.Spec.StorageClassName = &name
	}
	return nil
}
