package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// Direct writes into a store without an API server in between: no users, admission,
// defaults or validation. What controllers build on is there: names and UIDs, generations,
// a status apart, finalizers, graceful deletion of pods that run somewhere, propagation
// policies. It is for simulations and tests.
func Direct(s *Store) Writer { return direct{s} }

type direct struct{ s *Store }

func (d direct) As(string) Writer { return d }

func (d direct) resource(o Object) (schema.GroupResource, error) {
	gr, ok := d.s.ResourceOf(o)
	if !ok {
		return gr, apierrors.NewBadRequest(fmt.Sprintf("%T is not a kind of this store", o))
	}
	return gr, nil
}

func (d direct) Create(ctx context.Context, obj Object) (Object, error) {
	gr, err := d.resource(obj)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		o := Copy(obj)
		fill(o)
		done, err := d.s.Create(ctx, gr, o)
		if apierrors.IsAlreadyExists(err) && obj.GetName() == "" && try < 8 {
			continue
		}
		return done, err
	}
}

// fill does for a new object what the API server's rest.BeforeCreate does.
func fill(o Object) {
	if o.GetName() == "" && o.GetGenerateName() != "" {
		o.SetName(o.GetGenerateName() + suffix())
	}
	o.SetUID(uuid.NewUUID())
	o.SetCreationTimestamp(metav1.Now().Rfc3339Copy())
	o.SetDeletionTimestamp(nil)
	o.SetGeneration(1)
	switch o := o.(type) {
	case *corev1.Pod:
		if o.Status.Phase == "" {
			o.Status.Phase = corev1.PodPending
		}
	case *corev1.Namespace:
		if len(o.Spec.Finalizers) == 0 {
			o.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
		}
		o.Status.Phase = corev1.NamespaceActive
	}
}

// suffix is five characters of upstream's alphabet for generated names.
func suffix() string {
	const alphabet = "bcdfghjklmnpqrstvwxz2456789"
	var b [5]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b[:])
}

func (d direct) Update(ctx context.Context, obj Object) (Object, error) {
	return d.update(ctx, obj, func(next, cur Object) {
		if from := statusOf(cur); from.IsValid() {
			statusOf(next).Set(from)
		}
		if ns, ok := next.(*corev1.Namespace); ok {
			ns.Spec.Finalizers = cur.(*corev1.Namespace).Spec.Finalizers
		}
	})
}

func (d direct) UpdateStatus(ctx context.Context, obj Object) (Object, error) {
	return d.update(ctx, obj, func(next, cur Object) {
		status := reflect.New(statusOf(next).Type()).Elem()
		status.Set(statusOf(next))
		reflect.ValueOf(next).Elem().Set(reflect.ValueOf(cur).Elem())
		statusOf(next).Set(status)
		next.SetAnnotations(obj.GetAnnotations())
	})
}

func (d direct) Finalize(ctx context.Context, ns *corev1.Namespace) (*corev1.Namespace, error) {
	o, err := d.update(ctx, ns, func(next, cur Object) {
		finalizers := next.(*corev1.Namespace).Spec.Finalizers
		*next.(*corev1.Namespace) = *cur.(*corev1.Namespace)
		next.(*corev1.Namespace).Spec.Finalizers = finalizers
	})
	if err != nil {
		return nil, err
	}
	return o.(*corev1.Namespace), nil
}

// update merges obj with the current version and writes it. An unchanged object is not
// written: it would wake every watcher for nothing.
func (d direct) update(ctx context.Context, obj Object, merge func(next, cur Object)) (Object, error) {
	gr, err := d.resource(obj)
	if err != nil {
		return nil, err
	}
	want, err := ParseRevision(obj.GetResourceVersion())
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	for {
		cur, ok := d.s.Snapshot(gr).Get(obj.GetNamespace(), obj.GetName())
		if !ok {
			return nil, apierrors.NewNotFound(gr, obj.GetName())
		}
		rev, _ := ParseRevision(cur.GetResourceVersion())
		if want != 0 && want != rev {
			return nil, apierrors.NewConflict(gr, obj.GetName(), errChanged)
		}
		next := Copy(obj)
		merge(next, Copy(cur))
		keepMeta(next, cur)
		if equality.Semantic.DeepEqual(next, cur) {
			return cur, nil
		}
		done, err := d.write(ctx, gr, next, rev)
		if apierrors.IsConflict(err) && want == 0 {
			continue
		}
		return done, err
	}
}

// keepMeta restores what an update cannot change.
func keepMeta(next, cur Object) {
	next.SetUID(cur.GetUID())
	next.SetCreationTimestamp(cur.GetCreationTimestamp())
	next.SetDeletionTimestamp(cur.GetDeletionTimestamp())
	next.SetDeletionGracePeriodSeconds(cur.GetDeletionGracePeriodSeconds())
	next.SetResourceVersion(cur.GetResourceVersion())
	next.SetGeneration(cur.GetGeneration())
	next.GetObjectKind().SetGroupVersionKind(cur.GetObjectKind().GroupVersionKind())
	if spec := fieldOf(next, "Spec"); spec.IsValid() && !equality.Semantic.DeepEqual(spec.Interface(), fieldOf(cur, "Spec").Interface()) {
		next.SetGeneration(cur.GetGeneration() + 1)
	}
}

// write updates the object, or removes it when its last finalizer has gone.
func (d direct) write(ctx context.Context, gr schema.GroupResource, next Object, rev int64) (Object, error) {
	if next.GetDeletionTimestamp() == nil || hasFinalizers(next) || waitsForGrace(next) {
		return d.s.Update(ctx, gr, next, rev)
	}
	return d.s.Delete(ctx, gr, next.GetNamespace(), next.GetName(), Preconditions{Revision: rev})
}

