package volume

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// match is the volume for a claim: the one that is reserved for it, or the smallest that
// will do; nil if there is none.
func match(claim *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) *corev1.PersistentVolume {
	selector := labels.Everything()
	if claim.Spec.Selector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(claim.Spec.Selector); err != nil {
			return nil
		}
	}
	var best *corev1.PersistentVolume
	for _, pv := range volumes {
		if pv.DeletionTimestamp != nil || !suits(pv, claim) {
			continue
		}
		if pv.Spec.ClaimRef != nil {
			if isFor(pv, claim) {
				return pv
			}
			continue
		}
		if pv.Status.Phase != corev1.VolumeAvailable || classOfVolume(pv) != classOf(claim) || !selector.Matches(labels.Set(pv.Labels)) {
			continue
		}
		if best == nil || less(pv, best) {
			best = pv
		}
	}
	return best
}

// suits compares size, access modes and form.
func suits(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	have, want := pv.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if have.Cmp(want) < 0 || modeOf(pv.Spec.VolumeMode) != modeOf(claim.Spec.VolumeMode) {
		return false
	}
	for _, m := range claim.Spec.AccessModes {
		if !slices.Contains(pv.Spec.AccessModes, m) {
			return false
		}
	}
	return true
}

func less(a, b *corev1.PersistentVolume) bool {
	x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	return x.Cmp(y) < 0
}

// isFor says whether a volume is reserved for or bound to a claim.
func isFor(pv *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref := pv.Spec.ClaimRef
	return ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name && (ref.UID == "" || ref.UID == claim.UID)
}

func modeOf(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

func classOf(claim *corev1.PersistentVolumeClaim) string {
	if c, ok := claim.Annotations[betaClass]; ok {
		return c
	}
	if claim.Spec.StorageClassName != nil {
		return *claim.Spec.StorageClassName
	}
	return ""
}

func classOfVolume(pv *corev1.PersistentVolume) string {
	if c, ok := pv.Annotations[betaClass]; ok {
		return c
	}
	return pv.Spec.StorageClassName
}
