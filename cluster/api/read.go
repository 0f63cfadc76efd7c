package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metainternalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage"

	"slipway.dev/slipway/cluster/store"
)

// reader serves get, list and watch from the store's snapshots and cursors. Nothing on this
// path takes a lock that a writer holds, converts through internal types (tables excepted) or
// touches a disk, and nothing writes to the objects: they are everybody's.
type reader struct {
	objects  objects
	closing  context.Context // ends the watches when the server closes
	watches  time.Duration   // how long a watch lasts whose client names no limit, at least
	patience time.Duration   // how long a watch waits for its client to read
	lists    listCache
}

func (s *reader) get(w http.ResponseWriter, req *http.Request, r *resource) error {
	info, _ := request.RequestInfoFrom(req.Context())
	form, err := r.negotiate(req)
	if err != nil {
		return err
	}
	if q := req.URL.RawQuery; q != "" {
		opts := metav1.GetOptions{}
		if err := metainternalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, &opts); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if err := s.reach(req.Context(), r, opts.ResourceVersion); err != nil {
			return err
		}
	}
	obj, ok := s.objects.Snapshot(r.kind.Resource).Get(r.namespace(info), info.Name)
	if !ok {
		return apierrors.NewNotFound(r.gvr.GroupResource(), info.Name)
	}
	out, err := form.object(req.Context(), obj)
	if err != nil {
		return err
	}
	return form.write(w, req, http.StatusOK, out)
}

// namespace is where a request's object lives. The path of a namespace names it as both.
func (r *resource) namespace(info *request.RequestInfo) string {
	if !r.namespaced {
		return ""
	}
	return info.Namespace
}

// patience is how long a read waits for a version that this server has not seen yet.
const patience = 3 * time.Second

// reach waits until the resource is not older than a version that the client has seen.
func (s *reader) reach(ctx context.Context, r *resource, rv string) error {
	if rv == "" || rv == "0" {
		return nil
	}
	want, err := (storage.APIObjectVersioner{}).ParseResourceVersion(rv)
	if err != nil {
		return apierrors.NewBadRequest("invalid resource version: " + err.Error())
	}
	if s.objects.Snapshot(r.kind.Resource).Revision() >= int64(want) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.objects.Wait(ctx, r.kind.Resource, int64(want)); err != nil {
		return storage.NewTooLargeResourceVersionError(want, uint64(s.objects.Snapshot(r.kind.Resource).Revision()), 1)
	}
	return nil
}

// listOptions are a list's or a watch's parameters, checked, with the selection they make.
func (r *resource) listOptions(req *http.Request) (internalversion.ListOptions, *selection, error) {
	info, _ := request.RequestInfoFrom(req.Context())
	opts := internalversion.ListOptions{}
	sel := &selection{namespace: r.namespace(info), name: info.Name, labels: labels.Everything(), fields: fields.Everything()}
	if req.URL.RawQuery != "" {
		if err := metainternalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, &opts); err != nil {
			return opts, nil, apierrors.NewBadRequest(err.Error())
		}
	}
	internalversion.SetListOptionsDefaults(&opts, true)
	if errs := metainternalvalidation.ValidateListOptions(&opts, true); len(errs) > 0 {
		return opts, nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	if opts.LabelSelector != nil {
		sel.labels = opts.LabelSelector
	}
	if opts.FieldSelector != nil {
		fs, err := opts.FieldSelector.Transform(func(label, value string) (string, string, error) {
			return scheme.ConvertFieldLabel(r.gvk, label, value)
		})
		if err != nil {
			return opts, nil, apierrors.NewBadRequest(err.Error())
		}
		sel.fields = fs
	}
	return opts, sel, sel.narrow()
}

