package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// hasHostPorts says whether a pod asks for ports of its node. One on the node's own network
// has them without anybody's help.
func hasHostPorts(pod *corev1.Pod) bool {
	if pod.Spec.HostNetwork {
		return false
	}
	for range hostPorts(pod) {
		return true
	}
	return false
}

// hostPorts walks the ports of a pod that are ports of its node, too.
func hostPorts(pod *corev1.Pod) func(yield func(*corev1.ContainerPort) bool) {
	return func(yield func(*corev1.ContainerPort) bool) {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				for j := range list[i].Ports {
					if p := &list[i].Ports[j]; p.HostPort > 0 && !yield(p) {
						return
					}
				}
			}
		}
	}
}

// planPod works out the program of a pod's host ports: empty while it has no address here,
// and when it has ended.
func planPod(pod *corev1.Pod, node string) program {
	p := program{backends: map[string]backend{}, fronts: map[front]string{}}
	addr, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil || pod.Spec.NodeName != node || pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return p
	}
	for cp := range hostPorts(pod) {
		proto := cmp.Or(cp.Protocol, corev1.ProtocolTCP)
		if proto != corev1.ProtocolTCP && proto != corev1.ProtocolUDP {
			continue
		}
		h := hold{proto: proto, port: uint16(cp.HostPort)}
		if ip, err := netip.ParseAddr(cp.HostIP); err == nil && !ip.IsUnspecified() {
			h.addr = ip
		}
		chain := fmt.Sprintf("pod/%s/%s/%s/%d", pod.Namespace, pod.Name, strings.ToLower(string(proto)), cp.ContainerPort)
		p.backends[chain] = backend{targets: []netip.AddrPort{netip.AddrPortFrom(addr, uint16(cp.ContainerPort))}}
		p.fronts[front{h.addr, h.proto, h.port}] = chain
		p.holds = append(p.holds, h)
	}
	return p
}
