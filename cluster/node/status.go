package node

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	qos "k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"slipway.dev/slipway/engine/container"
)

// containerScheme comes before container ids in pod statuses.
const containerScheme = "slipway://"

// waiting is why a container does not run although it should.
type waiting struct{ reason, message string }

// picture is everything that a pod's status is made from.
type picture struct {
	pod      *corev1.Pod
	view     view
	waiting  map[string]waiting // by container name
	messages map[string]string  // termination messages by engine container id
	sandbox  bool               // the sandbox exists and has an address
	podIP    string
	hostIP   string
	started  time.Time // when the agent first saw the pod
	over     bool
	failed   string // reason of a failure that is not an exit code
	message  string
}

// status is the pod's status as the kubelet would report it. Conditions that are not the agent's
// are kept.
func (p picture) status(now time.Time) corev1.PodStatus {
	st := *p.pod.Status.DeepCopy()
	st.ObservedGeneration = p.pod.Generation
	st.InitContainerStatuses = p.statuses(p.pod.Spec.InitContainers, true)
	st.ContainerStatuses = p.statuses(p.pod.Spec.Containers, false)
	st.EphemeralContainerStatuses = p.ephemerals()
	st.QOSClass = p.pod.Status.QOSClass
	if st.QOSClass == "" {
		st.QOSClass = qos.ComputePodQOS(p.pod)
	}
	if st.StartTime == nil {
		st.StartTime = &metav1.Time{Time: p.started}
	}
	st.HostIP, st.HostIPs = p.hostIP, []corev1.HostIP{{IP: p.hostIP}}
	if p.podIP != "" {
		st.PodIP, st.PodIPs = p.podIP, []corev1.PodIP{{IP: p.podIP}}
	}
	st.Phase = p.phase(&st)
	if p.failed != "" {
		st.Reason, st.Message = p.failed, p.message
	}
	p.conditions(&st, now)
	return st
}

// phase never leaves a terminal one.
func (p picture) phase(st *corev1.PodStatus) corev1.PodPhase {
	if old := p.pod.Status.Phase; old == corev1.PodSucceeded || old == corev1.PodFailed {
		return old
	}
	if p.failed != "" {
		return corev1.PodFailed
	}
	if p.over {
		return p.end(st)
	}
	// One container that never ran keeps the whole pod pending, as the kubelet counts.
	for _, c := range st.ContainerStatuses {
		if c.State.Waiting != nil && c.LastTerminationState.Terminated == nil {
			return corev1.PodPending
		}
	}
	return corev1.PodRunning
}

// end is the phase of a pod in which nothing will run again. Only one whose containers all ran to a good
// end has succeeded: a job would count one that was deleted before it began.
func (p picture) end(st *corev1.PodStatus) corev1.PodPhase {
	for _, c := range st.InitContainerStatuses {
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 && !p.sidecar(c.Name) {
			return corev1.PodFailed
		}
	}
	for _, c := range st.ContainerStatuses {
		if t := c.State.Terminated; t == nil || t.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

func (p picture) sidecar(name string) bool {
	for i := range p.pod.Spec.InitContainers {
		if c := &p.pod.Spec.InitContainers[i]; c.Name == name {
			return isSidecar(c)
		}
	}
	return false
}

func (p picture) statuses(containers []corev1.Container, init bool) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, 0, len(containers))
	for i := range containers {
		out = append(out, p.container(&containers[i], init))
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// ephemerals are of containers that are never ready: they serve nobody.
func (p picture) ephemerals() []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range p.pod.Spec.EphemeralContainers {
		cs := p.container(ephemeral(p.pod, i), true)
		cs.Ready, cs.Started = false, nil
		if w := cs.State.Waiting; w != nil && w.Reason == "PodInitializing" {
			w.Reason = "ContainerCreating"
		}
		out = append(out, cs)
	}
	return out
}

func (p picture) container(c *corev1.Container, init bool) corev1.ContainerStatus {
	o := p.view[c.Name]
	started := false
	cs := corev1.ContainerStatus{Name: c.Name, Image: c.Image, RestartCount: int32(o.restarts), Started: &started}
	if o.current != nil {
		cs.ImageID, cs.ContainerID = o.current.ImageID, containerScheme+o.current.ID
		cs.Image = o.current.Spec.Labels[labelImage]
	}
	if o.previous != nil {
		cs.LastTerminationState.Terminated = p.terminated(o.previous)
	}
	w, waits := p.waiting[c.Name]
	switch {
	case o.running():
		cs.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(o.current.State.StartedAt.Truncate(time.Second))}
		started = o.started
		cs.Ready = o.ready && (!init || isSidecar(c))
	case waits && !p.over:
		cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: w.reason, Message: w.message}
		if o.exited() {
			cs.LastTerminationState.Terminated = p.terminated(o.current)
		}
	case o.exited():
		cs.State.Terminated = p.terminated(o.current)
		cs.Ready = init && o.current.State.ExitCode == 0
	case p.over && len(p.pod.Spec.InitContainers) == 0:
		cs.State.Terminated = &corev1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", ExitCode: 137, Message: "The container could not be located when the pod was terminated"}
	default:
		reason := "ContainerCreating"
		if len(p.pod.Spec.InitContainers) > 0 {
			reason = "PodInitializing"
		}
		cs.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
	}
	return cs
}

