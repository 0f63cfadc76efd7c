// Package garbage deletes objects whose owners have gone.
//
// An object lives as long as one of its owners does. Deleting an owner in the background
// leaves its dependents to this controller; in the foreground, the owner waits (finalizer
// "foregroundDeletion") until the dependents that block it are gone; orphaning (finalizer
// "orphan") makes them forget the owner first.
//
// There is no graph in memory beside the store: who depends on whom is an index of it.
// classify is pure.
package garbage

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const name = "generic-garbage-collector"

// Controller collects garbage of all its kinds.
type Controller struct {
	*controller.Loop
	deps   controller.Deps
	kinds  []store.Kind
	byKind map[schema.GroupKind]store.Kind
}

// New makes the controller for the given kinds.
func New(d controller.Deps, all []store.Kind) *Controller {
	c := &Controller{deps: d.For(name), byKind: map[schema.GroupKind]store.Kind{}}
	var watches []controller.Watch
	for _, k := range all {
		if _, owned := k.Indexes[kinds.ByOwner]; !owned || k.Resource == kinds.Events {
			continue
		}
		c.kinds = append(c.kinds, k)
		c.byKind[k.GVK.GroupKind()] = k
		watches = append(watches, controller.Watch{Resource: k.Resource, Keys: func(e store.Event) []string { return c.keys(k, e) }})
	}
	c.Loop = &controller.Loop{ControllerName: name, Reader: d.Reader, Log: c.deps.Log, Workers: 8, Sync: c.sync, Watches: watches}
	return c
}

// A key is the resource and the object's key.
func keyOf(gr schema.GroupResource, key string) string { return gr.String() + "|" + key }

func splitKey(key string) (schema.GroupResource, string) {
	gr, rest, _ := strings.Cut(key, "|")
	return schema.ParseGroupResource(gr), rest
}

// keys are the objects whose fate an event may decide.
func (c *Controller) keys(k store.Kind, e store.Event) []string {
	if e.Type == store.Deleted {
		return c.orphans(e.Object)
	}
	owners := e.Object.GetOwnerReferences()
	waiting := e.Object.GetDeletionTimestamp() != nil && len(e.Object.GetFinalizers()) > 0
	changed := e.Prev == nil || !slices.EqualFunc(owners, e.Prev.GetOwnerReferences(), func(a, b metav1.OwnerReference) bool {
		return a.UID == b.UID && blocks(a) == blocks(b)
	})
	var keys []string
	if waiting || (len(owners) > 0 && changed) {
		keys = append(keys, keyOf(k.Resource, store.KeyOf(e.Object)))
	}
	if changed && e.Prev != nil {
		keys = append(keys, c.waitingOwners(e.Prev)...)
	}
	return keys
}

// blocks says whether an owner in foreground deletion waits for the object that has the reference.
func blocks(ref metav1.OwnerReference) bool {
	return ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
}

// waitingOwners are the owners of an object that are being deleted: one may have waited
// for it alone.
func (c *Controller) waitingOwners(o store.Object) []string {
	var keys []string
	for _, ref := range o.GetOwnerReferences() {
		if k, owner, ok := c.owner(ref, o.GetNamespace()); ok && owner != nil && owner.GetDeletionTimestamp() != nil {
			keys = append(keys, keyOf(k.Resource, store.KeyOf(owner)))
		}
	}
	return keys
}

// orphans are the dependents of an object that has gone, and the owners that waited for it.
func (c *Controller) orphans(gone store.Object) []string {
	var keys []string
	c.eachDependent(gone, func(gr schema.GroupResource, o store.Object) {
		keys = append(keys, keyOf(gr, store.KeyOf(o)))
	})
	return append(keys, c.waitingOwners(gone)...)
}

// eachDependent visits what depends on an object. What lives in one namespace owns nothing in another: such a reference
// leads to nobody, and must not hold its object up.
func (c *Controller) eachDependent(owner store.Object, visit func(schema.GroupResource, store.Object)) {
	for _, k := range c.kinds {
		for _, o := range c.deps.Reader.Snapshot(k.Resource).Index(kinds.ByOwner, string(owner.GetUID())) {
			if owner.GetNamespace() == "" || owner.GetNamespace() == o.GetNamespace() {
				visit(k.Resource, o)
			}
		}
	}
}

// owner finds the object that a reference names: nil if it has gone. It is not ok when
// the kind is not known here: then nothing can be said, and nothing is deleted.
func (c *Controller) owner(ref metav1.OwnerReference, namespace string) (store.Kind, store.Object, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return store.Kind{}, nil, false
	}
	k, ok := c.byKind[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	if !ok || (k.Namespaced && namespace == "") {
		return store.Kind{}, nil, false
	}
	if !k.Namespaced {
		namespace = ""
	}
	o, found := c.deps.Reader.Snapshot(k.Resource).Get(namespace, ref.Name)
	if !found || o.GetUID() != ref.UID {
		return k, nil, true
	}
	return k, o, true
}

func (c *Controller) sync(ctx context.Context, key string) (time.Duration, error) {
	gr, okey := splitKey(key)
	ns, n := controller.SplitKey(okey)
	o, ok := c.deps.Reader.Snapshot(gr).Get(ns, n)
	if !ok {
		return 0, nil
	}
	if o.GetDeletionTimestamp() != nil {
		return 0, c.deleting(ctx, o)
	}
	return 0, c.living(ctx, gr, o)
}

// deleting serves the finalizers that are this controller's.
func (c *Controller) deleting(ctx context.Context, o store.Object) error {
	switch {
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents):
		return c.orphan(ctx, o)
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return c.foreground(ctx, o)
	}
	return nil
}

