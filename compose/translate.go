package compose

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Object is an API object.
type Object interface {
	runtime.Object
	metav1.Object
}

// Image is what is known of a service's image.
type Image struct {
	Ref         string // what the pod names: with a digest where one is known
	Exposed     []string
	Volumes     []string
	Healthcheck *types.HealthCheckConfig
	Entrypoint  []string
	Cmd         []string
	// User is the service's user (or the image's) as numbers, "uid" or "uid:gid"; empty: root, or unknown.
	User string
}

// Input is all that a translation depends on.
type Input struct {
	Project *types.Project
	Images  map[string]Image // by service
	// Node is this machine's name among the cluster's nodes: bind mounts pin their pods to it. Empty: the
	// cluster is elsewhere, and bind mounts are errors.
	Node string
	// Slipway tells that the cluster honours Slipway's annotations; otherwise what needs one is noted.
	Slipway bool
	// HostAddress is this machine's address as pods reach it: what host-gateway means in extra_hosts. Empty: not known.
	HostAddress string
	// VolumePaths are the host directories of external volumes.
	VolumePaths map[string]string
}

// Plan is a translated project.
type Plan struct {
	Namespace string
	Shared    []Object // applied first: claims, configs, secrets, services, policies
	Workloads []Workload
	Notes     []string // what could not be expressed, one line each
}

// Workload is one service's Deployment or Job.
type Workload struct {
	Service string
	Object  Object
	Needs   []Need
}

// Need is a dependency that must have come far enough before the workload is applied.
type Need struct {
	Service   string
	Condition string // service_started, service_healthy or service_completed_successfully
	Required  bool
}

// translation is one Translate call under way.
type translation struct {
	Input
	plan    *Plan
	jobs    map[string]bool // services that are meant to end
	configs map[string]projected
	secrets map[string]projected
	leaders map[string]string               // of the pods that services are in, by service
	owners  map[string]owner                // by legal name
	common  map[string][]corev1.ServicePort // of names that several services share
	service *types.ServiceConfig            // the one being translated, for notes
}

// Translate makes the plan for a project's enabled services.
func Translate(in Input) (*Plan, error) {
	ns, err := Namespace(in.Project.Name)
	if err != nil {
		return nil, err
	}
	t := &translation{Input: in, plan: &Plan{Namespace: ns}, jobs: meantToEnd(in.Project),
		configs: map[string]projected{}, secrets: map[string]projected{}, common: map[string][]corev1.ServicePort{}}
	t.inheritVolumes()
	if err := t.checkNames(); err != nil {
		return nil, err
	}
	if err := t.findGroups(); err != nil {
		return nil, err
	}
	if err := t.findOwners(); err != nil {
		return nil, err
	}
	if err := t.files(); err != nil {
		return nil, err
	}
	if err := t.claims(); err != nil {
		return nil, err
	}
	for _, name := range sortedNames(t.Project.Services) {
		s := t.Project.Services[name]
		t.service = &s
		if err := t.one(&s); err != nil {
			return nil, fmt.Errorf("service %q: %w", name, err)
		}
	}
	if err := t.restartDependants(); err != nil {
		return nil, err
	}
	t.policies()
	if err := t.plan.checkDistinct(); err != nil {
		return nil, err
	}
	sort.Strings(t.plan.Notes)
	t.plan.Notes = slices.Compact(t.plan.Notes)
	return t.plan, nil
}

func sortedNames[T any](m map[string]T) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// checkNames refuses two services whose legal names are the same.
func (t *translation) checkNames() error {
	seen := map[string]string{}
	for _, name := range sortedNames(t.Project.Services) {
		legal := LegalName(name)
		if other, ok := seen[legal]; ok {
			return fmt.Errorf("services %q and %q: both become %s, since names are DNS labels: rename one", other, name, legal)
		}
		seen[legal] = name
		if problems := validation.IsValidLabelValue(name); len(problems) > 0 {
			return fmt.Errorf("service %q: its pods are labelled with its name, and %s", name, problems[0])
		}
	}
	return nil
}

