package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// protoMessage is what every built-in kind implements.
type protoMessage interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// encode is an object's stored form: protobuf where the kind has it. It leaves out the
// resource version, which is the back end's to give. Marshalling also fills what the
// object computes lazily (resource.Quantity caches its text in the receiver), so that
// later readers only read: an object is encoded once before anybody else sees it.
func encode(o Object) ([]byte, error) {
	o.SetResourceVersion("")
	return marshal(o)
}

func marshal(o Object) ([]byte, error) {
	if m, ok := o.(protoMessage); ok {
		return m.Marshal()
	}
	return json.Marshal(o)
}

// decode is the reverse of encode.
func decode(k *Kind, data []byte) (Object, error) {
	o := k.New()
	if m, ok := o.(protoMessage); ok {
		if err := m.Unmarshal(data); err != nil {
			return nil, err
		}
	} else if err := json.Unmarshal(data, o); err != nil {
		return nil, err
	}
	return o, nil
}

// seal gives an encoded object its revision and its type, and makes it an item. From here
// on nobody changes it.
func (t *table) seal(o Object, key string, rev int64, size int) *item {
	o.SetResourceVersion(FormatRevision(rev))
	o.GetObjectKind().SetGroupVersionKind(t.kind.GVK)
	return &item{key: key, obj: o, rev: rev, size: size}
}

// tombstone is the item of a Deleted event: the last version with the deletion's revision.
func (t *table) tombstone(last *item, rev int64) *item {
	o := shallowCopy(last.obj)
	return t.seal(o, last.key, rev, last.size)
}

// FormatRevision is a revision as a resourceVersion.
func FormatRevision(rev int64) string { return strconv.FormatInt(rev, 10) }

// ParseRevision is a resourceVersion as a revision; "" is 0.
func ParseRevision(rv string) (int64, error) {
	if rv == "" {
		return 0, nil
	}
	rev, err := strconv.ParseInt(rv, 10, 64)
	if err != nil || rev < 0 {
		return 0, fmt.Errorf("resourceVersion %q is not a version of this cluster: it must be a whole number", rv)
	}
	return rev, nil
}

// detector finds objects that somebody changed after they were published, by hashing
// their encodings. Production runs without (the methods of a nil detector do nothing).
type detector struct {
	seed maphash.Seed

	mu     sync.Mutex
	live   map[*item]struct{}
	broken []error
}

func newDetector() *detector {
	return &detector{seed: maphash.MakeSeed(), live: map[*item]struct{}{}}
}

func (d *detector) add(it *item) {
	if d == nil {
		return
	}
	sum := d.hash(it)
	d.mu.Lock()
	defer d.mu.Unlock()
	it.sum = sum
	d.live[it] = struct{}{}
}

func (d *detector) hash(it *item) uint64 {
	// JSON sorts maps and contains everything that readers can see, TypeMeta included.
	b, err := json.Marshal(it.obj)
	if err != nil {
		return 0
	}
	return maphash.Bytes(d.seed, b)
}

// retire verifies a version that has left the store.
func (d *detector) retire(it *item) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.verifyLocked(it)
	delete(d.live, it)
}

// retireAll verifies and forgets every version.
func (d *detector) retireAll() {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for it := range d.live {
		d.verifyLocked(it)
		delete(d.live, it)
	}
}

func (d *detector) verifyLocked(it *item) {
	if _, ok := d.live[it]; ok && d.hash(it) != it.sum {
		d.broken = append(d.broken, fmt.Errorf("%T %s at revision %d was changed after it was published: copy objects of the store before changing them", it.obj, it.key, it.rev))
		delete(d.live, it)
	}
}

// check verifies every version that the store can still reach.
func (d *detector) check(gr schema.GroupResource) error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for it := range d.live {
		d.verifyLocked(it)
	}
	if len(d.broken) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", gr, errors.Join(d.broken...))
}

// shallowCopy is a new object that shares everything below its top level with o.
func shallowCopy(o Object) Object {
	v := reflect.New(reflect.TypeOf(o).Elem())
	v.Elem().Set(reflect.ValueOf(o).Elem())
	c := v.Interface().(Object)
	if u, ok := c.(*unstructured.Unstructured); ok {
		// Everything of an Unstructured is inside its one map.
		return u.DeepCopy()
	}
	return c
}
