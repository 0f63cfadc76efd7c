package node

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/cluster/record"
)

// recorder tells the cluster what happens to pods here.
type recorder struct{ events *record.Recorder }

// podEvent reports about a pod, or about one of its containers when containerPath is not empty.
func (r recorder) podEvent(pod *corev1.Pod, containerPath, kind, reason, format string, args ...any) {
	ref := record.Reference(pod)
	ref.FieldPath = containerPath
	r.events.Record(ref, kind, reason, fmt.Sprintf(format, args...))
}
