package job

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/controller"
)

const (
	firstBackoff = 10 * time.Second
	lastBackoff  = 10 * time.Minute
	burst        = 500
)

type event struct {
	warning         bool
	reason, message string
}

// plan is what one look at a job decides.
type plan struct {
	status  batchv1.JobStatus
	events  []event
	release []*corev1.Pod
	remove  []*corev1.Pod
	create  []*corev1.Pod
	again   time.Duration
}

// work is the state of a decision.
type work struct {
	j    *batchv1.Job
	pods []*corev1.Pod
	now  time.Time
	plan plan
	s    *batchv1.JobStatus // plan.status

	active  []*corev1.Pod
	done    indexes // completed, of an indexed job
	lost    indexes // failed for good, where each index has a limit of its own
	success int32   // counted and about to be
	failure int32
}

func decide(j *batchv1.Job, pods []*corev1.Pod, now time.Time) plan {
	w := &work{j: j, pods: pods, now: now}
	w.plan.status = *j.Status.DeepCopy()
	w.s = &w.plan.status
	w.begin()
	w.count()
	verdict := w.verdict()
	w.actives()
	if verdict == nil && perIndex(j) {
		w.keepLastFailures()
	}
	switch {
	case verdict != nil:
		w.end(*verdict)
	case suspended(j):
		w.plan.remove = w.active
		w.s.Active = 0
	case j.DeletionTimestamp == nil:
		w.fill()
	}
	return w.plan
}

func suspended(j *batchv1.Job) bool { return j.Spec.Suspend != nil && *j.Spec.Suspend }

func indexed(j *batchv1.Job) bool {
	return j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
}

func finished(j *batchv1.Job) bool {
	return has(&j.Status, batchv1.JobComplete) || has(&j.Status, batchv1.JobFailed)
}

func has(s *batchv1.JobStatus, t batchv1.JobConditionType) bool {
	c := find(s, t)
	return c != nil && c.Status == corev1.ConditionTrue
}

func find(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// stamp is a time exactly as a decoder would make it. The API compares a job's start and completion with
// ==, which tells the same moment in UTC from the same moment in local time.
func stamp(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second).Local()) }

func (w *work) condition(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) {
	at := stamp(w.now)
	c := batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastProbeTime: at, LastTransitionTime: at}
	if old := find(w.s, t); old != nil {
		if old.Status != status {
			*old = c
		}
		return
	}
	w.s.Conditions = append(w.s.Conditions, c)
}

