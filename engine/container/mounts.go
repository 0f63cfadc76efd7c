package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/volume"
)

// userMounts makes the mounts that the container asked for possible and describes them.
func (m *Manager) userMounts(ctx context.Context, c *instance) ([]specs.Mount, error) {
	var out []specs.Mount
	for i, mt := range c.spec().Mounts {
		sm, err := m.userMount(ctx, c, i, &mt)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", mt.Target, err)
		}
		out = append(out, sm)
	}
	return out, nil
}

func (m *Manager) userMount(ctx context.Context, c *instance, i int, mt *Mount) (specs.Mount, error) {
	switch mt.Type {
	case MountTmpfs:
		return tmpfsMount(mt), nil
	case MountImage:
		return m.imageMount(ctx, mt)
	case MountVolume:
		dir, err := m.Volumes.Mount(ctx, mt.Source, c.useOf(mt))
		if err != nil {
			return specs.Mount{}, err
		}
		if mt.Subpath != "" {
			if dir, err = m.subpath(c, i, dir, mt.Subpath); err != nil {
				return specs.Mount{}, err
			}
		}
		return m.boundMount(c, i, mt, dir)
	}
	if err := bindSource(mt); err != nil {
		return specs.Mount{}, err
	}
	return m.boundMount(c, i, mt, mt.Source)
}

func (m *Manager) boundMount(c *instance, i int, mt *Mount, source string) (specs.Mount, error) {
	source, err := m.seen(c, i, source)
	return m.bindMount(mt, source), err
}

func (c *instance) useOf(mt *Mount) volume.Use {
	return volume.Use{Container: c.id, Destination: mt.Target, ReadOnly: mt.ReadOnly}
}

// seen returns where the warden, in its own mount namespace, sees what we see at path. Where mounts do not propagate, one made after
// the warden's start is not there, and the container would silently get the empty directory below it: then it is mounted once more,
// for as long as the start takes, where they do.
func (m *Manager) seen(c *instance, i int, path string) (string, error) {
	if ok, err := m.visible(path); err != nil || ok {
		return path, err
	}
	target := m.subpathPlace(c, i)
	if err := volume.Bind(path, target); err != nil {
		return "", fmt.Errorf("show %s to the warden: %w", path, err)
	}
	if ok, err := m.visible(target); err != nil || ok {
		return target, err
	}
	return "", errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s was mounted after Slipway's warden was started, and mounts do not propagate on this machine: run \"mount --make-rshared /\" before slipway serve", path))
}

func (m *Manager) visible(path string) (bool, error) {
	w, ok := m.Warden.(interface{ Pid() int })
	if !ok {
		return true, nil
	}
	var here, there unix.Stat_t
	if err := unix.Stat(path, &here); err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	err := unix.Stat(fmt.Sprintf("/proc/%d/root%s", w.Pid(), path), &there)
	return err == nil && here.Dev == there.Dev && here.Ino == there.Ino, nil
}

func bindSource(mt *Mount) error {
	_, err := os.Stat(mt.Source)
	if errors.Is(err, os.ErrNotExist) && mt.CreateSource {
		return os.MkdirAll(mt.Source, 0o755)
	}
	if errors.Is(err, os.ErrNotExist) {
		return errdefs.ErrInvalidArgument.WithMessage("bind source path does not exist: " + mt.Source)
	}
	return err
}

// subpath mounts a path inside a volume on a place of ours for as long as the start takes, and returns that place. Other
// containers have the volume too, and a path that was looked at could lead anywhere by the time the warden mounts it.
func (m *Manager) subpath(c *instance, i int, dir, sub string) (string, error) {
	target := m.subpathPlace(c, i)
	err := volume.BindSubpath(dir, sub, target, false)
	if errors.Is(err, os.ErrNotExist) {
		return "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("cannot access path %s: %v", filepath.Join(dir, sub), err))
	}
	return target, err
}

// subpaths is where parts of volumes, and what the warden does not see, are mounted while containers start.
func (m *Manager) subpaths() string { return filepath.Join(filepath.Dir(m.Dir), "subpaths") }

func (m *Manager) subpathPlace(c *instance, i int) string {
	return filepath.Join(m.subpaths(), fmt.Sprintf("%s-%d", c.id, i))
}

// dropSubpaths unmounts what subpath and seen mounted: by now the container has mounts of its own, or failed to start.
func (m *Manager) dropSubpaths(c *instance) {
	for i := range c.spec().Mounts {
		target := m.subpathPlace(c, i)
		if _, err := os.Lstat(target); err != nil {
			continue
		}
		if err := dropSubpath(target); err != nil {
			m.Log.Warn("part of a volume stays mounted until the next start", "container", c.id, "error", err)
		}
	}
}

