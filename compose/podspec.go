package compose

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// defaultGrace is Docker's stop timeout in seconds; Kubernetes' own would be 30.
const defaultGrace = 10

// pod translates what runs: a service and those that share its pod. The annotations belong to the pod.
func (t *translation) pod(s *types.ServiceConfig) (corev1.PodSpec, map[string]string, error) {
	off, seconds := false, grace(s)
	pod := corev1.PodSpec{
		EnableServiceLinks: &off, AutomountServiceAccountToken: &off, TerminationGracePeriodSeconds: &seconds,
		Hostname: t.hostname(s.Hostname), DNSConfig: dnsConfig(s),
	}
	annotations := map[string]string{}
	c, err := t.container(s, &pod, annotations)
	if err != nil {
		return pod, nil, err
	}
	pod.Containers = []corev1.Container{c}
	if err := t.shared(s, &pod); err != nil {
		return pod, nil, err
	}
	return pod, annotations, t.join(s, &pod, annotations)
}

func grace(s *types.ServiceConfig) int64 {
	if s.StopGracePeriod == nil {
		return defaultGrace
	}
	return int64((time.Duration(*s.StopGracePeriod) + time.Second - 1) / time.Second)
}

// container is a service's own part of a pod; its volumes go to the pod.
func (t *translation) container(s *types.ServiceConfig, pod *corev1.PodSpec, annotations map[string]string) (corev1.Container, error) {
	c := corev1.Container{
		Name: LegalName(s.Name), Image: t.Images[s.Name].Ref, ImagePullPolicy: corev1.PullIfNotPresent,
		WorkingDir: s.WorkingDir, TTY: s.Tty, Stdin: s.StdinOpen, Env: environment(s.Environment),
		Resources: t.resources(s), SecurityContext: t.security(s),
	}
	if c.Image == "" {
		c.Image = s.Image
	}
	t.command(s, &c)
	if err := t.probes(s, &c); err != nil {
		return c, err
	}
	if err := t.mounts(s, pod, &c, annotations); err != nil {
		return c, err
	}
	for _, p := range s.Ports {
		// One port may be published at several places of the host.
		if port := (corev1.ContainerPort{ContainerPort: int32(p.Target), Protocol: protocol(p.Protocol)}); !slices.Contains(c.Ports, port) {
			c.Ports = append(c.Ports, port)
		}
	}
	t.extras(s, annotations)
	return c, nil
}

// shared is what a service decides for all containers of its pod.
func (t *translation) shared(s *types.ServiceConfig, pod *corev1.PodSpec) error {
	if err := t.namespaces(s, pod); err != nil {
		return err
	}
	for _, a := range t.hostAliases(s) {
		if i := slices.IndexFunc(pod.HostAliases, func(have corev1.HostAlias) bool { return have.IP == a.IP }); i >= 0 {
			pod.HostAliases[i].Hostnames = append(pod.HostAliases[i].Hostnames, a.Hostnames...)
		} else {
			pod.HostAliases = append(pod.HostAliases, a)
		}
	}
	return t.podSecurity(s, pod)
}

// hostname keeps a host name that is a DNS label, and only that.
func (t *translation) hostname(name string) string {
	if name == "" {
		return ""
	}
	legal := LegalName(name)
	if legal != name {
		t.note("hostname %s: inside it is %s, since a pod's name for itself is a DNS label", name, legal)
	}
	return legal
}

// environment is sorted by name.
func environment(m types.MappingWithEquals) []corev1.EnvVar {
	var env []corev1.EnvVar
	for _, name := range sortedNames(m) {
		if v := m[name]; v != nil {
			env = append(env, corev1.EnvVar{Name: name, Value: escape(*v)})
		}
	}
	return env
}

// escape keeps text from being taken for a reference, $(NAME), or for an escaped one: Kubernetes replaces both
// in environments, commands and probes.
func escape(s string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte(s[i])
		if s[i] == '$' && i+1 < len(s) && (s[i+1] == '$' || s[i+1] == '(') {
			b.WriteByte('$')
		}
	}
	return b.String()
}