// begin notes when the job starts, and when it is suspended and resumed.
func (w *work) begin() {
	at := stamp(w.now)
	switch {
	case suspended(w.j) && !has(w.s, batchv1.JobSuspended):
		w.condition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")
		w.plan.events = append(w.plan.events, event{reason: "Suspended", message: "Job suspended"})
	case !suspended(w.j) && has(w.s, batchv1.JobSuspended):
		w.condition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")
		w.s.StartTime = &at // the deadline begins anew
		w.plan.events = append(w.plan.events, event{reason: "Resumed", message: "Job resumed"})
	case !suspended(w.j) && w.s.StartTime == nil:
		w.s.StartTime = &at
	}
	if w.s.UncountedTerminatedPods == nil {
		w.s.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
}

func failed(p *corev1.Pod, j *batchv1.Job) bool {
	return p.Status.Phase == corev1.PodFailed || !onlyFailed(j) && terminating(p)
}

// onlyFailed says whether a pod is replaced when it has ended, and not as soon as it begins to.
func onlyFailed(j *batchv1.Job) bool {
	return j.Spec.PodReplacementPolicy != nil && *j.Spec.PodReplacementPolicy == batchv1.Failed
}

// terminating says whether a pod is being deleted and has not ended.
func terminating(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

// count moves pods through the two steps of being counted, and sums up.
func (w *work) count() {
	held := map[types.UID]bool{}
	for _, p := range w.pods {
		held[p.UID] = tracked(p)
	}
	u := w.s.UncountedTerminatedPods
	// Whoever has lost its finalizer since its UID was written down is counted for good.
	settle := func(uids []types.UID, counter *int32) []types.UID {
		return slices.DeleteFunc(uids, func(uid types.UID) bool {
			if held[uid] {
				return false
			}
			*counter++
			return true
		})
	}
	u.Succeeded = settle(u.Succeeded, &w.s.Succeeded)
	u.Failed = settle(u.Failed, &w.s.Failed)
	if indexed(w.j) {
		w.done = parseIndexes(w.s.CompletedIndexes)
	}
	if perIndex(w.j) && w.s.FailedIndexes != nil {
		w.lost = parseIndexes(*w.s.FailedIndexes)
	}
	for _, p := range w.pods {
		w.countPod(p)
	}
	if indexed(w.j) {
		w.s.CompletedIndexes = w.done.String()
		w.s.Succeeded = int32(len(w.done))
	}
	if perIndex(w.j) {
		w.lost = slices.DeleteFunc(w.lost, w.done.has)
		text := w.lost.String()
		w.s.FailedIndexes = &text
	}
	w.success = w.s.Succeeded + int32(len(u.Succeeded))
	w.failure = w.s.Failed + int32(len(u.Failed))
}

func (w *work) countPod(p *corev1.Pod) {
	u := w.s.UncountedTerminatedPods
	if !tracked(p) || (p.Status.Phase != corev1.PodSucceeded && !failed(p, w.j)) {
		return
	}
	w.plan.release = append(w.plan.release, p)
	if slices.Contains(u.Succeeded, p.UID) || slices.Contains(u.Failed, p.UID) {
		return // what it was written down as, it stays: one that was deleted may still end well after that
	}
	switch {
	case p.Status.Phase == corev1.PodSucceeded && indexed(w.j):
		// The list of completed indexes says it once by itself.
		if i, ok := indexOf(p); ok && i < completions(w.j) {
			w.done = w.done.with(i)
		}
	case p.Status.Phase == corev1.PodSucceeded:
		u.Succeeded = append(u.Succeeded, p.UID)
	default:
		w.countFailure(p)
	}
}

// countFailure leaves out what the policy ignores.
func (w *work) countFailure(p *corev1.Pod) {
	u := w.s.UncountedTerminatedPods
	if judge(w.j.Spec.PodFailurePolicy, p).action != batchv1.PodFailurePolicyActionIgnore {
		u.Failed = append(u.Failed, p.UID)
	}
	if i, ok := indexOf(p); ok && perIndex(w.j) && i < completions(w.j) && w.exhausted(p) {
		w.lost = w.lost.with(i)
	}
}

// keepLastFailures holds on to the newest failed pod of an index until another has followed
// it, whoever deletes pods: how often that index has failed is written on it alone.
func (w *work) keepLastFailures() {
	last := w.lastFailures()
	w.plan.release = slices.DeleteFunc(w.plan.release, func(p *corev1.Pod) bool {
		i, ok := indexOf(p)
		return ok && last[i] == p
	})
}

// actives counts the pods that run or will.
func (w *work) actives() {
	ready, leaving := int32(0), int32(0)
	for _, p := range w.pods {
		switch {
		case controller.Active(p):
			w.active = append(w.active, p)
			if controller.Ready(p) {
				ready++
			}
		case terminating(p):
			leaving++
		}
	}
	w.s.Active, w.s.Ready, w.s.Terminating = int32(len(w.active)), &ready, &leaving
}

// outcome is how a job ends.
type outcome struct {
	ok              bool
	reason, message string
}

// verdict says whether and how the job ends; nil while it goes on.
func (w *work) verdict() *outcome {
	for _, t := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobFailureTarget} {
		if has(w.s, t) { // decided before, and waiting for its pods to end
			c := find(w.s, t)
			return &outcome{t == batchv1.JobSuccessCriteriaMet, c.Reason, c.Message}
		}
	}
	limit := int32(6)
	if w.j.Spec.BackoffLimit != nil {
		limit = *w.j.Spec.BackoffLimit
	}
	if message := w.fatal(); message != "" {
		return &outcome{false, batchv1.JobReasonPodFailurePolicy, message}
	}
	rule := successRule(w.j, w.done)
	switch {
	case w.failure > limit, w.restarts(limit):
		return &outcome{false, batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit"}
	case w.late():
		return &outcome{false, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline"}
	case w.j.Spec.MaxFailedIndexes != nil && len(w.lost) > int(*w.j.Spec.MaxFailedIndexes):
		return &outcome{false, batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes"}
	case len(w.lost) > 0 && len(w.lost)+len(w.done) >= int(completions(w.j)):
		return &outcome{false, batchv1.JobReasonFailedIndexes, "Job has failed indexes"}
	case rule >= 0:
		return &outcome{true, batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", rule)}
	case w.complete():
		return &outcome{true, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"}
	}
	return nil
}

// fatal is why a failed pod ends the whole job; empty: none does.
func (w *work) fatal() string {
	if w.j.Spec.PodFailurePolicy == nil {
		return ""
	}
	for _, p := range w.pods {
		if !failed(p, w.j) {
			continue
		}
		if r := judge(w.j.Spec.PodFailurePolicy, p); r.action == batchv1.PodFailurePolicyActionFailJob {
			return r.message
		}
	}
	return ""
}

// restarts says whether containers that are restarted in place have failed too often.
func (w *work) restarts(limit int32) bool {
	if w.j.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	n := int32(0)
	for _, p := range w.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for i := range list {
				n += list[i].RestartCount
			}
		}
	}
	return n > 0 && n >= limit
}

// late also plans to look again when the deadline comes.
func (w *work) late() bool {
	if w.j.Spec.ActiveDeadlineSeconds == nil || w.s.StartTime == nil || suspended(w.j) {
		return false
	}
	left := w.s.StartTime.Add(time.Duration(*w.j.Spec.ActiveDeadlineSeconds) * time.Second).Sub(w.now)
	if left <= 0 {
		return true
	}
	w.lookAgain(left)
	return false
}

func (w *work) lookAgain(d time.Duration) {
	if w.plan.again == 0 || d < w.plan.again {
		w.plan.again = d
	}
}

func completions(j *batchv1.Job) int32 {
	if j.Spec.Completions == nil {
		return 0
	}
	return *j.Spec.Completions
}

func parallelism(j *batchv1.Job) int32 {
	if j.Spec.Parallelism == nil {
		return 1
	}
	return *j.Spec.Parallelism
}

func (w *work) complete() bool {
	if w.j.Spec.Completions == nil {
		// A work queue is empty when one worker says so and all have ended.
		for _, p := range w.pods {
			if controller.Active(p) {
				return false
			}
		}
		return w.success > 0
	}
	return w.success >= *w.j.Spec.Completions
}

// end stops what still runs; the final condition follows when nothing does and all is counted.
func (w *work) end(o outcome) {
	first, last := batchv1.JobFailureTarget, batchv1.JobFailed
	if o.ok {
		first, last = batchv1.JobSuccessCriteriaMet, batchv1.JobComplete
	}
	w.condition(first, corev1.ConditionTrue, o.reason, o.message)
	w.plan.remove = w.active
	w.plan.again = 0
	u := w.s.UncountedTerminatedPods
	if len(w.active) > 0 || *w.s.Terminating > 0 || len(u.Succeeded)+len(u.Failed) > 0 {
		return
	}
	at := stamp(w.now)
	if w.s.StartTime == nil {
		w.s.StartTime = &at
	}
	w.condition(last, corev1.ConditionTrue, o.reason, o.message)
	if o.ok {
		w.s.CompletionTime = &at
		w.plan.events = append(w.plan.events, event{reason: "Completed", message: "Job completed"})
		return
	}
	w.plan.events = append(w.plan.events, event{warning: true, reason: o.reason, message: o.message})
}

// fill creates the pods that are missing and deletes those that are too many.
func (w *work) fill() {
	want := w.wanted()
	active := int32(len(w.active))
	if w.plan.remove = w.surplus(max(0, int(active-want))); len(w.plan.remove) > 0 {
		return
	}
	missing := min(want-active, burst)
	if onlyFailed(w.j) {
		missing -= *w.s.Terminating
	}
	if missing <= 0 {
		return
	}
	if perIndex(w.j) {
		w.fillIndexes(int(missing))
		return
	}
	if wait := w.backoff(); wait > 0 {
		w.lookAgain(wait)
		return
	}
	if indexed(w.j) {
		for _, i := range w.freeIndexes(int(missing)) {
			w.plan.create = append(w.plan.create, newIndexedPod(w.j, i))
		}
		return
	}
	for range missing {
		w.plan.create = append(w.plan.create, newPod(w.j))
	}
}

// surplus are the pods to delete when so many are over: first those of an indexed job whose index is none of its own, or is
// another pod's too.
func (w *work) surplus(over int) (out []*corev1.Pod) {
	if over == 0 && !indexed(w.j) {
		return nil
	}
	onNode := map[string]int{}
	for _, p := range w.active {
		onNode[p.Spec.NodeName]++
	}
	left := slices.SortedStableFunc(slices.Values(w.active), func(a, b *corev1.Pod) int { return controller.DeletionOrder(a, b, onNode) })
	if indexed(w.j) {
		taken := map[int32]bool{}
		for k := len(left) - 1; k >= 0; k-- { // who would be deleted last keeps the index
			i, ok := indexOf(left[k])
			if ok && i < completions(w.j) && !taken[i] {
				taken[i] = true
				continue
			}
			out = append(out, left[k])
			left = slices.Delete(left, k, k+1)
		}
	}
	return append(out, left[:max(0, over-len(out))]...)
}

// fillIndexes makes each index wait for its own failures only.
func (w *work) fillIndexes(missing int) {
	last := w.lastFailures()
	for _, i := range w.freeIndexes(int(completions(w.j))) {
		if len(w.plan.create) == missing {
			return
		}
		var before trials
		if p := last[i]; p != nil {
			before = w.trialsAfter(p)
			if wait := endedAt(p).Add(backoffAfter(int(before.sum()))).Sub(w.now); wait > 0 {
				w.lookAgain(wait)
				continue
			}
		}
		pod := newIndexedPod(w.j, i)
		before.annotate(pod)
		w.plan.create = append(w.plan.create, pod)
	}
}

// backoffAfter is the wait after so many failures in a row.
func backoffAfter(n int) time.Duration { return min(firstBackoff<<min(n-1, 10), lastBackoff) }

func (w *work) wanted() int32 {
	if w.j.Spec.Completions != nil {
		return max(0, min(*w.j.Spec.Completions-w.success-int32(len(w.lost)), parallelism(w.j)))
	}
	if w.success > 0 {
		return int32(len(w.active)) // no new workers once one has found the queue empty
	}
	return parallelism(w.j)
}

// backoff is how long to wait for the next pod, after the failures since the last success.
func (w *work) backoff() time.Duration {
	var success, failure time.Time
	for _, p := range w.pods {
		if p.Status.Phase == corev1.PodSucceeded && endedAt(p).After(success) {
			success = endedAt(p)
		}
	}
	n := 0
	for _, p := range w.pods {
		if !failed(p, w.j) || !endedAt(p).After(success) {
			continue
		}
		n++
		if endedAt(p).After(failure) {
			failure = endedAt(p)
		}
	}
	if n == 0 {
		return 0
	}
	return max(0, failure.Add(backoffAfter(n)).Sub(w.now))
}

func endedAt(p *corev1.Pod) time.Time {
	var t time.Time
	for i := range p.Status.ContainerStatuses {
		if end := p.Status.ContainerStatuses[i].State.Terminated; end != nil && end.FinishedAt.After(t) {
			t = end.FinishedAt.Time
		}
	}
	switch {
	case !t.IsZero():
		return t
	case p.DeletionTimestamp != nil:
		return p.DeletionTimestamp.Time
	}
	if c := controller.Condition(&p.Status, corev1.PodReady); c != nil {
		return c.LastTransitionTime.Time
	}
	return p.CreationTimestamp.Time
}

func newPod(j *batchv1.Job) *corev1.Pod {
	pod := controller.PodFromTemplate(&j.Spec.Template, j, *metav1.NewControllerRef(j, gvk))
	pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	return pod
}

func indexOf(p *corev1.Pod) (int32, bool) {
	n, err := strconv.ParseInt(p.Annotations[batchv1.JobCompletionIndexAnnotation], 10, 32)
	return int32(n), err == nil && n >= 0
}

// freeIndexes are the first indexes that neither are done nor have a pod.
func (w *work) freeIndexes(n int) []int32 {
	busy := map[int32]bool{}
	for _, p := range w.pods {
		if i, ok := indexOf(p); ok && (controller.Active(p) || onlyFailed(w.j) && terminating(p)) {
			busy[i] = true
		}
	}
	var out []int32
	for i := int32(0); i < completions(w.j) && len(out) < n; i++ {
		if !w.done.has(i) && !w.lost.has(i) && !busy[i] {
			out = append(out, i)
		}
	}
	return out
}

func newIndexedPod(j *batchv1.Job, i int32) *corev1.Pod {
	pod := newPod(j)
	index := strconv.Itoa(int(i))
	for _, m := range []*map[string]string{&pod.Labels, &pod.Annotations} {
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[batchv1.JobCompletionIndexAnnotation] = index
	}
	pod.Spec.Hostname = cmp.Or(pod.Spec.Hostname, fmt.Sprintf("%s-%s", j.Name, index))
	pod.GenerateName = fmt.Sprintf("%s-%s-", j.Name, index)
	env := corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{
		APIVersion: "v1", FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation),
	}}}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for c := range list {
			if !slices.ContainsFunc(list[c].Env, func(e corev1.EnvVar) bool { return e.Name == env.Name }) {
				list[c].Env = append(list[c].Env, env)
			}
		}
	}
	return pod
}
