package node

import (
	"fmt"
	"iter"

	corev1 "k8s.io/api/core/v1"
)

// containersOf walks all containers of a pod: init containers, its own, and ephemeral ones, which
// people add to look into a pod that runs.
func containersOf(pod *corev1.Pod) iter.Seq[*corev1.Container] {
	return func(yield func(*corev1.Container) bool) {
		for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			if !yield(ephemeral(pod, i)) {
				return
			}
		}
	}
}

// ephemeral is an ephemeral container in the shape of the others.
func ephemeral(pod *corev1.Pod, i int) *corev1.Container {
	return (*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
}

func anyContainer(pod *corev1.Pod, fn func(*corev1.Container) bool) bool {
	for c := range containersOf(pod) {
		if fn(c) {
			return true
		}
	}
	return false
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for c := range containersOf(pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// fieldPath names a container in events the way kubectl describe expects.
func fieldPath(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return fmt.Sprintf("spec.initContainers{%s}", name)
		}
	}
	if isEphemeral(pod, name) {
		return fmt.Sprintf("spec.ephemeralContainers{%s}", name)
	}
	return fmt.Sprintf("spec.containers{%s}", name)
}

func isEphemeral(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

// statusOf is what the cluster knows of a container.
func statusOf(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
