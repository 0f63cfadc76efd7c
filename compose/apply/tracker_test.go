package apply

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podOf is a pod of service web with one container in the given state.
func podOf(phase corev1.PodPhase, ready bool, s corev1.ContainerStatus) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{labelName: "web"}}}
	p.Status = corev1.PodStatus{Phase: phase, ContainerStatuses: []corev1.ContainerStatus{s}}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

func waiting(reason, message string) corev1.ContainerStatus {
	return corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
}

func terminated(code int32) corev1.ContainerStatus {
	return corev1.ContainerStatus{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}
}

func TestTrouble(t *testing.T) {
	crash := waiting("CrashLoopBackOff", "back-off 10s restarting failed container")
	crash.RestartCount = 4
	crash.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 2}
	end := waiting("CrashLoopBackOff", "")
	end.RestartCount = 2
	end.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed"}
	oom := waiting("CrashLoopBackOff", "")
	oom.RestartCount = 1
	oom.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "OOMKilled"}
	unschedulable := podOf(corev1.PodPending, false, corev1.ContainerStatus{})
	unschedulable.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes are available: 1 Insufficient memory."}}
	leaving := podOf(corev1.PodPending, false, crash)
	leaving.DeletionTimestamp = &metav1.Time{}
	for _, tt := range []struct {
		name string
		pod  *corev1.Pod
		want string
	}{
		{"starting", podOf(corev1.PodPending, false, waiting("ContainerCreating", "")), ""},
		{"image", podOf(corev1.PodPending, false, waiting("ErrImagePull", "no such host\nand more")), "ErrImagePull: no such host"},
		{"crash", podOf(corev1.PodRunning, false, crash), "it exits with code 2, again and again (4 restarts)"},
		{"end", podOf(corev1.PodRunning, false, end), "it exits with code 0, again and again (2 restarts): if it is meant to end, give it restart: \"no\" or on-failure"},
		{"memory", podOf(corev1.PodRunning, false, oom), "it runs out of memory (exit code 137): see its memory limit, again and again (1 restart)"},
		{"unschedulable", unschedulable, "no room for it: 0/1 nodes are available: 1 Insufficient memory. Lower its reservations, or make room (with update_config.order stop-first no older replica is in the way)"},
		{"leaving", leaving, ""},
	} {
		tr := &tracker{pods: map[string]*corev1.Pod{"p": tt.pod}}
		if got := tr.look("web", "").trouble; got != tt.want {
			t.Errorf("%s: trouble %q; want %q", tt.name, got, tt.want)
		}
	}
}

// A pod is probed when all that runs in it is: a service without a health check that shares it has to go on running for a moment.
func TestProbed(t *testing.T) {
	checked, plain := corev1.Container{ReadinessProbe: &corev1.Probe{}}, corev1.Container{}
	for _, tt := range []struct {
		name       string
		containers []corev1.Container
		want       bool
	}{
		{"one without a health check", []corev1.Container{plain}, false},
		{"one with a health check", []corev1.Container{checked}, true},
		{"two with health checks", []corev1.Container{checked, checked}, true},
		{"one of two with a health check", []corev1.Container{checked, plain}, false},
	} {
		p := podOf(corev1.PodRunning, true, corev1.ContainerStatus{})
		p.Spec.Containers = tt.containers
		tr := &tracker{pods: map[string]*corev1.Pod{"p": p}}
		if got := tr.look("web", "").probed; got != tt.want {
			t.Errorf("%s: probed is %v; want %v", tt.name, got, tt.want)
		}
	}
}

func TestDeploymentState(t *testing.T) {
	two := int32(2)
	for _, tt := range []struct {
		name       string
		status     appsv1.DeploymentStatus
		generation int64
		pods       []*corev1.Pod
		want       state
	}{
		{"not observed yet", appsv1.DeploymentStatus{ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2}, 2, nil, state{want: 2, ready: 2}},
		{"all there", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2, ReadyReplicas: 2}, 2, nil, state{want: 2, ready: 2, started: true, healthy: true}},
		{"an old one left", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 3, UpdatedReplicas: 2, ReadyReplicas: 3}, 2, nil, state{want: 2, ready: 3, updating: true}},
		{"running, not ready", appsv1.DeploymentStatus{ObservedGeneration: 2, Replicas: 2, UpdatedReplicas: 2}, 2,
			[]*corev1.Pod{podOf(corev1.PodRunning, false, corev1.ContainerStatus{}), podOf(corev1.PodRunning, false, corev1.ContainerStatus{})}, state{want: 2, started: true}},
	} {
		tr := &tracker{pods: map[string]*corev1.Pod{}}
		for i, p := range tt.pods {
			tr.pods[string(rune('a'+i))] = p
		}
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web", Generation: 2}, Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: tt.status}
		got := tr.deployment(d, tt.generation)
		got.look = look{} // TestTrouble has it
		if got != tt.want {
			t.Errorf("%s: %+v; want %+v", tt.name, got, tt.want)
		}
	}
}

