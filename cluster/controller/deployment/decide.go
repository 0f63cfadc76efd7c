package deployment

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/cluster/controller"
)

const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"
)

// plan is what one look at a deployment decides.
type plan struct {
	create   *appsv1.ReplicaSet
	update   []*appsv1.ReplicaSet // as they should be
	remove   []*appsv1.ReplicaSet
	events   []string
	status   appsv1.DeploymentStatus
	revision string        // of the deployment; "" leaves it
	again    time.Duration // when time alone will have changed something
}

// rollout is the state that a decision works on. Its sets are replaced by changed copies;
// what came from the store stays as it is.
type rollout struct {
	d       *appsv1.Deployment
	newest  *appsv1.ReplicaSet // has the deployment's template; nil: there is none yet
	old     []*appsv1.ReplicaSet
	status  appsv1.DeploymentStatus // conditions found on the way
	plan    plan
	changed map[string]*appsv1.ReplicaSet // copies, by name
	now     time.Time
}

// decide says what to do about a deployment. sets are those it controls; oldPods says
// whether pods of old sets still run (only asked when the strategy is Recreate).
func decide(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, oldPods bool, now time.Time) plan {
	r := &rollout{d: d, status: *d.Status.DeepCopy(), changed: map[string]*appsv1.ReplicaSet{}, now: now}
	r.newest = findNew(d, sets)
	for _, rs := range byAge(sets) {
		if rs != r.newest {
			r.old = append(r.old, rs)
		}
	}
	r.pausedCondition()
	switch {
	case d.DeletionTimestamp != nil:
		r.adoptNew()
	case d.Spec.Paused:
		r.adoptNew()
		r.scaleInProportion()
		r.forgetOld()
	case r.scaled():
		r.adoptNew()
		r.scaleInProportion()
	case d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		r.recreate(oldPods)
	default:
		r.roll()
	}
	r.finish()
	return r.plan
}

// findNew is the oldest set that has the deployment's template.
func findNew(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	for _, rs := range byAge(sets) {
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			return rs
		}
	}
	return nil
}

func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	if !equality.Semantic.DeepEqual(withoutHash(a.Labels), withoutHash(b.Labels)) {
		return false
	}
	x, y := *a, *b // shallow: only the top level is changed
	x.Labels, y.Labels = nil, nil
	return equality.Semantic.DeepEqual(x, y)
}

func withoutHash(labels map[string]string) map[string]string {
	if _, has := labels[appsv1.DefaultDeploymentUniqueLabelKey]; !has {
		return labels
	}
	out := maps.Clone(labels)
	delete(out, appsv1.DefaultDeploymentUniqueLabelKey)
	return out
}

func byAge(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	return slices.SortedFunc(slices.Values(sets), func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
}

func want(d *appsv1.Deployment) int32 {
	if d.Spec.Replicas == nil {
		return 1
	}
	return *d.Spec.Replicas
}

func size(rs *appsv1.ReplicaSet) int32 {
	if rs == nil {
		return 0
	}
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

// bounds resolve maxSurge and maxUnavailable against the number of replicas.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType || want(d) == 0 {
		return 0, 0
	}
	u := d.Spec.Strategy.RollingUpdate
	if u == nil {
		u = &appsv1.RollingUpdateDeployment{}
	}
	// Validation has seen both: what cannot be parsed counts as nothing.
	s, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(u.MaxSurge, intstr.FromInt32(0)), int(want(d)), true)
	n, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(u.MaxUnavailable, intstr.FromInt32(0)), int(want(d)), false)
	if s == 0 && n == 0 {
		n = 1 // rounding must not make progress impossible
	}
	return int32(s), min(int32(n), want(d))
}

// maxSize is how many pods there may be at once, as the sets' annotations remember it.
func maxSize(d *appsv1.Deployment) int32 {
	surge, _ := bounds(d)
	return want(d) + surge
}

func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.newest == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.newest)
}

func total(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += size(rs)
	}
	return n
}

func available(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		// A set that was shrunk a moment ago still counts the pods it is about to lose.
		n += min(rs.Status.AvailableReplicas, size(rs))
	}
	return n
}

func active(sets []*appsv1.ReplicaSet) (out []*appsv1.ReplicaSet) {
	for _, rs := range sets {
		if size(rs) > 0 {
			out = append(out, rs)
		}
	}
	return out
}

// scaled says whether the user has changed the number of replicas since the sets were
// last sized: that is not a rollout and keeps the proportions of one under way.
func (r *rollout) scaled() bool {
	for _, rs := range active(r.all()) {
		if n, ok := annotated(rs, desiredAnnotation); ok && n != want(r.d) {
			return true
		}
	}
	return false
}

func annotated(rs *appsv1.ReplicaSet, key string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[key], 10, 32)
	return int32(n), err == nil && n >= 0
}

// edit is a copy of the set that may be changed and will be written.
func (r *rollout) edit(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	if c := r.changed[rs.Name]; c != nil {
		return c
	}
	c := rs.DeepCopy()
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	r.changed[rs.Name] = c
	if r.newest == rs {
		r.newest = c
	}
	if i := slices.Index(r.old, rs); i >= 0 {
		r.old[i] = c
	}
	return c
}

