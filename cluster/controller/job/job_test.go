package job_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/controller/controllertest"
	"slipway.dev/slipway/cluster/controller/garbage"
	"slipway.dev/slipway/cluster/controller/job"
	"slipway.dev/slipway/cluster/store/kinds"
)

func newJob(change ...func(*batchv1.Job)) *batchv1.Job {
	one, limit := int32(1), int32(2)
	labels := map[string]string{"batch.kubernetes.io/job-name": "pi"}
	j := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pi"},
		Spec: batchv1.JobSpec{
			Completions: &one, Parallelism: &one, BackoffLimit: &limit, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}},
			},
		},
	}
	for _, f := range change {
		f(j)
	}
	return j
}

func size(completions, parallelism int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Spec.Completions, j.Spec.Parallelism = &completions, &parallelism }
}

// conditions are the true ones, sorted, with reasons.
func conditions(j *batchv1.Job) string {
	var out []string
	for _, c := range j.Status.Conditions {
		if c.Status == corev1.ConditionTrue {
			out = append(out, string(c.Type)+"("+c.Reason+")")
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func counts(j *batchv1.Job) string {
	return fmt.Sprintf("active=%d succeeded=%d failed=%d", j.Status.Active, j.Status.Succeeded, j.Status.Failed)
}

func start(c *controllertest.Cluster, exit func(*corev1.Pod) (int32, time.Duration, bool)) {
	c.Start(job.New(c.Deps), garbage.New(c.Deps, kinds.All()))
	c.StartKubelet(&controllertest.Kubelet{Bind: "n1", Exit: exit})
}

func TestJobsEnd(t *testing.T) {
	ok := func(*corev1.Pod) (int32, time.Duration, bool) { return 0, time.Second, true }
	bad := func(*corev1.Pod) (int32, time.Duration, bool) { return 1, time.Second, true }
	never := func(*corev1.Pod) (int32, time.Duration, bool) { return 0, 0, false }
	seconds := func(n int64) func(*batchv1.Job) {
		return func(j *batchv1.Job) { j.Spec.ActiveDeadlineSeconds = &n }
	}
	for _, tt := range []struct {
		name               string
		job                *batchv1.Job
		exit               func(*corev1.Pod) (int32, time.Duration, bool)
		conditions, counts string
		pods               int
	}{
		{"one completion", newJob(), ok, "Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)", "active=0 succeeded=1 failed=0", 1},
		{"seven, three at a time", newJob(size(7, 3)), ok, "Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)", "active=0 succeeded=7 failed=0", 7},
		{"a work queue", newJob(func(j *batchv1.Job) { n := int32(3); j.Spec.Completions, j.Spec.Parallelism = nil, &n }), ok,
			"Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)", "active=0 succeeded=3 failed=0", 3},
		{"too many failures", newJob(), bad, "Failed(BackoffLimitExceeded) FailureTarget(BackoffLimitExceeded)", "active=0 succeeded=0 failed=3", 3},
		{"too long", newJob(seconds(30)), never, "Failed(DeadlineExceeded) FailureTarget(DeadlineExceeded)", "active=0 succeeded=0 failed=1", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, tt.exit)
				j := controllertest.Create(c, tt.job)
				c.Sleep(10 * time.Minute)
				j = controllertest.Get(c, j)
				if got := conditions(j); got != tt.conditions {
					t.Errorf("conditions = %s; want %s", got, tt.conditions)
				}
				if got := counts(j); got != tt.counts {
					t.Errorf("counts: %s; want %s", got, tt.counts)
				}
				if got := len(c.Pods("shop")); got != tt.pods {
					t.Errorf("%d pods are left; want %d", got, tt.pods)
				}
				for _, p := range c.Pods("shop") {
					if len(p.Finalizers) > 0 {
						t.Errorf("pod %s still has finalizers %v", p.Name, p.Finalizers)
					}
				}
			})
		})
	}
}

func TestPodsAreCountedOnceEvenIfTheyAreDeleted(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, func(*corev1.Pod) (int32, time.Duration, bool) { return 0, time.Second, true })
		j := controllertest.Create(c, newJob(size(3, 1)))
		for range 20 {
			c.Sleep(time.Second)
			for _, p := range c.Pods("shop") {
				if p.Status.Phase == corev1.PodSucceeded && p.DeletionTimestamp == nil {
					c.Delete(p, "")
				}
			}
			c.Settle()
		}
		if got, want := counts(controllertest.Get(c, j)), "active=0 succeeded=3 failed=0"; got != want {
			t.Errorf("counts: %s; want %s", got, want)
		}
	})
}

