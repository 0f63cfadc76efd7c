package api

import (
	"fmt"
	"net/http"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/handlers"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"slipway.dev/slipway/cluster/store"
)

// maxBody is upstream's limit on a request's body.
const maxBody = 3 << 20

var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType),
}

// resource is one served resource or subresource: its description for discovery, and a
// handler for each verb that it has. Mutating verbs are upstream's handlers over upstream's
// storage; get, list and watch of what the store holds are ours.
type resource struct {
	gvr         schema.GroupVersionResource
	subresource string
	namespaced  bool
	gvk         schema.GroupVersionKind // of what is sent and received
	storage     rest.Storage
	scope       *handlers.RequestScope
	kind        *store.Kind // what the store holds under the same name; nil when nothing
	verbs       map[string]http.Handler
	info        metav1.APIResource
}

// builder makes resources; it holds what they have in common.
type builder struct {
	kinds      map[schema.GroupResource]store.Kind
	admit      admission.Interface
	types      managedfields.TypeConverter
	authorizer ruleAuthorizer
	equivalent runtime.EquivalentResourceRegistry
}

// build makes the resources of one group and version, by their path names.
func (b *builder) build(gv schema.GroupVersion, g group) (map[string]*resource, error) {
	out := make(map[string]*resource, len(g))
	for path, storage := range g {
		r, err := b.resource(gv, path, storage, g)
		if err != nil {
			return nil, fmt.Errorf("resource %s of %s: %w", path, gv, err)
		}
		out[path] = r
	}
	return out, nil
}

func (b *builder) resource(gv schema.GroupVersion, path string, storage rest.Storage, g group) (*resource, error) {
	name, sub, _ := strings.Cut(path, "/")
	scoper, ok := g[name].(rest.Scoper)
	if !ok {
		return nil, fmt.Errorf("its storage %T does not say whether it is namespaced", g[name])
	}
	gvk, err := kindOf(gv, storage)
	if err != nil {
		return nil, err
	}
	r := &resource{
		gvr: gv.WithResource(name), subresource: sub, namespaced: scoper.NamespaceScoped(),
		gvk: gvk, storage: storage, verbs: map[string]http.Handler{},
	}
	if k, ok := b.kinds[r.gvr.GroupResource()]; ok && sub == "" {
		r.kind = &k
	}
	if gv.Group == "events.k8s.io" && sub == "" { // another view of the same objects
		k := b.kinds[schema.GroupResource{Resource: "events"}]
		r.kind = &k
	}
	if r.scope, err = b.newScope(r); err != nil {
		return nil, err
	}
	b.addVerbs(r, path)
	r.describe()
	b.equivalent.RegisterKindFor(r.gvr, sub, gvk)
	return r, nil
}

// kindOf is the kind that a storage takes and gives in a version: usually of the group it is
// served under, for some subresources (scale, eviction, token) of another.
func kindOf(gv schema.GroupVersion, storage rest.Storage) (schema.GroupVersionKind, error) {
	if p, ok := storage.(rest.GroupVersionKindProvider); ok {
		return p.GroupVersionKind(gv), nil
	}
	gvks, _, err := scheme.ObjectKinds(storage.New())
	if err != nil {
		return schema.GroupVersionKind{}, err
	}
	for _, gvk := range gvks {
		if gvk.Group == gv.Group {
			return gv.WithKind(gvk.Kind), nil
		}
	}
	return schema.GroupVersionKind{}, fmt.Errorf("%T is of no kind in this group", storage.New())
}

func (b *builder) newScope(r *resource) (*handlers.RequestScope, error) {
	hub := schema.GroupVersion{Group: r.gvk.Group, Version: runtime.APIVersionInternal}
	table, _ := r.storage.(rest.TableConvertor)
	accepts, _ := r.storage.(rest.GroupVersionAcceptor)
	fields, err := managedfields.NewDefaultFieldManager(b.types, runtime.UnsafeObjectConvertor(scheme), scheme, scheme,
		r.gvk, hub, r.subresource, resetFields(r.storage))
	if err != nil {
		return nil, fmt.Errorf("field manager: %w", err)
	}
	return &handlers.RequestScope{
		Namer:                       handlers.ContextBasedNaming{Namer: runtime.Namer(meta.NewAccessor()), ClusterScoped: !r.namespaced},
		Serializer:                  legacyscheme.Codecs,
		ParameterCodec:              legacyscheme.ParameterCodec,
		Creater:                     scheme,
		Convertor:                   scheme,
		Defaulter:                   scheme,
		Typer:                       scheme,
		UnsafeConvertor:             runtime.UnsafeObjectConvertor(scheme),
		Authorizer:                  b.authorizer,
		EquivalentResourceMapper:    b.equivalent,
		TableConvertor:              table,
		FieldManager:                fields,
		Resource:                    r.gvr,
		Kind:                        r.gvk,
		AcceptsGroupVersionDelegate: accepts,
		Subresource:                 r.subresource,
		MetaGroupVersion:            metav1.SchemeGroupVersion,
		HubGroupVersion:             hub,
		MaxRequestBodyBytes:         maxBody,
	}, nil
}

