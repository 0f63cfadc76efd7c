package api

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"slipway.dev/slipway/cluster/store"
)

// objects is what the API needs of a store.
type objects interface {
	store.Reader
	SnapshotAt(gr schema.GroupResource, rev int64) (store.Snapshot, error)
	Wait(ctx context.Context, gr schema.GroupResource, rev int64) error
	Create(ctx context.Context, gr schema.GroupResource, obj store.Object) (store.Object, error)
	Update(ctx context.Context, gr schema.GroupResource, obj store.Object, expect int64) (store.Object, error)
	Delete(ctx context.Context, gr schema.GroupResource, namespace, name string, p store.Preconditions) (store.Object, error)
	ResourceOf(store.Object) (schema.GroupResource, bool)
}

var _ objects = (*store.Store)(nil)

// storages gives every REST storage of upstream the same storage.Interface: one adapter per
// resource over the store. Mutations go through it. Reads do not: the API's own handlers take
// them from snapshots, so List here only serves deletecollection and Watch nobody.
type storages struct {
	objects objects
	kinds   map[schema.GroupResource]store.Kind
}

var _ generic.RESTOptionsGetter = (*storages)(nil)

func (s *storages) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	kind, ok := s.kinds[gr]
	if !ok {
		return generic.RESTOptions{}, fmt.Errorf("storage for %s: the store does not hold that resource", gr)
	}
	gv := kind.GVK.GroupVersion()
	return generic.RESTOptions{
		StorageConfig: &storagebackend.ConfigForResource{
			Config: storagebackend.Config{
				Codec:           legacyscheme.Codecs.LegacyCodec(gv), // used by dry runs
				EncodeVersioner: gv,
			},
			GroupResource: gr,
		},
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 4,
		ResourcePrefix:          "/" + gr.String(),
		Decorator: func(_ *storagebackend.ConfigForResource, prefix string, _ func(runtime.Object) (string, error),
			newFunc, _ func() runtime.Object, _ storage.AttrFunc, _ storage.IndexerFuncs, _ *cache.Indexers,
		) (storage.Interface, factory.DestroyFunc, error) {
			return &adapter{objects: s.objects, kind: kind, prefix: prefix + "/", newFunc: newFunc}, func() {}, nil
		},
	}, nil
}

// adapter is upstream's storage.Interface over one resource of the store.
type adapter struct {
	storage.APIObjectVersioner

	objects objects
	kind    store.Kind
	prefix  string
	newFunc func() runtime.Object
}

var _ storage.Interface = (*adapter)(nil)

// stored is where a caller finds the frozen object that its request has stored, when it asks
// for that with withStored: the in-process client answers with it, unconverted.
type stored struct{ obj store.Object }

type storedKey struct{}

func withStored(ctx context.Context, s *stored) context.Context {
	return context.WithValue(ctx, storedKey{}, s)
}

func (a *adapter) split(key string) (namespace, name string) {
	key = strings.TrimPrefix(key, a.prefix)
	if !a.kind.Namespaced {
		return "", key
	}
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}

// deliver hands a frozen object to upstream as a private internal one.
func (a *adapter) deliver(ctx context.Context, obj store.Object, out runtime.Object) error {
	if s, ok := ctx.Value(storedKey{}).(*stored); ok {
		s.obj = obj
	}
	if out == nil {
		return nil
	}
	internal, err := toInternal(obj, a.group())
	if err != nil {
		return err
	}
	return assign(internal, out)
}

// group is the group of the internal type.
func (a *adapter) group() string { return a.kind.GVK.Group }

// assign moves *from into *to; both are pointers to the same type.
func assign(from, to runtime.Object) error {
	src, dst := reflect.ValueOf(from), reflect.ValueOf(to)
	if src.Type() != dst.Type() {
		return fmt.Errorf("storage: have %T, the caller wants %T", from, to)
	}
	dst.Elem().Set(src.Elem())
	return nil
}

func (a *adapter) Versioner() storage.Versioner { return a.APIObjectVersioner }

