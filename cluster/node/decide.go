package node

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
)

// The first restart is at once; those after it wait this long, doubling up to the limit, and it
// starts over after a container ran well for resetAfter (the kubelet's figures).
const (
	firstBackOff = 10 * time.Second
	maxBackOff   = 5 * time.Minute
	resetAfter   = 10 * time.Minute
)

// observed is what is known of one container of a pod.
type observed struct {
	current  *container.Info // the newest attempt; nil when it was never made
	previous *container.Info // the attempt before it
	restarts int             // attempts before current
	stale    bool            // current belongs to a sandbox that is gone
	outdated bool            // current was made from another spec (its image was changed)
	started  bool            // its startup probe has succeeded, or it has none
	ready    bool
	failing  string        // why a probe wants it killed; empty: it does not
	backOff  time.Duration // what the next restart has to wait after the exit
}

func (o observed) running() bool { return o.current != nil && o.current.State.Running && !o.stale }

func (o observed) exited() bool {
	return o.current != nil && !o.current.State.Running && !o.current.State.FinishedAt.IsZero()
}

// view is what is known of a pod's containers, by name.
type view map[string]observed

// decision is what has to happen next to a pod's containers.
type decision struct {
	start  []string          // in this order
	kill   map[string]string // container to reason
	wakeAt time.Time         // a back-off or deadline ends; zero: only an event changes anything
	over   bool              // nothing will ever run again
	failed string            // reason of the pod's failure, when it is over for another cause than its exit codes
}

func (d *decision) wake(t time.Time) {
	if d.wakeAt.IsZero() || t.Before(d.wakeAt) {
		d.wakeAt = t
	}
}

// decide says what to do with the containers of a pod that is meant to run.
func decide(pod *corev1.Pod, v view, now time.Time) decision {
	d := decideLasting(pod, v, now)
	if !d.over {
		d.startEphemeral(pod, v)
	}
	return d
}

// decideLasting is about the containers that the pod was made with.
func decideLasting(pod *corev1.Pod, v view, now time.Time) decision {
	d := decision{kill: map[string]string{}}
	if overdue(pod, now) {
		d.over, d.failed = true, "DeadlineExceeded"
		return d
	}
	d.wakeAt = deadline(pod)
	ready, fatal := d.initialise(pod, v, now)
	if fatal {
		d.over, d.start = true, nil
		return d
	}
	if !ready {
		return d
	}
	d.over = true
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		if !d.keep(c.Name, v[c.Name], restartPolicy(pod, c), now) {
			d.over = false
		}
	}
	if d.over {
		d.start = nil // a sidecar that was stopped at the end stays so
	}
	return d
}

// startEphemeral starts each ephemeral container once, beside whatever else goes on in the pod: last, so that one
// that cannot start holds up no other.
func (d *decision) startEphemeral(pod *corev1.Pod, v view) {
	for i := range pod.Spec.EphemeralContainers {
		if name := pod.Spec.EphemeralContainers[i].Name; v[name].current == nil {
			d.start = append(d.start, name)
		}
	}
}

// deadline is when the pod has been active for long enough; zero: never.
func deadline(pod *corev1.Pod) time.Time {
	if limit := pod.Spec.ActiveDeadlineSeconds; limit != nil && pod.Status.StartTime != nil {
		return pod.Status.StartTime.Add(time.Duration(*limit) * time.Second)
	}
	return time.Time{}
}

func overdue(pod *corev1.Pod, now time.Time) bool {
	end := deadline(pod)
	return !end.IsZero() && !now.Before(end)
}

// sooner is the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// needsImage says whether a container's image will be asked for: not by one that runs, or is done.
func needsImage(pod *corev1.Pod, name string, o observed) bool {
	switch {
	case o.current == nil || o.outdated:
		return true
	case o.exited():
		return o.stale && !isEphemeral(pod, name) || willRestart(pod, name, o.current.State.ExitCode)
	}
	return (o.stale || !o.current.State.Running) && !isEphemeral(pod, name)
}

// restartPolicy is the container's own, or its pod's.
func restartPolicy(pod *corev1.Pod, c *corev1.Container) corev1.RestartPolicy {
	if c.RestartPolicy != nil {
		return corev1.RestartPolicy(*c.RestartPolicy)
	}
	return pod.Spec.RestartPolicy
}

// initialise walks the init containers; it reports whether the others may run, and whether
// they never will.
func (d *decision) initialise(pod *corev1.Pod, v view, now time.Time) (ready, fatal bool) {
	under := mainStarted(pod, v)
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		o := v[c.Name]
		if isSidecar(c) {
			d.keep(c.Name, o, corev1.RestartPolicyAlways, now)
			if !under && !(o.running() && o.started) {
				return false, false
			}
			continue
		}
		if under {
			continue
		}
		switch {
		case o.running():
			if o.failing != "" {
				d.kill[c.Name] = o.failing
			}
			return false, false
		case o.exited() && !o.stale && o.current.State.ExitCode == 0:
			continue
		case o.exited() && !o.stale && pod.Spec.RestartPolicy == corev1.RestartPolicyNever:
			return false, true
		default:
			d.keep(c.Name, o, corev1.RestartPolicyAlways, now)
			return false, false
		}
	}
	return true, false
}

// mainStarted says whether a container that is not an init container was made in this sandbox:
// the init containers' work is then done, whatever became of their records.
func mainStarted(pod *corev1.Pod, v view) bool {
	for i := range pod.Spec.Containers {
		if o := v[pod.Spec.Containers[i].Name]; o.current != nil && !o.stale {
			return true
		}
	}
	return false
}

func isSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// keep decides about one container and reports whether it is over for good.
func (d *decision) keep(name string, o observed, policy corev1.RestartPolicy, now time.Time) bool {
	switch {
	case o.running() && o.outdated:
		d.kill[name] = "Container definition changed, will be restarted"
		return false
	case o.running() && o.failing != "":
		d.kill[name] = o.failing
		return false
	case o.running():
		return false
	case o.current == nil:
		d.start = append(d.start, name)
		return false
	case o.exited() && !restarts(policy, o.current.State.ExitCode) && !o.outdated:
		return true
	}
	if at := o.current.State.FinishedAt.Add(o.backOff); !o.stale && now.Before(at) {
		d.wake(at)
		return false
	}
	d.start = append(d.start, name)
	return false
}

func restarts(policy corev1.RestartPolicy, exitCode int) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

// willRestart says whether a container that exited with a code is to run again. An init container that
// has succeeded is done, whatever its pod's policy says.
func willRestart(pod *corev1.Pod, name string, exitCode int) bool {
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.Name == name && !isSidecar(c) {
			return exitCode != 0 && pod.Spec.RestartPolicy != corev1.RestartPolicyNever
		}
	}
	if c := findContainer(pod, name); c != nil && !isEphemeral(pod, name) {
		return restarts(restartPolicy(pod, c), exitCode)
	}
	return false
}

// nextBackOff is the wait before the restart that follows an exit, given the number of restarts
// so far, the wait before the attempt that exited, and how long it ran.
func nextBackOff(restarts int, before, ran time.Duration) time.Duration {
	switch {
	case restarts == 0 || ran >= resetAfter:
		return 0
	case before == 0:
		return firstBackOff
	}
	return min(2*before, maxBackOff)
}
