// Package nodelifecycle watches over nodes: one that is no longer heard of is unknown, one
// that is not well is tainted, and pods that do not tolerate a NoExecute taint leave.
//
// A node is heard of when its lease or its status is renewed, by this controller's own
// clock from when it saw that: a controller that has just started waits like any other.
package nodelifecycle

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/scheduler"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const (
	name = "node-controller"
	// grace is upstream's: five heartbeats.
	grace = 50 * time.Second
)

// Controller reconciles nodes.
type Controller struct {
	*controller.Loop
	deps   controller.Deps
	events *record.Recorder

	mu   sync.Mutex
	seen map[string]sign // by node
}

// sign is the last sign of life of a node, and when it was seen.
type sign struct {
	renewed metav1.MicroTime
	beat    metav1.Time
	at      time.Time
}

// New makes the controller.
func New(d controller.Deps) *Controller {
	d = d.For(name)
	c := &Controller{deps: d, events: d.Recorder(name), seen: map[string]sign{}}
	c.Loop = &controller.Loop{
		ControllerName: name, Reader: d.Reader, Log: d.Log, Sync: c.sync,
		Watches: []controller.Watch{
			{Resource: kinds.Nodes, Keys: controller.Self},
			{Resource: kinds.Leases, Keys: func(e store.Event) []string {
				if e.Object.GetNamespace() != corev1.NamespaceNodeLease || e.Type == store.Deleted {
					return nil
				}
				return []string{e.Object.GetName()}
			}},
			{Resource: kinds.Pods, Keys: c.podKeys},
		},
	}
	return c
}

// podKeys wakes a node with a NoExecute taint when a pod comes to it.
func (c *Controller) podKeys(e store.Event) []string {
	pod := e.Object.(*corev1.Pod)
	if e.Type == store.Deleted || pod.Spec.NodeName == "" {
		return nil
	}
	if prev, ok := e.Prev.(*corev1.Pod); ok && prev.Spec.NodeName == pod.Spec.NodeName && equality.Semantic.DeepEqual(prev.Spec.Tolerations, pod.Spec.Tolerations) {
		return nil
	}
	n, ok := store.Get[*corev1.Node](c.deps.Reader, kinds.Nodes, "", pod.Spec.NodeName)
	if !ok || !slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute }) {
		return nil
	}
	return []string{n.Name}
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	n, ok := store.Get[*corev1.Node](c.deps.Reader, kinds.Nodes, "", key)
	if !ok {
		c.mu.Lock()
		delete(c.seen, key)
		c.mu.Unlock()
		return 0, nil
	}
	now := time.Now()
	silent := now.Sub(c.heard(n, now))
	if silent >= grace {
		lost, err := c.markUnknown(ctx, n, now)
		if err != nil {
			return 0, err
		}
		n = lost
	}
	n, err := c.taint(ctx, n, now)
	if err != nil {
		return 0, err
	}
	if !ready(n) {
		if err := c.unready(ctx, n); err != nil {
			return 0, err
		}
	}
	again, err := c.evict(ctx, n, now)
	if silent < grace && (again == 0 || grace-silent < again) {
		again = grace - silent
	}
	return again, err
}

// heard is when the last sign of life was seen.
func (c *Controller) heard(n *corev1.Node, now time.Time) time.Time {
	var s sign
	if l, ok := store.Get[*coordinationv1.Lease](c.deps.Reader, kinds.Leases, corev1.NamespaceNodeLease, n.Name); ok && l.Spec.RenewTime != nil {
		s.renewed = *l.Spec.RenewTime
	}
	if cond := condition(n, corev1.NodeReady); cond != nil && cond.Status != corev1.ConditionUnknown {
		s.beat = cond.LastHeartbeatTime
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.seen[n.Name]
	if known && old.renewed.Equal(&s.renewed) && (old.beat.Equal(&s.beat) || s.beat.IsZero()) {
		return old.at
	}
	s.at = now
	c.seen[n.Name] = s
	return now
}

func condition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

func ready(n *corev1.Node) bool {
	c := condition(n, corev1.NodeReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// markUnknown says of a silent node that nothing is known of it.
func (c *Controller) markUnknown(ctx context.Context, n *corev1.Node, now time.Time) (*corev1.Node, error) {
	next := store.Copy(n)
	at := metav1.NewTime(now).Rfc3339Copy()
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		cur := condition(next, t)
		switch {
		case cur == nil:
			next.Status.Conditions = append(next.Status.Conditions, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.", LastTransitionTime: at, LastHeartbeatTime: n.CreationTimestamp,
			})
		case cur.Status != corev1.ConditionUnknown:
			cur.Status, cur.Reason, cur.Message, cur.LastTransitionTime = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status.", at
		}
	}
	if equality.Semantic.DeepEqual(next.Status, n.Status) {
		return n, nil
	}
	c.events.Normal(n, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name)
	done, err := c.deps.Writer.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("mark node %q unknown: %w", n.Name, err)
	}
	return done.(*corev1.Node), nil
}

