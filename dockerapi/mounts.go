package dockerapi

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"slipway.dev/slipway/engine/container"
)

// mountSpecs gathers every way to ask for a mount: -v, --mount, --tmpfs, --volumes-from. Targets must be unique.
func (s *Server) mountSpecs(h *containertypes.HostConfig, spec *container.Spec) ([]container.Mount, error) {
	var mounts []container.Mount
	taken := map[string]bool{}
	add := func(m container.Mount) error {
		m.Target = path.Clean(m.Target)
		if m.Target == "/" {
			return invalid("invalid mount config for type \"%s\": invalid specification: destination can't be '/'", m.Type)
		}
		if taken[m.Target] {
			return invalid("Duplicate mount point: %s", m.Target)
		}
		taken[m.Target] = true
		mounts = append(mounts, m)
		return nil
	}
	for _, bind := range h.Binds {
		m, err := parseBind(bind, h.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	for _, m := range h.Mounts {
		spec, err := mountSpec(m)
		if err != nil {
			return nil, err
		}
		if err := add(spec); err != nil {
			return nil, err
		}
	}
	for _, target := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		m, err := tmpfsSpec(target, h.Tmpfs[target])
		if err != nil {
			return nil, err
		}
		if err := add(m); err != nil {
			return nil, err
		}
	}
	borrowed, err := s.volumesFrom(h.VolumesFrom)
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(borrowed) { // given mounts win over borrowed ones, and later of these over earlier
		if !taken[m.Target] {
			taken[m.Target] = true
			mounts = append(mounts, m)
		}
	}
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(target string) bool { return taken[path.Clean(target)] })
	return mounts, nil
}

// volumesFrom copies the mounts of other containers: "web" or "web:ro".
func (s *Server) volumesFrom(refs []string) ([]container.Mount, error) {
	var mounts []container.Mount
	for _, ref := range refs {
		name, mode, _ := strings.Cut(ref, ":")
		if name == "" {
			return nil, invalid("malformed volumes-from specification: %q", ref)
		}
		if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
			return nil, invalid("invalid mode: %s", mode)
		}
		from, err := s.containers.Get(name)
		if err != nil { // not as what it is: for a client "not found" is the image's, to be pulled
			return nil, invalid("%v", err)
		}
		for _, p := range from.Mounts {
			m := container.Mount{Type: p.Type, Source: p.Source, Target: p.Target, ReadOnly: p.ReadOnly || mode == "ro", Propagation: p.Propagation}
			m.RecursiveReadOnly = m.ReadOnly && m.Type == container.MountBind
			switch p.Type {
			case container.MountVolume:
				m.Source, m.NoCopy, m.Anonymous = p.Name, true, isAnonymous(from.Spec, p.Name)
			case container.MountTmpfs:
				continue
			}
			mounts = append(mounts, m)
		}
	}
	return mounts, nil
}

// isAnonymous tells whether a volume was made for a container that nobody named it for.
func isAnonymous(spec *container.Spec, volume string) bool {
	return slices.ContainsFunc(spec.Mounts, func(m container.Mount) bool {
		return m.Type == container.MountVolume && m.Source == volume && m.Anonymous
	})
}

// parseBind reads the -v form [SOURCE:]TARGET[:OPTIONS].
func parseBind(bind, driver string) (container.Mount, error) {
	parts := strings.Split(bind, ":")
	m := container.Mount{Type: container.MountVolume, VolumeDriver: driver}
	var options string
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2:
		if strings.HasPrefix(parts[1], "/") || !isMountMode(parts[1]) {
			m.Source, m.Target = parts[0], parts[1]
		} else {
			m.Target, options = parts[0], parts[1]
		}
	case 3:
		m.Source, m.Target, options = parts[0], parts[1], parts[2]
	default:
		return m, invalid("invalid volume specification: '%s'", bind)
	}
	if m.Target == "" || len(parts) > 1 && options == "" && m.Source == "" {
		return m, invalid("invalid volume specification: '%s'", bind)
	}
	if !path.IsAbs(m.Target) {
		return m, invalid("invalid volume specification: '%s': invalid mount config for type \"%s\": invalid mount path: '%s' mount path must be absolute", bind, bindType(m.Source), m.Target)
	}
	if strings.HasPrefix(m.Source, "/") {
		m.Type, m.CreateSource, m.VolumeDriver = container.MountBind, true, ""
		m.Source = path.Clean(m.Source)
	} else if m.Source != "" && !isVolumeName(m.Source) {
		return m, invalid("invalid volume specification: '%s': %s", bind, badVolumeName(m.Source))
	}
	err := bindOptions(&m, options)
	m.RecursiveReadOnly = m.ReadOnly && m.Type == container.MountBind // what is mounted below is read-only, too
	return m, err
}

