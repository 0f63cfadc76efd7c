package node

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/volume"
)

// Labels that say which container of which pod an engine container is. They are the kubelet's and
// the container runtimes', so that tools which know those find their way.
const (
	labelPodName   = "io.kubernetes.pod.name"
	labelPodNS     = "io.kubernetes.pod.namespace"
	labelPodUID    = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
	labelAttempt   = "io.kubernetes.container.restartCount"
	labelSandbox   = "dev.slipway.sandbox"     // which sandbox of the pod: a reboot makes a new one
	labelBackOff   = "dev.slipway.backoff"     // seconds this attempt had waited
	labelImage     = "dev.slipway.image"       // the image as the pod names it
	labelMessage   = "dev.slipway.termination" // host file of the termination message
)

// OOM scores, so that the kernel takes best-effort pods first and guaranteed ones last.
const (
	oomGuaranteed = -997
	oomBestEffort = 1000
)

// launch is all that is needed to describe one container of a pod to the engine.
type launch struct {
	pod       *corev1.Pod
	container *corev1.Container
	attempt   int
	backOff   int // seconds
	epoch     string
	env       []string
	values    map[string]string // for $(NAME)
	volumes   map[string]string // volume name to host path
	dir       string            // the pod's directory: hosts, resolv.conf, hostname
	message   string            // host file for the termination message
	sandbox   string
	target    string // the engine container whose processes it sees; empty: none
	cgroup    string
	memory    int64 // of the node, for OOM scores
	imageUser string
}