func escapeAll(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = escape(w)
	}
	return out
}

// command maps entrypoint and command; an entrypoint drops the image's command, as in Docker.
func (t *translation) command(s *types.ServiceConfig, c *corev1.Container) {
	if s.Entrypoint != nil {
		c.Command = escapeAll(s.Entrypoint)
		if len(s.Entrypoint) == 0 {
			// An empty entrypoint means that the command is the program.
			words := []string(s.Command)
			if s.Command == nil {
				words = t.Images[s.Name].Cmd
			}
			c.Command = escapeAll(words)
			return
		}
	}
	if s.Command != nil {
		c.Args = escapeAll(s.Command)
		if len(s.Command) == 0 && c.Command == nil {
			c.Command = escapeAll(t.Images[s.Name].Entrypoint) // without it the image's arguments would come back
		}
	}
}

// resources: limits limit, and only reservations are requested, so that a limit alone books nothing.
func (t *translation) resources(s *types.ServiceConfig) corev1.ResourceRequirements {
	limits, requests := corev1.ResourceList{}, corev1.ResourceList{}
	cpu := func(list corev1.ResourceList, n float64) {
		if n > 0 {
			list[corev1.ResourceCPU] = *resource.NewMilliQuantity(int64(n*1000+0.5), resource.DecimalSI)
		}
	}
	memory := func(list corev1.ResourceList, n types.UnitBytes) {
		if n > 0 {
			list[corev1.ResourceMemory] = *resource.NewQuantity(int64(n), resource.BinarySI)
		}
	}
	cpu(limits, float64(s.CPUS))
	memory(limits, s.MemLimit)
	memory(requests, s.MemReservation)
	if s.Deploy != nil {
		if l := s.Deploy.Resources.Limits; l != nil {
			cpu(limits, float64(l.NanoCPUs))
			memory(limits, l.MemoryBytes)
		}
		if r := s.Deploy.Resources.Reservations; r != nil {
			cpu(requests, float64(r.NanoCPUs))
			memory(requests, r.MemoryBytes)
		}
	}
	for name := range limits {
		if _, ok := requests[name]; !ok {
			requests[name] = resource.MustParse("0") // left out, it would default to the limit
		}
	}
	out := corev1.ResourceRequirements{}
	if len(limits) > 0 {
		out.Limits = limits
	}
	if len(requests) > 0 {
		out.Requests = requests
	}
	return out
}

func (t *translation) security(s *types.ServiceConfig) *corev1.SecurityContext {
	sc, used := &corev1.SecurityContext{}, false
	if s.Privileged {
		sc.Privileged, used = &s.Privileged, true
	}
	if s.ReadOnly {
		sc.ReadOnlyRootFilesystem, used = &s.ReadOnly, true
	}
	if len(s.CapAdd)+len(s.CapDrop) > 0 {
		sc.Capabilities, used = &corev1.Capabilities{}, true
		for _, c := range s.CapAdd {
			sc.Capabilities.Add = append(sc.Capabilities.Add, capability(c))
		}
		for _, c := range s.CapDrop {
			sc.Capabilities.Drop = append(sc.Capabilities.Drop, capability(c))
		}
	}
	for _, o := range s.SecurityOpt {
		switch strings.ReplaceAll(o, "=", ":") {
		case "no-new-privileges", "no-new-privileges:true":
			no := false
			sc.AllowPrivilegeEscalation, used = &no, true
		case "seccomp:unconfined":
			sc.SeccompProfile, used = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}, true
		default:
			t.note("security_opt %q is not supported", o)
		}
	}
	if s.User != "" {
		user := t.Images[s.Name].User
		if user == "" {
			user = s.User
		}
		uid, gid, hasGroup := strings.Cut(user, ":")
		if n, err := strconv.ParseInt(uid, 10, 64); err == nil {
			sc.RunAsUser, used = &n, true
		} else {
			t.note("user %q is left out: its number is not known without the image", s.User)
		}
		if n, err := strconv.ParseInt(gid, 10, 64); err == nil && hasGroup {
			sc.RunAsGroup, used = &n, true
		}
	}
	if !used {
		return nil
	}
	return sc
}

