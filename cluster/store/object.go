package store

import (
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Object is any API object in its v1 form. An Object that came out of the store is frozen.
type Object interface {
	runtime.Object
	metav1.Object
}

// Kind describes one resource to the store.
type Kind struct {
	Resource   schema.GroupResource
	GVK        schema.GroupVersionKind
	Namespaced bool
	New        func() Object

	// Indexes are secondary indexes: a name, and the values an object is found under.
	// They run once per version and must depend on the object alone.
	Indexes map[string]func(Object) []string

	// Volatile objects are kept in memory only, in a keyspace of their own.
	Volatile bool
	// Journal names the objects of a volatile kind that must survive a restart all the
	// same (leader-election leases beside node leases); nil means none.
	Journal func(Object) bool
	// TTL ends a volatile object's life this long after its last write; 0 means never.
	TTL time.Duration
	// MaxPerNamespace bounds a volatile kind: the oldest make room; 0 means no bound.
	MaxPerNamespace int
}

// Key is an object's place in its table: "namespace/name", or "name" when it has no namespace.
// Tables, snapshots and pages are in the order of this string.
func Key(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

// KeyOf is the Key of an object.
func KeyOf(o metav1.Object) string { return Key(o.GetNamespace(), o.GetName()) }

// EventType says what happened to an object.
type EventType uint8

const (
	Added EventType = iota + 1
	Modified
	Deleted
	// Bookmark carries no object: everything up to its Revision has been seen.
	Bookmark
)

func (t EventType) String() string {
	switch t {
	case Added:
		return "ADDED"
	case Modified:
		return "MODIFIED"
	case Deleted:
		return "DELETED"
	case Bookmark:
		return "BOOKMARK"
	}
	return fmt.Sprintf("EventType(%d)", uint8(t))
}

// Event is one change of one object, as a Cursor reports it.
type Event struct {
	Type EventType
	// Object is the new version. For Deleted it is the last version, carrying the
	// revision of the deletion. It is nil for Bookmark.
	Object Object
	// Prev is the version before (nil for Added), so that a watcher with a selector can
	// tell "left my selection" from "changed within it".
	Prev     Object
	Revision int64

	shared *encodings
}

// ErrTooOld answers a watch or an exact read of a revision that history no longer covers:
// the reader has to list again (HTTP 410).
var ErrTooOld = errors.New("too old resource version: history no longer covers it, list again")

// ErrFuture answers a read of a revision that has not been reached (HTTP 504 with a cause
// of ResourceVersionTooLarge).
var ErrFuture = errors.New("too large resource version: it has not been reached yet, retry")

// ErrReadOnly answers a write to a mirror.
var ErrReadOnly = errors.New("this store mirrors another one and is read-only: write to its source")

// ErrClosed answers every call that would wait on a closed store.
var ErrClosed = errors.New("the store is closed")
