package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/tree"
	"slipway.dev/slipway/engine/volume"
)

// volumes makes a pod's volumes appear as directories or files of the host.
//
// Volumes that hold secrets live below run, which is a tmpfs on most machines and readable by root
// only; the rest below data. Both are removed with the pod.
type volumes struct {
	data, run string
	tokens    TokenSource
}

func (h volumes) podDir(uid types.UID) string { return filepath.Join(h.data, string(uid)) }
func (h volumes) runDir(uid types.UID) string { return filepath.Join(h.run, string(uid)) }

// setUp makes every volume of the pod and returns their host paths by name; it may be called again
// and then only brings projected content up to date. refresh is when it should be.
func (h volumes) setUp(ctx context.Context, f facts, pod *corev1.Pod) (paths map[string]string, refresh time.Time, err error) {
	for _, dir := range []string{h.podDir(pod.UID), h.runDir(pod.UID)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, refresh, err
		}
	}
	paths = make(map[string]string, len(pod.Spec.Volumes))
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, until, err := h.one(ctx, f, pod, v)
		if err != nil {
			return nil, refresh, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", v.Name, err)
		}
		paths[v.Name] = path
		if refresh.IsZero() || (!until.IsZero() && until.Before(refresh)) {
			refresh = until
		}
	}
	return paths, refresh, nil
}

func (h volumes) one(ctx context.Context, f facts, pod *corev1.Pod, v *corev1.Volume) (string, time.Time, error) {
	var never time.Time
	switch {
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil, v.Projected != nil:
		files, refresh, err := f.payload(ctx, pod, v, h.tokens)
		if err != nil {
			return "", never, err
		}
		dir := filepath.Join(h.runDir(pod.UID), "volumes", v.Name)
		return dir, refresh, writeAtomically(dir, files, fsGroup(pod))
	case v.EmptyDir != nil:
		path, err := h.emptyDir(pod, v)
		return path, never, err
	case v.HostPath != nil:
		return v.HostPath.Path, never, checkHostPath(v.HostPath)
	case v.PersistentVolumeClaim != nil:
		path, err := claimPath(f.reader, pod, v.PersistentVolumeClaim)
		if err == nil {
			err = ownByGroup(path, fsGroup(pod))
		}
		return path, never, err
	}
	return "", never, errors.New("this kind of volume is not supported by this node: use configMap, secret, downwardAPI, projected, emptyDir, hostPath or persistentVolumeClaim")
}

func fsGroup(pod *corev1.Pod) int {
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return int(*sc.FSGroup)
	}
	return -1
}

// emptyDir makes a directory, or mounts a tmpfs for medium Memory.
func (h volumes) emptyDir(pod *corev1.Pod, v *corev1.Volume) (string, error) {
	dir := filepath.Join(h.podDir(pod.UID), "volumes", v.Name)
	memory := v.EmptyDir.Medium == corev1.StorageMediumMemory
	if _, err := os.Lstat(dir); err == nil && (!memory || isMount(dir)) {
		return dir, nil // it is the pod's by now: its programs may have changed owner and permissions
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	if memory {
		options := "mode=0777"
		if limit := v.EmptyDir.SizeLimit; limit != nil && limit.Value() > 0 {
			options += fmt.Sprintf(",size=%d", limit.Value())
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
			return "", fmt.Errorf("mount a tmpfs: %w", err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return "", err
	}
	return dir, ownByGroup(dir, fsGroup(pod))
}

// ownByGroup gives a volume's root to fsGroup, with new files inheriting it.
func ownByGroup(dir string, gid int) error {
	if gid < 0 {
		return nil
	}
	if err := os.Chown(dir, -1, gid); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o070|os.ModeSetgid)
}

func isMount(dir string) bool {
	var here, above unix.Stat_t
	if unix.Stat(dir, &here) != nil || unix.Stat(filepath.Dir(dir), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// checkHostPath makes or checks the path as its type says.
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	absent := errors.Is(err, os.ErrNotExist)
	if err != nil && !absent {
		return err
	}
	is := func(ok bool, what string) error {
		if absent || !ok {
			return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, what)
		}
		return nil
	}
	switch kind {
	case corev1.HostPathUnset:
		if absent {
			return os.MkdirAll(h.Path, 0o755) // as container runtimes do for a bind mount's source
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if absent {
			return os.MkdirAll(h.Path, 0o755)
		}
		return is(info.IsDir(), "directory")
	case corev1.HostPathFileOrCreate:
		if absent {
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
		return is(info.Mode().IsRegular(), "file")
	case corev1.HostPathDirectory:
		return is(!absent && info.IsDir(), "directory")
	case corev1.HostPathFile:
		return is(!absent && info.Mode().IsRegular(), "file")
	case corev1.HostPathSocket:
		return is(!absent && info.Mode()&os.ModeSocket != 0, "socket file")
	case corev1.HostPathCharDev:
		return is(!absent && info.Mode()&os.ModeCharDevice != 0, "character device")
	case corev1.HostPathBlockDev:
		return is(!absent && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0, "block device")
	}
	return fmt.Errorf("hostPath type %q is unknown", kind)
}

// claimPath is the directory behind a bound claim.
func claimPath(r store.Reader, pod *corev1.Pod, ref *corev1.PersistentVolumeClaimVolumeSource) (string, error) {
	claim, ok := store.Get[*corev1.PersistentVolumeClaim](r, kinds.PersistentVolumeClaims, pod.Namespace, ref.ClaimName)
	if !ok {
		return "", fmt.Errorf("persistentvolumeclaim %q not found", ref.ClaimName)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return "", fmt.Errorf("persistentvolumeclaim %q is not bound to a volume yet", ref.ClaimName)
	}
	pv, ok := store.Get[*corev1.PersistentVolume](r, kinds.PersistentVolumes, "", claim.Spec.VolumeName)
	if !ok {
		return "", fmt.Errorf("persistentvolume %q not found", claim.Spec.VolumeName)
	}
	switch {
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		_, err := os.Stat(pv.Spec.Local.Path)
		return pv.Spec.Local.Path, err
	}
	return "", fmt.Errorf("persistentvolume %q is of a kind that this node does not support: use hostPath or local", pv.Name)
}

// tearDown removes what setUp made.
func (h volumes) tearDown(uid types.UID) error {
	if uid == "" {
		return errors.New("a pod without an id has no volumes") // its directory would be everybody's
	}
	for _, dir := range []string{h.podDir(uid), h.runDir(uid)} {
		if err := volume.UnmountBelow(dir); err != nil {
			return err
		}
	}
	return errors.Join(tree.Remove(h.podDir(uid)), os.RemoveAll(h.runDir(uid)))
}
