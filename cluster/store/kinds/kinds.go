// Package kinds lists the built-in kinds that a Slipway cluster stores, with the indexes
// that controllers, scheduler and node agents read them by.
//
// It is data, in one place: what a kind means (defaults, validation, strategy) is
// cluster/api's, and what follows from it the controllers'.
package kinds

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/store"
)

// The names of the indexes.
const (
	// ByOwner finds what depends on an object, by each owner reference's UID. Every kind has it.
	ByOwner = "owner"
	// ByOrphan finds, by namespace, the pods, replica sets and controller revisions that
	// nothing controls, so that a controller may look for those it should adopt.
	ByOrphan = "orphan"
	// ByNode finds pods by spec.nodeName; "" finds those that wait for the scheduler.
	ByNode = "node"
	// ByService finds endpoint slices by "namespace/service".
	ByService = "service"
	// ByClaim finds pods by the "namespace/name" of the claims they mount.
	ByClaim = "claim"
)

// The resources, by the names that code reads best.
var (
	Namespaces             = core("namespaces")
	Nodes                  = core("nodes")
	Pods                   = core("pods")
	PodTemplates           = core("podtemplates")
	ReplicationControllers = core("replicationcontrollers")
	Services               = core("services")
	Endpoints              = core("endpoints")
	ConfigMaps             = core("configmaps")
	Secrets                = core("secrets")
	ServiceAccounts        = core("serviceaccounts")
	Events                 = core("events")
	PersistentVolumes      = core("persistentvolumes")
	PersistentVolumeClaims = core("persistentvolumeclaims")
	LimitRanges            = core("limitranges")
	ResourceQuotas         = core("resourcequotas")
	// RangeAllocations are not served: cluster/api keeps in one which node ports are taken.
	RangeAllocations = core("rangeallocations")

	Deployments         = in("apps", "deployments")
	ReplicaSets         = in("apps", "replicasets")
	StatefulSets        = in("apps", "statefulsets")
	DaemonSets          = in("apps", "daemonsets")
	ControllerRevisions = in("apps", "controllerrevisions")
	Jobs                = in("batch", "jobs")
	CronJobs            = in("batch", "cronjobs")

	HorizontalPodAutoscalers = in("autoscaling", "horizontalpodautoscalers")
	PodDisruptionBudgets     = in("policy", "poddisruptionbudgets")

	NetworkPolicies = in("networking.k8s.io", "networkpolicies")
	Ingresses       = in("networking.k8s.io", "ingresses")
	IngressClasses  = in("networking.k8s.io", "ingressclasses")
	IPAddresses     = in("networking.k8s.io", "ipaddresses")
	ServiceCIDRs    = in("networking.k8s.io", "servicecidrs")
	EndpointSlices  = in("discovery.k8s.io", "endpointslices")

	Leases              = in("coordination.k8s.io", "leases")
	Roles               = in("rbac.authorization.k8s.io", "roles")
	RoleBindings        = in("rbac.authorization.k8s.io", "rolebindings")
	ClusterRoles        = in("rbac.authorization.k8s.io", "clusterroles")
	ClusterRoleBindings = in("rbac.authorization.k8s.io", "clusterrolebindings")

	StorageClasses             = in("storage.k8s.io", "storageclasses")
	CSIDrivers                 = in("storage.k8s.io", "csidrivers")
	CSINodes                   = in("storage.k8s.io", "csinodes")
	CSIStorageCapacities       = in("storage.k8s.io", "csistoragecapacities")
	VolumeAttachments          = in("storage.k8s.io", "volumeattachments")
	VolumeAttributesClasses    = in("storage.k8s.io", "volumeattributesclasses")
	PriorityClasses            = in("scheduling.k8s.io", "priorityclasses")
	RuntimeClasses             = in("node.k8s.io", "runtimeclasses")
	CertificateSigningRequests = in("certificates.k8s.io", "certificatesigningrequests")
)

func core(resource string) schema.GroupResource { return schema.GroupResource{Resource: resource} }

func in(group, resource string) schema.GroupResource {
	return schema.GroupResource{Group: group, Resource: resource}
}

// eventTTL and eventsPerNamespace bound what nobody deletes. The TTL is upstream's.
const (
	eventTTL           = time.Hour
	eventsPerNamespace = 5000
)

