package controller

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// Claim is how a controller finds the objects that are its own: those that it controls
// and that match its selector. Those that match and have no controller are adopted; those
// that it controls and that no longer match are released.
type Claim struct {
	Owner    store.Object
	GVK      schema.GroupVersionKind
	Selector labels.Selector
	Resource schema.GroupResource // of the dependents
	// Matches narrows adoption and release further than the selector; nil: it does not.
	Matches func(store.Object) bool
	// Held says whether an object gets Finalizer with its owner; nil: none does. Whoever is
	// released loses it.
	Held      func(store.Object) bool
	Finalizer string
}

func (c Claim) matches(o store.Object) bool {
	return c.Selector.Matches(labels.Set(o.GetLabels())) && (c.Matches == nil || c.Matches(o))
}

// Claimed finds, adopts and releases, and returns the owner's objects in key order.
func Claimed[T store.Object](ctx context.Context, d Deps, c Claim) ([]T, error) {
	snap := d.Reader.Snapshot(c.Resource)
	candidates := append(snap.Index(kinds.ByOwner, string(c.Owner.GetUID())), snap.Index(kinds.ByOrphan, c.Owner.GetNamespace())...)
	var mine []T
	for _, o := range candidates {
		if o.GetNamespace() != c.Owner.GetNamespace() {
			continue // anybody may write a reference; owners are of one's own namespace
		}
		kept, err := c.consider(ctx, d, o)
		if err != nil {
			return nil, err
		}
		if kept != nil {
			mine = append(mine, kept.(T))
		}
	}
	slices.SortFunc(mine, func(a, b T) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return mine, nil
}

// consider returns the object if it is the owner's: as it was, or adopted.
func (c Claim) consider(ctx context.Context, d Deps, o store.Object) (store.Object, error) {
	ref := metav1.GetControllerOfNoCopy(o)
	switch {
	case ref != nil && ref.UID != c.Owner.GetUID():
		return nil, nil
	case ref != nil && c.matches(o):
		return o, nil
	case ref != nil:
		if c.Owner.GetDeletionTimestamp() != nil {
			return nil, nil
		}
		return nil, c.release(ctx, d, o)
	case !c.matches(o) || o.GetDeletionTimestamp() != nil || c.Owner.GetDeletionTimestamp() != nil:
		return nil, nil
	}
	return c.adopt(ctx, d, o)
}

func (c Claim) adopt(ctx context.Context, d Deps, o store.Object) (store.Object, error) {
	next := store.Copy(o)
	next.SetOwnerReferences(append(next.GetOwnerReferences(), *metav1.NewControllerRef(c.Owner, c.GVK)))
	if c.Held != nil && c.Held(o) && !slices.Contains(next.GetFinalizers(), c.Finalizer) {
		next.SetFinalizers(append(next.GetFinalizers(), c.Finalizer))
	}
	done, err := d.Writer.Update(ctx, next)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("adopt %s %q: %w", c.Resource, store.KeyOf(o), err)
	}
	return done, nil
}

func (c Claim) release(ctx context.Context, d Deps, o store.Object) error {
	next := store.Copy(o)
	next.SetOwnerReferences(slices.DeleteFunc(next.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
		return r.UID == c.Owner.GetUID()
	}))
	if c.Held != nil {
		next.SetFinalizers(slices.DeleteFunc(next.GetFinalizers(), func(f string) bool { return f == c.Finalizer }))
	}
	_, err := d.Writer.Update(ctx, next)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("release %s %q: %w", c.Resource, store.KeyOf(o), err)
	}
	return nil
}

// ControllerKey is the key of the controller of an object if it is of that kind.
func ControllerKey(o store.Object, kind string) []string {
	if ref := metav1.GetControllerOfNoCopy(o); ref != nil && ref.Kind == kind {
		return []string{store.Key(o.GetNamespace(), ref.Name)}
	}
	return nil
}

// OwnerKeys are the owners of a kind whose dependent an event is about: its controller now, and the one it had.
func OwnerKeys(e store.Event, kind string) []string {
	keys := ControllerKey(e.Object, kind)
	if e.Prev != nil {
		for _, k := range ControllerKey(e.Prev, kind) {
			if !slices.Contains(keys, k) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// Adopters are the keys of the owners that could claim the object of an event, because it has no controller
// and their selector matches it.
func Adopters(r store.Reader, e store.Event, owners schema.GroupResource, selector func(store.Object) *metav1.LabelSelector) []string {
	if e.Type == store.Deleted || metav1.GetControllerOfNoCopy(e.Object) != nil {
		return nil
	}
	var keys []string
	for o := range r.Snapshot(owners).All(e.Object.GetNamespace()) {
		sel, err := metav1.LabelSelectorAsSelector(selector(o))
		if err == nil && !sel.Empty() && sel.Matches(labels.Set(e.Object.GetLabels())) {
			keys = append(keys, store.KeyOf(o))
		}
	}
	return keys
}
