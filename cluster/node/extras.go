package node

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
)

// Annotations of a pod for engine settings that Kubernetes has no field for. They hold for all of its
// containers; Compose files are where they come from.
const (
	annotationInit     = "slipway.dev/init"        // "true": a tiny init as process 1
	annotationSignal   = "slipway.dev/stop-signal" // SIGINT
	annotationUlimits  = "slipway.dev/ulimits"     // nofile=1024:2048,nproc=64:64
	annotationPids     = "slipway.dev/pids-limit"  // 64
	annotationCPUSet   = "slipway.dev/cpuset"      // 0-1
	annotationDevices  = "slipway.dev/devices"     // /dev/fuse:/dev/fuse:rwm,…; only what is a host path of the pod too
	annotationPopulate = "slipway.dev/populate"    // volumes, by name, that start with the image's content
)

// extras obeys the annotations.
func (l launch) extras(s *container.Spec) error {
	a := l.pod.Annotations
	s.Init = a[annotationInit] == "true"
	if v := a[annotationSignal]; v != "" && s.StopSignal == "" {
		s.StopSignal = v
	}
	s.Resources.CpusetCpus = a[annotationCPUSet]
	if v := a[annotationPids]; v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n <= 0 {
			return fmt.Errorf("annotation %s: %q is not a positive number", annotationPids, v)
		}
		s.Resources.PidsLimit = &n
	}
	if v := a[annotationUlimits]; v != "" {
		for part := range strings.SplitSeq(v, ",") {
			u, err := parseUlimit(part)
			if err != nil {
				return fmt.Errorf("annotation %s: %w", annotationUlimits, err)
			}
			s.Resources.Ulimits = append(s.Resources.Ulimits, u)
		}
	}
	if v := a[annotationDevices]; v != "" {
		devices, err := parseDevices(v, l.pod)
		if err != nil {
			return fmt.Errorf("annotation %s: %w", annotationDevices, err)
		}
		s.Devices = append(s.Devices, devices...)
	}
	return nil
}

// parseDevices reads SOURCE:TARGET:PERMISSIONS, again and again. Admission knows nothing of annotations: a device is had only by
// a pod that was admitted with the same path as a host path.
func parseDevices(text string, pod *corev1.Pod) ([]container.Device, error) {
	var out []container.Device
	for part := range strings.SplitSeq(text, ",") {
		words := strings.Split(part, ":")
		if len(words) != 3 {
			return nil, fmt.Errorf("%q is not SOURCE:TARGET:PERMISSIONS", part)
		}
		admitted := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.HostPath != nil && v.HostPath.Path == words[0] })
		if !admitted {
			return nil, fmt.Errorf("%s is not among the pod's hostPath volumes", words[0])
		}
		out = append(out, container.Device{Source: words[0], Target: words[1], Permissions: words[2]})
	}
	return out, nil
}

func parseUlimit(text string) (container.Ulimit, error) {
	name, limits, ok := strings.Cut(text, "=")
	soft, hard, both := strings.Cut(limits, ":")
	if !both {
		hard = soft
	}
	s, err := strconv.ParseInt(soft, 10, 64)
	h, err2 := strconv.ParseInt(hard, 10, 64)
	if !ok || name == "" || err != nil || err2 != nil {
		return container.Ulimit{}, fmt.Errorf("%q is not NAME=SOFT:HARD", text)
	}
	return container.Ulimit{Name: name, Soft: s, Hard: h}, nil
}

// populates says whether a volume starts with the image's content.
func (l launch) populates(volume string) bool {
	v := l.pod.Annotations[annotationPopulate]
	return v != "" && slices.Contains(strings.Split(v, ","), volume)
}