// All lists the built-in kinds.
func All() []store.Kind {
	return []store.Kind{
		cluster[corev1.Namespace](Namespaces, "v1", "Namespace"),
		cluster[corev1.Node](Nodes, "v1", "Node"),
		withIndexes(namespaced[corev1.Pod](Pods, "v1", "Pod"), map[string]func(store.Object) []string{
			ByNode:   func(o store.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} },
			ByClaim:  claimsOf,
			ByOrphan: orphansOf,
		}),
		namespaced[corev1.PodTemplate](PodTemplates, "v1", "PodTemplate"),
		namespaced[corev1.ReplicationController](ReplicationControllers, "v1", "ReplicationController"),
		namespaced[corev1.Service](Services, "v1", "Service"),
		//lint:ignore SA1019 clients still read and write them
		namespaced[corev1.Endpoints](Endpoints, "v1", "Endpoints"),
		namespaced[corev1.ConfigMap](ConfigMaps, "v1", "ConfigMap"),
		namespaced[corev1.Secret](Secrets, "v1", "Secret"),
		namespaced[corev1.ServiceAccount](ServiceAccounts, "v1", "ServiceAccount"),
		events(),
		cluster[corev1.PersistentVolume](PersistentVolumes, "v1", "PersistentVolume"),
		namespaced[corev1.PersistentVolumeClaim](PersistentVolumeClaims, "v1", "PersistentVolumeClaim"),
		namespaced[corev1.LimitRange](LimitRanges, "v1", "LimitRange"),
		namespaced[corev1.ResourceQuota](ResourceQuotas, "v1", "ResourceQuota"),
		cluster[corev1.RangeAllocation](RangeAllocations, "v1", "RangeAllocation"),

		namespaced[appsv1.Deployment](Deployments, "v1", "Deployment"),
		withIndexes(namespaced[appsv1.ReplicaSet](ReplicaSets, "v1", "ReplicaSet"), orphans),
		namespaced[appsv1.StatefulSet](StatefulSets, "v1", "StatefulSet"),
		namespaced[appsv1.DaemonSet](DaemonSets, "v1", "DaemonSet"),
		withIndexes(namespaced[appsv1.ControllerRevision](ControllerRevisions, "v1", "ControllerRevision"), orphans),
		namespaced[batchv1.Job](Jobs, "v1", "Job"),
		namespaced[batchv1.CronJob](CronJobs, "v1", "CronJob"),

		namespaced[autoscalingv2.HorizontalPodAutoscaler](HorizontalPodAutoscalers, "v2", "HorizontalPodAutoscaler"),
		namespaced[policyv1.PodDisruptionBudget](PodDisruptionBudgets, "v1", "PodDisruptionBudget"),

		namespaced[networkingv1.NetworkPolicy](NetworkPolicies, "v1", "NetworkPolicy"),
		namespaced[networkingv1.Ingress](Ingresses, "v1", "Ingress"),
		cluster[networkingv1.IngressClass](IngressClasses, "v1", "IngressClass"),
		cluster[networkingv1.IPAddress](IPAddresses, "v1", "IPAddress"),
		cluster[networkingv1.ServiceCIDR](ServiceCIDRs, "v1", "ServiceCIDR"),
		withIndexes(namespaced[discoveryv1.EndpointSlice](EndpointSlices, "v1", "EndpointSlice"), map[string]func(store.Object) []string{
			ByService: serviceOf,
		}),

		leases(),
		namespaced[rbacv1.Role](Roles, "v1", "Role"),
		namespaced[rbacv1.RoleBinding](RoleBindings, "v1", "RoleBinding"),
		cluster[rbacv1.ClusterRole](ClusterRoles, "v1", "ClusterRole"),
		cluster[rbacv1.ClusterRoleBinding](ClusterRoleBindings, "v1", "ClusterRoleBinding"),

		cluster[storagev1.StorageClass](StorageClasses, "v1", "StorageClass"),
		cluster[storagev1.CSIDriver](CSIDrivers, "v1", "CSIDriver"),
		cluster[storagev1.CSINode](CSINodes, "v1", "CSINode"),
		namespaced[storagev1.CSIStorageCapacity](CSIStorageCapacities, "v1", "CSIStorageCapacity"),
		cluster[storagev1.VolumeAttachment](VolumeAttachments, "v1", "VolumeAttachment"),
		cluster[storagev1.VolumeAttributesClass](VolumeAttributesClasses, "v1", "VolumeAttributesClass"),
		cluster[schedulingv1.PriorityClass](PriorityClasses, "v1", "PriorityClass"),
		cluster[nodev1.RuntimeClass](RuntimeClasses, "v1", "RuntimeClass"),
		cluster[certificatesv1.CertificateSigningRequest](CertificateSigningRequests, "v1", "CertificateSigningRequest"),
	}
}

// pointer is a *T that is an Object.
type pointer[T any] interface {
	*T
	store.Object
}

func namespaced[T any, P pointer[T]](gr schema.GroupResource, version, kind string) store.Kind {
	k := cluster[T, P](gr, version, kind)
	k.Namespaced = true
	return k
}

func cluster[T any, P pointer[T]](gr schema.GroupResource, version, kind string) store.Kind {
	return store.Kind{
		Resource: gr,
		GVK:      schema.GroupVersionKind{Group: gr.Group, Version: version, Kind: kind},
		New:      func() store.Object { return P(new(T)) },
		Indexes:  map[string]func(store.Object) []string{ByOwner: ownersOf},
	}
}

func withIndexes(k store.Kind, more map[string]func(store.Object) []string) store.Kind {
	for name, fn := range more {
		k.Indexes[name] = fn
	}
	return k
}

func events() store.Kind {
	k := namespaced[corev1.Event](Events, "v1", "Event")
	k.Volatile, k.TTL, k.MaxPerNamespace = true, eventTTL, eventsPerNamespace
	return k
}

// leases keeps node heartbeats off the disk, and every other lease on it: those decide
// who leads.
func leases() store.Kind {
	k := namespaced[coordinationv1.Lease](Leases, "v1", "Lease")
	k.Volatile = true
	k.Journal = func(o store.Object) bool { return o.GetNamespace() != corev1.NamespaceNodeLease }
	return k
}

func ownersOf(o store.Object) []string {
	refs := o.GetOwnerReferences()
	if len(refs) == 0 {
		return nil
	}
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = string(r.UID)
	}
	return out
}

var orphans = map[string]func(store.Object) []string{ByOrphan: orphansOf}

func orphansOf(o store.Object) []string {
	if metav1.GetControllerOfNoCopy(o) != nil {
		return nil
	}
	return []string{o.GetNamespace()}
}

func claimsOf(o store.Object) []string {
	pod := o.(*corev1.Pod)
	var out []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.PersistentVolumeClaim != nil:
			out = append(out, pod.Namespace+"/"+v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			out = append(out, pod.Namespace+"/"+pod.Name+"-"+v.Name)
		}
	}
	return out
}

func serviceOf(o store.Object) []string {
	if name := o.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
		return []string{o.GetNamespace() + "/" + name}
	}
	return nil
}