// checkDistinct refuses a plan in which one object would overwrite another.
func (p *Plan) checkDistinct() error {
	seen := map[string]Object{}
	for _, o := range p.Shared {
		kind := o.GetObjectKind().GroupVersionKind().Kind
		other, taken := seen[kind+"/"+o.GetName()]
		seen[kind+"/"+o.GetName()] = o
		if !taken {
			continue
		}
		if a, b := other.GetLabels()[LabelService], o.GetLabels()[LabelService]; a != "" && b != "" {
			return fmt.Errorf("services %q and %q: both need a %s called %s: rename one", a, b, kind, o.GetName())
		}
		return fmt.Errorf("two names become %s %s, since names are DNS labels: rename one", kind, o.GetName())
	}
	return nil
}

// note records that something of the current service could not be expressed.
func (t *translation) note(format string, args ...any) {
	prefix := ""
	if t.service != nil {
		prefix = "service " + t.service.Name + ": "
	}
	t.plan.Notes = append(t.plan.Notes, prefix+fmt.Sprintf(format, args...))
}

func (t *translation) add(o Object) { t.plan.Shared = append(t.plan.Shared, o) }

// meta is the metadata of an object of the project.
func (t *translation) meta(name, service string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Namespace: t.plan.Namespace, Name: name, Labels: map[string]string{
		labelPartOf: t.plan.Namespace, labelManagedBy: managedBy, LabelProject: t.Project.Name}}
	if service != "" {
		m.Labels[labelName] = LegalName(service)
		m.Labels[LabelService] = service
	}
	return m
}

func (t *translation) one(s *types.ServiceConfig) error {
	t.refuse(s)
	if err := t.names(s); err != nil || t.leaders[s.Name] != s.Name {
		return err
	}
	pod, annotations, err := t.pod(s)
	if err != nil {
		return err
	}
	workload, err := t.workload(s, pod, annotations)
	if err != nil {
		return err
	}
	t.plan.Workloads = append(t.plan.Workloads, Workload{Service: s.Name, Object: workload, Needs: t.needs(s)})
	return nil
}

// needs are those of the services in a workload's pods, on workloads of others.
func (t *translation) needs(leader *types.ServiceConfig) []Need {
	var out []Need
	for _, s := range t.group(leader.Name) {
		for _, name := range sortedNames(s.DependsOn) {
			d := s.DependsOn[name]
			other, known := t.leaders[name]
			if !known {
				other = name
			}
			if n := (Need{Service: other, Condition: d.Condition, Required: d.Required}); other != leader.Name && !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// meantToEnd finds the services that run to completion: those whose restart policy says so, and those
// that others wait for to complete.
func meantToEnd(p *types.Project) map[string]bool {
	jobs := map[string]bool{}
	for name, s := range p.Services {
		restart := s.Restart
		if restart == "" && s.Deploy != nil && s.Deploy.RestartPolicy != nil {
			restart = s.Deploy.RestartPolicy.Condition
		}
		ends := s.Deploy != nil && strings.HasSuffix(s.Deploy.Mode, "-job")
		if ends || restart == "no" || restart == "none" || strings.HasPrefix(restart, "on-failure") {
			jobs[name] = true
		}
		for dep, d := range s.DependsOn {
			if d.Condition == types.ServiceConditionCompletedSuccessfully {
				jobs[dep] = true
			}
		}
	}
	return jobs
}

// replicas is how many of a service are wanted.
func replicas(s *types.ServiceConfig) int32 {
	switch {
	case s.Scale != nil:
		return int32(*s.Scale)
	case s.Deploy != nil && s.Deploy.Replicas != nil:
		return int32(*s.Deploy.Replicas)
	}
	return 1
}

// protocol is a port's in Kubernetes' spelling.
func protocol(p string) corev1.Protocol {
	switch strings.ToLower(p) {
	case "udp":
		return corev1.ProtocolUDP
	case "sctp":
		return corev1.ProtocolSCTP
	}
	return corev1.ProtocolTCP
}