func hasFinalizers(o Object) bool {
	if ns, ok := o.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return true
	}
	return len(o.GetFinalizers()) > 0
}

func waitsForGrace(o Object) bool {
	s := o.GetDeletionGracePeriodSeconds()
	return s != nil && *s > 0
}

func (d direct) Delete(ctx context.Context, gr schema.GroupResource, namespace, name string, opts metav1.DeleteOptions) error {
	for {
		cur, ok := d.s.Snapshot(gr).Get(namespace, name)
		if !ok {
			return apierrors.NewNotFound(gr, name)
		}
		if err := precondition(gr, cur, opts.Preconditions); err != nil {
			return err
		}
		rev, _ := ParseRevision(cur.GetResourceVersion())
		next := Copy(cur)
		markDeleted(next, opts)
		if equality.Semantic.DeepEqual(next, cur) {
			return nil
		}
		if _, err := d.write(ctx, gr, next, rev); !apierrors.IsConflict(err) {
			return err
		}
	}
}

func precondition(gr schema.GroupResource, cur Object, p *metav1.Preconditions) error {
	if p == nil {
		return nil
	}
	if p.UID != nil && *p.UID != cur.GetUID() {
		return apierrors.NewConflict(gr, cur.GetName(), fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, cur.GetUID()))
	}
	if p.ResourceVersion != nil && *p.ResourceVersion != cur.GetResourceVersion() {
		return apierrors.NewConflict(gr, cur.GetName(), errChanged)
	}
	return nil
}

// markDeleted sets the deletion timestamp, the grace of pods, and the finalizer that a
// propagation policy asks for.
func markDeleted(o Object, opts metav1.DeleteOptions) {
	grace := int64(0)
	if pod, ok := o.(*corev1.Pod); ok {
		grace = podGrace(pod, opts.GracePeriodSeconds)
	}
	if old := o.GetDeletionGracePeriodSeconds(); old == nil || grace < *old {
		at := metav1.NewTime(metav1.Now().Add(time.Duration(grace) * time.Second)).Rfc3339Copy()
		o.SetDeletionTimestamp(&at)
		o.SetDeletionGracePeriodSeconds(&grace)
		o.SetGeneration(o.GetGeneration() + 1)
	}
	if ns, ok := o.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	if opts.PropagationPolicy == nil {
		return
	}
	finalizers := slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool {
		return f == metav1.FinalizerDeleteDependents || f == metav1.FinalizerOrphanDependents
	})
	switch *opts.PropagationPolicy {
	case metav1.DeletePropagationForeground:
		finalizers = append(finalizers, metav1.FinalizerDeleteDependents)
	case metav1.DeletePropagationOrphan:
		finalizers = append(finalizers, metav1.FinalizerOrphanDependents)
	}
	o.SetFinalizers(finalizers)
}

// podGrace is what the pod strategy decides: a pod that runs nowhere has nothing to wait for.
func podGrace(pod *corev1.Pod, asked *int64) int64 {
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		return 0
	}
	switch {
	case asked != nil:
		return *asked
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		return *pod.Spec.TerminationGracePeriodSeconds
	}
	return corev1.DefaultTerminationGracePeriodSeconds
}

func (d direct) Bind(ctx context.Context, b *corev1.Binding) error {
	gr := schema.GroupResource{Resource: "pods"}
	for {
		pod, ok := Get[*corev1.Pod](d.s, gr, b.Namespace, b.Name)
		if !ok {
			return apierrors.NewNotFound(gr, b.Name)
		}
		if err := bindable(gr, pod, b); err != nil {
			return err
		}
		rev, _ := ParseRevision(pod.ResourceVersion)
		// What is not changed is shared with the version before.
		next := shallowCopy(pod).(*corev1.Pod)
		next.Spec.NodeName = b.Target.Name
		next.Status.Conditions = scheduled(pod.Status.Conditions)
		if _, err := d.s.Update(ctx, gr, next, rev); !apierrors.IsConflict(err) {
			return err
		}
	}
}

func bindable(gr schema.GroupResource, pod *corev1.Pod, b *corev1.Binding) error {
	switch {
	case b.UID != "" && b.UID != pod.UID:
		return apierrors.NewConflict(gr, b.Name, fmt.Errorf("the UID in the binding (%s) is not the pod's (%s)", b.UID, pod.UID))
	case pod.DeletionTimestamp != nil:
		return apierrors.NewConflict(gr, b.Name, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", b.Name))
	case pod.Spec.NodeName != "":
		return apierrors.NewConflict(gr, b.Name, fmt.Errorf("pod %s is already assigned to node %q", b.Name, pod.Spec.NodeName))
	}
	return nil
}

func scheduled(old []corev1.PodCondition) []corev1.PodCondition {
	out := make([]corev1.PodCondition, 0, len(old)+1)
	for _, c := range old {
		if c.Type != corev1.PodScheduled {
			out = append(out, c)
		}
	}
	return append(out, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now().Rfc3339Copy()})
}

func statusOf(o Object) reflect.Value { return fieldOf(o, "Status") }

// fieldOf is a field of the object's struct, or the zero Value if its kind has none.
func fieldOf(o Object, name string) reflect.Value {
	v := reflect.ValueOf(o).Elem()
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.FieldByName(name)
}

// UIDOf is a pointer to an object's UID, for metav1.Preconditions.
func UIDOf(o metav1.Object) *types.UID {
	uid := o.GetUID()
	return &uid
}
