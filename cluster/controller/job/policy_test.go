package job_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/cluster/controller/controllertest"
)

func perIndex(limit int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		mode := batchv1.IndexedCompletion
		never := int32(1 << 30)
		j.Spec.CompletionMode, j.Spec.BackoffLimitPerIndex, j.Spec.BackoffLimit = &mode, &limit, &never
	}
}

func onExit(code int32, action batchv1.PodFailurePolicyAction) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		replace := batchv1.Failed
		j.Spec.PodReplacementPolicy = &replace
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action:      action,
			OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{code}},
		}}}
	}
}

func succeedsWith(rule batchv1.SuccessPolicyRule) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		mode := batchv1.IndexedCompletion
		j.Spec.CompletionMode = &mode
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{rule}}
	}
}

// exits ends every pod with the code of its index and attempt; no code: the pod goes on.
type exits func(index, attempt int) (code int32, ends bool)

func TestPolicies(t *testing.T) {
	always := func(bad int, code int32) exits {
		return func(index, _ int) (int32, bool) {
			if index == bad {
				return code, true
			}
			return 0, true
		}
	}
	one, zero, count := "1", int32(0), int32(2)
	for _, tt := range []struct {
		name       string
		job        *batchv1.Job
		exits      exits
		conditions string
		counts     string
		indexes    string
	}{
		{"an index that fails too often does not stop the others", newJob(size(4, 2), perIndex(1)), always(1, 1),
			"Failed(FailedIndexes) FailureTarget(FailedIndexes)", "active=0 succeeded=3 failed=2", "done 0,2,3 failed 1"},
		{"an index that fails less often than it may", newJob(size(3, 3), perIndex(2)), func(index, attempt int) (int32, bool) { return int32(max(0, index-attempt)), true },
			"Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)", "active=0 succeeded=3 failed=3", "done 0-2 failed "},
		{"too many failed indexes", newJob(size(4, 1), perIndex(0), func(j *batchv1.Job) { j.Spec.MaxFailedIndexes = &zero }), always(1, 1),
			"Failed(MaxFailedIndexesExceeded) FailureTarget(MaxFailedIndexesExceeded)", "active=0 succeeded=1 failed=1", "done 0 failed 1"},
		{"an exit code that fails the job", newJob(size(2, 1), onExit(42, batchv1.PodFailurePolicyActionFailJob)), always(-1, 42),
			"Failed(PodFailurePolicy) FailureTarget(PodFailurePolicy)", "active=0 succeeded=0 failed=1", "done  failed "},
		{"an exit code that fails its index at once", newJob(size(3, 1), perIndex(5), onExit(42, batchv1.PodFailurePolicyActionFailIndex)), always(0, 42),
			"Failed(FailedIndexes) FailureTarget(FailedIndexes)", "active=0 succeeded=2 failed=1", "done 1,2 failed 0"},
		{"an exit code that counts for nothing", newJob(size(2, 2), perIndex(0), onExit(42, batchv1.PodFailurePolicyActionIgnore)),
			func(index, attempt int) (int32, bool) {
				if index == 1 && attempt < 2 {
					return 42, true
				}
				return 0, true
			},
			"Complete(CompletionsReached) SuccessCriteriaMet(CompletionsReached)", "active=0 succeeded=2 failed=0", "done 0,1 failed "},
		{"one index is enough", newJob(size(3, 3), succeedsWith(batchv1.SuccessPolicyRule{SucceededIndexes: &one})), func(index, _ int) (int32, bool) { return 0, index == 1 },
			"Complete(SuccessPolicy) SuccessCriteriaMet(SuccessPolicy)", "active=0 succeeded=1", "done 1 failed "},
		{"any two are enough", newJob(size(4, 4), succeedsWith(batchv1.SuccessPolicyRule{SucceededCount: &count})), func(index, _ int) (int32, bool) { return 0, index >= 2 },
			"Complete(SuccessPolicy) SuccessCriteriaMet(SuccessPolicy)", "active=0 succeeded=2", "done 2,3 failed "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			controllertest.Run(t, func(c *controllertest.Cluster) {
				start(c, func(p *corev1.Pod) (int32, time.Duration, bool) {
					index := -1
					if text, ok := p.Labels[batchv1.JobCompletionIndexAnnotation]; ok {
						index, _ = strconv.Atoi(text)
					}
					failures, _ := strconv.Atoi(p.Annotations[batchv1.JobIndexFailureCountAnnotation])
					ignored, _ := strconv.Atoi(p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation])
					code, ends := tt.exits(index, failures+ignored)
					return code, time.Second, ends
				})
				j := controllertest.Create(c, tt.job)
				c.Sleep(10 * time.Minute)
				j = controllertest.Get(c, j)
				if got := conditions(j); got != tt.conditions {
					t.Errorf("conditions = %s; want %s", got, tt.conditions)
				}
				got := counts(j)
				if j.Spec.SuccessPolicy != nil { // what was stopped is counted as failed or not, depending on when it ended
					got = fmt.Sprintf("active=%d succeeded=%d", j.Status.Active, j.Status.Succeeded)
				}
				if got != tt.counts {
					t.Errorf("counts: %s; want %s", got, tt.counts)
				}
				lost := ""
				if j.Status.FailedIndexes != nil {
					lost = *j.Status.FailedIndexes
				}
				if got := "done " + j.Status.CompletedIndexes + " failed " + lost; got != tt.indexes {
					t.Errorf("indexes: %s; want %s", got, tt.indexes)
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

// How often an index has failed is on its newest failed pod: deleting that must not give it more tries.
func TestDeletingAFailedPodGivesItsIndexNoMoreTries(t *testing.T) {
	controllertest.Run(t, func(c *controllertest.Cluster) {
		start(c, func(*corev1.Pod) (int32, time.Duration, bool) { return 1, time.Second, true })
		j := controllertest.Create(c, newJob(size(1, 1), perIndex(2)))
		for range 200 {
			c.Sleep(time.Second)
			for _, p := range c.Pods("shop") {
				if p.Status.Phase == corev1.PodFailed && p.DeletionTimestamp == nil {
					c.Delete(p, "")
				}
			}
			c.Settle()
		}
		j = controllertest.Get(c, j)
		if got, want := conditions(j), "Failed(FailedIndexes) FailureTarget(FailedIndexes)"; got != want {
			t.Errorf("conditions = %s; want %s", got, want)
		}
		if j.Status.Failed != 3 {
			t.Errorf("%d pods have failed; want 3: the first and two more tries", j.Status.Failed)
		}
	})
}
