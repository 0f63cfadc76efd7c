package api

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	// Upstream's groups enter its scheme in their init functions; its REST storages look
	// there and nowhere else, so the scheme is the one global that cannot be avoided.
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"

	"slipway.dev/slipway/cluster/store"
)

var scheme = legacyscheme.Scheme

// toStored is the v1 form of an internal object, defaulted, sharing nothing with it.
//
// Only copying conversions cross this border. Upstream's unsafe ones cast pointers, so that
// the internal object and the v1 object are the same memory, and strategies write into what
// they are given.
func toStored(obj runtime.Object, gvk schema.GroupVersionKind) (store.Object, error) {
	out, err := scheme.ConvertToVersion(obj, gvk.GroupVersion())
	if err != nil {
		return nil, err
	}
	scheme.Default(out) // admission and strategies add parts that no decoder has defaulted
	return out.(store.Object), nil
}

// toInternal is a private copy of a frozen object in the form that upstream's strategies take.
func toInternal(obj runtime.Object, group string) (runtime.Object, error) {
	return scheme.ConvertToVersion(obj, schema.GroupVersion{Group: group, Version: runtime.APIVersionInternal})
}

// Default fills in an object's defaults, for objects that an older release has stored.
func Default(o store.Object) { scheme.Default(o) }