// adoptNew brings the newest set's revision, annotations and minReadySeconds up to date.
func (r *rollout) adoptNew() {
	if r.newest == nil {
		return
	}
	annotations := r.annotationsFor(r.newest)
	if !maps.Equal(annotations, r.newest.Annotations) || r.newest.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		rs := r.edit(r.newest)
		rs.Annotations = annotations
		rs.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
	}
	r.plan.revision = annotations[revisionAnnotation]
	if hasDeadline(r.d) && getCondition(r.status, appsv1.DeploymentProgressing) == nil {
		r.set(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", fmt.Sprintf("Found new replica set %q", r.newest.Name))
	}
}

// createNew plans the set of a template that has none yet.
func (r *rollout) createNew() {
	d := r.d
	hash := controller.TemplateHash(&d.Spec.Template, d.Status.CollisionCount)
	template := d.Spec.Template.DeepCopy()
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	rs := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: setName(d.Name, hash), Namespace: d.Namespace, Labels: maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, gvk)},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: new(int32), MinReadySeconds: d.Spec.MinReadySeconds, Selector: selector, Template: *template},
	}
	rs.Annotations = r.annotationsFor(rs)
	setSizes(rs, d)
	*rs.Spec.Replicas = r.growTo(rs)
	r.newest = rs
	r.plan.create = rs
	r.plan.revision = rs.Annotations[revisionAnnotation]
	if n := size(rs); n > 0 {
		r.plan.events = append(r.plan.events, fmt.Sprintf("Scaled up replica set %s from 0 to %d", rs.Name, n))
	}
	if hasDeadline(d) {
		r.set(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", fmt.Sprintf("Created new replica set %q", rs.Name))
	}
}

const maxNameLength = 253

func setName(deployment, hash string) string {
	if room := maxNameLength - 1 - len(hash); len(deployment) > room {
		deployment = deployment[:room]
	}
	return deployment + "-" + hash
}

func setSizes(rs *appsv1.ReplicaSet, d *appsv1.Deployment) {
	rs.Annotations[desiredAnnotation] = strconv.Itoa(int(want(d)))
	rs.Annotations[maxAnnotation] = strconv.Itoa(int(maxSize(d)))
}

// notCopied are the deployment's annotations that are its own.
var notCopied = []string{corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation, appsv1.DeprecatedRollbackTo}

const maxHistoryLength = 2000 // characters, as upstream

// annotationsFor is what the newest set's annotations should be: the deployment's, and a
// revision above all others. A set that is rolled back to remembers its earlier revisions.
func (r *rollout) annotationsFor(rs *appsv1.ReplicaSet) map[string]string {
	out := maps.Clone(rs.Annotations)
	if out == nil {
		out = map[string]string{}
	}
	for k, v := range r.d.Annotations {
		if !slices.Contains(notCopied, k) {
			out[k] = v
		}
	}
	next := int64(1)
	for _, old := range r.old {
		next = max(next, revisionOf(old)+1)
	}
	was, had := out[revisionAnnotation]
	if revisionOf(rs) >= next {
		return out
	}
	out[revisionAnnotation] = strconv.FormatInt(next, 10)
	if had {
		history := strings.Split(out[historyAnnotation], ",")
		history = append(slices.DeleteFunc(history, func(s string) bool { return s == "" }), was)
		for len(history) > 1 && len(strings.Join(history, ",")) > maxHistoryLength {
			history = history[1:]
		}
		out[historyAnnotation] = strings.Join(history, ",")
	}
	return out
}

func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, _ := strconv.ParseInt(rs.Annotations[revisionAnnotation], 10, 64) // 0 when absent
	return n
}

// resize plans a set's size; it is nothing new when the size is right, unless the
// annotations have to follow.
func (r *rollout) resize(rs *appsv1.ReplicaSet, n int32, annotate bool) bool {
	was := size(rs)
	stale := rs.Annotations[desiredAnnotation] != strconv.Itoa(int(want(r.d))) || rs.Annotations[maxAnnotation] != strconv.Itoa(int(maxSize(r.d)))
	if was == n && !(annotate && stale) {
		return false
	}
	c := r.edit(rs)
	c.Spec.Replicas = &n
	setSizes(c, r.d)
	if was == n {
		return false
	}
	direction := "up"
	if n < was {
		direction = "down"
	}
	r.plan.events = append(r.plan.events, fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, rs.Name, was, n))
	return true
}

// growTo is the size that the newest set may have now.
func (r *rollout) growTo(newest *appsv1.ReplicaSet) int32 {
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want(r.d)
	}
	room := maxSize(r.d) - total(r.old) - size(newest)
	if room <= 0 {
		return size(newest)
	}
	return size(newest) + min(room, want(r.d)-size(newest))
}

// roll makes one step of a rolling update: first up, then down.
func (r *rollout) roll() {
	if r.newest == nil {
		r.createNew()
	} else {
		r.adoptNew()
		n := want(r.d)
		if size(r.newest) < n {
			n = r.growTo(r.newest)
		}
		if r.resize(r.newest, n, false) {
			return
		}
	}
	if r.shrinkOld() {
		return
	}
	if complete(r.d, &r.d.Status) {
		r.forgetOld()
	}
}

