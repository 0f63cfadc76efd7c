package statefulset

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"slipway.dev/slipway/cluster/controller"
	"slipway.dev/slipway/cluster/store/kinds"
)

const hashLabel = "controller.kubernetes.io/hash"

// history is a set's templates: the one its pods come from, and the one they go to.
type history struct {
	all             []*appsv1.ControllerRevision // oldest first
	current, update *appsv1.ControllerRevision
	collisions      *int32
}

// revisions finds the set's revisions and writes the newest one if it is new.
func (c *Controller) revisions(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) (history, error) {
	all, err := controller.Claimed[*appsv1.ControllerRevision](ctx, c.deps, controller.Claim{Owner: set, GVK: gvk, Selector: selector, Resource: kinds.ControllerRevisions})
	if err != nil {
		return history{}, err
	}
	slices.SortStableFunc(all, func(a, b *appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	h := history{all: all, collisions: set.Status.CollisionCount}
	if h.update, err = c.updateRevision(ctx, set, &h); err != nil {
		return history{}, err
	}
	h.current = h.update
	for _, r := range all {
		if r.Name == set.Status.CurrentRevision {
			h.current = r
		}
	}
	return h, nil
}

func (c *Controller) updateRevision(ctx context.Context, set *appsv1.StatefulSet, h *history) (*appsv1.ControllerRevision, error) {
	data, err := patchOf(set)
	if err != nil {
		return nil, err
	}
	next := int64(1)
	var equal *appsv1.ControllerRevision
	for _, r := range h.all {
		next = r.Revision + 1
		if bytes.Equal(r.Data.Raw, data) {
			equal = r
		}
	}
	switch {
	case equal != nil && equal.Revision == next-1:
		return equal, nil
	case equal != nil: // rolled back: an old template is the newest again
		r := equal.DeepCopy()
		r.Revision = next
		done, err := c.deps.Writer.Update(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("update revision %q: %w", r.Name, err)
		}
		return done.(*appsv1.ControllerRevision), nil
	}
	return c.createRevision(ctx, set, h, data, next)
}

// createRevision names the revision by the hash of its data; another one of that name
// counts as a collision, and the next name is tried.
func (c *Controller) createRevision(ctx context.Context, set *appsv1.StatefulSet, h *history, data []byte, number int64) (*appsv1.ControllerRevision, error) {
	collisions := int32(0)
	if h.collisions != nil {
		collisions = *h.collisions
	}
	for ; ; collisions++ {
		r := newRevision(set, data, number, collisions)
		done, err := c.deps.Writer.Create(ctx, r)
		if apierrors.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create revision %q: %w", r.Name, err)
		}
		if collisions > 0 {
			h.collisions = &collisions
		}
		return done.(*appsv1.ControllerRevision), nil
	}
}

func newRevision(set *appsv1.StatefulSet, data []byte, number int64, collisions int32) *appsv1.ControllerRevision {
	h := fnv.New32()
	h.Write(data)
	h.Write([]byte(strconv.Itoa(int(collisions))))
	hash := rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
	l := maps.Clone(set.Spec.Template.Labels)
	if l == nil {
		l = map[string]string{}
	}
	l[hashLabel] = hash
	const maxPrefix = 223
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: set.Namespace, Name: set.Name[:min(len(set.Name), maxPrefix)] + "-" + hash, Labels: l, Annotations: maps.Clone(set.Annotations),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(set, gvk)},
		},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
}

// patchOf is the template as kubectl rollout history and undo expect it: a strategic merge
// patch that replaces the set's.
func patchOf(set *appsv1.StatefulSet) ([]byte, error) {
	raw, err := json.Marshal(set.Spec.Template)
	if err != nil {
		return nil, fmt.Errorf("encode the template of stateful set %q: %w", set.Name, err)
	}
	var template map[string]any
	if err := json.Unmarshal(raw, &template); err != nil {
		return nil, fmt.Errorf("encode the template of stateful set %q: %w", set.Name, err)
	}
	template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
}

// templateOf is the reverse of patchOf.
func templateOf(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var v struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &v); err != nil {
		return nil, fmt.Errorf("controller revision %q cannot be read: %w", r.Name, err)
	}
	return &v.Spec.Template, nil
}