// resetFields is what a strategy sets back whatever the request says, so that server-side
// apply does not record it as owned.
func resetFields(storage rest.Storage) map[fieldpath.APIVersion]fieldpath.Filter {
	if s, ok := storage.(rest.ResetFieldsStrategy); ok {
		return fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	}
	if s, ok := storage.(rest.ResetFieldsFilterStrategy); ok {
		return s.GetResetFieldsFilter()
	}
	return nil
}

// fresh makes upstream's handler anew for every request, as upstream's installer does: each
// call wraps the admission chain once more and keeps that in the handler, so that a handler
// used twice would grow with every request.
func fresh(handler func() http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { handler()(w, req) })
}

func (b *builder) addVerbs(r *resource, path string) {
	sub := r.subresource != ""
	switch s := r.storage.(type) {
	case rest.NamedCreater:
		r.verbs["create"] = fresh(func() http.HandlerFunc { return handlers.CreateNamedResource(s, r.scope, b.admit) })
	case rest.Creater:
		r.verbs["create"] = fresh(func() http.HandlerFunc { return handlers.CreateResource(s, r.scope, b.admit) })
	}
	switch s := r.storage.(type) {
	case rest.GetterWithOptions:
		r.verbs["get"] = handlers.GetResourceWithOptions(s, r.scope, sub)
	case rest.Getter:
		r.verbs["get"] = handlers.GetResource(s, r.scope)
	}
	if s, ok := r.storage.(rest.Updater); ok {
		r.verbs["update"] = fresh(func() http.HandlerFunc { return handlers.UpdateResource(s, r.scope, b.admit) })
	}
	if s, ok := r.storage.(rest.Patcher); ok {
		r.verbs["patch"] = fresh(func() http.HandlerFunc { return handlers.PatchResource(s, r.scope, b.admit, patchTypes) })
	}
	if s, ok := r.storage.(rest.GracefulDeleter); ok {
		r.verbs["delete"] = fresh(func() http.HandlerFunc { return handlers.DeleteResource(s, true, r.scope, b.admit) })
	}
	if s, ok := r.storage.(rest.CollectionDeleter); ok {
		r.verbs["deletecollection"] = fresh(func() http.HandlerFunc { return handlers.DeleteCollection(s, true, r.scope, b.admit) })
	}
	if s, ok := r.storage.(rest.Connecter); ok {
		r.verbs["connect"] = fresh(func() http.HandlerFunc { return handlers.ConnectResource(s, r.scope, b.admit, path, sub) })
	}
}

// describe fills in discovery's answer.
func (r *resource) describe() {
	r.info = metav1.APIResource{Name: r.gvr.Resource, Namespaced: r.namespaced, Kind: r.gvk.Kind, Verbs: r.discoveryVerbs()}
	if r.subresource != "" {
		r.info.Name += "/" + r.subresource
	}
	if s, ok := r.storage.(rest.KindProvider); ok {
		r.info.Kind = s.Kind()
	}
	if s, ok := r.storage.(rest.ShortNamesProvider); ok {
		r.info.ShortNames = s.ShortNames()
	}
	if s, ok := r.storage.(rest.CategoriesProvider); ok {
		r.info.Categories = s.Categories()
	}
	if s, ok := r.storage.(rest.SingularNameProvider); ok && r.subresource == "" {
		r.info.SingularName = s.GetSingularName()
	}
	if _, ok := r.storage.(rest.GroupVersionKindProvider); ok {
		r.info.Group, r.info.Version = r.gvk.Group, r.gvk.Version
	}
	if _, ok := r.storage.(rest.StorageVersionProvider); ok && r.kind != nil {
		r.info.StorageVersionHash = discovery.StorageVersionHash(r.kind.GVK.Group, r.kind.GVK.Version, r.kind.GVK.Kind)
	}
}

func (r *resource) discoveryVerbs() metav1.Verbs {
	set := map[string]bool{}
	for v := range r.verbs {
		if v != "connect" {
			set[v] = true
		}
	}
	if r.kind != nil {
		set["list"], set["watch"] = true, true
	}
	if c, ok := r.storage.(rest.Connecter); ok {
		byMethod := map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
		for _, m := range c.ConnectMethods() {
			if v := byMethod[m]; v != "" {
				set[v] = true
			}
		}
	}
	verbs := make(metav1.Verbs, 0, len(set))
	for v := range set {
		verbs = append(verbs, v)
	}
	sort.Strings(verbs)
	return verbs
}