// shrinkOld takes from the old sets what may be missed: first what is not available
// anyway, oldest first, then what exceeds the minimum.
func (r *rollout) shrinkOld() bool {
	if total(r.old) == 0 {
		return false
	}
	_, unavailable := bounds(r.d)
	minimum := want(r.d) - unavailable
	// Pods of the new set that are not available yet must not be made up for by taking
	// more of the old ones.
	room := total(r.all()) - minimum - (size(r.newest) - r.newest.Status.AvailableReplicas)
	if room <= 0 {
		return false
	}
	done := r.take(room, func(rs *appsv1.ReplicaSet) int32 { return size(rs) - rs.Status.AvailableReplicas })
	spare := available(r.all()) - minimum
	return r.take(spare, size) || done
}

// take scales old sets down by up to budget in sum, each by up to what limit allows.
func (r *rollout) take(budget int32, limit func(*appsv1.ReplicaSet) int32) bool {
	done := false
	for _, rs := range active(r.old) {
		n := min(budget, limit(rs), size(rs))
		if n <= 0 {
			continue
		}
		done = r.resize(rs, size(rs)-n, false) || done
		budget -= n
	}
	return done
}

// recreate ends all old pods before the first new one begins.
func (r *rollout) recreate(oldPods bool) {
	r.adoptNew()
	down := false
	for _, rs := range active(r.old) {
		down = r.resize(rs, 0, false) || down
	}
	if down || oldPods || r.oldReplicas() > 0 {
		return
	}
	if r.newest == nil {
		r.createNew()
	} else {
		r.resize(r.newest, want(r.d), false)
	}
	if complete(r.d, &r.d.Status) {
		r.forgetOld()
	}
}

func (r *rollout) oldReplicas() (n int32) {
	for _, rs := range r.old {
		n += rs.Status.Replicas
	}
	return n
}

// scaleInProportion distributes a changed number of replicas over the sets of a rollout
// under way, so that scaling neither hastens nor delays it.
func (r *rollout) scaleInProportion() {
	if only := r.activeOrLatest(); only != nil {
		r.resize(only, want(r.d), true)
		return
	}
	if r.saturated() {
		for _, rs := range active(r.old) {
			r.resize(rs, 0, false)
		}
		return
	}
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return
	}
	sets := active(r.all())
	add := -total(sets)
	if want(r.d) > 0 {
		add += maxSize(r.d)
	}
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		newerFirst := b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
		if add < 0 {
			newerFirst = -newerFirst
		}
		return cmp.Or(cmp.Compare(size(b), size(a)), newerFirst)
	})
	sizes := make([]int32, len(sets))
	added := int32(0)
	for i, rs := range sets {
		n := r.proportion(rs, add, added)
		sizes[i] = size(rs) + n
		added += n
	}
	for i, rs := range sets {
		if i == 0 {
			sizes[i] = max(0, sizes[i]+add-added) // rounding goes to the largest
		}
		r.resize(rs, sizes[i], true)
	}
}

// activeOrLatest is the one set that scaling concerns, or nil when there are several.
func (r *rollout) activeOrLatest() *appsv1.ReplicaSet {
	sets := active(r.all())
	switch {
	case len(sets) == 1:
		return sets[0]
	case len(sets) > 1:
		return nil
	case r.newest != nil:
		return r.newest
	case len(r.old) > 0:
		return r.old[len(r.old)-1]
	}
	return nil
}

func (r *rollout) saturated() bool {
	if r.newest == nil {
		return false
	}
	n, ok := annotated(r.newest, desiredAnnotation)
	return ok && n == want(r.d) && size(r.newest) == want(r.d) && r.newest.Status.AvailableReplicas == want(r.d)
}

// proportion is how many of the replicas to add (or, negative, to remove) a set gets.
func (r *rollout) proportion(rs *appsv1.ReplicaSet, add, added int32) int32 {
	if size(rs) == 0 || add == 0 || add == added {
		return 0
	}
	share := -size(rs)
	if want(r.d) > 0 {
		before, ok := annotated(rs, maxAnnotation)
		if !ok || before == 0 {
			before = r.d.Status.Replicas
		}
		if before == 0 {
			return 0
		}
		share = int32(math.Round(float64(size(rs))*float64(maxSize(r.d))/float64(before))) - size(rs)
	}
	if add > 0 {
		return min(share, add-added)
	}
	return max(share, add-added)
}

// forgetOld deletes the oldest revisions beyond the history limit.
func (r *rollout) forgetOld() {
	limit := r.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	var sets []*appsv1.ReplicaSet
	for _, rs := range r.old {
		if rs.DeletionTimestamp == nil {
			sets = append(sets, rs)
		}
	}
	excess := len(sets) - int(*limit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revisionOf(a), revisionOf(b)) })
	for _, rs := range sets[:excess] {
		if rs.Status.Replicas == 0 && size(rs) == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			r.plan.remove = append(r.plan.remove, rs)
		}
	}
}