// narrow uses what the field selector says about the name and the namespace.
func (s *selection) narrow() error {
	if name, ok := s.fields.RequiresExactMatch("metadata.name"); ok {
		if s.name != "" && s.name != name {
			return apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
		s.name = name
	}
	if ns, ok := s.fields.RequiresExactMatch("metadata.namespace"); ok && s.namespace == "" {
		s.namespace = ns
	}
	return nil
}

func (s *reader) list(w http.ResponseWriter, req *http.Request, r *resource) error {
	form, err := r.negotiate(req)
	if err != nil {
		return err
	}
	opts, sel, err := r.listOptions(req)
	if err != nil {
		return err
	}
	snap, from, exact, err := s.state(req.Context(), r, &opts)
	if err != nil {
		return err
	}
	page := func() (runtime.Object, error) {
		return form.page(req.Context(), collect(snap, r.kind, sel, from.Start, opts.Limit, !exact), snap.Revision(), from)
	}
	if !form.cacheable() || exact || from.Start != "" || opts.Limit > 0 {
		out, err := page()
		if err != nil {
			return err
		}
		return form.write(w, req, http.StatusOK, out)
	}
	atLeast, err := store.ParseRevision(opts.ResourceVersion)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	body, err := s.lists.get(form.key(req.URL.Path, sel), snap, atLeast, func() ([]byte, error) {
		out, err := page()
		if err != nil {
			return nil, err
		}
		var buf bytes.Buffer
		err = form.info.Serializer.Encode(out, &buf)
		return buf.Bytes(), err
	})
	if err != nil {
		return err
	}
	form.send(w, req, http.StatusOK, body)
	return nil
}

// page is a part of a list in this form.
func (f *form) page(ctx context.Context, p page, rev int64, from continueToken) (runtime.Object, error) {
	meta := metav1.ListMeta{ResourceVersion: store.FormatRevision(max(rev, 1)), RemainingItemCount: p.remaining}
	if p.next != "" {
		var err error
		if meta.Continue, err = from.next(p.next, max(rev, 1)).encode(); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	return f.list(ctx, p.items, meta)
}

// cacheable: tables tell ages, which change by themselves.
func (f *form) cacheable() bool { return f.table == nil && !f.pretty }

func (f *form) key(path string, sel *selection) listKey {
	k := listKey{path: path, mediaType: f.info.MediaType, labels: sel.labels.String(), fields: sel.fields.String()}
	if f.as != nil {
		k.as = f.as.String()
	}
	return k
}

// state is the snapshot that a list's version parameters ask for, and where in it to begin.
func (s *reader) state(ctx context.Context, r *resource, opts *internalversion.ListOptions) (snap store.Snapshot, from continueToken, exact bool, err error) {
	gr := r.kind.Resource
	rev := int64(0)
	switch {
	case opts.Continue != "":
		if from, err = decodeContinue(opts.Continue); err != nil {
			return snap, from, false, apierrors.NewBadRequest("invalid continue token: " + err.Error())
		}
		if rev = from.Revision; rev > 0 && from.expired(time.Now()) {
			return snap, from, false, errLostPage(from.Start)
		}
	case opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact, opts.ResourceVersionMatch == "" && opts.Limit > 0 && opts.ResourceVersion != "0":
		parsed, err := (storage.APIObjectVersioner{}).ParseResourceVersion(opts.ResourceVersion)
		if err != nil {
			return snap, from, false, apierrors.NewBadRequest("invalid resource version: " + err.Error())
		}
		rev = int64(parsed)
	}
	if rev <= 0 {
		err := s.reach(ctx, r, opts.ResourceVersion)
		return s.objects.Snapshot(gr), from, false, err
	}
	snap, err = s.objects.SnapshotAt(gr, rev)
	switch {
	case errors.Is(err, store.ErrTooOld) && opts.Continue != "":
		return snap, from, false, errLostPage(from.Start)
	case errors.Is(err, store.ErrTooOld):
		return snap, from, false, apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	case errors.Is(err, store.ErrFuture):
		return snap, from, false, storage.NewTooLargeResourceVersionError(uint64(rev), uint64(s.objects.Snapshot(gr).Revision()), 1)
	}
	return snap, from, true, err
}

// errLostPage is upstream's answer when the version that a list began at is forgotten: the
// client may start over, or go on from here with whatever is there now.
func errLostPage(start string) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list.")
	err.ErrStatus.ListMeta.Continue, _ = continueToken{Start: start, Revision: -1}.encode()
	return err
}

// continueToken has upstream's form, so that what it leaves out and how it looks are known, and the time
// when its list began.
type continueToken struct {
	Version  string `json:"v"`
	Revision int64  `json:"rv"`
	Start    string `json:"start"`
	Began    int64  `json:"began,omitempty"` // in seconds
}

// pagesKept is how long a list may take from its first page on: upstream's, by what its storage forgets.
// Ours may still know a quiet resource's state after that, but a client that depends on luck should hear of it.
const pagesKept = 5 * time.Minute

func (t continueToken) expired(now time.Time) bool {
	return t.Began != 0 && now.Sub(time.Unix(t.Began, 0)) > pagesKept
}

// next leads from a page to the one after it, in the same list.
func (t continueToken) next(start string, rev int64) continueToken {
	began := t.Began
	if began == 0 || t.Revision <= 0 {
		began = time.Now().Unix()
	}
	return continueToken{Revision: rev, Start: start, Began: began}
}

func (t continueToken) encode() (string, error) {
	t.Version = "meta.k8s.io/v1"
	out, err := json.Marshal(t)
	return base64.RawURLEncoding.EncodeToString(out), err
}

func decodeContinue(token string) (t continueToken, err error) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return t, errors.New("continue key is not valid: it is not one that this server has given out")
	}
	if err := json.Unmarshal(data, &t); err != nil {
		return t, errors.New("continue key is not valid: it is not one that this server has given out")
	}
	switch {
	case t.Version != "meta.k8s.io/v1":
		return t, errors.New("continue key is not valid: server does not recognize this encoded version " + t.Version)
	case t.Revision == 0:
		return t, errors.New("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case t.Start == "" || strings.Contains(t.Start, ".."):
		return t, errors.New("continue key is not valid: encoded start key empty or unclean (version meta.k8s.io/v1)")
	}
	return t, nil
}

