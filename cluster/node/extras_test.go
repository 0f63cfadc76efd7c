package node

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestDevicesAreAdmitted: an annotation must not get what admission would have refused as a host path.
func TestDevicesAreAdmitted(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{
		{Name: "device", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/dev/fuse"}}},
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}}}
	for _, tt := range []struct{ text, want string }{
		{"/dev/fuse:/dev/mine:rw", ""},
		{"/dev/fuse:/dev/fuse:rwm,/dev/sda:/dev/sda:rwm", "/dev/sda is not among the pod's hostPath volumes"},
		{"/dev/../dev/sda:/dev/sda:rwm", "/dev/../dev/sda is not among the pod's hostPath volumes"},
		{"/dev/fuse", `"/dev/fuse" is not SOURCE:TARGET:PERMISSIONS`},
	} {
		got, err := parseDevices(tt.text, pod)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != tt.want {
			t.Errorf("devices %s: error %q; want %q", tt.text, text, tt.want)
		}
		if err == nil && (len(got) != 1 || got[0].Source != "/dev/fuse" || got[0].Target != "/dev/mine" || got[0].Permissions != "rw") {
			t.Errorf("devices %s: %+v", tt.text, got)
		}
	}
}
