package api

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// budgetClient tells upstream's eviction how much disruption the budgets allow. It works that
// out of the pods as they are at that moment, so that an eviction never waits for, or trusts,
// a status that some controller wrote earlier.
type budgetClient struct{ objects *store.Store }

var _ policyclient.PodDisruptionBudgetsGetter = (*budgetClient)(nil)

func (c *budgetClient) PodDisruptionBudgets(namespace string) policyclient.PodDisruptionBudgetInterface {
	return &budgets{objects: c.objects, namespace: namespace}
}

// budgets has the three methods that eviction calls; the others of the interface are nil.
type budgets struct {
	policyclient.PodDisruptionBudgetInterface
	objects   *store.Store
	namespace string
}

func (b *budgets) Get(_ context.Context, name string, _ metav1.GetOptions) (*policyv1.PodDisruptionBudget, error) {
	p, ok := store.Get[*policyv1.PodDisruptionBudget](b.objects, kinds.PodDisruptionBudgets, b.namespace, name)
	if !ok {
		return nil, apierrors.NewNotFound(kinds.PodDisruptionBudgets, name)
	}
	return b.measured(p), nil
}

func (b *budgets) List(context.Context, metav1.ListOptions) (*policyv1.PodDisruptionBudgetList, error) {
	list := &policyv1.PodDisruptionBudgetList{}
	for _, p := range store.List[*policyv1.PodDisruptionBudget](b.objects, kinds.PodDisruptionBudgets, b.namespace) {
		list.Items = append(list.Items, *b.measured(p))
	}
	return list, nil
}

// UpdateStatus is eviction's claim on the budget. It is conditional, so that two evictions
// cannot both take the last allowance.
func (b *budgets) UpdateStatus(ctx context.Context, p *policyv1.PodDisruptionBudget, _ metav1.UpdateOptions) (*policyv1.PodDisruptionBudget, error) {
	rev, err := store.ParseRevision(p.ResourceVersion)
	if err != nil {
		return nil, err
	}
	o, err := b.objects.Update(ctx, kinds.PodDisruptionBudgets, p.DeepCopy(), rev)
	if err != nil {
		return nil, err
	}
	return o.(*policyv1.PodDisruptionBudget), nil
}

// measured is a copy of a budget whose status tells how things are now.
func (b *budgets) measured(p *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudget {
	p = p.DeepCopy()
	expected, healthy := b.count(p)
	desired := desiredHealthy(p, expected)
	p.Status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: p.Generation, ExpectedPods: expected, CurrentHealthy: healthy, DesiredHealthy: desired,
		DisruptionsAllowed: max(0, healthy-desired), DisruptedPods: p.Status.DisruptedPods, Conditions: p.Status.Conditions,
	}
	for name := range p.Status.DisruptedPods {
		if pod, ok := store.Get[*corev1.Pod](b.objects, kinds.Pods, b.namespace, name); !ok || pod.DeletionTimestamp != nil {
			delete(p.Status.DisruptedPods, name) // done: what counts is in the pods
		}
	}
	if expected == 0 {
		p.Status.DisruptionsAllowed = 0
	}
	return p
}

func (b *budgets) count(p *policyv1.PodDisruptionBudget) (expected, healthy int32) {
	selector, err := metav1.LabelSelectorAsSelector(p.Spec.Selector)
	if err != nil {
		return 0, 0
	}
	for o := range b.objects.Snapshot(kinds.Pods).All(b.namespace) {
		pod := o.(*corev1.Pod)
		if !selector.Matches(labels.Set(pod.Labels)) || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		expected++
		if pod.DeletionTimestamp == nil && isReady(pod) {
			healthy++
		}
	}
	return expected, healthy
}

func isReady(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func desiredHealthy(p *policyv1.PodDisruptionBudget, expected int32) int32 {
	if m := p.Spec.MaxUnavailable; m != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(m, int(expected), true)
		if err != nil {
			return expected
		}
		return max(0, expected-int32(n))
	}
	if m := p.Spec.MinAvailable; m != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(m, int(expected), true)
		if err != nil {
			return expected
		}
		return int32(n)
	}
	return expected
}
