package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// names makes the Services by which a service is found: its own name, its aliases, and what it publishes.
func (t *translation) names(s *types.ServiceConfig) error {
	ports, err := t.ports(s)
	if err != nil {
		return err
	}
	own := LegalName(s.Name)
	legal, illegal := t.aliases(s)
	t.add(t.nameService(s, own, ports, illegal))
	for _, name := range legal {
		if t.owners[name].maker == s.Name {
			t.add(t.nameService(s, name, ports, nil))
		}
	}
	return t.published(s)
}

// owner says whose a name is. Docker lets several services share an alias: whoever asks gets one of them.
type owner struct {
	maker    string   // the service that the name's Service is made with: the one that is called so, or the first
	services []string // all that answer to it
}

// findOwners finds out about every name that is to be a Service.
func (t *translation) findOwners() error {
	t.owners = map[string]owner{}
	for _, service := range sortedNames(t.Project.Services) {
		s := t.Project.Services[service]
		legal, _ := t.aliases(&s)
		for _, name := range append(legal, LegalName(service)) {
			o := t.owners[name]
			if o.maker == "" || name == LegalName(service) {
				o.maker = service
			}
			o.services = append(o.services, service)
			t.owners[name] = o
		}
	}
	// A shared name leads to the ports that any of them is known by.
	for name, o := range t.owners {
		if len(o.services) < 2 {
			continue
		}
		var all []corev1.ServicePort
		for _, service := range o.services {
			s := t.Project.Services[service]
			ports, err := t.ports(&s)
			if err != nil {
				return fmt.Errorf("service %q: %w", service, err)
			}
			all = append(all, ports...)
		}
		t.common[name] = distinct(all)
	}
	return nil
}

// distinct drops ports that are there already.
func distinct(ports []corev1.ServicePort) []corev1.ServicePort {
	sortPorts(ports)
	return slices.CompactFunc(ports, func(a, b corev1.ServicePort) bool { return a.Port == b.Port && a.Protocol == b.Protocol })
}

