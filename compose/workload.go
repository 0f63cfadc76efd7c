package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// workload wraps a pod in the kind that keeps it as the service wants.
func (t *translation) workload(s *types.ServiceConfig, pod corev1.PodSpec, annotations map[string]string) (Object, error) {
	n := replicas(s)
	if s.Deploy != nil && strings.HasPrefix(s.Deploy.Mode, "global") {
		t.note("deploy.mode %s: one replica, not one on each node", s.Deploy.Mode)
		n = 1
	}
	if s.ContainerName != "" && n > 1 {
		return nil, fmt.Errorf("container_name %q allows one replica only, not %d", s.ContainerName, n)
	}
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: t.podLabels(s), Annotations: annotations}, Spec: pod}
	meta := t.meta(LegalName(s.Name), s.Name)
	meta.Annotations = map[string]string{}
	if services := annotations[AnnotationServices]; services != "" {
		meta.Annotations[AnnotationServices] = services
	}
	if s.Deploy != nil {
		t.labels(s.Deploy.Labels, "deploy.labels", meta.Annotations)
	}
	if t.jobs[s.Name] {
		return t.job(s, meta, template, n)
	}
	d := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: t.selector(s.Name)}, Template: template,
			Strategy: t.strategy(s),
		},
	}
	if !slices.ContainsFunc(pod.Containers, func(c corev1.Container) bool { return c.ReadinessProbe != nil }) {
		// Nothing tells that the new version works. It has to go on running for a moment before an old one makes way: one that
		// crashes at its start is never the only one.
		d.Spec.MinReadySeconds = 1
	}
	if u := updateConfig(s); u != nil && u.Delay > 0 {
		d.Spec.MinReadySeconds = int32(max(time.Duration(u.Delay).Round(time.Second)/time.Second, 1))
	}
	return d, nil
}

func updateConfig(s *types.ServiceConfig) *types.UpdateConfig {
	if s.Deploy == nil {
		return nil
	}
	return s.Deploy.UpdateConfig
}

// strategy is start-first, unless two versions would then write to one volume.
func (t *translation) strategy(s *types.ServiceConfig) appsv1.DeploymentStrategy {
	u := updateConfig(s)
	order, batch := "", intstr.FromInt32(1)
	if u != nil {
		order = u.Order
		switch {
		case u.Parallelism != nil && *u.Parallelism > 0:
			batch = intstr.FromInt32(int32(*u.Parallelism))
		case u.Parallelism != nil:
			batch = intstr.FromString("100%") // Compose's 0: all at once
		}
		if u.FailureAction == "rollback" {
			t.note("deploy.update_config.failure_action rollback is not automatic: a failed update stops, and `kubectl rollout undo` rolls it back")
		}
	}
	if order == "" && t.writesVolume(s) {
		return appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	zero := intstr.FromInt32(0)
	rolling := &appsv1.RollingUpdateDeployment{MaxSurge: &batch, MaxUnavailable: &zero}
	if order == "stop-first" {
		rolling.MaxSurge, rolling.MaxUnavailable = &zero, &batch
	}
	return appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: rolling}
}

func (t *translation) writesVolume(leader *types.ServiceConfig) bool {
	return slices.ContainsFunc(t.group(leader.Name), func(s *types.ServiceConfig) bool {
		return slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
			return v.Type == types.VolumeTypeVolume && v.Source != "" && !v.ReadOnly
		})
	})
}

func (t *translation) job(s *types.ServiceConfig, meta metav1.ObjectMeta, template corev1.PodTemplateSpec, n int32) (Object, error) {
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	retries := int32(0)
	condition, attempts := s.Restart, uint64(0)
	if p := restartPolicy(s); condition == "" && p != nil {
		condition = p.Condition
		if p.MaxAttempts != nil {
			attempts = *p.MaxAttempts
		}
	}
	if name, count, found := strings.Cut(condition, ":"); found {
		limit, err := strconv.ParseUint(count, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("restart %q: %q is not a number of retries", condition, count)
		}
		condition, attempts = name, limit
	}
	if condition == "on-failure" {
		template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		retries = 1 << 30 // Docker retries for ever
		if attempts > 0 {
			retries = int32(attempts)
		}
	}
	if len(s.Ports) > 0 && n > 1 {
		return nil, errors.New("a service that runs to completion cannot publish ports with several replicas")
	}
	return &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: meta,
		Spec:       batchv1.JobSpec{Parallelism: &n, Completions: &n, BackoffLimit: &retries, Template: template},
	}, nil
}

func restartPolicy(s *types.ServiceConfig) *types.RestartPolicy {
	if s.Deploy == nil {
		return nil
	}
	return s.Deploy.RestartPolicy
}

// podLabels find the pod for its Services, its networks' policies and people.
func (t *translation) podLabels(leader *types.ServiceConfig) map[string]string {
	labels := t.meta("", leader.Name).Labels
	networks, internal := 0, true
	for _, s := range t.group(leader.Name) {
		for name := range s.Networks {
			labels[labelNetwork+LegalName(name)] = "true"
			networks, internal = networks+1, internal && t.Project.Networks[name].Internal
		}
		for name, o := range t.owners {
			if len(o.services) > 1 && slices.Contains(o.services, s.Name) {
				labels[labelShared+name] = "true"
			}
		}
	}
	if networks > 0 && internal {
		labels[labelInternal] = "true"
	}
	return labels
}

// restartDependants makes `depends_on: {restart: true}` true: a pod template carries the content of those that it is to
// be restarted with, so that their change is its change.
func (t *translation) restartDependants() error {
	templates := map[string]*corev1.PodTemplateSpec{}
	for _, w := range t.plan.Workloads {
		switch o := w.Object.(type) {
		case *appsv1.Deployment:
			templates[w.Service] = &o.Spec.Template
		case *batchv1.Job:
			templates[w.Service] = &o.Spec.Template
		}
	}
	done := map[string]bool{}
	var visit func(service string) error
	visit = func(service string) error { // dependencies first; compose-go has refused cycles
		if done[service] || templates[service] == nil {
			return nil
		}
		done[service] = true
		var content [][]byte
		for _, s := range t.group(service) {
			for _, name := range sortedNames(s.DependsOn) {
				dep := t.leaders[name]
				if !s.DependsOn[name].Restart || templates[dep] == nil || dep == service {
					continue
				}
				if err := visit(dep); err != nil {
					return err
				}
				raw, err := json.Marshal(templates[dep])
				if err != nil {
					return err
				}
				content = append(content, raw)
			}
		}
		if len(content) > 0 {
			templates[service].Annotations[annotationRestart] = hash(content...)
		}
		return nil
	}
	for _, w := range t.plan.Workloads {
		if err := visit(w.Service); err != nil {
			return err
		}
	}
	return nil
}
