package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	corev1 "k8s.io/api/core/v1"
)

// Services that share a namespace with another one (network_mode, pid or ipc with service:NAME) share its pod: Kubernetes
// knows no other way. The one that is named leads: the workload is its own, the others are containers in it.

// AnnotationServices lists the services whose containers share a workload's pods, and the pods.
const AnnotationServices = "slipway.dev/services"

// sharesWith are the services whose namespaces a service joins.
func sharesWith(s *types.ServiceConfig) (names []string) {
	for _, mode := range []string{s.NetworkMode, s.Pid, s.Ipc} {
		if name, ok := strings.CutPrefix(mode, "service:"); ok {
			names = append(names, name)
		}
	}
	return names
}

// Group are the services that share a pod with one, itself among them.
func Group(p *types.Project, service string) []string {
	all := leaders(p)
	var out []string
	for _, name := range sortedNames(all) {
		if all[name] == all[service] {
			out = append(out, name)
		}
	}
	return out
}

// leaders says for each service which one leads its group.
func leaders(p *types.Project) map[string]string {
	parent := map[string]string{}
	root := func(name string) string {
		for parent[name] != "" {
			name = parent[name]
		}
		return name
	}
	all := p.AllServices()
	for _, name := range sortedNames(all) {
		s := all[name]
		for i, target := range sharesWith(&s) {
			joins, leads := root(name), root(target)
			if i > 0 { // the first that it named leads
				joins, leads = leads, joins
			}
			if joins != leads {
				parent[joins] = leads
			}
		}
	}
	out := map[string]string{}
	for name := range all {
		out[name] = root(name)
	}
	return out
}

// findGroups finds out who shares a pod, and refuses those who cannot.
func (t *translation) findGroups() error {
	t.leaders = leaders(t.Project)
	for _, name := range sortedNames(t.Project.Services) {
		leader := t.leaders[name]
		if leader == name {
			continue
		}
		lead, ok := t.Project.Services[leader]
		s := t.Project.Services[name]
		switch {
		case !ok:
			return fmt.Errorf("service %q shares a namespace with %q, which is not selected", name, leader)
		case t.jobs[name] != t.jobs[leader]:
			return fmt.Errorf("service %q shares a pod with %q, and only one of them runs to completion: give both the same restart policy", name, leader)
		case replicas(&s) != replicas(&lead):
			return fmt.Errorf("service %q shares a pod with %q: both need the same number of replicas", name, leader)
		}
	}
	return nil
}

// group are the services in a leader's pods, itself first.
func (t *translation) group(leader string) []*types.ServiceConfig {
	var out []*types.ServiceConfig
	for _, name := range sortedNames(t.Project.Services) {
		if t.leaders[name] == leader {
			s := t.Project.Services[name]
			if name == leader {
				out = append([]*types.ServiceConfig{&s}, out...)
			} else {
				out = append(out, &s)
			}
		}
	}
	return out
}

// selector finds the pods that a service is in.
func (t *translation) selector(service string) map[string]string {
	return map[string]string{labelName: LegalName(t.leaders[service])}
}

// join adds the other services of a group to their leader's pod.
func (t *translation) join(leader *types.ServiceConfig, pod *corev1.PodSpec, annotations map[string]string) error {
	group := t.group(leader.Name)
	if len(group) == 1 {
		return nil
	}
	names := []string{leader.Name}
	defer func() { t.service = leader }()
	for _, s := range group[1:] {
		names = append(names, s.Name)
		t.service = s
		own := map[string]string{}
		c, err := t.container(s, pod, own)
		if err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
		pod.Containers = append(pod.Containers, c)
		if err := t.shared(s, pod); err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
		if s.StopGracePeriod != nil {
			*pod.TerminationGracePeriodSeconds = max(*pod.TerminationGracePeriodSeconds, grace(s))
		}
		if !strings.HasPrefix(s.NetworkMode, "service:") {
			t.note("it shares the network of %s too, since it shares its pod", leader.Name)
		}
		if s.Hostname != "" {
			t.note("hostname %s: it has that of %s, whose pod it shares", s.Hostname, leader.Name)
		}
		t.mergeAnnotations(leader.Name, annotations, own)
	}
	annotations[AnnotationServices] = strings.Join(names, ",")
	return nil
}

// podWide are settings of the engine that the node agent takes for all containers of a pod.
var podWide = []string{annotationInit, annotationSignal, annotationUlimits, annotationPids, annotationCPUSet}

// mergeAnnotations adds a member's to those of the pod.
func (t *translation) mergeAnnotations(leader string, pod, own map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(own)) {
		have, taken := pod[key]
		switch {
		case !taken:
			pod[key] = own[key]
			if slices.Contains(podWide, key) {
				t.note("%s: it holds for all that share the pod of %s", strings.TrimPrefix(key, "slipway.dev/"), leader)
			}
		case key == annotationPopulate || key == annotationDevices:
			pod[key] = have + "," + own[key]
		case have != own[key]:
			t.note("%s: that of %s holds, whose pod it shares", strings.TrimPrefix(key, "slipway.dev/"), leader)
		}
	}
}