func TestIndexedJobRunsEachIndexOnce(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		var mu sync.Mutex
		tries := map[string]int{}
		start(c, func(p *corev1.Pod) (int32, time.Duration, bool) {
			mu.Lock()
			defer mu.Unlock()
			i := p.Labels["batch.kubernetes.io/job-completion-index"]
			tries[i]++
			if i == "2" && tries[i] == 1 {
				return 1, time.Second, true
			}
			return 0, time.Second, true
		})
		mode := batchv1.IndexedCompletion
		j := controllertest.Create(c, newJob(size(5, 2), func(j *batchv1.Job) { j.Spec.CompletionMode = &mode }))
		c.Sleep(5 * time.Minute)
		j = controllertest.Get(c, j)
		if j.Status.CompletedIndexes != "0-4" || counts(j) != "active=0 succeeded=5 failed=1" {
			t.Errorf("completed indexes %q, counts %s; want 0-4 and one failure", j.Status.CompletedIndexes, counts(j))
		}
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(tries) != "map[0:1 1:1 2:2 3:1 4:1]" {
			t.Errorf("tries by index = %v; want one each, and two for the one that failed", tries)
		}
	})
}

func TestRestartsInPlaceCountAgainstTheLimit(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, nil)
		j := controllertest.Create(c, newJob(func(j *batchv1.Job) { j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure }))
		c.Settle()
		controllertest.EditStatus(c, c.Pods("shop")[0], func(p *corev1.Pod) {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", RestartCount: 2}}
		})
		c.Settle()
		if got, want := conditions(controllertest.Get(c, j)), "Failed(BackoffLimitExceeded) FailureTarget(BackoffLimitExceeded)"; got != want {
			t.Errorf("conditions = %s; want %s", got, want)
		}
	})
}

func TestSuspendResumeAndTimeToLive(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, func(*corev1.Pod) (int32, time.Duration, bool) { return 0, time.Minute, true })
		yes, ttl := true, int32(100)
		j := controllertest.Create(c, newJob(func(j *batchv1.Job) { j.Spec.Suspend, j.Spec.TTLSecondsAfterFinished = &yes, &ttl }))
		c.Sleep(time.Second)
		if got := conditions(controllertest.Get(c, j)); got != "Suspended(JobSuspended)" || len(c.Pods("shop")) != 0 {
			t.Errorf("conditions of a suspended job = %s, with %d pods; want none", got, len(c.Pods("shop")))
		}
		controllertest.Edit(c, j, func(j *batchv1.Job) { *j.Spec.Suspend = false })
		c.Sleep(61 * time.Second)
		if got, want := conditions(controllertest.Get(c, j)), "Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)"; got != want {
			t.Errorf("conditions after resuming = %s; want %s", got, want)
		}
		c.Sleep(101 * time.Second)
		if c.Exists(j) || len(c.Pods("shop")) != 0 {
			t.Errorf("the job or its pods outlive its time to live")
		}
		if got := c.Events("pi"); !strings.Contains(got, "Completed: Job completed") || !strings.Contains(got, "Resumed: Job resumed") {
			t.Errorf("events = %s; want Completed and Resumed among them", got)
		}
	})
}

// The API refuses a status whose times are not the stored ones, and compares them with ==.
func TestTimesAreAsADecoderMakesThem(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, func(*corev1.Pod) (int32, time.Duration, bool) { return 0, time.Second, true })
		j := controllertest.Create(c, newJob())
		c.Sleep(time.Minute)
		j = controllertest.Get(c, j)
		raw, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		var decoded batchv1.Job
		if err := json.Unmarshal(raw, &decoded); err != nil {
			t.Fatal(err)
		}
		if *j.Status.StartTime != *decoded.Status.StartTime || *j.Status.CompletionTime != *decoded.Status.CompletionTime {
			t.Errorf("start %#v, completion %#v; decoded: %#v, %#v", j.Status.StartTime, j.Status.CompletionTime, decoded.Status.StartTime, decoded.Status.CompletionTime)
		}
	})
}

// A pod that is deleted counts as failed at once, and may end well afterwards, before its finalizer is off.
func TestAPodThatEndsWellAfterItWasCountedAsFailedStaysSo(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		j := controllertest.Create(c, newJob())
		pod := controllertest.Create(c, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "pi-1", Labels: j.Spec.Template.Labels, Finalizers: []string{batchv1.JobTrackingFinalizer},
				OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(j, batchv1.SchemeGroupVersion.WithKind("Job"))},
			},
			Status: corev1.PodStatus{Phase: corev1.PodSucceeded},
		})
		controllertest.EditStatus(c, j, func(j *batchv1.Job) {
			j.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{Failed: []types.UID{pod.UID}}
		})
		start(c, nil)
		c.Sleep(time.Minute)
		j = controllertest.Get(c, j)
		if got, want := counts(j), "active=1 succeeded=0 failed=1"; got != want || conditions(j) != "" {
			t.Errorf("counts: %s, conditions %q; want %s, and no condition", got, conditions(j), want)
		}
	})
}

