// Package disruption writes down what every PodDisruptionBudget allows at the moment.
//
// Nothing in Slipway trusts that status: an eviction measures for itself. It is for people,
// for kubectl drain's progress, and for programs that wait until a budget has been seen.
package disruption

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"slipway.dev/slipway/cluster/budget"
	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const name = "disruption-controller"

// Controller reconciles the statuses of PodDisruptionBudgets.
type Controller struct {
	*controller.Loop
	deps controller.Deps
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	c := &Controller{deps: d.For(name)}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.PodDisruptionBudgets, Keys: controller.Self},
			{Resource: kinds.Pods, Keys: c.budgetsOf},
		},
	}
	return c
}

// budgetsOf are the budgets that a pod's event concerns: those that select it or did.
func (c *Controller) budgetsOf(e store.Event) []string {
	var keys []string
	for o := range c.deps.Reader.Snapshot(kinds.PodDisruptionBudgets).All(e.Object.GetNamespace()) {
		selector, err := metav1.LabelSelectorAsSelector(o.(*policyv1.PodDisruptionBudget).Spec.Selector)
		if err != nil {
			continue
		}
		prev, _ := e.Prev.(*corev1.Pod)
		if selector.Matches(labels.Set(e.Object.GetLabels())) || prev != nil && selector.Matches(labels.Set(prev.Labels)) {
			keys = append(keys, store.KeyOf(o))
		}
	}
	return keys
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	ns, n := controller.SplitKey(key)
	b, ok := store.Get[*policyv1.PodDisruptionBudget](c.deps.Reader, kinds.PodDisruptionBudgets, ns, n)
	if !ok || b.DeletionTimestamp != nil {
		return 0, nil
	}
	next, again := budget.Measure(c.deps.Reader, b, time.Now())
	if equality.Semantic.DeepEqual(next.Status, b.Status) {
		return again, nil
	}
	if _, err := c.deps.Writer.UpdateStatus(ctx, next); err != nil && !apierrors.IsNotFound(err) {
		return 0, fmt.Errorf("status of pod disruption budget %q: %w", key, err)
	}
	return again, nil
}