func (a *adapter) Create(ctx context.Context, key string, obj, out runtime.Object, _ uint64) error {
	if rv, err := a.ObjectResourceVersion(obj); err == nil && rv != 0 {
		return apierrors.NewBadRequest(storage.ErrResourceVersionSetOnCreate.Error())
	}
	v1, err := toStored(obj, a.kind.GVK)
	if err != nil {
		return err
	}
	v1.SetResourceVersion("")
	v1.SetSelfLink("")
	created, err := a.objects.Create(ctx, a.kind.Resource, v1)
	if apierrors.IsAlreadyExists(err) {
		return storage.NewKeyExistsError(key, 0)
	}
	if err != nil {
		return err
	}
	return a.deliver(ctx, created, out)
}

func (a *adapter) Get(_ context.Context, key string, opts storage.GetOptions, out runtime.Object) error {
	namespace, name := a.split(key)
	obj, ok := a.objects.Snapshot(a.kind.Resource).Get(namespace, name)
	if !ok {
		if opts.IgnoreNotFound {
			return runtime.SetZeroValue(out)
		}
		return storage.NewKeyNotFoundError(key, 0)
	}
	internal, err := toInternal(obj, a.group())
	if err != nil {
		return err
	}
	return assign(internal, out)
}

// GetList serves deletecollection, by pages in key order of the newest state.
func (a *adapter) GetList(_ context.Context, key string, opts storage.ListOptions, listObj runtime.Object) error {
	items, err := meta.GetItemsPtr(listObj)
	if err != nil {
		return err
	}
	list := reflect.ValueOf(items).Elem()
	list.SetZero()

	namespace, name := a.scope(key, opts.Recursive)
	start := opts.Predicate.Continue
	snap := a.objects.Snapshot(a.kind.Resource)
	next := ""
	for k, obj := range snap.From(namespace, start) {
		if name != "" && obj.GetName() != name {
			continue
		}
		internal, err := toInternal(obj, a.group())
		if err != nil {
			return err
		}
		if ok, err := opts.Predicate.Matches(internal); err != nil {
			return err
		} else if !ok {
			continue
		}
		if opts.Predicate.Limit > 0 && int64(list.Len()) == opts.Predicate.Limit {
			next = k
			break
		}
		list.Set(reflect.Append(list, reflect.ValueOf(internal).Elem()))
	}
	if list.IsNil() {
		list.Set(reflect.MakeSlice(list.Type(), 0, 0))
	}
	return a.UpdateList(listObj, uint64(max(snap.Revision(), 1)), next, nil)
}

// scope is the part of the resource that a list's key names.
func (a *adapter) scope(key string, recursive bool) (namespace, name string) {
	if !recursive {
		return a.split(key)
	}
	rest := strings.Trim(strings.TrimPrefix(key+"/", a.prefix), "/")
	if a.kind.Namespaced {
		return rest, ""
	}
	return "", ""
}

func (a *adapter) Delete(ctx context.Context, key string, out runtime.Object, pre *storage.Preconditions,
	validate storage.ValidateObjectFunc, _ runtime.Object, _ storage.DeleteOptions,
) error {
	namespace, name := a.split(key)
	for {
		obj, ok := a.objects.Snapshot(a.kind.Resource).Get(namespace, name)
		if !ok {
			return storage.NewKeyNotFoundError(key, 0)
		}
		internal, err := toInternal(obj, a.group())
		if err != nil {
			return err
		}
		if err := pre.Check(key, internal); err != nil {
			return err
		}
		if err := validate(ctx, internal); err != nil {
			return err
		}
		rv, err := a.ObjectResourceVersion(internal)
		if err != nil {
			return err
		}
		exactly := store.Preconditions{UID: obj.GetUID(), Revision: int64(rv)}
		deleted, err := a.objects.Delete(ctx, a.kind.Resource, namespace, name, exactly)
		if apierrors.IsConflict(err) && ctx.Err() == nil {
			continue // changed since it was checked
		}
		if apierrors.IsNotFound(err) {
			return storage.NewKeyNotFoundError(key, 0)
		}
		if err != nil {
			return err
		}
		return a.deliver(ctx, deleted, out)
	}
}