func TestJobState(t *testing.T) {
	condition := func(kind batchv1.JobConditionType) batchv1.JobStatus {
		return batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: kind, Status: corev1.ConditionTrue, Message: "enough"}}}
	}
	for _, tt := range []struct {
		name   string
		status batchv1.JobStatus
		pod    *corev1.Pod
		want   state
	}{
		{"complete", condition(batchv1.JobComplete), nil, state{want: 1, started: true, healthy: true, completed: true}},
		{"failed", condition(batchv1.JobFailed), podOf(corev1.PodFailed, false, terminated(7)), state{want: 1, failed: "it exits with code 7"}},
		{"failed, and nothing is left of it", condition(batchv1.JobFailed), nil, state{want: 1, failed: "it did not complete: enough"}},
		{"running", batchv1.JobStatus{}, podOf(corev1.PodRunning, false, corev1.ContainerStatus{}), state{want: 1, started: true}},
		{"ready", batchv1.JobStatus{}, podOf(corev1.PodRunning, true, corev1.ContainerStatus{}), state{want: 1, ready: 1, started: true, healthy: true}},
	} {
		tr := &tracker{pods: map[string]*corev1.Pod{}}
		if tt.pod != nil {
			tr.pods["p"] = tt.pod
		}
		got := tr.job(&batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Status: tt.status})
		got.look = look{}
		if got != tt.want {
			t.Errorf("%s: %+v; want %+v", tt.name, got, tt.want)
		}
	}
}

func TestPodStatus(t *testing.T) {
	crash := waiting("CrashLoopBackOff", "")
	crash.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{ExitCode: 3}
	probed := podOf(corev1.PodRunning, true, corev1.ContainerStatus{})
	probed.Spec.Containers = []corev1.Container{{ReadinessProbe: &corev1.Probe{}}}
	leaving := podOf(corev1.PodRunning, true, corev1.ContainerStatus{})
	leaving.DeletionTimestamp = &metav1.Time{}
	for _, tt := range []struct {
		pod  *corev1.Pod
		want string
	}{
		{podOf(corev1.PodPending, false, waiting("ContainerCreating", "")), "pending"},
		{podOf(corev1.PodPending, false, waiting("ImagePullBackOff", "")), "ImagePullBackOff"},
		{podOf(corev1.PodRunning, false, corev1.ContainerStatus{}), "running (not ready)"},
		{podOf(corev1.PodRunning, false, crash), "restarting (3)"},
		{podOf(corev1.PodRunning, true, corev1.ContainerStatus{}), "running"},
		{probed, "running (healthy)"},
		{podOf(corev1.PodSucceeded, false, terminated(0)), "exited (0)"},
		{podOf(corev1.PodFailed, false, terminated(3)), "exited (3)"},
		{leaving, "stopping"},
	} {
		if got := podStatus(tt.pod, ""); got != tt.want {
			t.Errorf("status of %+v is %q; want %q", tt.pod.Status, got, tt.want)
		}
	}
}

// TestJobOfSeveral: one of two servers that are not to be restarted for ever is not all of them.
func TestJobOfSeveral(t *testing.T) {
	two := int32(2)
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: batchv1.JobSpec{Completions: &two}}
	tr := &tracker{pods: map[string]*corev1.Pod{"a": podOf(corev1.PodRunning, true, corev1.ContainerStatus{})}}
	if s := tr.job(j); s.started || s.healthy {
		t.Errorf("one of two runs: %+v", s)
	}
	tr.pods["b"] = podOf(corev1.PodRunning, true, corev1.ContainerStatus{})
	if s := tr.job(j); !s.started || !s.healthy {
		t.Errorf("both run: %+v", s)
	}
}

// TestServiceIsTheAppliedOne: a job that has just been replaced must not pass for its predecessor.
func TestServiceIsTheAppliedOne(t *testing.T) {
	complete := batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}}
	tr := &tracker{jobs: map[string]*batchv1.Job{"migrate": {ObjectMeta: metav1.ObjectMeta{Name: "migrate", UID: "old"}, Status: complete}}}
	for _, tt := range []struct {
		applied version
		want    bool
	}{{version{uid: "old"}, true}, {version{}, true}, {version{uid: "new"}, false}} {
		if got := tr.service("migrate", tt.applied).completed; got != tt.want {
			t.Errorf("after applying %+v, the job \"old\" that is complete says completed = %v; want %v", tt.applied, got, tt.want)
		}
	}
}
