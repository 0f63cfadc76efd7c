package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// finish turns the changed sets and the counts into the plan.
func (r *rollout) finish() {
	for _, rs := range r.all() {
		if r.changed[rs.Name] == rs && !slices.Contains(r.plan.remove, rs) {
			r.plan.update = append(r.plan.update, rs)
		}
	}
	s := r.count()
	r.availability(&s)
	if r.d.Spec.Paused || r.d.DeletionTimestamp != nil {
		r.plan.status = s
		return
	}
	r.progress(&s)
	r.failures(&s)
	r.plan.status = s
	r.plan.again = r.recheck(s)
}

// count sums the sets' states up.
func (r *rollout) count() appsv1.DeploymentStatus {
	s := appsv1.DeploymentStatus{
		ObservedGeneration: r.d.Generation, CollisionCount: r.status.CollisionCount, Conditions: r.status.Conditions,
		TerminatingReplicas: new(int32),
	}
	for _, rs := range r.all() {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			*s.TerminatingReplicas += *rs.Status.TerminatingReplicas
		}
	}
	if r.newest != nil {
		s.UpdatedReplicas = r.newest.Status.Replicas
	}
	s.UnavailableReplicas = max(0, total(r.all())-s.AvailableReplicas)
	return s
}

func (r *rollout) availability(s *appsv1.DeploymentStatus) {
	_, unavailable := bounds(r.d)
	if s.AvailableReplicas >= want(r.d)-unavailable {
		setCondition(s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.", r.now))
		return
	}
	setCondition(s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", r.now))
}

// subject names in messages what is (or is not) progressing.
func (r *rollout) subject() string {
	if r.newest != nil {
		return fmt.Sprintf("ReplicaSet %q", r.newest.Name)
	}
	return fmt.Sprintf("Deployment %q", r.d.Name)
}

// progress is what kubectl rollout status waits for: progressing, done, or out of time.
func (r *rollout) progress(s *appsv1.DeploymentStatus) {
	if !hasDeadline(r.d) {
		removeCondition(s, appsv1.DeploymentProgressing)
		return
	}
	cur := getCondition(*s, appsv1.DeploymentProgressing)
	if s.Replicas == s.UpdatedReplicas && cur != nil && cur.Reason == "NewReplicaSetAvailable" {
		return // a resync, or scaling: no rollout is under way
	}
	switch {
	case complete(r.d, s):
		setCondition(s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable", r.subject()+" has successfully progressed.", r.now))
	case progressed(r.d.Status, *s):
		c := newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", r.subject()+" is progressing.", r.now)
		if cur != nil && cur.Status == corev1.ConditionTrue {
			c.LastTransitionTime = cur.LastTransitionTime
		}
		removeCondition(s, appsv1.DeploymentProgressing) // even the same reason moves lastUpdateTime
		setCondition(s, c)
	case r.timedOut(cur):
		setCondition(s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ProgressDeadlineExceeded", r.subject()+" has timed out progressing.", r.now))
	}
}

func (r *rollout) timedOut(cur *appsv1.DeploymentCondition) bool {
	if cur == nil || cur.Reason == "NewReplicaSetAvailable" {
		return false
	}
	if cur.Reason == "ProgressDeadlineExceeded" {
		return true
	}
	return cur.LastUpdateTime.Add(deadline(r.d)).Before(r.now)
}

// recheck is when the deadline will have passed if nothing happens.
func (r *rollout) recheck(s appsv1.DeploymentStatus) time.Duration {
	cur := getCondition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(r.d) || cur == nil || complete(r.d, &s) || cur.Reason == "ProgressDeadlineExceeded" {
		return 0
	}
	// Timestamps have whole seconds: one more makes sure that it has passed.
	return max(cur.LastUpdateTime.Add(deadline(r.d)).Sub(r.now), 0) + time.Second
}

// failures shows why sets cannot make pods, the newest first.
func (r *rollout) failures(s *appsv1.DeploymentStatus) {
	sets := r.all()
	slices.Reverse(sets)
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				setCondition(s, appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastTransitionTime: c.LastTransitionTime, LastUpdateTime: c.LastTransitionTime,
				})
				return
			}
		}
	}
	removeCondition(s, appsv1.DeploymentReplicaFailure)
}

// pausedCondition notes pausing and resuming, so that the time in between does not count
// as a lack of progress.
func (r *rollout) pausedCondition() {
	if !hasDeadline(r.d) {
		return
	}
	cur := getCondition(r.status, appsv1.DeploymentProgressing)
	if cur != nil && cur.Reason == "ProgressDeadlineExceeded" {
		return
	}
	noted := cur != nil && cur.Reason == "DeploymentPaused"
	switch {
	case r.d.Spec.Paused && !noted:
		r.set(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !r.d.Spec.Paused && noted:
		r.set(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == want(d) && s.Replicas == want(d) && s.AvailableReplicas == want(d) && s.ObservedGeneration >= d.Generation
}

func progressed(old, now appsv1.DeploymentStatus) bool {
	return now.UpdatedReplicas > old.UpdatedReplicas ||
		now.Replicas-now.UpdatedReplicas < old.Replicas-old.UpdatedReplicas ||
		now.ReadyReplicas > old.ReadyReplicas || now.AvailableReplicas > old.AvailableReplicas
}

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

func deadline(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

func (r *rollout) set(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	setCondition(&r.status, newCondition(t, status, reason, message, r.now))
}

func newCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) appsv1.DeploymentCondition {
	at := metav1.NewTime(now).Rfc3339Copy()
	return appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: at, LastTransitionTime: at}
}

func getCondition(s appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition replaces a condition unless it says the same already; the transition time
// moves only with the status.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	cur := getCondition(*s, c.Type)
	if cur != nil && cur.Status == c.Status && cur.Reason == c.Reason {
		return
	}
	if cur != nil && cur.Status == c.Status {
		c.LastTransitionTime = cur.LastTransitionTime
	}
	removeCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

// removeCondition builds a new list: the old one may be shared with a frozen object.
func removeCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	var kept []appsv1.DeploymentCondition
	for _, c := range s.Conditions {
		if c.Type != t {
			kept = append(kept, c)
		}
	}
	s.Conditions = kept
}
