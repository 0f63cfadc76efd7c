package store

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Reader is how everything in the cluster reads: in place, without waiting.
type Reader interface {
	// Snapshot is the newest state of one resource; it panics for a resource that the
	// store does not hold, because that is a wiring mistake.
	Snapshot(schema.GroupResource) Snapshot
	// Watch reports every change after revision from; 0 means from now on, and the
	// Cursor's Snapshot is then exactly the state it continues.
	Watch(gr schema.GroupResource, from int64) (*Cursor, error)
	// Revision is the newest published revision of the durable keyspace.
	Revision() int64
}

// Writer is how controllers, scheduler and node agents write: as a user, through
// admission and validation (cluster/api's in-process client), or straight into a store in
// simulations and tests (Direct). Errors are apimachinery's API errors.
//
// The objects passed in stay the caller's; the objects returned are frozen.
type Writer interface {
	// Create makes the object named in its metadata (or by its generateName).
	Create(ctx context.Context, obj Object) (Object, error)
	// Update replaces all but the status. A resourceVersion in obj makes it conditional.
	Update(ctx context.Context, obj Object) (Object, error)
	// UpdateStatus replaces the status, and the annotations where the kind's strategy allows
	// it: the deployment controller writes both at once.
	UpdateStatus(ctx context.Context, obj Object) (Object, error)
	// Finalize is the namespaces/finalize subresource: it replaces spec.finalizers.
	Finalize(ctx context.Context, ns *corev1.Namespace) (*corev1.Namespace, error)
	Delete(ctx context.Context, gr schema.GroupResource, namespace, name string, opts metav1.DeleteOptions) error
	// Bind is the pods/binding subresource.
	Bind(ctx context.Context, b *corev1.Binding) error
	// As is the same writer speaking for another user, such as
	// "system:serviceaccount:kube-system:deployment-controller".
	As(user string) Writer
}

// Get is the object of that name, if there is one of type T.
func Get[T Object](r Reader, gr schema.GroupResource, namespace, name string) (T, bool) {
	o, _ := r.Snapshot(gr).Get(namespace, name)
	t, ok := o.(T)
	return t, ok
}

// List is every object of a resource in one namespace ("" for all), in key order.
func List[T Object](r Reader, gr schema.GroupResource, namespace string) []T {
	var out []T
	for o := range r.Snapshot(gr).All(namespace) {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// Indexed is every object found under value in one of the Kind's Indexes, in key order.
func Indexed[T Object](r Reader, gr schema.GroupResource, index, value string) []T {
	objs := r.Snapshot(gr).Index(index, value)
	out := make([]T, 0, len(objs))
	for _, o := range objs {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// Copy is a private copy of a frozen object, free to be changed.
func Copy[T Object](o T) T { return o.DeepCopyObject().(T) }
