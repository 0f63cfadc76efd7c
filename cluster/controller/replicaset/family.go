package replicaset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// family is a kind of object that asks for a number of pods.
type family struct {
	name     string // of its controller
	what     string // in errors
	resource schema.GroupResource
	gvk      schema.GroupVersionKind
	// view is the object as a replica set. It shares the object's memory: for reading only.
	view      func(store.Object) *appsv1.ReplicaSet
	setStatus func(store.Object, appsv1.ReplicaSetStatus)
	// terminating says whether the status has room for the number of pods on their way out.
	terminating bool
}

var replicaSets = family{
	name: "replicaset-controller", what: "replica set",
	resource: kinds.ReplicaSets, gvk: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
	view:      func(o store.Object) *appsv1.ReplicaSet { return o.(*appsv1.ReplicaSet) },
	setStatus: func(o store.Object, s appsv1.ReplicaSetStatus) { o.(*appsv1.ReplicaSet).Status = s },

	terminating: true,
}

var replicationControllers = family{
	name: "replication-controller", what: "replication controller",
	resource: kinds.ReplicationControllers, gvk: corev1.SchemeGroupVersion.WithKind("ReplicationController"),
	view:      viewOf,
	setStatus: setStatusOf,
}

// viewOf reads a replication controller as a replica set.
func viewOf(o store.Object) *appsv1.ReplicaSet {
	rc := o.(*corev1.ReplicationController)
	rs := &appsv1.ReplicaSet{
		TypeMeta: rc.TypeMeta, ObjectMeta: rc.ObjectMeta, // events and owners name the object as it is
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds, Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas, ReadyReplicas: rc.Status.ReadyReplicas,
			AvailableReplicas: rc.Status.AvailableReplicas, ObservedGeneration: rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}

func setStatusOf(o store.Object, s appsv1.ReplicaSetStatus) {
	rc := o.(*corev1.ReplicationController)
	rc.Status = corev1.ReplicationControllerStatus{
		Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas, ReadyReplicas: s.ReadyReplicas,
		AvailableReplicas: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration,
	}
	for _, c := range s.Conditions {
		rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
}
