package api

import (
	"context"
	"time"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"

	"slipway.dev/slipway/cluster/budget"
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
	return measured(b.objects, p), nil
}

func (b *budgets) List(context.Context, metav1.ListOptions) (*policyv1.PodDisruptionBudgetList, error) {
	list := &policyv1.PodDisruptionBudgetList{}
	for _, p := range store.List[*policyv1.PodDisruptionBudget](b.objects, kinds.PodDisruptionBudgets, b.namespace) {
		list.Items = append(list.Items, *measured(b.objects, p))
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

func measured(objects *store.Store, p *policyv1.PodDisruptionBudget) *policyv1.PodDisruptionBudget {
	p, _ = budget.Measure(objects, p, time.Now())
	return p
}
