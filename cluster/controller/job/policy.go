package job

import (
	"fmt"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// ruling is what the job's pod failure policy says of a failed pod.
type ruling struct {
	action  batchv1.PodFailurePolicyAction // Count where there is no policy, or none of its rules matches
	message string                         // of FailJob
}

// judge finds the first rule that matches.
func judge(policy *batchv1.PodFailurePolicy, p *corev1.Pod) ruling {
	if policy == nil {
		return ruling{action: batchv1.PodFailurePolicyActionCount}
	}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		if rule.OnExitCodes != nil {
			if c := exitedWith(&p.Status, rule.OnExitCodes); c != nil {
				return ruling{rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v matching %v rule at index %d",
					c.Name, p.Namespace, p.Name, c.State.Terminated.ExitCode, rule.Action, i)}
			}
			continue
		}
		for _, c := range p.Status.Conditions {
			if slices.Contains(rule.OnPodConditions, batchv1.PodFailurePolicyOnPodConditionsPattern{Type: c.Type, Status: c.Status}) {
				return ruling{rule.Action, fmt.Sprintf("Pod %s/%s has condition %v matching %v rule at index %d", p.Namespace, p.Name, c.Type, rule.Action, i)}
			}
		}
	}
	return ruling{action: batchv1.PodFailurePolicyActionCount}
}

func exitedWith(s *corev1.PodStatus, want *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses} {
		for i := range list {
			t := list[i].State.Terminated
			if t == nil || t.ExitCode == 0 || want.ContainerName != nil && *want.ContainerName != list[i].Name {
				continue
			}
			if slices.Contains(want.Values, t.ExitCode) == (want.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return &list[i]
			}
		}
	}
	return nil
}

// perIndex says whether each index of the job has a limit of its own.
func perIndex(j *batchv1.Job) bool { return indexed(j) && j.Spec.BackoffLimitPerIndex != nil }

// trials is what a pod knows of the pods of its index before it: annotations carry it from
// one to the next, because earlier ones may be gone.
type trials struct{ counted, ignored int32 }

func trialsBefore(p *corev1.Pod) trials {
	return trials{number(p.Annotations[batchv1.JobIndexFailureCountAnnotation]), number(p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation])}
}

// trialsAfter is for the pod that follows a failed one.
func (w *work) trialsAfter(p *corev1.Pod) trials {
	t := trialsBefore(p)
	if judge(w.j.Spec.PodFailurePolicy, p).action == batchv1.PodFailurePolicyActionIgnore {
		t.ignored++
	} else {
		t.counted++
	}
	return t
}

func (t trials) annotate(p *corev1.Pod) {
	p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(t.counted))
	if t.ignored > 0 {
		p.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(t.ignored))
	}
}

func number(s string) int32 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

// lastFailures finds the newest failed pod of every index that is neither done nor failed nor
// has another pod by now.
func (w *work) lastFailures() map[int32]*corev1.Pod {
	last, busy := map[int32]*corev1.Pod{}, map[int32]bool{}
	for _, p := range w.pods {
		i, ok := indexOf(p)
		switch {
		case !ok || w.done.has(i) || w.lost.has(i):
		case !failed(p, w.j):
			busy[i] = true
		case last[i] == nil || trialsBefore(last[i]).sum() < trialsBefore(p).sum():
			last[i] = p
		}
	}
	for i := range busy {
		delete(last, i)
	}
	return last
}

func (t trials) sum() int32 { return t.counted + t.ignored }

// exhausted says whether a failed pod was the last that its index had.
func (w *work) exhausted(p *corev1.Pod) bool {
	switch judge(w.j.Spec.PodFailurePolicy, p).action {
	case batchv1.PodFailurePolicyActionFailIndex:
		return true
	case batchv1.PodFailurePolicyActionIgnore:
		return false
	}
	return trialsBefore(p).counted >= *w.j.Spec.BackoffLimitPerIndex
}

// successRule is the first rule of the success policy that is met; -1: none.
func successRule(j *batchv1.Job, done indexes) int {
	if j.Spec.SuccessPolicy == nil || !indexed(j) {
		return -1
	}
	for i, rule := range j.Spec.SuccessPolicy.Rules {
		got := done
		if rule.SucceededIndexes != nil {
			wanted := parseIndexes(*rule.SucceededIndexes)
			got = slices.DeleteFunc(slices.Clone(done), func(i int32) bool { return !wanted.has(i) })
			if rule.SucceededCount == nil && len(got) < len(wanted) {
				continue
			}
		}
		if rule.SucceededCount == nil || int32(len(got)) >= *rule.SucceededCount {
			return i
		}
	}
	return -1
}
