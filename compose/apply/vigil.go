package apply

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FailedError is a service that will not come up by itself, with the end of what it printed.
type FailedError struct {
	Service string
	Reason  string
	Log     []string

	from   source
	prefix string // of the reason, before what the cluster says
	object string // the workload, when nothing is known of a container yet
}

func (e *FailedError) Error() string { return e.Reason }

// tailLimit is how long the end of a log may take: that of what is running again has no end.
const tailLimit = 2 * time.Second

// keptLines is how much of a log tells why a service failed.
const keptLines = 15

// podLag is how long the news of a pod may take after those of the job that failed over it: two watches keep no order.
const podLag = time.Second

// explain adds to a service's own failure what the container printed last.
func (r *rollout) explain(ctx context.Context, err error) error {
	var failed *FailedError
	if !errors.As(err, &failed) || ctx.Err() != nil {
		return err // when the wait was called off, the failure is another service's, which explains it itself
	}
	if failed.from.pod == "" && failed.object != "" {
		soon, cancel := context.WithTimeout(ctx, podLag)
		defer cancel()
		_ = r.t.await(soon, func() (bool, error) { // nothing may be left of the pod: then this is all that is known
			s := r.t.service(failed.object, r.version(failed.Service))
			if s.log.pod != "" && s.failed != "" {
				failed.from, failed.Reason = s.log, failed.prefix+s.failed
			}
			return s.log.pod != "" || s.pods == 0, nil
		})
	}
	if failed.from.pod != "" {
		failed.Service = failed.from.service // of those that share a pod, the one that fails
		failed.Log = r.c.tail(ctx, r.t.namespace, failed.from)
	}
	return err
}

// tail is the end of the log of a container that has ended; nothing, if it cannot be had.
func (c *Cluster) tail(ctx context.Context, namespace string, s source) (lines []string) {
	ctx, cancel := context.WithTimeout(ctx, tailLimit)
	defer cancel()
	q := url.Values{"container": {s.container}, "tailLines": {strconv.Itoa(keptLines)}, "follow": {"true"}}
	stream, err := c.raw(ctx, "/api/v1/namespaces/"+namespace+"/pods/"+s.pod+"/log?"+q.Encode())
	if err != nil {
		return nil
	}
	defer stream.Close()
	for in := bufio.NewScanner(stream); in.Scan(); {
		lines = append(lines, in.Text())
	}
	return lines
}

// vigil watches one service until it is up, or will not be.
//
// Without a health check nothing tells that a program has got through its start, so it has to go on running for a
// moment; see settle. One that exits again and again, or is held up by what waiting seldom mends, fails only when no other service
// moves any more: a web server may well crash until its database takes connections. Where nothing tells when those do, it
// has one more try, after the back-off.
type vigil struct {
	r       *rollout
	service string
	object  string // its workload

	shown string
	runs  string        // the containers that ran when last looked at,
	since time.Time     // and since when
	pace  time.Duration // how long it took until they first ran
	floor int32         // restarts that it takes until exits count: earlier runs may have missed what was not up yet
	held  time.Time     // since when it has been held up and nothing else moves; zero: it is not
}

// look reports progress and says whether the service is up; that it will not be is an error. It is called under the
// tracker's lock.
func (v *vigil) look(s state) (bool, error) {
	v.watch(s)
	text, done := "starting", false
	switch {
	case s.failed != "":
		text = "failed: " + s.failed
	case s.completed:
		text, done = "completed", true
	case s.healthy && v.steady(s):
		// A job that nobody waits for may as well be a server that is not to be restarted.
		text, done = "running", !v.r.ends[v.service]
	case s.trouble != "":
		text = s.trouble
	case s.updating:
		text = "updating"
	case s.ready > s.want:
		text = "stopping"
	}
	if text == "starting" && v.r.ends[v.service] && strings.HasPrefix(v.shown, "running") {
		text = "running" // it has ended, and nobody has counted it yet
	}
	line := fmt.Sprintf("%s %d/%d", text, s.ready, s.want)
	if line != v.shown && (s.want > 0 || done) {
		v.shown = line
		v.r.o.Progress.State(v.service, text, s.ready, s.want)
	}
	switch {
	case s.failed != "":
		return false, &FailedError{Service: v.service, Reason: s.failed, from: s.log, object: v.object}
	case done || (!s.crash && !s.stuck):
		v.held = time.Time{}
		switch {
		case done && (s.probed || s.completed):
			v.r.known(v.service)
			v.r.enter(v.service, rests)
		case done, s.healthy && !v.r.ends[v.service]: // also while it has to go on running for a moment
			v.r.enter(v.service, rests)
		default:
			v.r.enter(v.service, moves)
		}
		if v.r.othersMove(v.service) {
			v.floor = s.restarts + 1
		}
		return done, nil
	}
	v.r.enter(v.service, rests)
	return false, v.verdict(s)
}

