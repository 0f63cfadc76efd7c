package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

// sandbox is a pod's place: its namespaces and its address.
type sandbox struct {
	id    string
	epoch string     // tells this sandbox from an earlier one of the same pod
	addr  netip.Addr // the node's own for pods on the host network
}

const sandboxPrefix = "pod-"

func sandboxID(uid types.UID) string { return sandboxPrefix + string(uid) }

// epochFile is where a pod's directory says which sandbox is its newest.
func epochFile(podDir string) string { return filepath.Join(podDir, "sandbox") }

// sandboxPod is the inverse of sandboxID; ok is false for sandboxes that are not a pod's.
func sandboxPod(id string) (uid string, ok bool) { return strings.CutPrefix(id, sandboxPrefix) }

// ensureSandbox finds the pod's sandbox or makes it, gives it its address and lets the network
// policies take hold. It is safe to repeat at any point.
func (a *Agent) ensureSandbox(ctx context.Context, pod *corev1.Pod) (*sandbox, error) {
	s := &sandbox{id: sandboxID(pod.UID)}
	mark := epochFile(a.volumes.podDir(pod.UID))
	netns, err := a.Sandboxes.Sandbox(ctx, s.id)
	switch {
	case err == nil:
		raw, err := os.ReadFile(mark)
		if err != nil {
			netns.Close()
			return nil, fmt.Errorf("read the sandbox's mark: %w", err)
		}
		s.epoch = string(raw)
	case errdefs.IsNotFound(err):
		if netns, err = a.makeSandbox(ctx, pod, s, mark); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	if netns != nil {
		defer netns.Close()
	}
	hostname, domain := hostNames(pod, a.ClusterDomain)
	if pod.Spec.HostNetwork {
		s.addr = a.NodeAddr
	} else if s.addr, err = a.Networks.AttachPod(ctx, netns, network.PodAttach{ID: string(pod.UID), Hostname: hostname}); err != nil {
		return nil, err
	}
	if a.Policy != nil && !pod.Spec.HostNetwork {
		if err := a.Policy.Admit(ctx, pod, s.addr); err != nil {
			return nil, fmt.Errorf("network policy: %w", err)
		}
	}
	return s, a.writeFiles(pod, s.addr, hostname, domain)
}

func (a *Agent) makeSandbox(ctx context.Context, pod *corev1.Pod, s *sandbox, mark string) (*os.File, error) {
	hostname, _ := hostNames(pod, a.ClusterDomain)
	s.epoch = strconv.FormatInt(time.Now().UnixNano(), 36)
	if err := os.MkdirAll(filepath.Dir(mark), 0o700); err != nil {
		return nil, err
	}
	// The mark comes first: a sandbox without one could not be told from another.
	if err := os.WriteFile(mark, []byte(s.epoch), 0o600); err != nil {
		return nil, err
	}
	spec := warden.SandboxSpec{
		ID: s.id, Net: !pod.Spec.HostNetwork, IPC: !pod.Spec.HostIPC, UTS: !pod.Spec.HostNetwork,
		Hostname: hostname, SharePID: pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace,
	}
	if sc := pod.Spec.SecurityContext; sc != nil && len(sc.Sysctls) > 0 {
		spec.Sysctls = map[string]string{}
		for _, kv := range sc.Sysctls {
			spec.Sysctls[kv.Name] = kv.Value
		}
	}
	if pod.Spec.HostNetwork {
		spec.Hostname = ""
	}
	return a.Sandboxes.CreateSandbox(ctx, spec)
}

// writeFiles makes the files that every container of the pod sees.
func (a *Agent) writeFiles(pod *corev1.Pod, addr netip.Addr, hostname, domain string) error {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir := a.volumes.podDir(pod.UID)
	for name, text := range map[string]string{
		"hosts":       hostsFile(pod, addr, hostname, domain),
		"hostname":    hostname + "\n",
		"resolv.conf": resolvConf(pod, a.DNSAddr, a.ClusterDomain, string(host)),
	} {
		path := filepath.Join(dir, name)
		if holdsText(path, text) {
			continue // an agent that starts again leaves running pods' files alone
		}
		// Written in place: containers have the file itself mounted.
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// holdsText says whether a file is text. Containers can write to it, and make it as large as they like: no more is read
// than text is long.
func holdsText(path, text string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(f, int64(len(text))+1))
	return err == nil && string(have) == text
}

// removeSandbox gives back the pod's address, namespaces and cgroup; repeating it does no harm.
func (a *Agent) removeSandbox(ctx context.Context, uid types.UID) error {
	var errs []error
	if err := a.Networks.DetachPod(ctx, string(uid)); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("give back the address: %w", err))
	}
	if err := a.Sandboxes.RemoveSandbox(ctx, sandboxID(uid)); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	if err := a.Sandboxes.RemoveCgroup(ctx, a.cgroup(uid)); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("remove the pod's cgroup: %w", err))
	}
	return errors.Join(errs...)
}

// cgroup is the parent of a pod's containers' cgroups.
func (a *Agent) cgroup(uid types.UID) string { return "/slipway-" + a.Instance + "/pod" + string(uid) }
