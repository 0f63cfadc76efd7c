package compose

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// projected is a config or secret as an object: its name, and the key its content is under.
type projected struct{ object, key string }

// maxContent is what Kubernetes takes in one ConfigMap or Secret.
const maxContent = 1 << 20

// files makes a ConfigMap for each config and a Secret for each secret that a service uses.
func (t *translation) files() error {
	used := map[string]bool{}
	for _, s := range t.Project.Services {
		for _, c := range s.Configs {
			used["config "+c.Source] = true
		}
		for _, c := range s.Secrets {
			used["secret "+c.Source] = true
		}
	}
	for _, name := range sortedNames(t.Project.Configs) {
		c := types.FileObjectConfig(t.Project.Configs[name])
		if !used["config "+name] {
			continue
		}
		data, err := content("config", name, c)
		if err != nil {
			return err
		}
		object := LegalName(name) + "-" + hash(data)
		cm := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: t.meta(object, "")}
		if utf8.Valid(data) {
			cm.Data = map[string]string{"content": string(data)}
		} else {
			cm.BinaryData = map[string][]byte{"content": data}
		}
		t.configs[name] = projected{object, "content"}
		t.add(cm)
	}
	for _, name := range sortedNames(t.Project.Secrets) {
		if !used["secret "+name] {
			continue
		}
		data, err := content("secret", name, types.FileObjectConfig(t.Project.Secrets[name]))
		if err != nil {
			return err
		}
		object := LegalName(name) + "-" + hash(data)
		t.secrets[name] = projected{object, "content"}
		t.add(&corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}, ObjectMeta: t.meta(object, ""),
			Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"content": data}})
	}
	return nil
}

func content(kind, name string, c types.FileObjectConfig) ([]byte, error) {
	var data []byte
	switch {
	case bool(c.External):
		return nil, fmt.Errorf("%s %q: external ones are not supported: give a file, content or environment", kind, name)
	case c.Content != "":
		data = []byte(c.Content)
	case c.Environment != "":
		// compose-go has resolved what is set; what is not set must not become an empty secret.
		v, ok := os.LookupEnv(c.Environment)
		if !ok {
			return nil, fmt.Errorf("%s %q: environment variable %s is not set", kind, name, c.Environment)
		}
		data = []byte(v)
	case c.File != "":
		var err error
		if data, err = os.ReadFile(c.File); err != nil {
			return nil, fmt.Errorf("%s %q: %w", kind, name, err)
		}
	default:
		return nil, fmt.Errorf("%s %q has no file, content or environment", kind, name)
	}
	if len(data) > maxContent {
		return nil, fmt.Errorf("%s %q has %d bytes: at most %d are possible, mount a file instead", kind, name, len(data), maxContent)
	}
	return data, nil
}

// defaultClaim is what a volume asks for that names no size. Local volumes do not enforce it.
var defaultClaim = resource.MustParse("1Gi")

// claims makes a claim for each named volume in use.
func (t *translation) claims() error {
	for _, name := range sortedNames(t.Project.Volumes) {
		v := t.Project.Volumes[name]
		if !t.volumeUsed(name) {
			continue
		}
		claim := &corev1.PersistentVolumeClaim{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}, ObjectMeta: t.meta(LegalName(name), ""),
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: defaultClaim}},
			},
		}
		if size, ok := v.DriverOpts["size"]; ok {
			q, err := resource.ParseQuantity(size)
			if err != nil {
				return fmt.Errorf("volume %q: driver_opts.size %q: %w", name, size, err)
			}
			claim.Spec.Resources.Requests[corev1.ResourceStorage] = q
		}
		if v.Driver != "" && v.Driver != "local" {
			t.note("volume %s: driver %q is not supported: the cluster's default storage class is used", name, v.Driver)
		}
		for _, opt := range sortedNames(v.DriverOpts) {
			if opt != "size" {
				t.note("volume %s: driver_opts.%s is not supported", name, opt)
			}
		}
		if v.Name != "" && v.Name != t.Project.Name+"_"+name && !bool(v.External) {
			t.note("volume %s: name %s is not shared: another project that names it has a volume of its own (an external one would be shared)", name, v.Name)
		}
		if bool(v.External) {
			if err := t.external(name, v, claim); err != nil {
				return err
			}
		}
		t.add(claim)
	}
	return nil
}