func (a *adapter) GuaranteedUpdate(ctx context.Context, key string, out runtime.Object, ignoreNotFound bool,
	pre *storage.Preconditions, try storage.UpdateFunc, _ runtime.Object,
) error {
	namespace, name := a.split(key)
	for {
		err := a.updateOnce(ctx, key, namespace, name, out, ignoreNotFound, pre, try)
		if errors.Is(err, errChanged) && ctx.Err() == nil {
			continue
		}
		return err
	}
}

// errChanged says that another writer came first.
var errChanged = errors.New("changed meanwhile")

func (a *adapter) updateOnce(ctx context.Context, key, namespace, name string, out runtime.Object, ignoreNotFound bool,
	pre *storage.Preconditions, try storage.UpdateFunc,
) error {
	cur, exists := a.objects.Snapshot(a.kind.Resource).Get(namespace, name)
	if !exists && !ignoreNotFound {
		return storage.NewKeyNotFoundError(key, 0)
	}
	internal, rv, err := a.current(cur, exists)
	if err != nil {
		return err
	}
	if err := pre.Check(key, internal); err != nil {
		return err
	}
	next, _, err := try(internal, storage.ResponseMeta{ResourceVersion: rv})
	if err != nil {
		return err
	}
	v1, err := toStored(next, a.kind.GVK)
	if err != nil {
		return err
	}
	v1.SetSelfLink("")
	if !exists {
		v1.SetResourceVersion("")
		created, err := a.objects.Create(ctx, a.kind.Resource, v1)
		if apierrors.IsAlreadyExists(err) {
			return errChanged
		}
		if err != nil {
			return err
		}
		return a.deliver(ctx, created, out)
	}
	v1.SetResourceVersion(cur.GetResourceVersion())
	if sameEncoding(v1, cur) {
		return a.deliver(ctx, cur, out)
	}
	updated, err := a.objects.Update(ctx, a.kind.Resource, v1, int64(rv))
	switch {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return errChanged
	case err != nil:
		return err
	}
	return a.deliver(ctx, updated, out)
}

// current is the private copy that a strategy may scribble on, or a zero object.
func (a *adapter) current(cur store.Object, exists bool) (runtime.Object, uint64, error) {
	if !exists {
		return a.newFunc(), 0, nil
	}
	internal, err := toInternal(cur, a.group())
	if err != nil {
		return nil, 0, err
	}
	rv, err := a.ObjectResourceVersion(internal)
	return internal, rv, err
}

// sameEncoding says whether a write would change nothing: then it is no write, as upstream.
// Protobuf is the measure because it does not tell an empty list from none.
func sameEncoding(a, b store.Object) bool {
	pa, ok := a.(protoMessage)
	if !ok {
		return false
	}
	pb, ok := b.(protoMessage)
	if !ok || pa.Size() != pb.Size() {
		return false
	}
	ba, errA := pa.Marshal()
	bb, errB := pb.Marshal()
	return errA == nil && errB == nil && string(ba) == string(bb)
}

type protoMessage interface {
	Size() int
	Marshal() ([]byte, error)
}

func (a *adapter) Watch(context.Context, string, storage.ListOptions) (watch.Interface, error) {
	return nil, errors.New("storage: watches are served from the store's cursors, not through upstream's storage")
}

func (a *adapter) Stats(context.Context) (storage.Stats, error) {
	return storage.Stats{ObjectCount: int64(a.objects.Snapshot(a.kind.Resource).Len())}, nil
}

func (a *adapter) ReadinessCheck() error                      { return nil }
func (a *adapter) RequestWatchProgress(context.Context) error { return nil }

func (a *adapter) GetCurrentResourceVersion(context.Context) (uint64, error) {
	return uint64(a.objects.Snapshot(a.kind.Resource).Revision()), nil
}

func (a *adapter) EnableResourceSizeEstimation(storage.KeysFunc) error { return nil }
func (a *adapter) CompactRevision() int64                              { return 0 }
