package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// amounts are what a pod asks for or a node has: CPU in thousandths, the rest in units.
type amounts struct {
	cpu, memory, ephemeral int64
	other                  map[corev1.ResourceName]int64 // nil when there is none
}

func amountsOf(list corev1.ResourceList) amounts {
	var a amounts
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			a.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			a.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			a.ephemeral = q.Value()
		case corev1.ResourcePods:
		default:
			if a.other == nil {
				a.other = map[corev1.ResourceName]int64{}
			}
			a.other[name] = q.Value()
		}
	}
	return a
}

// requestsOf is what the scheduler reserves for a pod: containers, init containers, overhead.
func requestsOf(pod *corev1.Pod) amounts {
	if a, ok := plainRequests(pod); ok {
		return a
	}
	return amountsOf(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{UseStatusResources: true}))
}

// plainRequests is requestsOf for the usual pod, without allocating: containers only, with
// nothing that is resized or accounted elsewhere.
func plainRequests(pod *corev1.Pod) (amounts, bool) {
	if len(pod.Spec.InitContainers) > 0 || pod.Spec.Overhead != nil || pod.Spec.Resources != nil || len(pod.Spec.ResourceClaims) > 0 {
		return amounts{}, false
	}
	for i := range pod.Status.ContainerStatuses {
		if pod.Status.ContainerStatuses[i].AllocatedResources != nil {
			return amounts{}, false
		}
	}
	var a amounts
	for i := range pod.Spec.Containers {
		for name, q := range pod.Spec.Containers[i].Resources.Requests {
			switch name {
			case corev1.ResourceCPU:
				a.cpu += q.MilliValue()
			case corev1.ResourceMemory:
				a.memory += q.Value()
			case corev1.ResourceEphemeralStorage:
				a.ephemeral += q.Value()
			default:
				if a.other == nil {
					a.other = map[corev1.ResourceName]int64{}
				}
				a.other[name] += q.Value()
			}
		}
	}
	return a, true
}

func (a *amounts) add(b *amounts, sign int64) {
	a.cpu += sign * b.cpu
	a.memory += sign * b.memory
	a.ephemeral += sign * b.ephemeral
	for name, n := range b.other {
		if a.other == nil {
			a.other = map[corev1.ResourceName]int64{}
		}
		a.other[name] += sign * n
	}
}

func (a *amounts) equal(b *amounts) bool {
	return a.cpu == b.cpu && a.memory == b.memory && a.ephemeral == b.ephemeral && maps.Equal(a.other, b.other)
}

func (a *amounts) key() string {
	if len(a.other) == 0 {
		return fmt.Sprint(a.cpu, " ", a.memory, " ", a.ephemeral)
	}
	var b strings.Builder
	fmt.Fprint(&b, a.cpu, " ", a.memory, " ", a.ephemeral)
	for _, name := range slices.Sorted(maps.Keys(a.other)) {
		fmt.Fprint(&b, " ", name, "=", a.other[name])
	}
	return b.String()
}

// Pods that ask for nothing still count for balance, as upstream counts them.
const (
	assumedCPU    = 100
	assumedMemory = 200 << 20
)

func (a *amounts) weights() (cpu, memory int64) {
	cpu, memory = a.cpu, a.memory
	if cpu == 0 {
		cpu = assumedCPU
	}
	if memory == 0 {
		memory = assumedMemory
	}
	return cpu, memory
}

// hostPort is a port that a pod takes on its node.
type hostPort struct {
	ip       string // "" for all addresses
	protocol corev1.Protocol
	port     int32
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var out []hostPort
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			for _, p := range containers[i].Ports {
				if p.HostPort <= 0 {
					continue
				}
				protocol := p.Protocol
				if protocol == "" {
					protocol = corev1.ProtocolTCP
				}
				ip := p.HostIP
				if ip == "0.0.0.0" || ip == "::" {
					ip = ""
				}
				out = append(out, hostPort{ip, protocol, p.HostPort})
			}
		}
	}
	return out
}

// clashes says whether two ports cannot be taken on one node.
func (p hostPort) clashes(q hostPort) bool {
	return p.port == q.port && p.protocol == q.protocol && (p.ip == q.ip || p.ip == "" || q.ip == "")
}