// watch notes which containers run, and since when.
func (v *vigil) watch(s state) {
	now := time.Now()
	if v.since.IsZero() {
		v.since = now
	}
	if s.runs == v.runs {
		return
	}
	if v.runs == "" && v.pace == 0 {
		v.pace = now.Sub(v.since)
	}
	v.runs, v.since = s.runs, now
}

// settle is how long the containers have to go on running. What has exited once may well do it again. And on a machine that
// takes long to start a container, its program takes longer to get through its own start, too.
func (v *vigil) settle(s state) time.Duration {
	least := v.r.o.Settle
	most := 10 * least
	if s.restarts > 0 {
		return most
	}
	return min(max(v.pace/2, least), most)
}

// steady tells whether the same containers have been running for long enough.
func (v *vigil) steady(s state) bool {
	settle := v.settle(s)
	if s.probed || s.want == 0 || s.completed || settle == 0 {
		return true
	}
	if s.runs == "" {
		return false // it was up a moment ago
	}
	now := time.Now()
	// The cluster counts whole seconds.
	if s.since > 0 && now.Sub(time.Unix(s.since, 0)) > settle+time.Second {
		return true
	}
	if rest := settle - now.Sub(v.since); rest > 0 {
		v.r.t.again(rest)
		return false
	}
	return true
}

// verdict decides about a service that is held up.
func (v *vigil) verdict(s state) error {
	o := v.r.o
	if v.r.othersMove(v.service) {
		v.held = time.Time{}
		v.floor = s.restarts + 1
		return nil
	}
	failed := &FailedError{Service: v.service, Reason: s.trouble, from: s.log}
	if s.crash {
		floor := v.floor
		if v.r.othersFresh(v.service) {
			floor = max(floor, 2) // the third try comes after ten seconds
		}
		if s.restarts >= floor {
			return failed
		}
		return nil
	}
	if o.Patience == 0 {
		return nil
	}
	if v.held.IsZero() {
		v.held = time.Now()
	}
	if rest := o.Patience - time.Since(v.held); rest > 0 {
		v.r.t.again(rest)
		return nil
	}
	return failed
}

// retry replaces a workload's pods that wait for another try: who types `up` again has mended something, and means now and
// not when a back-off of minutes is over.
func (t *tracker) retry(ctx context.Context, workload string) error {
	var names []string
	t.mu.Lock()
	for name, p := range t.pods {
		if p.Labels[labelName] == workload && p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.ContainerStatuses, waitsAgain) {
			names = append(names, name)
		}
	}
	t.mu.Unlock()
	for _, name := range names {
		err := t.c.client.Resource(podsGVR).Namespace(t.namespace).Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("replace pod %s: %w", name, err)
		}
	}
	// What the old ones tell is over.
	return t.await(ctx, func() (bool, error) {
		return !slices.ContainsFunc(names, func(name string) bool { p := t.pods[name]; return p != nil && p.DeletionTimestamp == nil }), nil
	})
}

// gaveUp tells of a deployment whose rollout took too long; it takes the lock. Its status says so until it gets somewhere, and
// only a new version has a new deadline.
func (t *tracker) gaveUp(deployment string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.deployments[deployment]
	return d != nil && slices.ContainsFunc(d.Status.Conditions, exceeded)
}

func exceeded(c appsv1.DeploymentCondition) bool {
	return c.Type == appsv1.DeploymentProgressing && c.Reason == "ProgressDeadlineExceeded"
}

// waitsAgain tells of a container that has failed and is not running now.
func waitsAgain(s corev1.ContainerStatus) bool {
	return s.State.Running == nil && (s.LastTerminationState.Terminated != nil || s.State.Terminated != nil)
}

// hasFailed tells of a job that it has; it takes the lock.
func (t *tracker) hasFailed(job string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	j := t.jobs[job]
	return j != nil && slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
		return c.Type == batchv1.JobFailed && c.Status == corev1.ConditionTrue
	})
}