// spec translates to the engine's terms.
func (l launch) spec() (container.Spec, error) {
	c, pod := l.container, l.pod
	s := container.Spec{
		Owner:        container.OwnerNode,
		Name:         fmt.Sprintf("k8s_%s_%s_%s_%s_%d", c.Name, pod.Name, pod.Namespace, pod.UID, l.attempt),
		Image:        c.Image,
		WorkingDir:   c.WorkingDir,
		Env:          l.env,
		Tty:          c.TTY,
		OpenStdin:    c.Stdin,
		StdinOnce:    c.StdinOnce,
		Labels:       l.labels(),
		Healthcheck:  &container.Health{Test: []string{"NONE"}}, // a pod's health is its probes'
		Sandbox:      l.sandbox,
		SandboxPID:   pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
		ResolvConf:   filepath.Join(l.dir, "resolv.conf"),
		HostsFile:    filepath.Join(l.dir, "hosts"),
		HostnameFile: filepath.Join(l.dir, "hostname"),
		CgroupParent: l.cgroup,
	}
	if c.Command != nil {
		s.Entrypoint = expand(c.Command, l.values)
		s.Cmd = []string{} // command without args drops the image's arguments too
	}
	if c.Args != nil {
		s.Cmd = expand(c.Args, l.values)
	}
	if pod.Spec.HostNetwork {
		s.NetworkMode, s.UTSMode = "host", "host" // the sandbox has neither
	}
	switch {
	case pod.Spec.HostPID:
		s.PidMode = "host"
	case l.target != "" && !s.SandboxPID:
		s.PidMode = "container:" + l.target
	}
	if pod.Spec.HostIPC {
		s.IpcMode = "host"
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		s.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	l.resources(&s)
	if err := l.extras(&s); err != nil {
		return s, err
	}
	if err := l.security(&s); err != nil {
		return s, err
	}
	return s, l.mounts(&s)
}

func (l launch) labels() map[string]string {
	labels := maps.Clone(l.pod.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelPodName], labels[labelPodNS], labels[labelPodUID] = l.pod.Name, l.pod.Namespace, string(l.pod.UID)
	labels[labelContainer], labels[labelAttempt] = l.container.Name, strconv.Itoa(l.attempt)
	labels[labelSandbox], labels[labelBackOff] = l.epoch, strconv.Itoa(l.backOff)
	labels[labelImage], labels[labelMessage] = l.container.Image, l.message
	return labels
}

func (l launch) resources(s *container.Spec) {
	limits, requests := l.container.Resources.Limits, l.container.Resources.Requests
	if m, ok := limits[corev1.ResourceMemory]; ok {
		s.Resources.Memory = m.Value()
		s.Resources.MemorySwap = m.Value() // no swap, as the kubelet's default
	}
	if q, ok := limits[corev1.ResourceCPU]; ok && q.MilliValue() > 0 {
		const period = 100_000 // microseconds
		s.Resources.CPUPeriod = period
		s.Resources.CPUQuota = max(q.MilliValue()*period/1000, 1000)
	}
	cpu, ok := requests[corev1.ResourceCPU]
	if !ok {
		cpu = limits[corev1.ResourceCPU]
	}
	s.Resources.CPUShares = max(cpu.MilliValue()*1024/1000, 2)
	score := l.oomScore()
	s.Resources.OomScoreAdj = &score
}

// oomScore is the kubelet's: by the pod's class, and in between by the share of memory requested.
func (l launch) oomScore() int {
	switch l.pod.Status.QOSClass {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	request := l.container.Resources.Requests[corev1.ResourceMemory]
	if l.memory <= 0 {
		return oomBestEffort - 1
	}
	score := 1000 - int(1000*request.Value()/l.memory)
	return min(max(score, 1000+oomGuaranteed), oomBestEffort-1)
}

// security merges the pod's and the container's security contexts.
func (l launch) security(s *container.Spec) error {
	pod := l.pod.Spec.SecurityContext
	if pod == nil {
		pod = &corev1.PodSecurityContext{}
	}
	own := l.container.SecurityContext
	if own == nil {
		own = &corev1.SecurityContext{}
	}
	user, group := first(own.RunAsUser, pod.RunAsUser), first(own.RunAsGroup, pod.RunAsGroup)
	if err := l.checkNonRoot(first(own.RunAsNonRoot, pod.RunAsNonRoot), user); err != nil {
		return err
	}
	switch {
	case user != nil && group != nil:
		s.User = fmt.Sprintf("%d:%d", *user, *group)
	case user != nil:
		s.User = strconv.FormatInt(*user, 10)
	case group != nil:
		name, _, _ := strings.Cut(l.imageUser, ":")
		if name == "" {
			name = "0"
		}
		s.User = fmt.Sprintf("%s:%d", name, *group)
	}
	for _, g := range pod.SupplementalGroups {
		s.GroupAdd = append(s.GroupAdd, strconv.FormatInt(g, 10))
	}
	if pod.FSGroup != nil {
		s.GroupAdd = append(s.GroupAdd, strconv.FormatInt(*pod.FSGroup, 10))
	}
	s.StrictGroups = pod.SupplementalGroupsPolicy != nil && *pod.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	s.Privileged = own.Privileged != nil && *own.Privileged
	s.ReadOnly = own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem
	s.NoNewPrivs = own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation
	if caps := own.Capabilities; caps != nil {
		for _, c := range caps.Add {
			s.CapAdd = append(s.CapAdd, string(c))
		}
		for _, c := range caps.Drop {
			s.CapDrop = append(s.CapDrop, string(c))
		}
	}
	if own.ProcMount != nil && *own.ProcMount == corev1.UnmaskedProcMount {
		s.SecurityOpt = append(s.SecurityOpt, "systempaths=unconfined")
	}
	if p := first(own.AppArmorProfile, pod.AppArmorProfile); p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost {
		return fmt.Errorf("AppArmor profiles of type Localhost are not supported by this node: use RuntimeDefault or Unconfined")
	}
	// Without a profile in the pod the default one applies: what the kubelet calls seccompDefault.
	profile := own.SeccompProfile
	if profile == nil {
		profile = pod.SeccompProfile
	}
	if profile != nil {
		switch profile.Type {
		case corev1.SeccompProfileTypeUnconfined:
			s.SecurityOpt = append(s.SecurityOpt, "seccomp=unconfined")
		case corev1.SeccompProfileTypeLocalhost:
			return fmt.Errorf("seccomp profiles of type Localhost are not supported by this node: use RuntimeDefault or Unconfined")
		}
	}
	return nil
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// checkNonRoot keeps runAsNonRoot's promise before anything runs.
func (l launch) checkNonRoot(want *bool, user *int64) error {
	if want == nil || !*want {
		return nil
	}
	if user != nil {
		if *user == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", l.pod.Namespace+"/"+l.pod.Name, l.container.Name)
		}
		return nil
	}
	name, _, _ := strings.Cut(l.imageUser, ":")
	id, err := strconv.ParseInt(name, 10, 64)
	switch {
	case name == "" || (err == nil && id == 0):
		return fmt.Errorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", l.pod.Namespace+"/"+l.pod.Name, l.container.Name)
	case err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", name, l.pod.Namespace+"/"+l.pod.Name, l.container.Name)
	}
	return nil
}

// projects says whether a volume shows objects of the API: containers may not write to those.
func (l launch) projects(volume string) bool {
	return slices.ContainsFunc(l.pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == volume && (v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil)
	})
}

// mounts adds the volume mounts, and the file for the termination message.
func (l launch) mounts(s *container.Spec) error {
	for i, m := range l.container.VolumeMounts {
		source, ok := l.volumes[m.Name]
		if !ok {
			return fmt.Errorf("volume %q of mount %s not found", m.Name, m.MountPath)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			var err error
			if sub, err = expandSubPath(m.SubPathExpr, l.values); err != nil {
				return fmt.Errorf("volumeMount %q of container %q: %w", m.Name, l.container.Name, err)
			}
		}
		if sub != "" {
			target := filepath.Join(l.dir, "subpaths", l.container.Name, strconv.Itoa(i))
			if err := volume.BindSubpath(source, sub, target, true); err != nil {
				return fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", m.Name, l.container.Name, err)
			}
			source = target
		}
		mount := container.Mount{Type: container.MountBind, Source: source, Target: m.MountPath, ReadOnly: m.ReadOnly || l.projects(m.Name), Populate: l.populates(m.Name)}
		if p := m.RecursiveReadOnly; mount.ReadOnly && p != nil {
			mount.RecursiveReadOnly = *p == corev1.RecursiveReadOnlyEnabled || *p == corev1.RecursiveReadOnlyIfPossible
		}
		if m.MountPropagation != nil {
			switch *m.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = "rslave"
			case corev1.MountPropagationBidirectional:
				mount.Propagation = "rshared"
			}
		}
		s.Mounts = append(s.Mounts, mount)
	}
	if target := l.container.TerminationMessagePath; target != "" && l.message != "" &&
		!slices.ContainsFunc(s.Mounts, func(m container.Mount) bool { return m.Target == target }) {
		s.Mounts = append(s.Mounts, container.Mount{Type: container.MountBind, Source: l.message, Target: target})
	}
	return nil
}