// Whatever takes a pod's job away, the pod must not be held for it: neither it nor its namespace could go.
func TestNoPodIsHeldForNobody(t *testing.T) {
	for name, take := range map[string]func(*controllertest.Cluster, *batchv1.Job, *corev1.Pod){
		"its labels no longer match": func(c *controllertest.Cluster, _ *batchv1.Job, p *corev1.Pod) {
			controllertest.Edit(c, p, func(p *corev1.Pod) { p.Labels = nil })
		},
		"the job is deleted and its pods are kept": func(c *controllertest.Cluster, j *batchv1.Job, _ *corev1.Pod) {
			c.Delete(j, metav1.DeletePropagationOrphan)
		},
		"another job has the name": func(c *controllertest.Cluster, j *batchv1.Job, _ *corev1.Pod) {
			c.Delete(j, metav1.DeletePropagationBackground)
			controllertest.Create(c, newJob(func(j *batchv1.Job) { yes := true; j.Spec.Suspend = &yes }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, nil)
				j := controllertest.Create(c, newJob())
				c.Settle()
				pod := c.Pods("shop")[0]
				take(c, j, pod)
				c.Sleep(10 * time.Second)
				if c.Exists(pod) && len(controllertest.Get(c, pod).Finalizers) > 0 {
					t.Errorf("the pod is still held by %v", controllertest.Get(c, pod).Finalizers)
				}
			})
		})
	}
}

// A pod that a job adopts is held, too: its end would go uncounted otherwise.
func TestAdoptedPodsAreCounted(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, func(*corev1.Pod) (int32, time.Duration, bool) { return 0, time.Minute, true })
		j := controllertest.Create(c, newJob())
		c.Settle()
		pod := c.Pods("shop")[0]
		controllertest.Edit(c, pod, func(p *corev1.Pod) { p.OwnerReferences = nil })
		c.Sleep(2 * time.Minute)
		if got, want := counts(controllertest.Get(c, j)), "active=0 succeeded=1 failed=0"; got != want {
			t.Errorf("counts: %s; want %s", got, want)
		}
	})
}

// running is each index with what runs for it: "-" for a pod on its way out.
func running(c *controllertest.Cluster) string {
	var out []string
	for _, p := range c.Pods("shop") {
		mark := ""
		if p.DeletionTimestamp != nil {
			mark = "-"
		}
		if p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded {
			out = append(out, p.Annotations[batchv1.JobCompletionIndexAnnotation]+mark)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func indexedJob(completions, parallelism int32) *batchv1.Job {
	mode := batchv1.IndexedCompletion
	return newJob(size(completions, parallelism), func(j *batchv1.Job) { j.Spec.CompletionMode = &mode })
}

func TestNoIndexRunsTwiceAtOnce(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(job.New(c.Deps))
		c.StartKubelet(&controllertest.Kubelet{Bind: "n1", StopAfter: time.Minute})
		j := indexedJob(3, 2)
		policy := batchv1.Failed
		j.Spec.PodReplacementPolicy = &policy
		j = controllertest.Create(c, j)
		c.Sleep(time.Second)
		for _, p := range c.Pods("shop") {
			if p.Annotations[batchv1.JobCompletionIndexAnnotation] == "0" {
				c.Delete(p, "")
			}
		}
		controllertest.Edit(c, j, func(j *batchv1.Job) { *j.Spec.Parallelism = 3 })
		c.Sleep(time.Second)
		if got, want := running(c), "0- 1 2"; got != want {
			t.Errorf("while the pod of index 0 ends, %s run; want %s", got, want)
		}
	})
}

func TestIndexesBeyondTheJobGoFirst(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		c.Start(job.New(c.Deps))
		c.StartKubelet(&controllertest.Kubelet{Bind: "n1"})
		j := controllertest.Create(c, indexedJob(4, 4))
		c.Sleep(time.Second)
		for _, p := range c.Pods("shop") { // the cheapest to delete are those that have to stay
			if i := p.Annotations[batchv1.JobCompletionIndexAnnotation]; i == "0" || i == "1" {
				controllertest.Edit(c, p, func(p *corev1.Pod) { p.Annotations[corev1.PodDeletionCost] = "-1" })
			}
		}
		controllertest.Edit(c, j, func(j *batchv1.Job) { *j.Spec.Completions, *j.Spec.Parallelism = 2, 2 })
		c.Sleep(time.Second)
		if got, want := running(c), "0 1"; got != want {
			t.Errorf("after shrinking to two, %s run; want %s", got, want)
		}
	})
}