func (t *translation) volumeUsed(name string) bool {
	for _, s := range t.Project.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume && v.Source == name {
				return true
			}
		}
	}
	return false
}

// external binds the claim to a persistent volume of the project's own that points at an engine volume.
func (t *translation) external(name string, v types.VolumeConfig, claim *corev1.PersistentVolumeClaim) error {
	dir, ok := t.VolumePaths[v.Name]
	if !ok {
		return fmt.Errorf("volume %q: external volume %q not found: create it with `slipway volume create %s`", name, v.Name, v.Name)
	}
	none := ""
	pvName := t.plan.Namespace + "-" + claim.Name
	claim.Spec.StorageClassName, claim.Spec.VolumeName = &none, pvName
	pv := &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"}, ObjectMeta: t.meta(pvName, ""),
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}},
			ClaimRef:                      &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: t.plan.Namespace, Name: claim.Name},
		},
	}
	pv.Namespace = ""
	t.add(pv)
	return nil
}

// mounts gives the container its volumes, configs, secrets, tmpfs and shared memory.
func (t *translation) mounts(s *types.ServiceConfig, pod *corev1.PodSpec, c *corev1.Container, annotations map[string]string) error {
	m := mounter{t: t, pod: pod, container: c, targets: map[string]bool{}}
	for _, v := range s.Volumes {
		if err := m.volume(s, v); err != nil {
			return err
		}
	}
	for _, spec := range s.Tmpfs {
		target, options, _ := strings.Cut(spec, ":")
		m.mount("tmpfs", corev1.VolumeSource{EmptyDir: memory(t.tmpfsSize(target, options))}, corev1.VolumeMount{MountPath: target})
	}
	if s.ShmSize > 0 {
		m.mount("shm", corev1.VolumeSource{EmptyDir: memory(int64(s.ShmSize))}, corev1.VolumeMount{MountPath: "/dev/shm"})
	}
	for _, ref := range s.Configs {
		p := t.configs[ref.Source]
		file := types.FileReferenceConfig(ref)
		m.file(file, "/"+ref.Source, corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: p.object}, DefaultMode: t.mode(file)}}, p.key)
	}
	for _, ref := range s.Secrets {
		p := t.secrets[ref.Source]
		file := types.FileReferenceConfig(ref)
		if file.Target != "" && !path.IsAbs(file.Target) {
			file.Target = "/run/secrets/" + file.Target
		}
		m.file(file, "/run/secrets/"+ref.Source, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: p.object, DefaultMode: t.mode(file)}}, p.key)
	}
	for _, target := range t.Images[s.Name].Volumes {
		if !m.targets[path.Clean(target)] {
			t.anonymous(s, target)
			m.populate = append(m.populate, m.mount("data", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, corev1.VolumeMount{MountPath: target}))
		}
	}
	if err := m.devices(s, annotations); err != nil {
		return err
	}
	if len(m.populate) > 0 {
		annotations[annotationPopulate] = strings.Join(m.populate, ",")
		if !t.Slipway {
			t.note("volumes start empty on other clusters, without what the image has in their place")
		}
	}
	if m.pinned {
		t.pin(pod)
	}
	return nil
}

// anonymous notes that what is written to a volume without a name is lost sooner than docker compose, which hands it to
// the next container, would lose it.
func (t *translation) anonymous(s *types.ServiceConfig, target string) {
	if !t.jobs[s.Name] {
		t.note("volume %s has no name: its content goes with each replica; name a volume to keep it", target)
	}
}

// inheritVolumes gives services the volumes that their volumes_from names, in a copy of the project. It comes first: who writes
// a volume decides how a service is updated.
func (t *translation) inheritVolumes() {
	project, services := *t.Project, types.Services{}
	for _, name := range sortedNames(t.Project.Services) {
		s := t.Project.Services[name]
		t.service = &s
		t.inherit(&s)
		services[name] = s
	}
	t.service = nil
	project.Services = services
	t.Project = &project
}

