package store

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

var unstructuredType = reflect.TypeFor[*unstructured.Unstructured]()

type operation uint8

const (
	opCreate operation = iota
	opUpdate
	opDelete
)

// write is one conditional write of one object.
type write struct {
	t      *table
	op     operation
	key    string
	obj    Object    // nil for opDelete
	data   []byte    // obj encoded
	expect int64     // the version to replace; 0 for any
	uid    types.UID // the object to delete; "" for any
}

// prepare encodes the object, before any lock is taken.
func (w *write) prepare() error {
	if w.key == "" || strings.HasSuffix(w.key, "/") {
		return apierrors.NewBadRequest(fmt.Sprintf("%s: an object needs a name", w.t.kind.Resource))
	}
	if w.t.kind.Namespaced != strings.Contains(w.key, "/") {
		return apierrors.NewBadRequest(fmt.Sprintf("%s %q: namespace given or missing against its kind", w.t.kind.Resource, w.key))
	}
	if w.obj == nil {
		return nil
	}
	data, err := encode(w.obj)
	if err != nil {
		return fmt.Errorf("encode %s %q: %w", w.t.kind.Resource, w.key, err)
	}
	w.data = data
	return nil
}

func (w *write) name() string { return w.key[strings.LastIndexByte(w.key, '/')+1:] }

// check compares the write with the current version; nil means it may go ahead.
func (w *write) check(cur *item) error {
	gr := w.t.kind.Resource
	switch {
	case w.op == opCreate && cur != nil:
		return apierrors.NewAlreadyExists(gr, w.name())
	case w.op == opCreate:
		return nil
	case cur == nil:
		return apierrors.NewNotFound(gr, w.name())
	case w.uid != "" && w.uid != cur.obj.GetUID():
		return apierrors.NewConflict(gr, w.name(), fmt.Errorf("precondition failed: UID in precondition: %v, UID in object meta: %v", w.uid, cur.obj.GetUID()))
	case w.expect != 0 && w.expect != cur.rev:
		return apierrors.NewConflict(gr, w.name(), errChanged)
	}
	return nil
}

// errChanged is upstream's wording: clients show it, and some compare it.
var errChanged = errors.New("the object has been modified; please apply your changes to the latest version and try again")

// change is what the write publishes, at the revision it was given.
func (w *write) change(cur *item, rev int64) change {
	if w.op == opDelete {
		return change{it: w.t.tombstone(cur, rev), deleted: true}
	}
	return change{it: w.t.seal(w.obj, w.key, rev, len(w.data))}
}
