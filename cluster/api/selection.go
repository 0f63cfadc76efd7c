package api

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// selection is which objects of a resource a request wants.
type selection struct {
	namespace string // "" for all
	name      string // "" for all
	labels    labels.Selector
	fields    fields.Selector
}

// everything says that neither selector excludes anything within the namespace.
func (s *selection) everything() bool {
	return s.name == "" && s.labels.Empty() && s.fields.Empty()
}

func (s *selection) matches(o store.Object) bool {
	if o == nil {
		return false
	}
	if s.namespace != "" && o.GetNamespace() != s.namespace {
		return false
	}
	if s.name != "" && o.GetName() != s.name {
		return false
	}
	if !s.labels.Empty() && !s.labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	return s.fields.Empty() || s.fields.Matches(fieldsOf(o))
}

// from is every selected object of a snapshot with its key, beginning at key start. Pods of
// a node come from the index, where the snapshot has one: that is how a node agent lists its own.
func (s *selection) from(snap store.Snapshot, kind *store.Kind, start string, indexed bool) func(func(string, store.Object) bool) {
	return func(yield func(string, store.Object) bool) {
		if s.name != "" && (s.namespace != "" || !kind.Namespaced) {
			if o, ok := snap.Get(s.namespace, s.name); ok && s.matches(o) && store.KeyOf(o) >= start {
				yield(store.KeyOf(o), o)
			}
			return
		}
		if node, ok := s.fields.RequiresExactMatch("spec.nodeName"); ok && kind.Resource == kinds.Pods && start == "" && indexed {
			for _, o := range snap.Index(kinds.ByNode, node) {
				if s.matches(o) && !yield(store.KeyOf(o), o) {
					return
				}
			}
			return
		}
		all := s.everything()
		for key, o := range snap.From(s.namespace, start) {
			if (all || s.matches(o)) && !yield(key, o) {
				return
			}
		}
	}
}

// fieldsOf is what field selectors may look at: upstream's sets, on v1 objects.
func fieldsOf(o store.Object) fields.Set {
	set := make(fields.Set, 12)
	set["metadata.name"] = o.GetName()
	if ns := o.GetNamespace(); ns != "" {
		set["metadata.namespace"] = ns
	}
	switch o := o.(type) {
	case *corev1.Pod:
		podFields(o, set)
	case *corev1.Event:
		eventFields(o, set)
	case *corev1.Namespace:
		set["status.phase"] = string(o.Status.Phase)
		set["name"] = o.Name // a slip of upstream's that clients rely on
	case *corev1.Node:
		set["spec.unschedulable"] = strconv.FormatBool(o.Spec.Unschedulable)
	case *corev1.Secret:
		set["type"] = string(o.Type)
	case *corev1.Service:
		set["spec.clusterIP"] = o.Spec.ClusterIP
		set["spec.type"] = string(o.Spec.Type)
	case *corev1.PersistentVolume:
		set["name"] = o.Name
	case *corev1.PersistentVolumeClaim:
		set["name"] = o.Name
	case *appsv1.ReplicaSet:
		set["status.replicas"] = strconv.Itoa(int(o.Status.Replicas))
	case *batchv1.Job:
		set["status.successful"] = strconv.Itoa(int(o.Status.Succeeded))
	}
	return set
}

func podFields(p *corev1.Pod, set fields.Set) {
	set["spec.nodeName"] = p.Spec.NodeName
	set["spec.restartPolicy"] = string(p.Spec.RestartPolicy)
	set["spec.schedulerName"] = p.Spec.SchedulerName
	set["spec.serviceAccountName"] = p.Spec.ServiceAccountName
	set["spec.hostNetwork"] = strconv.FormatBool(p.Spec.HostNetwork)
	set["status.phase"] = string(p.Status.Phase)
	set["status.podIP"] = p.Status.PodIP
	set["status.nominatedNodeName"] = p.Status.NominatedNodeName
}

func eventFields(e *corev1.Event, set fields.Set) {
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	set["involvedObject.kind"] = e.InvolvedObject.Kind
	set["involvedObject.namespace"] = e.InvolvedObject.Namespace
	set["involvedObject.name"] = e.InvolvedObject.Name
	set["involvedObject.uid"] = string(e.InvolvedObject.UID)
	set["involvedObject.apiVersion"] = e.InvolvedObject.APIVersion
	set["involvedObject.resourceVersion"] = e.InvolvedObject.ResourceVersion
	set["involvedObject.fieldPath"] = e.InvolvedObject.FieldPath
	set["reason"] = e.Reason
	set["reportingComponent"] = e.ReportingController
	set["source"] = source
	set["type"] = e.Type
}