func sortPorts(ports []corev1.ServicePort) {
	slices.SortStableFunc(ports, func(a, b corev1.ServicePort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
}

// selects finds the pods that answer to a name.
func (t *translation) selects(name string, s *types.ServiceConfig) map[string]string {
	if len(t.owners[name].services) > 1 {
		return map[string]string{labelShared + name: "true"}
	}
	return t.selector(s.Name)
}

// nameService is a virtual address, or headless where no port is known and the cluster cannot forward all.
func (t *translation) nameService(s *types.ServiceConfig, name string, ports []corev1.ServicePort, aliases []string) *corev1.Service {
	if shared, ok := t.common[name]; ok {
		ports = shared
	}
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: t.meta(name, s.Name),
		Spec: corev1.ServiceSpec{Selector: t.selects(name, s), Ports: ports}}
	svc.Annotations = map[string]string{annotationAllPorts: "true"}
	if len(ports) == 0 {
		svc.Spec.ClusterIP = corev1.ClusterIPNone
		delete(svc.Annotations, annotationAllPorts)
	}
	if len(aliases) > 0 {
		svc.Annotations[annotationAliases] = strings.Join(aliases, ",")
		if !t.Slipway {
			t.note("names %s are not DNS labels: other clusters know the service as %s only", strings.Join(aliases, ", "), name)
		}
	}
	return svc
}

// aliases are the further names of a service: those that can be Services, and those that cannot.
func (t *translation) aliases(s *types.ServiceConfig) (legal, illegal []string) {
	names := map[string]bool{s.Name: true}
	for _, n := range s.Networks {
		if n != nil {
			for _, a := range n.Aliases {
				names[a] = true
			}
		}
	}
	if s.ContainerName != "" {
		names[s.ContainerName] = true
	}
	if s.Hostname != "" {
		names[s.Hostname] = true
	}
	// "links: [db:database]" gives the target another name.
	for _, other := range t.Project.Services {
		for _, link := range other.Links {
			if target, alias, found := strings.Cut(link, ":"); found && target == s.Name {
				names[alias] = true
			}
		}
	}
	for _, name := range sortedNames(names) {
		switch {
		case name == LegalName(s.Name):
		case name == LegalName(name):
			legal = append(legal, name)
		default:
			illegal = append(illegal, name)
		}
	}
	return legal, illegal
}

// ports are all that are known of a service: published, exposed, and exposed by its image.
func (t *translation) ports(s *types.ServiceConfig) ([]corev1.ServicePort, error) {
	type key struct {
		port  uint64
		proto corev1.Protocol
	}
	known := map[key]string{}
	for _, p := range s.Ports {
		known[key{uint64(p.Target), protocol(p.Protocol)}] = p.AppProtocol
	}
	for _, list := range [][]string{s.Expose, t.Images[s.Name].Exposed} {
		for _, e := range list {
			number, proto, _ := strings.Cut(e, "/")
			first, last, isRange := strings.Cut(number, "-")
			if !isRange {
				last = first
			}
			from, err := strconv.ParseUint(first, 10, 16)
			to, err2 := strconv.ParseUint(last, 10, 16)
			if err != nil || err2 != nil || from == 0 || to < from {
				return nil, fmt.Errorf("expose %q is not a port: use a number, or a range such as 8000-8010", e)
			}
			for p := from; p <= to; p++ {
				k := key{p, protocol(proto)}
				if _, ok := known[k]; !ok {
					known[k] = ""
				}
			}
		}
	}
	var out []corev1.ServicePort
	for k, app := range known {
		sp := corev1.ServicePort{Name: portName(uint32(k.port), k.proto), Port: int32(k.port), TargetPort: intstr.FromInt32(int32(k.port)), Protocol: k.proto}
		if app != "" {
			sp.AppProtocol = &app
		}
		out = append(out, sp)
	}
	sortPorts(out)
	return out, nil
}

func portName(port uint32, proto corev1.Protocol) string {
	return fmt.Sprintf("%s-%d", strings.ToLower(string(proto)), port)
}

// published makes LoadBalancer Services for fixed host ports, one for each set of host addresses, and a
// NodePort Service for ports that the host may choose.
func (t *translation) published(s *types.ServiceConfig) error {
	fixed := map[string][]corev1.ServicePort{} // by host address
	var free []corev1.ServicePort
	for _, p := range s.Ports {
		proto := protocol(p.Protocol)
		sp := corev1.ServicePort{Name: portName(p.Target, proto), TargetPort: intstr.FromInt32(int32(p.Target)), Protocol: proto}
		switch {
		case p.Published == "" || p.Published == "0":
			if p.HostIP != "" && p.HostIP != "0.0.0.0" {
				// What was meant for this machine alone must not be open to all.
				return fmt.Errorf("ports %s::%d: a port that is chosen freely is open on every address: give it a number, such as %s:8080:%d", p.HostIP, p.Target, p.HostIP, p.Target)
			}
			sp.Port = int32(p.Target)
			free = append(free, sp)
		default:
			// Docker takes the first free port of a range, one for each replica.
			first, _, ranged := strings.Cut(p.Published, "-")
			if ranged {
				t.note("ports %s:%d: published at %s alone, where the replicas share it", p.Published, p.Target, first)
			}
			host, err := strconv.ParseUint(first, 10, 16)
			if err != nil {
				return fmt.Errorf("ports %q: %w", p.Published, err)
			}
			sp.Port = int32(host)
			sp.Name = fmt.Sprintf("%s-%d", portName(p.Target, proto), host)
			fixed[p.HostIP] = append(fixed[p.HostIP], sp)
		}
	}
	name := LegalName(s.Name + "-published")
	for i, ip := range sortedNames(fixed) {
		svc := t.publishing(s, name, corev1.ServiceTypeLoadBalancer, fixed[ip])
		if i > 0 {
			svc.Name = fmt.Sprintf("%s-%d", name, i)
		}
		if ip != "" && ip != "0.0.0.0" {
			svc.Annotations[annotationHostIP] = ip
			if !t.Slipway {
				t.note("ports: host address %s has no counterpart on other clusters", ip)
			}
		}
		t.add(svc)
	}
	if len(free) > 0 {
		t.add(t.publishing(s, LegalName(s.Name+"-nodeport"), corev1.ServiceTypeNodePort, free))
	}
	return nil
}

func (t *translation) publishing(s *types.ServiceConfig, name string, kind corev1.ServiceType, ports []corev1.ServicePort) *corev1.Service {
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: t.meta(name, s.Name),
		Spec: corev1.ServiceSpec{Type: kind, Selector: t.selector(s.Name), Ports: ports}}
	svc.Annotations = map[string]string{annotationPublished: "true"}
	if kind == corev1.ServiceTypeLoadBalancer {
		no := false
		svc.Spec.AllocateLoadBalancerNodePorts = &no
	}
	return svc
}
