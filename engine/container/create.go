package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/volume"
)

// Create makes a container. It is on disk when Create returns: one commit.
func (m *Manager) Create(ctx context.Context, spec Spec) (Info, error) {
	img, err := m.Images.Get(ctx, spec.Image)
	if err != nil {
		return Info{}, err
	}
	spec, err = merge(spec, &img.Config.Config)
	if err != nil {
		return Info{}, err
	}
	if spec.Init && m.Init == "" {
		return Info{}, errdefs.ErrInvalidArgument.WithMessage("--init: there is no init program on this machine: install docker-init, catatonit or tini-static, or leave --init out")
	}
	chain, err := m.Images.Rootfs(ctx, img)
	if err != nil {
		return Info{}, fmt.Errorf("create container: root file system of %s: %w", spec.Image, err)
	}
	c := m.draft(spec, img, chain)
	if err := m.claimNamed(c); err != nil {
		return Info{}, err
	}
	if err := m.build(ctx, c, chain); err != nil {
		m.forget(c)
		m.discard(c)
		return Info{}, err
	}
	m.publish(c, "create", nil)
	return c.info(), nil
}

func (m *Manager) draft(spec Spec, img image.Image, chain image.Chain) *instance {
	id := newID()
	spec.Name = strings.TrimPrefix(spec.Name, "/")
	argv := append(append([]string{}, spec.Entrypoint...), spec.Cmd...)
	r := &record{
		ID: id, Spec: &spec, ImageID: img.ID.String(), ChainID: chain.ChainID.String(), Created: time.Now().UTC(),
		Path: argv[0], Args: argv[1:],
	}
	return newInstance(id, m.dir(id), r, saved{State: State{Status: StatusCreated}})
}

// claimNamed enters the container under its name, or under the first random one that is
// free.
func (m *Manager) claimNamed(c *instance) error {
	if c.rec.Spec.Name != "" {
		return m.claim(c)
	}
	for try := range 16 {
		c.rec.Spec.Name = randomName(try)
		if m.claim(c) == nil {
			return nil
		}
	}
	c.rec.Spec.Name = c.id[:12]
	return m.claim(c)
}

// build makes everything on disk, the record last.
func (m *Manager) build(ctx context.Context, c *instance, chain image.Chain) error {
	if err := errors.Join(os.Mkdir(m.mountpoint(c.id), 0o711), makeDirs(c, chain)); err != nil {
		return fmt.Errorf("create container %s: %w", c.rec.Spec.Name, err)
	}
	labels, err := m.createMounts(ctx, c, chain)
	if err != nil {
		return err
	}
	packed, err := c.rec.pack()
	if err != nil {
		return err
	}
	packed.Labels = labels
	if _, err := m.Images.Containers().Create(m.Images.Context(ctx), packed); err != nil {
		return fmt.Errorf("create container %s: %w", c.rec.Spec.Name, err)
	}
	if chain.ChainID == "" {
		return nil
	}
	// The image may have been removed while we worked; from here on the record keeps it.
	if _, err := m.Images.Chain(chain.ChainID); err != nil {
		return errdefs.ErrNotFound.WithMessage("No such image: " + c.rec.Spec.Image)
	}
	return nil
}

// makeDirs makes the writable layer, whose root looks like the image's.
func makeDirs(c *instance, chain image.Chain) error {
	if err := os.Mkdir(c.dir, 0o711); err != nil {
		return err
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(c.dir, d), 0o755); err != nil {
			return err
		}
	}
	if c.rec.Spec.Owner != OwnerNode {
		if err := os.WriteFile(filepath.Join(c.dir, "upper", dockerMark), nil, 0o755); err != nil {
			return err
		}
	}
	if len(chain.Lower) == 0 {
		return os.Mkdir(filepath.Join(c.dir, "lower"), 0o755)
	}
	fi, err := os.Stat(chain.Lower[0])
	if err != nil {
		return err
	}
	st := fi.Sys().(*syscall.Stat_t)
	upper := filepath.Join(c.dir, "upper")
	return errors.Join(os.Chown(upper, int(st.Uid), int(st.Gid)), os.Chmod(upper, fi.Mode()))
}

// createMounts makes the volumes that the container names, fills the empty ones from the
// image, and notes what each mount came to. The labels it returns keep image mounts.
func (m *Manager) createMounts(ctx context.Context, c *instance, chain image.Chain) (map[string]string, error) {
	spec := c.rec.Spec
	spec.Mounts = withAnonymous(spec)
	labels := map[string]string{}
	for i := range spec.Mounts {
		mt := &spec.Mounts[i]
		switch mt.Type {
		case MountVolume:
			if err := m.createVolume(ctx, c, mt, chain); err != nil {
				return nil, err
			}
		case MountImage:
			img, err := m.Images.Get(ctx, mt.Source)
			if err != nil {
				return nil, err
			}
			sub, err := m.Images.Rootfs(ctx, img)
			if err != nil {
				return nil, fmt.Errorf("mount image %s: %w", mt.Source, err)
			}
			mt.ImageID, mt.Chain = img.ID.String(), sub.ChainID.String()
			labels[fmt.Sprintf("containerd.io/gc.ref.snapshot.%s/%d", snapshotter, i)] = sub.ChainID.String()
		case MountBind:
			if err := checkBind(mt); err != nil {
				return nil, err
			}
			if err := populateBind(mt, layers(chain.Lower)); err != nil {
				return nil, fmt.Errorf("create container %s: %w", c.rec.Spec.Name, err)
			}
		}
		if !mt.Unlisted {
			c.rec.Mounts = append(c.rec.Mounts, m.mountPoint(mt))
		}
	}
	return labels, nil
}