// inherit gives a service the volumes that volumes_from names.
func (t *translation) inherit(s *types.ServiceConfig) {
	taken := map[string]bool{}
	for _, v := range s.Volumes {
		taken[v.Target] = true
	}
	for _, from := range s.VolumesFrom {
		name, mode, _ := strings.Cut(from, ":")
		other, ok := t.Project.Services[name]
		if !ok {
			t.note("volumes_from %s is not supported and has no effect: only services of the project can be named", from)
			continue
		}
		for _, v := range other.Volumes {
			if taken[v.Target] {
				continue
			}
			taken[v.Target] = true
			if v.Source == "" {
				t.note("volumes_from %s: volume %s has no name and cannot be shared", from, v.Target)
				continue
			}
			v.ReadOnly = v.ReadOnly || mode == "ro"
			s.Volumes = append(slices.Clip(s.Volumes), v) // the project's own list stays as it is
		}
	}
}

// tmpfsSize finds the size among the options of a mount.
func (t *translation) tmpfsSize(target, options string) (size int64) {
	for _, o := range strings.Split(options, ",") {
		if text, ok := strings.CutPrefix(o, "size="); ok {
			if n, err := units.RAMInBytes(text); err == nil {
				size = n
				continue
			}
		}
		if o != "" {
			t.note("tmpfs %s: option %q is not supported and has no effect", target, o)
		}
	}
	return size
}

func memory(limit int64) *corev1.EmptyDirVolumeSource {
	e := &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}
	if limit > 0 {
		e.SizeLimit = resource.NewQuantity(limit, resource.BinarySI)
	}
	return e
}

// mode of a config or secret file; 0444 as in Docker.
func (t *translation) mode(f types.FileReferenceConfig) *int32 {
	mode := int32(0o444)
	if f.Mode != nil {
		mode = int32(*f.Mode)
	}
	if f.UID != "" || f.GID != "" {
		t.note("%s: uid and gid of a config or secret have no counterpart: use mode", f.Source)
	}
	return &mode
}

// mounter numbers a pod's volumes.
type mounter struct {
	t         *translation
	pod       *corev1.PodSpec
	container *corev1.Container
	targets   map[string]bool
	populate  []string // volumes that start with the image's content
	pinned    bool     // a bind mount ties the pod to this machine
}

func (m *mounter) mount(kind string, source corev1.VolumeSource, at corev1.VolumeMount) (name string) {
	at.Name = fmt.Sprintf("%s-%d", kind, len(m.pod.Volumes))
	m.pod.Volumes = append(m.pod.Volumes, corev1.Volume{Name: at.Name, VolumeSource: source})
	m.container.VolumeMounts = append(m.container.VolumeMounts, at)
	m.targets[path.Clean(at.MountPath)] = true
	return at.Name
}

// file mounts one key as one file.
func (m *mounter) file(f types.FileReferenceConfig, fallback string, source corev1.VolumeSource, key string) {
	target := f.Target
	if target == "" {
		target = fallback
	}
	if !path.IsAbs(target) {
		target = "/" + target
	}
	m.mount("file", source, corev1.VolumeMount{MountPath: target, SubPath: key, ReadOnly: true})
}