func (p picture) terminated(info *container.Info) *corev1.ContainerStateTerminated {
	s := info.State
	t := &corev1.ContainerStateTerminated{
		ExitCode:    int32(s.ExitCode),
		Reason:      "Error",
		StartedAt:   metav1.NewTime(s.StartedAt.Truncate(time.Second)),
		FinishedAt:  metav1.NewTime(s.FinishedAt.Truncate(time.Second)),
		ContainerID: containerScheme + info.ID,
		Message:     p.messages[info.ID],
	}
	switch {
	case s.OOMKilled:
		t.Reason = "OOMKilled"
	case s.ExitCode == 0:
		t.Reason = "Completed"
	case s.Error != "":
		t.Reason, t.ExitCode, t.Message = "StartError", 128, s.Error // the kubelet's code, not Docker's 127
	}
	return t
}

// conditions sets the agent's own conditions.
func (p picture) conditions(st *corev1.PodStatus, now time.Time) {
	ended := st.Phase == corev1.PodSucceeded || st.Phase == corev1.PodFailed
	set := func(kind corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: p.pod.Generation}
		if ok {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, "", ""
		}
		if ok && kind == corev1.PodInitialized && st.Phase == corev1.PodSucceeded {
			c.Reason = "PodCompleted"
		}
		setCondition(st, c, now)
	}
	set(corev1.PodReadyToStartContainers, p.sandbox && !ended, "", "")
	var uninit []string
	for i, c := range st.InitContainerStatuses {
		if !(c.Ready || (isSidecar(&p.pod.Spec.InitContainers[i]) && c.Started != nil && *c.Started)) {
			uninit = append(uninit, c.Name)
		}
	}
	if mainStarted(p.pod, p.view) {
		uninit = nil
	}
	set(corev1.PodInitialized, len(uninit) == 0, "ContainersNotInitialized", "containers with incomplete status: ["+strings.Join(uninit, " ")+"]")
	var unready []string
	for i, c := range st.InitContainerStatuses {
		if isSidecar(&p.pod.Spec.InitContainers[i]) && !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	for _, c := range st.ContainerStatuses {
		if !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	reason, message := "ContainersNotReady", "containers with unready status: ["+strings.Join(unready, " ")+"]"
	switch st.Phase {
	case corev1.PodSucceeded:
		reason, message = "PodCompleted", ""
	case corev1.PodFailed:
		reason, message = "PodFailed", ""
	}
	ready := len(unready) == 0 && !ended && len(st.ContainerStatuses) > 0
	set(corev1.ContainersReady, ready, reason, message)
	if gate := p.missingGate(st); ready && gate != "" {
		ready, reason, message = false, "ReadinessGatesNotReady", fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist or is not True.", gate)
	}
	set(corev1.PodReady, ready, reason, message)
}

func (p picture) missingGate(st *corev1.PodStatus) string {
	for _, g := range p.pod.Spec.ReadinessGates {
		ok := false
		for _, c := range st.Conditions {
			ok = ok || (c.Type == g.ConditionType && c.Status == corev1.ConditionTrue)
		}
		if !ok {
			return string(g.ConditionType)
		}
	}
	return ""
}

// setCondition replaces a condition, keeping the time of its last transition unless its status changed.
func setCondition(st *corev1.PodStatus, c corev1.PodCondition, now time.Time) {
	c.LastTransitionTime = metav1.NewTime(now.Truncate(time.Second))
	for i, old := range st.Conditions {
		if old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			st.Conditions[i] = c
			return
		}
	}
	st.Conditions = append(st.Conditions, c)
}

// sameStatus says whether a write would change nothing.
func sameStatus(a, b *corev1.PodStatus) bool { return equality.Semantic.DeepEqual(a, b) }
