package api

import (
	"context"
	"fmt"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	podsecurityapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// podSecurity holds pods to the standard that the labels of their namespace ask for, by
// upstream's checks. Without such labels everything is allowed, as upstream.
type podSecurity struct{ objects store.Reader }

// evaluator is made by the first namespace that has a standard.
var evaluator = sync.OnceValues(func() (policy.Evaluator, error) {
	return policy.NewEvaluator(policy.DefaultChecks(), nil)
})

const podSecurityLabels = "pod-security.kubernetes.io/"

func (p podSecurity) labels(namespace string) map[string]string {
	ns, ok := store.Get[*corev1.Namespace](p.objects, kinds.Namespaces, "", namespace)
	if !ok {
		return nil
	}
	for key := range ns.Labels {
		if strings.HasPrefix(key, podSecurityLabels) {
			return ns.Labels
		}
	}
	return nil
}

func (p podSecurity) concerns(a admission.Attributes) bool {
	op := a.GetOperation()
	switch gr := a.GetResource().GroupResource(); gr {
	case podResource:
		if !(op == admission.Create && a.GetSubresource() == "" || op == admission.Update && a.GetSubresource() == "ephemeralcontainers") {
			return false
		}
	case kinds.Deployments, kinds.ReplicaSets, kinds.StatefulSets, kinds.Jobs:
		if a.GetSubresource() != "" || op != admission.Create && op != admission.Update {
			return false
		}
	default:
		return false
	}
	return p.labels(a.GetNamespace()) != nil
}

func (p podSecurity) validate(ctx context.Context, a admission.Attributes) error {
	standard, errs := podsecurityapi.PolicyToEvaluate(p.labels(a.GetNamespace()), podsecurityapi.Policy{
		Enforce: podsecurityapi.LevelVersion{Level: podsecurityapi.LevelPrivileged, Version: podsecurityapi.LatestVersion()},
		Audit:   podsecurityapi.LevelVersion{Level: podsecurityapi.LevelPrivileged, Version: podsecurityapi.LatestVersion()},
		Warn:    podsecurityapi.LevelVersion{Level: podsecurityapi.LevelPrivileged, Version: podsecurityapi.LatestVersion()},
	})
	if len(errs) == 0 && standard.FullyPrivileged() {
		return nil
	}
	meta, spec, err := podOfRequest(a)
	if err != nil || spec == nil {
		return err
	}
	check, err := evaluator()
	if err != nil {
		return err
	}
	if a.GetResource().GroupResource() == podResource {
		if r := policy.AggregateCheckResults(check.EvaluatePod(standard.Enforce, meta, spec)); !r.Allowed {
			return admission.NewForbidden(a, fmt.Errorf("violates PodSecurity %q: %s", standard.Enforce.String(), r.ForbiddenDetail()))
		}
	}
	if r := policy.AggregateCheckResults(check.EvaluatePod(standard.Warn, meta, spec)); !r.Allowed {
		warning.AddWarning(ctx, "", fmt.Sprintf("would violate PodSecurity %q: %s", standard.Warn.String(), r.ForbiddenDetail()))
	}
	return nil
}

// podOfRequest is the pod, or the template, in the form that the checks take.
func podOfRequest(a admission.Attributes) (*metav1.ObjectMeta, *corev1.PodSpec, error) {
	obj, err := scheme.ConvertToVersion(a.GetObject(), schema.GroupVersion{Group: a.GetResource().Group, Version: "v1"})
	if err != nil {
		return nil, nil, err
	}
	meta, spec := podTemplate(obj)
	return meta, spec, nil
}

func podTemplate(obj runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return &o.ObjectMeta, &o.Spec
	case *appsv1.Deployment:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec
	case *appsv1.ReplicaSet:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec
	case *appsv1.StatefulSet:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec
	case *batchv1.Job:
		return &o.Spec.Template.ObjectMeta, &o.Spec.Template.Spec
	}
	return nil, nil
}
