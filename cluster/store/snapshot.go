package store

import (
	"fmt"
	"iter"
	"slices"

	"github.com/google/btree"
)

// item is one version of one object. It never changes once published.
type item struct {
	key  string
	obj  Object
	rev  int64
	size int    // encoded bytes
	sum  uint64 // hash of the encoding, with Options.Detector
}

// indexEntry names an object by its key, not by its version: a write that leaves an
// object's values alone, as most do, leaves the index alone.
type indexEntry struct {
	value, key string
}

func lessItem(a, b *item) bool { return a.key < b.key }

func lessEntry(a, b indexEntry) bool {
	if a.value != b.value {
		return a.value < b.value
	}
	return a.key < b.key
}

// state is one immutable version of a table. Its trees are clones that nobody writes to.
type state struct {
	items   *btree.BTreeG[*item]
	names   []string // of the indexes; all states of a table share it
	indexes []*btree.BTreeG[indexEntry]
	rev     int64 // the newest event applied
}

// Snapshot is one consistent state of one resource. It stays as it is for as long as it
// is held, and costs nothing but the memory of what has changed since.
type Snapshot struct {
	s   *state
	rev int64
}

// Revision is the revision at which this is the state.
func (s Snapshot) Revision() int64 { return s.rev }

// Same says that two snapshots of one resource hold the very same objects, so that what was
// worked out from one is good for the other.
func (s Snapshot) Same(o Snapshot) bool { return s.s == o.s }

// Len is the number of objects.
func (s Snapshot) Len() int { return s.s.items.Len() }

// Get is the object of that name.
func (s Snapshot) Get(namespace, name string) (Object, bool) {
	it, ok := s.s.items.Get(&item{key: Key(namespace, name)})
	if !ok {
		return nil, false
	}
	return it.obj, true
}

// All is every object in a namespace ("" for all namespaces), in key order.
func (s Snapshot) All(namespace string) iter.Seq[Object] {
	return func(yield func(Object) bool) {
		for _, o := range s.From(namespace, "") {
			if !yield(o) {
				return
			}
		}
	}
}

// From is All with the keys, beginning at the first key that is not less than start:
// a page ends by remembering where it stopped.
func (s Snapshot) From(namespace, start string) iter.Seq2[string, Object] {
	prefix := ""
	if namespace != "" {
		prefix = namespace + "/"
	}
	return func(yield func(string, Object) bool) {
		s.s.items.AscendGreaterOrEqual(&item{key: max(prefix, start)}, func(it *item) bool {
			if prefix != "" && (len(it.key) < len(prefix) || it.key[:len(prefix)] != prefix) {
				return false
			}
			return yield(it.key, it.obj)
		})
	}
}

// Index is every object that the named index finds under value, in key order.
func (s Snapshot) Index(name, value string) []Object {
	i := slices.Index(s.s.names, name)
	if i < 0 {
		panic(fmt.Sprintf("store: no index %q: name it in the Kind", name))
	}
	var out []Object
	s.s.indexes[i].AscendGreaterOrEqual(indexEntry{value: value}, func(e indexEntry) bool {
		if e.value != value {
			return false
		}
		if it, ok := s.s.items.Get(&item{key: e.key}); ok {
			out = append(out, it.obj)
		}
		return true
	})
	return out
}
