package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/image"
)

// List returns the containers that f selects, the newest first.
func (m *Manager) List(f Filter) ([]Info, error) {
	match, err := m.compile(f)
	if err != nil {
		return nil, err
	}
	infos := []Info{}
	for _, c := range m.all() {
		if !f.admits(c.spec()) {
			continue
		}
		if i := c.info(); match(&i) {
			infos = append(infos, i)
		}
	}
	slices.SortFunc(infos, func(a, b Info) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	if f.Limit > 0 && len(infos) > f.Limit {
		infos = infos[:f.Limit]
	}
	return infos, nil
}

// admits is the part of a filter that a specification decides. It comes first, because the node agent asks again and
// again for the few containers of one pod among all, and an Info of each would be most of what it does.
func (f Filter) admits(spec *Spec) bool {
	return (f.Owner == "" || spec.Owner == f.Owner) &&
		!slices.ContainsFunc(f.Label, func(l string) bool { return !hasLabel(spec, l) }) &&
		!slices.ContainsFunc(f.NotLabel, func(l string) bool { return hasLabel(spec, l) })
}

// matcher says whether a container is selected.
type matcher func(i *Info) bool

// compile checks a filter and turns what admits leaves of it into one function.
func (m *Manager) compile(f Filter) (matcher, error) {
	all := f.All || f.Limit > 0 || len(f.Status) > 0 || len(f.Exited) > 0
	var tests []matcher
	add := func(t matcher) { tests = append(tests, t) }
	if !all {
		add(func(i *Info) bool { return i.State.Running })
	}
	if !f.Until.IsZero() {
		add(func(i *Info) bool { return i.Created.Before(f.Until) })
	}
	for _, t := range []struct {
		values []string
		test   func(i *Info, v string) bool
	}{
		{f.ID, func(i *Info, v string) bool { return strings.HasPrefix(i.ID, v) }},
		{f.Health, func(i *Info, v string) bool { return healthOf(i) == v }},
		{f.Volume, usesVolume},
		{f.Network, onNetwork},
		{f.Publish, func(i *Info, v string) bool { return publishes(i, v) }},
		{f.Expose, func(i *Info, v string) bool { return exposes(i, v) }},
		{f.Ancestor, m.descends()},
	} {
		if len(t.values) > 0 {
			add(func(i *Info) bool {
				return slices.ContainsFunc(t.values, func(v string) bool { return t.test(i, v) })
			})
		}
	}
	if len(f.Exited) > 0 {
		add(func(i *Info) bool {
			return !i.State.Running && i.State.Status != StatusCreated && slices.Contains(f.Exited, i.State.ExitCode)
		})
	}
	if err := m.compileChecked(f, add); err != nil {
		return nil, err
	}
	return func(i *Info) bool {
		return !slices.ContainsFunc(tests, func(t matcher) bool { return !t(i) })
	}, nil
}

// compileChecked adds the tests whose values can be wrong.
func (m *Manager) compileChecked(f Filter, add func(matcher)) error {
	for _, s := range f.Status {
		if !oneOf(s, "created", "running", "paused", "restarting", "removing", "exited", "dead") {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'status=%s'", s))
		}
	}
	if len(f.Status) > 0 {
		add(func(i *Info) bool { return slices.Contains(f.Status, string(i.State.Status)) })
	}
	for _, h := range f.Health {
		if !oneOf(h, "none", HealthStarting, HealthHealthy, HealthUnhealthy) {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'health=%s'", h))
		}
	}
	var names []*regexp.Regexp
	for _, n := range f.Name {
		re, err := regexp.Compile(n)
		if err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'name=%s': %v", n, err))
		}
		names = append(names, re)
	}
	if len(names) > 0 {
		add(func(i *Info) bool {
			return slices.ContainsFunc(names, func(re *regexp.Regexp) bool {
				return re.MatchString(i.Name) || re.MatchString("/"+i.Name)
			})
		})
	}
	for _, ref := range f.Before {
		c, err := m.find(ref)
		if err != nil {
			return err
		}
		add(func(i *Info) bool { return i.Created.Before(c.record().Created) })
	}
	for _, ref := range f.Since {
		c, err := m.find(ref)
		if err != nil {
			return err
		}
		add(func(i *Info) bool { return i.Created.After(c.record().Created) })
	}
	return nil
}

func healthOf(i *Info) string {
	if i.State.Health == nil {
		return "none"
	}
	return i.State.Health.Status
}

func usesVolume(i *Info, v string) bool {
	return slices.ContainsFunc(i.Mounts, func(p MountPoint) bool {
		return p.Name == v || p.Target == filepath.Clean(v) || p.Type == MountBind && p.Source == v
	})
}

func onNetwork(i *Info, v string) bool {
	for name, e := range i.Endpoints {
		if name == v || v != "" && strings.HasPrefix(e.NetworkID, v) {
			return true
		}
	}
	return false
}