func bindType(source string) string {
	if strings.HasPrefix(source, "/") {
		return "bind"
	}
	return "volume"
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

func isMountMode(s string) bool {
	return bindOptions(&container.Mount{Type: container.MountBind}, s) == nil || bindOptions(&container.Mount{Type: container.MountVolume}, s) == nil
}

// bindOptions applies the comma-separated options of -v. Each kind may appear once.
func bindOptions(m *container.Mount, options string) error {
	if options == "" {
		return nil
	}
	seen := map[string]bool{}
	for o := range strings.SplitSeq(options, ",") {
		kind := o
		switch {
		case o == "ro" || o == "rw":
			kind, m.ReadOnly = "access", o == "ro"
		case o == "z" || o == "Z":
			kind = "label" // SELinux relabelling: kept for inspection
		case o == "nocopy" && m.Type == container.MountVolume:
			m.NoCopy = true
		case slices.Contains(propagations, o) && m.Type == container.MountBind:
			kind, m.Propagation = "propagation", o
		case o == "consistent" || o == "cached" || o == "delegated":
			kind = "consistency"
		default:
			return invalid("invalid mode: %s", options)
		}
		if seen[kind] {
			return invalid("invalid mode: %s", options)
		}
		seen[kind] = true
		m.Options = append(m.Options, o)
	}
	return nil
}

// wrongMount is how Docker refuses a mount.
func wrongMount(kind any, format string, args ...any) error {
	return invalid("invalid mount config for type \"%s\": %s", kind, fmt.Sprintf(format, args...))
}

// mountSpec translates the --mount form.
func mountSpec(m mount.Mount) (container.Mount, error) {
	spec := container.Mount{Type: container.MountType(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	translate, known := map[mount.Type]func(mount.Mount, *container.Mount) error{
		mount.TypeBind: bindMount, mount.TypeVolume: volumeMount, mount.TypeTmpfs: tmpfsMount, mount.TypeImage: imageMount,
	}[m.Type]
	switch {
	case !known:
		return spec, wrongMount(m.Type, "mount type unknown")
	case m.Target == "":
		return spec, wrongMount(m.Type, "field Target must not be empty")
	case !path.IsAbs(m.Target):
		return spec, wrongMount(m.Type, "invalid mount path: '%s' mount path must be absolute", m.Target)
	}
	for _, o := range []struct {
		given bool
		name  string
		of    mount.Type
	}{
		{m.BindOptions != nil, "BindOptions", mount.TypeBind}, {m.VolumeOptions != nil, "VolumeOptions", mount.TypeVolume},
		{m.ImageOptions != nil, "ImageOptions", mount.TypeImage}, {m.TmpfsOptions != nil, "TmpfsOptions", mount.TypeTmpfs},
	} {
		if o.given && o.of != m.Type {
			return spec, wrongMount(m.Type, "field %s must not be specified", o.name)
		}
	}
	return spec, translate(m, &spec)
}

func bindMount(m mount.Mount, spec *container.Mount) error {
	if m.Source == "" {
		return wrongMount(m.Type, "field Source must not be empty")
	}
	if !path.IsAbs(m.Source) {
		return wrongMount(m.Type, "invalid mount path: '%s' mount path must be absolute", m.Source)
	}
	spec.RecursiveReadOnly = m.ReadOnly
	if b := m.BindOptions; b != nil {
		if b.Propagation != "" && !slices.Contains(propagations, string(b.Propagation)) {
			return wrongMount(m.Type, "invalid propagation mode: %s", b.Propagation)
		}
		spec.Propagation, spec.NonRecursive, spec.CreateSource = string(b.Propagation), b.NonRecursive, b.CreateMountpoint
		spec.RecursiveReadOnly = m.ReadOnly && !b.ReadOnlyNonRecursive
	}
	if _, err := os.Lstat(m.Source); err != nil && !spec.CreateSource {
		return wrongMount(m.Type, "bind source path does not exist: %s", m.Source)
	}
	return nil
}

func volumeMount(m mount.Mount, spec *container.Mount) error {
	if m.Source != "" && !isVolumeName(m.Source) {
		return wrongMount(m.Type, "%s", badVolumeName(m.Source))
	}
	if v := m.VolumeOptions; v != nil {
		spec.NoCopy, spec.Subpath, spec.VolumeLabels = v.NoCopy, v.Subpath, v.Labels
		if d := v.DriverConfig; d != nil {
			spec.VolumeDriver, spec.VolumeOptions = d.Name, d.Options
		}
	}
	return nil
}

func badVolumeName(name string) string {
	return fmt.Sprintf("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name)
}

func tmpfsMount(m mount.Mount, spec *container.Mount) error {
	if m.Source != "" {
		return wrongMount(m.Type, "field Source must not be specified")
	}
	t := m.TmpfsOptions
	if t == nil {
		return nil
	}
	if t.SizeBytes < 0 {
		return wrongMount(m.Type, "tmpfs size cannot be negative")
	}
	spec.TmpfsSize, spec.TmpfsMode = t.SizeBytes, uint32(t.Mode.Perm())|uint32(t.Mode)&0o7000
	for _, o := range t.Options {
		spec.Options = append(spec.Options, strings.Join(o, "="))
	}
	return nil
}

func imageMount(m mount.Mount, spec *container.Mount) error {
	if m.Source == "" {
		return wrongMount(m.Type, "field Source must not be empty")
	}
	if m.ImageOptions != nil {
		spec.Subpath = m.ImageOptions.Subpath
	}
	return nil
}

// tmpfsSpec reads --tmpfs TARGET:size=64m,mode=1777,noexec.
func tmpfsSpec(target, options string) (container.Mount, error) {
	m := container.Mount{Type: container.MountTmpfs, Target: target, Unlisted: true}
	if !path.IsAbs(target) {
		return m, invalid("invalid mount config for type \"tmpfs\": invalid mount path: '%s' mount path must be absolute", target)
	}
	if options == "" {
		return m, nil
	}
	for o := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "size":
			m.TmpfsSize, err = units.RAMInBytes(value)
		case "mode":
			var mode uint64
			mode, err = strconv.ParseUint(value, 8, 32)
			m.TmpfsMode = uint32(mode)
		case "ro":
			m.ReadOnly = true
		default:
			m.Options = append(m.Options, o)
		}
		if err != nil {
			return m, invalid("Invalid tmpfs data %q: %v", o, err)
		}
	}
	return m, nil
}

func isVolumeName(s string) bool {
	for i, c := range []byte(s) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '_' && c != '.' && c != '-') {
			return false
		}
	}
	return len(s) >= 2
}