// dropSubpath never removes more than an empty directory or file: if a mount is left there, its content is a volume's.
func dropSubpath(target string) error {
	if err := volume.UnmountBelow(target); err != nil {
		return err
	}
	if err := os.Remove(target); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dropAllSubpaths does so for containers that a killed daemon was starting.
func (m *Manager) dropAllSubpaths() error {
	left, err := filepath.Glob(m.subpaths() + "/*")
	for _, target := range left {
		err = errors.Join(err, dropSubpath(target))
	}
	return err
}

func (m *Manager) bindMount(mt *Mount, source string) specs.Mount {
	opts := []string{"rbind"}
	if mt.NonRecursive {
		opts[0] = "bind"
	}
	propagation := mt.Propagation
	if propagation == "" {
		propagation = "rprivate"
	}
	opts = append(opts, propagation)
	if mt.ReadOnly {
		opts = append(opts, "ro")
		if mt.RecursiveReadOnly && m.host.Recursive && !mt.NonRecursive {
			opts = append(opts, "rro")
		}
	}
	for _, o := range mt.Options {
		if oneOf(o, "noexec", "nosuid", "nodev", "noatime", "relatime", "nodiratime", "exec", "suid", "dev", "strictatime") {
			opts = append(opts, o)
		}
	}
	return specs.Mount{Destination: filepath.Clean(mt.Target), Type: "bind", Source: source, Options: opts}
}

func tmpfsMount(mt *Mount) specs.Mount {
	opts := []string{"noexec", "nosuid", "nodev"}
	for _, o := range mt.Options {
		negated := "no" + o
		opts = slices.DeleteFunc(opts, func(have string) bool { return have == o || have == negated })
		if !oneOf(o, "exec", "suid", "dev") {
			opts = append(opts, o)
		}
	}
	if mt.ReadOnly {
		opts = append(opts, "ro")
	}
	if mt.TmpfsSize > 0 {
		opts = append(opts, fmt.Sprintf("size=%d", mt.TmpfsSize))
	}
	if mt.TmpfsMode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", mt.TmpfsMode))
	}
	return specs.Mount{Destination: filepath.Clean(mt.Target), Type: "tmpfs", Source: "tmpfs", Options: opts}
}

func (m *Manager) imageMount(ctx context.Context, mt *Mount) (specs.Mount, error) {
	chain, err := m.mountedChain(ctx, mt)
	if err != nil {
		return specs.Mount{}, err
	}
	dirs := layers(chain.Lower).directory("/" + mt.Subpath)
	if len(dirs) == 0 { // a single file, perhaps
		host, fi, err := layers(chain.Lower).resolve("/" + mt.Subpath)
		if err != nil || !fi.Mode().IsRegular() {
			return specs.Mount{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("cannot access path /%s of image %s: it has no such directory or file", mt.Subpath, mt.Source))
		}
		dirs = []string{host}
	}
	out := specs.Mount{Destination: filepath.Clean(mt.Target)}
	if len(dirs) == 1 {
		out.Type, out.Source, out.Options = "bind", dirs[0], []string{"rbind", "ro", "rprivate"}
		return out, nil
	}
	out.Type, out.Source = "overlay", "overlay"
	out.Options = append([]string{"lowerdir=" + strings.Join(dirs, ":"), "ro"}, overlayOptions...)
	return out, nil
}

// mountedChain is the image that is mounted, as it was when the container was created.
func (m *Manager) mountedChain(ctx context.Context, mt *Mount) (image.Chain, error) {
	if mt.Chain != "" {
		return m.Images.Chain(digest.Digest(mt.Chain))
	}
	img, err := m.Images.Get(ctx, mt.Source)
	if err != nil {
		return image.Chain{}, err
	}
	return m.Images.Rootfs(ctx, img)
}

// unmountVolumes gives back what userMounts took from the volume store.
func (m *Manager) unmountVolumes(c *instance) {
	for _, mt := range c.spec().Mounts {
		if mt.Type != MountVolume {
			continue
		}
		if err := m.Volumes.Unmount(mt.Source, c.id); err != nil {
			m.Log.Warn("volume stays mounted", "volume", mt.Source, "container", c.id, "error", err)
		}
	}
}

// userDevices describes the host devices that the container asked for, and the cgroup
// rules that allow them.
func userDevices(spec *Spec) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var devices []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	for _, d := range spec.Devices {
		target, access := d.Target, d.Permissions
		if target == "" {
			target = d.Source
		}
		if access == "" {
			access = "rwm"
		}
		source, err := filepath.EvalSymlinks(d.Source)
		if err != nil {
			return nil, nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("error gathering device information while adding custom device %q: no such file or directory", d.Source))
		}
		found := devicesUnder(source, target, access)
		if len(found) == 0 {
			return nil, nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("error gathering device information while adding custom device %q: not a device node", d.Source))
		}
		for _, f := range found {
			major, minor := f.Major, f.Minor
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: f.Type, Major: &major, Minor: &minor, Access: access})
		}
		devices = append(devices, found...)
	}
	for _, text := range spec.DeviceRules {
		r, err := parseDeviceRule(text)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, r)
	}
	return devices, rules, nil
}