func (m *mounter) volume(s *types.ServiceConfig, v types.ServiceVolumeConfig) error {
	if !path.IsAbs(v.Target) {
		// The loader takes one letter before a colon for a drive of Windows.
		return fmt.Errorf("volume %q: the path in the container must be absolute, and a volume's name have two characters at least", v.Target)
	}
	at := corev1.VolumeMount{MountPath: v.Target, ReadOnly: v.ReadOnly}
	switch v.Type {
	case types.VolumeTypeVolume:
		if v.Volume != nil {
			at.SubPath = v.Volume.Subpath
		}
		source := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}} // anonymous: as long as the pod
		if v.Source == "" {
			m.t.anonymous(s, v.Target)
		} else {
			source = corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: LegalName(v.Source)}}
		}
		name := m.mount("volume", source, at)
		if v.Volume == nil || !v.Volume.NoCopy {
			m.populate = append(m.populate, name)
		}
	case types.VolumeTypeTmpfs:
		size := int64(0)
		if v.Tmpfs != nil {
			size = int64(v.Tmpfs.Size)
			if v.Tmpfs.Mode != 0 {
				m.t.note("volume %s: tmpfs.mode is not supported and has no effect", v.Target)
			}
		}
		m.mount("tmpfs", corev1.VolumeSource{EmptyDir: memory(size)}, at)
	case types.VolumeTypeBind:
		if m.t.Node == "" {
			return fmt.Errorf("volume %s binds %s of this machine, which another cluster does not have: use a named volume or a config", v.Target, v.Source)
		}
		kind, err := bindType(v)
		if err != nil {
			return err
		}
		if v.Bind != nil && v.Bind.Propagation != "" {
			p, err := propagation(v.Bind.Propagation)
			if err != nil {
				return err
			}
			at.MountPropagation = p
		}
		if v.Bind != nil && (v.Bind.SELinux != "" || v.Bind.Recursive != "") {
			m.t.note("volume %s: bind.selinux and bind.recursive are not supported and have no effect", v.Target)
		}
		m.pinned = true
		m.mount("bind", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: v.Source, Type: &kind}}, at)
	default:
		return fmt.Errorf("volume %s of type %q is not supported: use volume, bind or tmpfs", v.Target, v.Type)
	}
	return nil
}

// devices of the host. A pod has no word for them, so an annotation asks for them; each is a host path of the pod too,
// so that who may not have those (by pod security, for one) may not have devices either.
func (m *mounter) devices(s *types.ServiceConfig, annotations map[string]string) error {
	var asked []string
	for _, d := range s.Devices {
		if !path.IsAbs(d.Source) {
			m.t.note("devices %s is not supported and has no effect: only device files of the host are", d.Source)
			continue
		}
		if m.t.Node == "" {
			return fmt.Errorf("devices %s is one of this machine, which another cluster does not have", d.Source)
		}
		m.pinned = true
		m.pod.Volumes = append(m.pod.Volumes, corev1.Volume{Name: fmt.Sprintf("device-%d", len(m.pod.Volumes)),
			VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: d.Source}}})
		asked = append(asked, fmt.Sprintf("%s:%s:%s", d.Source, cmp.Or(d.Target, d.Source), cmp.Or(d.Permissions, "rwm")))
	}
	if len(asked) > 0 {
		annotations[annotationDevices] = strings.Join(asked, ",")
	}
	return nil
}

// bindType says what the source must be. A missing source becomes a directory, as with docker's -v,
// unless the file says not to make it.
func bindType(v types.ServiceVolumeConfig) (corev1.HostPathType, error) {
	info, err := os.Stat(v.Source)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if v.Bind != nil && !bool(v.Bind.CreateHostPath) {
			return "", fmt.Errorf("bind source path does not exist: %s", v.Source)
		}
		return corev1.HostPathDirectoryOrCreate, nil
	case err != nil:
		return "", err
	case info.IsDir():
		return corev1.HostPathDirectoryOrCreate, nil
	case info.Mode()&os.ModeSocket != 0:
		return corev1.HostPathSocket, nil
	case info.Mode()&os.ModeDevice != 0:
		return corev1.HostPathUnset, nil
	}
	return corev1.HostPathFile, nil
}

func propagation(mode string) (*corev1.MountPropagationMode, error) {
	var p corev1.MountPropagationMode
	switch mode {
	case "rprivate", "private":
		p = corev1.MountPropagationNone
	case "rslave", "slave":
		p = corev1.MountPropagationHostToContainer
	case "rshared", "shared":
		p = corev1.MountPropagationBidirectional
	default:
		return nil, fmt.Errorf("bind.propagation %q is unknown: use private, slave or shared, or one of these with an r before it", mode)
	}
	return &p, nil
}

// pin keeps a pod with bind mounts on this machine.
func (t *translation) pin(pod *corev1.PodSpec) {
	pod.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{t.Node}}}}}}}}
}