// managed are the taints that follow from conditions: by condition, the status and the key.
var managed = []struct {
	condition corev1.NodeConditionType
	status    corev1.ConditionStatus
	key       string
	execute   bool // also as NoExecute
}{
	{corev1.NodeReady, corev1.ConditionFalse, corev1.TaintNodeNotReady, true},
	{corev1.NodeReady, corev1.ConditionUnknown, corev1.TaintNodeUnreachable, true},
	{corev1.NodeMemoryPressure, corev1.ConditionTrue, corev1.TaintNodeMemoryPressure, false},
	{corev1.NodeDiskPressure, corev1.ConditionTrue, corev1.TaintNodeDiskPressure, false},
	{corev1.NodePIDPressure, corev1.ConditionTrue, corev1.TaintNodePIDPressure, false},
	{corev1.NodeNetworkUnavailable, corev1.ConditionTrue, corev1.TaintNodeNetworkUnavailable, false},
}

// taints are a node's taints as its conditions ask for; those of others stay. One that makes pods leave gets the time at
// which it was seen first, unless it has one: it is what their patience counts from.
func taints(n *corev1.Node, now time.Time) []corev1.Taint {
	at := metav1.NewTime(now).Rfc3339Copy()
	var want []corev1.Taint
	ours := map[string]bool{corev1.TaintNodeUnschedulable: true}
	for _, m := range managed {
		ours[m.key] = true
		if cond := condition(n, m.condition); cond == nil || cond.Status != m.status {
			continue
		}
		want = append(want, corev1.Taint{Key: m.key, Effect: corev1.TaintEffectNoSchedule})
		if m.execute {
			want = append(want, corev1.Taint{Key: m.key, Effect: corev1.TaintEffectNoExecute})
		}
	}
	if n.Spec.Unschedulable {
		want = append(want, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute && t.TimeAdded == nil {
			t.TimeAdded = &at
		}
		i := slices.IndexFunc(want, func(w corev1.Taint) bool { return w.Key == t.Key && w.Effect == t.Effect })
		switch {
		case i >= 0:
			out = append(out, t)
			want = slices.Delete(want, i, i+1)
		case !ours[t.Key]:
			out = append(out, t)
		}
	}
	for _, t := range want {
		t.TimeAdded = &at
		out = append(out, t)
	}
	return out
}

func (c *Controller) taint(ctx context.Context, n *corev1.Node, now time.Time) (*corev1.Node, error) {
	want := taints(n, now)
	if equality.Semantic.DeepEqual(want, n.Spec.Taints) {
		return n, nil
	}
	next := store.Copy(n)
	next.Spec.Taints = want
	done, err := c.deps.Writer.Update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("taint node %q: %w", n.Name, err)
	}
	return done.(*corev1.Node), nil
}

// unready takes the pods of a node that is not ready out of service.
func (c *Controller) unready(ctx context.Context, n *corev1.Node) error {
	pods := store.Indexed[*corev1.Pod](c.deps.Reader, kinds.Pods, kinds.ByNode, n.Name)
	_, err := controller.Parallel(ctx, len(pods), func(ctx context.Context, i int) error {
		if !controller.Ready(pods[i]) {
			return nil
		}
		next := store.Copy(pods[i])
		cond := controller.Condition(&next.Status, corev1.PodReady)
		cond.Status, cond.LastTransitionTime = corev1.ConditionFalse, metav1.Now().Rfc3339Copy()
		c.events.Warning(pods[i], "NodeNotReady", "Node is not ready")
		_, err := c.deps.Writer.UpdateStatus(ctx, next)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	return err
}

// evict deletes the pods whose tolerance of the node's NoExecute taints has ended.
func (c *Controller) evict(ctx context.Context, n *corev1.Node, now time.Time) (again time.Duration, err error) {
	var executing []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			executing = append(executing, t)
		}
	}
	if len(executing) == 0 {
		return 0, nil
	}
	for _, pod := range store.Indexed[*corev1.Pod](c.deps.Reader, kinds.Pods, kinds.ByNode, n.Name) {
		if pod.DeletionTimestamp != nil {
			continue
		}
		until, stays := tolerated(pod, executing, now)
		if stays {
			continue
		}
		if wait := until.Sub(now); wait > 0 {
			if again == 0 || wait < again {
				again = wait
			}
			continue
		}
		c.events.Normal(pod, "TaintManagerEviction", "Marking for deletion Pod %s/%s", pod.Namespace, pod.Name)
		err := c.deps.Writer.Delete(ctx, kinds.Pods, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return 0, fmt.Errorf("evict pod %q: %w", store.KeyOf(pod), err)
		}
	}
	return again, nil
}

// tolerated says how long a pod may stay with those taints; stays means for ever.
func tolerated(pod *corev1.Pod, executing []corev1.Taint, now time.Time) (until time.Time, stays bool) {
	stays = true
	for i := range executing {
		t := &executing[i]
		from := now
		if t.TimeAdded != nil {
			from = t.TimeAdded.Time
		}
		limit, found := int64(-1), false
		for j := range pod.Spec.Tolerations {
			tol := &pod.Spec.Tolerations[j]
			if !scheduler.Tolerates(tol, t) {
				continue
			}
			found = true
			if tol.TolerationSeconds != nil && (limit < 0 || *tol.TolerationSeconds < limit) {
				limit = max(0, *tol.TolerationSeconds)
			}
		}
		if found && limit < 0 {
			continue
		}
		end := from.Add(time.Duration(max(limit, 0)) * time.Second)
		if !found {
			end = now
		}
		if stays || end.Before(until) {
			until = end
		}
		stays = false
	}
	return until, stays
}
