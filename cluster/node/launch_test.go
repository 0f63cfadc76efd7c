package node

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What a pod asks for to be safer is passed on, or the pod would be less safe than it says.
func TestLaunchKeepsPromises(t *testing.T) {
	strict, enabled := corev1.SupplementalGroupsPolicyStrict, corev1.RecursiveReadOnlyEnabled
	l := launch{
		pod: &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{SupplementalGroupsPolicy: &strict}}},
		container: &corev1.Container{VolumeMounts: []corev1.VolumeMount{
			{Name: "v", MountPath: "/ro", ReadOnly: true, RecursiveReadOnly: &enabled}, {Name: "v", MountPath: "/rw"},
		}},
		volumes: map[string]string{"v": "/srv"},
	}
	s, err := l.spec()
	if err != nil {
		t.Fatal(err)
	}
	if !s.StrictGroups {
		t.Error("supplementalGroupsPolicy Strict: the container gets the image's groups")
	}
	if len(s.Mounts) != 2 || !s.Mounts[0].RecursiveReadOnly || s.Mounts[1].RecursiveReadOnly {
		t.Errorf("recursiveReadOnly Enabled on the first of two mounts gave %+v", s.Mounts)
	}
}