func checkBind(mt *Mount) error {
	_, err := os.Lstat(mt.Source)
	if err == nil || mt.CreateSource {
		return nil
	}
	return errdefs.ErrInvalidArgument.WithMessage("invalid mount config for type \"bind\": bind source path does not exist: " + mt.Source)
}

// withAnonymous adds a volume for each declared target that nothing is mounted on.
func withAnonymous(spec *Spec) []Mount {
	mounts := append([]Mount(nil), spec.Mounts...)
	taken := map[string]bool{}
	for _, mt := range mounts {
		taken[filepath.Clean(mt.Target)] = true
	}
	for _, target := range spec.Volumes {
		if target = filepath.Clean(target); !taken[target] && target != "/" {
			taken[target] = true
			mounts = append(mounts, Mount{Type: MountVolume, Target: target})
		}
	}
	return mounts
}

func (m *Manager) createVolume(ctx context.Context, c *instance, mt *Mount, chain image.Chain) error {
	mt.Anonymous = mt.Anonymous || mt.Source == "" // or shared with whom it was made for
	v, err := m.Volumes.Create(ctx, volume.Spec{
		Name: mt.Source, Driver: mt.VolumeDriver, Labels: mt.VolumeLabels, Options: mt.VolumeOptions,
		Owner: c.rec.Spec.Owner, Anonymous: mt.Anonymous,
	})
	if err != nil {
		return err
	}
	mt.Source = v.Name
	if err := m.Volumes.Use(v.Name, c.id); err != nil {
		return err
	}
	if mt.NoCopy || mt.Subpath != "" {
		return nil
	}
	if err := m.populate(ctx, c, v.Name, mt.Target, layers(chain.Lower)); err != nil {
		return fmt.Errorf("create container %s: %w", c.rec.Spec.Name, err)
	}
	return nil
}

// populate copies what the image has at target into an empty volume.
func (m *Manager) populate(ctx context.Context, c *instance, name, target string, image layers) error {
	return withContent(target, image, func(src string) error { return m.Volumes.Populate(ctx, name, src) })
}

// populateBind does the same for an empty directory of the host, where that was asked for.
func populateBind(mt *Mount, image layers) error {
	if !mt.Populate {
		return nil
	}
	return withContent(mt.Target, image, func(src string) error {
		return volume.PopulateDir(mt.Source, mt.Source+".populating", src)
	})
}

// withContent calls fn with a directory that holds what the image has at target, if it has a directory there.
func withContent(target string, image layers, fn func(src string) error) error {
	dirs := image.directory(target)
	if len(dirs) == 0 {
		return nil
	}
	if len(dirs) == 1 && onlyPlain(dirs[0]) {
		return fn(dirs[0])
	}
	view, err := mountDetached(dirs, "", "")
	if err != nil {
		return err
	}
	defer view.Close()
	return fn(fmt.Sprintf("/proc/self/fd/%d", view.Fd()))
}

func (m *Manager) mountPoint(mt *Mount) MountPoint {
	p := MountPoint{Type: mt.Type, Source: mt.Source, Target: mt.Target, ReadOnly: mt.ReadOnly, Propagation: mt.Propagation, Mode: strings.Join(mt.Options, ",")}
	switch mt.Type {
	case MountVolume:
		p.Name, p.Driver, p.Source = mt.Source, volume.Driver, m.Volumes.Path(mt.Source)
	case MountBind:
		if p.Propagation == "" {
			p.Propagation = "rprivate"
		}
	}
	return p
}

// discard deletes what an unfinished Create made.
func (m *Manager) discard(c *instance) {
	m.releaseVolumes(c, true)
	ctx := m.Images.Context(context.WithoutCancel(m.ctx))
	if err := m.Images.Containers().Delete(ctx, c.id); err != nil && !errdefs.IsNotFound(err) {
		m.Log.Warn("record of an unfinished container stays until the next start", "container", c.id, "error", err)
	}
	if err := m.removeDirs(c.id); err != nil {
		m.Log.Warn("directory of an unfinished container stays until the next start", "container", c.id, "error", err)
	}
}

// releaseVolumes ends the container's hold on its volumes; anonymous ones can go too.
func (m *Manager) releaseVolumes(c *instance, removeAnonymous bool) {
	for _, mt := range c.spec().Mounts {
		if mt.Type != MountVolume || mt.Source == "" {
			continue
		}
		m.Volumes.Release(mt.Source, c.id)
		if !removeAnonymous || !mt.Anonymous {
			continue
		}
		erase, err := m.Volumes.Discard(mt.Source)
		if err == nil {
			m.reaper.add(erase)
		} else if !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			m.Log.Warn("anonymous volume stays", "volume", mt.Source, "container", c.id, "error", err)
		}
	}
}

// chain returns the directories of the container's image.
func (m *Manager) chain(c *instance) (image.Chain, error) {
	r := c.record()
	if r.ChainID == "" {
		return image.Chain{}, nil
	}
	return m.Images.Chain(digest.Digest(r.ChainID))
}

// commitRecord replaces the record on disk and in memory.
func (m *Manager) commitRecord(ctx context.Context, c *instance, r *record) error {
	packed, err := r.pack()
	if err != nil {
		return err
	}
	if _, err := m.Images.Containers().Update(m.Images.Context(ctx), packed, "extensions."+extensionName); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec = r
	return nil
}

func cloneRecord(r *record) (*record, *Spec) {
	out, spec := *r, *r.Spec
	out.Spec = &spec
	spec.Labels = maps.Clone(spec.Labels)
	return &out, &spec
}