func capability(name string) corev1.Capability {
	return corev1.Capability(strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
}

func (t *translation) podSecurity(s *types.ServiceConfig, pod *corev1.PodSpec) error {
	sc, used := pod.SecurityContext, pod.SecurityContext != nil
	if !used {
		sc = &corev1.PodSecurityContext{}
	}
	for _, g := range s.GroupAdd {
		n, err := strconv.ParseInt(g, 10, 64)
		if err != nil {
			return fmt.Errorf("group_add %q: give the group's number, names differ between images", g)
		}
		sc.SupplementalGroups, used = append(sc.SupplementalGroups, n), true
	}
	for _, name := range sortedNames(s.Sysctls) {
		sc.Sysctls, used = append(sc.Sysctls, corev1.Sysctl{Name: name, Value: s.Sysctls[name]}), true
	}
	if used {
		pod.SecurityContext = sc
	}
	return nil
}

// namespaces maps the modes that share the host's; others have no counterpart.
func (t *translation) namespaces(s *types.ServiceConfig, pod *corev1.PodSpec) error {
	switch {
	case s.NetworkMode == "host":
		pod.HostNetwork = true
		pod.DNSPolicy = corev1.DNSClusterFirstWithHostNet
	case s.NetworkMode == "none":
		t.note("network_mode none: it has an address, but reaches nobody and nobody reaches it")
	case s.NetworkMode == "bridge":
		t.note("network_mode bridge is taken as the project's own network")
	case strings.HasPrefix(s.NetworkMode, "container:"):
		return fmt.Errorf("network_mode %q is not supported: name a service of the project, with service:NAME", s.NetworkMode)
	}
	host, err := sharesHost("pid", s.Pid)
	if err != nil {
		return err
	}
	pod.HostPID = pod.HostPID || host
	if strings.HasPrefix(s.Pid, "service:") {
		yes := true
		pod.ShareProcessNamespace = &yes
	}
	host, err = sharesHost("ipc", s.Ipc)
	pod.HostIPC = pod.HostIPC || host
	return err
}

func sharesHost(key, mode string) (bool, error) {
	switch {
	case mode == "host":
		return true, nil
	case mode == "" || mode == "private" || mode == "shareable" || strings.HasPrefix(mode, "service:"):
		return false, nil
	}
	return false, fmt.Errorf("%s %q is not supported: use host or service:NAME, or leave it out", key, mode)
}

func (t *translation) hostAliases(s *types.ServiceConfig) []corev1.HostAlias {
	byAddress := map[string][]string{}
	for name, addresses := range s.ExtraHosts {
		for _, a := range addresses {
			if a == "host-gateway" {
				if t.HostAddress == "" {
					t.note("extra_hosts %s:host-gateway: the host's address is not known there: name one", name)
					continue
				}
				a = t.HostAddress
			}
			byAddress[a] = append(byAddress[a], name)
		}
	}
	var out []corev1.HostAlias
	for _, a := range sortedNames(byAddress) {
		sort.Strings(byAddress[a])
		out = append(out, corev1.HostAlias{IP: a, Hostnames: byAddress[a]})
	}
	return out
}

func dnsConfig(s *types.ServiceConfig) *corev1.PodDNSConfig {
	if len(s.DNS)+len(s.DNSSearch)+len(s.DNSOpts) == 0 {
		return nil
	}
	c := &corev1.PodDNSConfig{Nameservers: s.DNS, Searches: s.DNSSearch}
	for _, o := range s.DNSOpts {
		name, value, has := strings.Cut(o, ":")
		option := corev1.PodDNSConfigOption{Name: name}
		if has {
			option.Value = &value
		}
		c.Options = append(c.Options, option)
	}
	return c
}