// page is a part of a list.
type page struct {
	items     []store.Object
	next      string // the key to go on from; "" at the end
	remaining *int64 // how many are left, where that is known
}

func collect(snap store.Snapshot, kind *store.Kind, sel *selection, start string, limit int64, indexed bool) page {
	var p page
	if sel.everything() && sel.namespace == "" && limit == 0 {
		p.items = make([]store.Object, 0, snap.Len())
	}
	var more int64
	for key, o := range sel.from(snap, kind, start, indexed) {
		if limit > 0 && int64(len(p.items)) == limit {
			if p.next == "" {
				p.next = key
			}
			if !sel.everything() {
				return p
			}
			more++
			continue
		}
		p.items = append(p.items, o)
	}
	if more > 0 {
		p.remaining = &more
	}
	return p
}

// typedList puts objects into the list type of their kind. The objects are copied one level
// deep and lose their type there, as upstream's list items have none.
func typedList(gvk schema.GroupVersionKind, items []store.Object, meta metav1.ListMeta) (runtime.Object, error) {
	list, err := scheme.New(gvk)
	if err != nil {
		return nil, err
	}
	list.GetObjectKind().SetGroupVersionKind(gvk)
	v := reflect.ValueOf(list).Elem()
	v.FieldByName("ListMeta").Set(reflect.ValueOf(meta))
	field := v.FieldByName("Items")
	slice := reflect.MakeSlice(field.Type(), len(items), len(items))
	for i, o := range items {
		e := slice.Index(i)
		e.Set(reflect.ValueOf(o).Elem())
		e.Addr().Interface().(runtime.Object).GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	}
	field.Set(slice)
	return list, nil
}