// orphan makes all dependents forget the object.
func (c *Controller) orphan(ctx context.Context, o store.Object) error {
	var dependents []store.Object
	c.eachDependent(o, func(_ schema.GroupResource, d store.Object) { dependents = append(dependents, d) })
	_, err := controller.Parallel(ctx, len(dependents), func(ctx context.Context, i int) error {
		return c.forget(ctx, dependents[i], []types.UID{o.GetUID()})
	})
	if err != nil {
		return err
	}
	return c.dropFinalizer(ctx, o, metav1.FinalizerOrphanDependents)
}

// foreground deletes all dependents, and lets the object go when none of those that
// block it is left.
func (c *Controller) foreground(ctx context.Context, o store.Object) error {
	blocked := false
	type dependent struct {
		gr schema.GroupResource
		o  store.Object
	}
	var dependents []dependent
	c.eachDependent(o, func(gr schema.GroupResource, d store.Object) {
		for _, ref := range d.GetOwnerReferences() {
			if ref.UID == o.GetUID() && blocks(ref) {
				blocked = true
			}
		}
		if d.GetDeletionTimestamp() == nil {
			dependents = append(dependents, dependent{gr, d})
		}
	})
	if !blocked {
		return c.dropFinalizer(ctx, o, metav1.FinalizerDeleteDependents)
	}
	_, err := controller.Parallel(ctx, len(dependents), func(ctx context.Context, i int) error {
		return c.living(ctx, dependents[i].gr, dependents[i].o)
	})
	return err
}

// standing is what an object's owners say about it.
type standing struct {
	solid    int         // owners that live
	dangling []types.UID // owners that have gone
	waiting  []types.UID // owners in foreground deletion that wait for this object
}

// living decides about an object that nobody has deleted.
func (c *Controller) living(ctx context.Context, gr schema.GroupResource, o store.Object) error {
	if len(o.GetOwnerReferences()) == 0 {
		return nil
	}
	s := c.classify(o)
	switch {
	case s.solid > 0 && len(s.dangling)+len(s.waiting) > 0:
		return c.forget(ctx, o, append(s.dangling, s.waiting...))
	case s.solid > 0:
		return nil
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents), len(s.waiting) > 0 && c.hasDependents(o):
		policy = metav1.DeletePropagationForeground
	}
	if policy == metav1.DeletePropagationForeground && c.inCircle(o) {
		var err error
		if o, err = c.unblock(ctx, o); o == nil || err != nil {
			return err
		}
	}
	err := c.deps.Writer.Delete(ctx, gr, o.GetNamespace(), o.GetName(), metav1.DeleteOptions{
		PropagationPolicy: &policy,
		Preconditions:     &metav1.Preconditions{UID: store.UIDOf(o), ResourceVersion: new(o.GetResourceVersion())},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s %q, whose owner has gone: %w", gr, store.KeyOf(o), err)
	}
	return nil
}

func (c *Controller) hasDependents(o store.Object) bool {
	found := false
	c.eachDependent(o, func(schema.GroupResource, store.Object) { found = true })
	return found
}

// inCircle says whether a dependent of the object waits for its own dependents: this object may be one of
// them, by way of others, and all of them would wait for ever.
func (c *Controller) inCircle(o store.Object) bool {
	found := false
	c.eachDependent(o, func(_ schema.GroupResource, d store.Object) {
		found = found || d.GetDeletionTimestamp() != nil && slices.Contains(d.GetFinalizers(), metav1.FinalizerDeleteDependents)
	})
	return found
}

// unblock lets the object's owners go before it; nil: it has gone itself.
func (c *Controller) unblock(ctx context.Context, o store.Object) (store.Object, error) {
	next := store.Copy(o)
	refs := next.GetOwnerReferences()
	for i := range refs {
		refs[i].BlockOwnerDeletion = new(false)
	}
	next.SetOwnerReferences(refs)
	return c.update(ctx, next)
}

func (c *Controller) classify(o store.Object) standing {
	var s standing
	for _, ref := range o.GetOwnerReferences() {
		_, owner, known := c.owner(ref, o.GetNamespace())
		switch {
		case !known:
			s.solid++
		case owner == nil:
			s.dangling = append(s.dangling, ref.UID)
		case owner.GetDeletionTimestamp() != nil && slices.Contains(owner.GetFinalizers(), metav1.FinalizerDeleteDependents) && blocks(ref):
			s.waiting = append(s.waiting, ref.UID)
		default:
			s.solid++
		}
	}
	return s
}

// forget removes references to owners from an object.
func (c *Controller) forget(ctx context.Context, o store.Object, owners []types.UID) error {
	return c.change(ctx, o, func(next store.Object) {
		next.SetOwnerReferences(slices.DeleteFunc(next.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return slices.Contains(owners, r.UID) }))
	})
}

func (c *Controller) dropFinalizer(ctx context.Context, o store.Object, finalizer string) error {
	return c.change(ctx, o, func(next store.Object) {
		next.SetFinalizers(slices.DeleteFunc(next.GetFinalizers(), func(f string) bool { return f == finalizer }))
	})
}

func (c *Controller) change(ctx context.Context, o store.Object, fn func(store.Object)) error {
	next := store.Copy(o)
	fn(next)
	_, err := c.update(ctx, next)
	return err
}

// update writes an object; nil without an error: it has gone.
func (c *Controller) update(ctx context.Context, o store.Object) (store.Object, error) {
	done, err := c.deps.Writer.Update(ctx, o)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("update %T %q: %w", o, store.KeyOf(o), err)
	}
	return done, nil
}
