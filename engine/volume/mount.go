package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"

	"slipway.dev/slipway/engine/tree"
)

// Use is how a container has a volume.
type Use struct {
	Container, Destination string
	ReadOnly               bool
}

// Mount makes the volume's content available to a container, mounting its device if it has one
// and it is not mounted yet, and returns the host path.
func (s *Store) Mount(ctx context.Context, name string, use Use) (string, error) {
	s.mu.Lock()
	v, err := s.lookupLocked(name)
	s.mu.Unlock()
	if err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := mountData(s.Path(name), v.meta); err != nil {
		return "", fmt.Errorf("mount volume %q: %w", name, err)
	}
	v.mounts[use.Container] = true
	s.publish(v.meta, "mount", map[string]string{
		"container": use.Container, "destination": use.Destination, "propagation": "", "read/write": strconv.FormatBool(!use.ReadOnly),
	})
	return s.Path(name), nil
}

// Unmount ends what Mount began; the device goes with its last user.
func (s *Store) Unmount(name, user string) error {
	s.mu.Lock()
	v := s.volumes[name]
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.mounts[user] {
		return nil
	}
	delete(v.mounts, user)
	s.publish(v.meta, "unmount", map[string]string{"container": user})
	if len(v.mounts) > 0 {
		return nil
	}
	return unmountData(s.Path(name), v.meta)
}

func needsMount(v Volume) bool { return v.Options["device"] != "" }

func mountData(dir string, v Volume) error {
	if !needsMount(v) {
		return nil
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return err
	}
	fstype, device, o := v.Options["type"], v.Options["device"], v.Options["o"]
	if strings.Contains(","+o+",", ",bind,") || strings.Contains(","+o+",", ",rbind,") {
		if _, err := os.Stat(device); err != nil {
			return fmt.Errorf("option device: %w", err)
		}
	}
	if err := mount.Mount(device, dir, fstype, o); err != nil {
		return fmt.Errorf("type %q, device %q, o %q: %w", fstype, device, o, err)
	}
	return nil
}

func unmountData(dir string, v Volume) error {
	if !needsMount(v) {
		return nil
	}
	return mount.Unmount(dir)
}

// populating marks a copy that is under way, so that one cut short by a crash is begun
// again instead of leaving half an image's files for good.
const populating = "populating"

// Populate copies src, a directory of an image, into the volume when that is empty and
// not backed by a device of its own.
func (s *Store) Populate(ctx context.Context, name, src string) error {
	s.mu.Lock()
	v, err := s.lookupLocked(name)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if needsMount(v.meta) && !strings.Contains(","+v.meta.Options["o"]+",", ",bind,") {
		return nil
	}
	return PopulateDir(s.Path(name), filepath.Join(s.dir, name, populating), src)
}

// PopulateDir copies src into the directory dst when that is empty. The file marker, beside dst, is there
// while the copy is under way.
func PopulateDir(dst, marker, src string) error {
	_, statErr := os.Stat(marker)
	interrupted := statErr == nil
	if empty, err := isEmpty(dst); err != nil || (!empty && !interrupted) {
		return err
	}
	if interrupted {
		if err := clear(dst); err != nil {
			return fmt.Errorf("populate %s: %w", dst, err)
		}
	}
	if err := writeSynced(marker, nil); err != nil {
		return fmt.Errorf("populate %s: %w", dst, err)
	}
	// Other containers may use the directory already, and change it while it is filled.
	if err := tree.Copy(dst, src, inVolumes); err != nil {
		// The directory was empty, so what is there now is half of the image's. If it stayed, with its marker, the next
		// container would have it cleared together with all that others may have written by then.
		return fmt.Errorf("populate %s from the image: %w", dst, errors.Join(err, clear(dst), os.Remove(marker)))
	}
	return os.Remove(marker)
}

// inVolumes are the extended attributes that mean something outside an image's layers.
func inVolumes(xattr string) bool { return !strings.HasPrefix(xattr, "trusted.overlay.") }

func isEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

func clear(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := tree.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