// portRange reads "80", "80/tcp" or "8000-8010/udp".
func portRange(v string) (from, to uint64, proto string, ok bool) {
	ports, proto, _ := strings.Cut(v, "/")
	if proto == "" {
		proto = "tcp"
	}
	a, b, isRange := strings.Cut(ports, "-")
	from, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, "", false
	}
	if to = from; isRange {
		if to, err = strconv.ParseUint(b, 10, 16); err != nil {
			return 0, 0, "", false
		}
	}
	return from, to, proto, true
}

func publishes(i *Info, v string) bool {
	from, to, proto, ok := portRange(v)
	return ok && slices.ContainsFunc(i.Spec.Ports, func(p PortMapping) bool {
		return p.Proto == proto && uint64(p.ContainerPort) >= from && uint64(p.ContainerPort) <= to
	})
}

func exposes(i *Info, v string) bool {
	from, to, proto, ok := portRange(v)
	return ok && slices.ContainsFunc(i.Spec.Exposed, func(e string) bool {
		a, b, eproto, ok := portRange(e)
		return ok && eproto == proto && a <= to && b >= from
	})
}

func hasLabel(spec *Spec, want string) bool {
	key, value, exact := strings.Cut(want, "=")
	got, ok := spec.Labels[key]
	return ok && (!exact || got == value)
}

// descends tells whether a container was made from an image, or from one built on it. Each
// image is looked up once.
func (m *Manager) descends() func(i *Info, ref string) bool {
	images := map[string]*image.Image{}
	get := func(ref string) *image.Image {
		img, ok := images[ref]
		if !ok {
			if found, err := m.Images.Get(m.ctx, ref); err == nil {
				img = &found
			}
			images[ref] = img
		}
		return img
	}
	return func(i *Info, ref string) bool {
		if i.Spec.Image == ref || i.ImageID == ref {
			return true
		}
		ancestor := get(ref)
		if ancestor == nil {
			return false
		}
		if i.ImageID == ancestor.ID.String() {
			return true
		}
		own := get(i.ImageID)
		return own != nil && builtOn(own.Config, ancestor.Config)
	}
}

// builtOn tells whether an image continues another: its layers and its history begin as the other's.
func builtOn(own, ancestor image.Config) bool {
	layers, steps := ancestor.RootFS.DiffIDs, ancestor.History
	if len(layers) == 0 || len(layers) > len(own.RootFS.DiffIDs) || len(steps) >= len(own.History) {
		return false
	}
	sameStep := func(a, b ocispec.History) bool {
		return a.CreatedBy == b.CreatedBy && (a.Created == nil) == (b.Created == nil) && (a.Created == nil || a.Created.Equal(*b.Created))
	}
	return slices.Equal(layers, own.RootFS.DiffIDs[:len(layers)]) && slices.EqualFunc(steps, own.History[:len(steps)], sameStep)
}

// Prune removes Docker's containers that do not run and that f selects.
func (m *Manager) Prune(ctx context.Context, f Filter) (PruneReport, error) {
	f.Owner, f.All = OwnerDocker, true
	list, err := m.List(f)
	if err != nil {
		return PruneReport{}, err
	}
	var report PruneReport
	for _, i := range list {
		if i.State.Running || i.State.Restarting {
			continue
		}
		if err := ctx.Err(); err != nil {
			return report, err
		}
		size, _ := diskUsage(filepath.Join(m.dir(i.ID), "upper"))
		if err := m.Remove(ctx, i.ID, RemoveOptions{}); err != nil {
			if !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
				m.Log.Warn("container is not pruned", "container", i.ID, "error", err)
			}
			continue
		}
		report.Removed, report.Reclaimed = append(report.Removed, i.ID), report.Reclaimed+size
	}
	return report, nil
}

// Size returns the bytes in the container's own layer, and with its image.
func (m *Manager) Size(ctx context.Context, ref string) (rw, rootfs int64, err error) {
	c, err := m.find(ref)
	if err != nil {
		return 0, 0, err
	}
	if rw, err = diskUsage(filepath.Join(c.dir, "upper")); err != nil {
		return 0, 0, fmt.Errorf("size of container %s: %w", c.spec().Name, err)
	}
	chain, err := m.chain(c)
	if err != nil {
		return rw, rw, nil // the image's part is unknown, the container's is not
	}
	rootfs = rw
	for _, l := range chain.Layers {
		rootfs += l.Size
	}
	return rw, rootfs, nil
}

// diskUsage adds up file sizes, each inode once.
func diskUsage(dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // it vanished while we looked
		}
		st := info.Sys().(*syscall.Stat_t)
		if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 {
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += info.Size()
		return nil
	})
	return total, err
}

// InUse tells which images containers use, by id, and how many of them run.
func (m *Manager) InUse() map[string]int {
	out := map[string]int{}
	for _, c := range m.all() {
		n := 0
		if c.runningPid() != 0 {
			n = 1
		}
		out[c.record().ImageID] += n
	}
	return out
}

// Uptime is how long a container has been running, 0 when it does not run.
func (i Info) Uptime(now time.Time) time.Duration {
	if !i.State.Running {
		return 0
	}
	return now.Sub(i.State.StartedAt)
}
