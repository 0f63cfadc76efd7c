package api

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"slipway.dev/slipway/cluster/store"
)

// form is how a client wants what it reads: an encoding, and the objects themselves, their
// metadata alone, or rows of a table.
type form struct {
	r      *resource
	info   runtime.SerializerInfo
	pretty bool
	as     *schema.GroupVersionKind // nil: the objects themselves
	table  *metav1.TableOptions     // with as.Kind "Table"
}

func (r *resource) negotiate(req *http.Request) (*form, error) {
	opts, info, err := negotiation.NegotiateOutputMediaType(req, r.scope.Serializer, r.scope)
	if err != nil {
		return nil, err
	}
	f := &form{r: r, info: info, as: opts.Convert, pretty: info.Serializer == opts.Accepted.PrettySerializer}
	if f.as != nil && f.as.Kind == "Table" {
		f.table = &metav1.TableOptions{}
		if err := metainternalscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, f.table); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if errs := metavalidation.ValidateTableOptions(f.table); len(errs) > 0 {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: %v", errs.ToAggregate()))
		}
	}
	return f, nil
}

// object is one object in this form. What comes back may share memory with the store.
func (f *form) object(ctx context.Context, o store.Object) (runtime.Object, error) {
	switch {
	case f.as == nil:
		return f.r.view(o)
	case f.as.Kind == "PartialObjectMetadata":
		return f.partial(o), nil
	case f.as.Kind == "PartialObjectMetadataList":
		return nil, notAcceptable(fmt.Sprintf("you requested PartialObjectMetadataList, but the requested object is not a list (%T)", o))
	}
	return f.rows(ctx, o)
}

func (f *form) list(ctx context.Context, items []store.Object, m metav1.ListMeta) (runtime.Object, error) {
	switch {
	case f.as != nil && f.as.Kind == "PartialObjectMetadataList":
		out := &metav1.PartialObjectMetadataList{ListMeta: m, Items: make([]metav1.PartialObjectMetadata, len(items))}
		out.SetGroupVersionKind(*f.as)
		for i, o := range items {
			out.Items[i] = *f.partial(o)
			out.Items[i].TypeMeta = metav1.TypeMeta{}
		}
		return out, nil
	case f.as != nil && f.as.Kind == "PartialObjectMetadata":
		return nil, notAcceptable("you requested PartialObjectMetadata, but the requested object is a list")
	}
	list, err := f.r.viewList(items, m)
	if err != nil || f.as == nil {
		return list, err
	}
	return f.rows(ctx, list)
}

func (f *form) partial(o store.Object) *metav1.PartialObjectMetadata {
	p := meta.AsPartialObjectMetadata(o)
	p.SetGroupVersionKind(f.as.GroupVersion().WithKind("PartialObjectMetadata"))
	return p
}

// view is an object as its group and version show it: itself, but for events.k8s.io, which
// shows core's events.
func (r *resource) view(o store.Object) (runtime.Object, error) {
	if r.gvk == r.kind.GVK {
		return o, nil
	}
	internal, err := toInternal(o, r.kind.GVK.Group)
	if err != nil {
		return nil, err
	}
	return scheme.ConvertToVersion(internal, r.gvk.GroupVersion())
}

func (r *resource) viewList(items []store.Object, m metav1.ListMeta) (runtime.Object, error) {
	if r.gvk != r.kind.GVK {
		shown := make([]store.Object, len(items))
		for i, o := range items {
			v, err := r.view(o)
			if err != nil {
				return nil, err
			}
			shown[i] = v.(store.Object)
		}
		items = shown
	}
	return typedList(r.gvk.GroupVersion().WithKind(r.gvk.Kind+"List"), items, m)
}

// rows is a table by upstream's printers. They read internal objects and write to nothing,
// which is what allows the conversion without a copy: the only one in this package.
func (f *form) rows(ctx context.Context, v1 runtime.Object) (runtime.Object, error) {
	internal, err := scheme.UnsafeConvertToVersion(v1, schema.GroupVersion{Group: f.r.gvk.Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, err
	}
	table, err := f.r.scope.TableConvertor.ConvertToTable(ctx, internal, f.table)
	if err != nil {
		return nil, err
	}
	for i := range table.Rows {
		if err := f.trim(&table.Rows[i]); err != nil {
			return nil, err
		}
	}
	table.SetGroupVersionKind(*f.as)
	return table, nil
}

// trim leaves of a row's object what the client asked for.
func (f *form) trim(row *metav1.TableRow) error {
	obj := row.Object.Object
	switch f.table.IncludeObject {
	case metav1.IncludeNone:
		row.Object.Object = nil
	case metav1.IncludeObject:
		full, err := scheme.ConvertToVersion(obj, f.r.gvk.GroupVersion())
		if err != nil {
			return err
		}
		row.Object.Object = full
	default:
		m, err := meta.Accessor(obj)
		if err != nil {
			return err
		}
		p := meta.AsPartialObjectMetadata(m)
		p.SetGroupVersionKind(f.as.GroupVersion().WithKind("PartialObjectMetadata"))
		row.Object.Object = p
	}
	return nil
}

type errNotAcceptable string

func notAcceptable(message string) error { return errNotAcceptable(message) }

func (e errNotAcceptable) Error() string { return string(e) }

func (e errNotAcceptable) Status() metav1.Status {
	return metav1.Status{Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable, Message: string(e)}
}

// buffers are reused between responses; the rare huge one is left to the collector.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const keepBuffer = 4 << 20

func putBuffer(b *bytes.Buffer) {
	if b.Cap() <= keepBuffer {
		b.Reset()
		buffers.Put(b)
	}
}

// compressAbove is upstream's threshold for compressing a response.
const compressAbove = 128 << 10

// write encodes obj and sends it. The raw serializer neither converts nor writes to obj.
func (f *form) write(w http.ResponseWriter, req *http.Request, code int, obj runtime.Object) error {
	buf := buffers.Get().(*bytes.Buffer)
	defer putBuffer(buf)
	if err := f.info.Serializer.Encode(obj, buf); err != nil {
		return fmt.Errorf("encode %T as %s: %w", obj, f.info.MediaType, err)
	}
	f.send(w, req, code, buf.Bytes())
	return nil
}

func (f *form) send(w http.ResponseWriter, req *http.Request, code int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", f.info.MediaType)
	if len(body) > compressAbove && wantsGzip(req) {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		w.WriteHeader(code)
		z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // the level is one it knows
		z.Write(body)                                  // an error means that the client has gone
		z.Close()
		return
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	w.Write(body)
}

// wantsGzip says whether compressing pays: the client takes it and is on another machine.
// Between processes of one machine it would cost both sides more than the copy it saves.
func wantsGzip(req *http.Request) bool {
	if !strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
		return false
	}
	host, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		return true
	}
	ip := net.ParseIP(host)
	local, _, _ := net.SplitHostPort(localAddr(req))
	return !ip.IsLoopback() && host != local
}

func localAddr(req *http.Request) string {
	if a, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return a.String()
	}
	return ""
}

// fail sends an error in the client's encoding, as upstream does.
func (r *resource) fail(w http.ResponseWriter, req *http.Request, err error) {
	responsewriters.ErrorNegotiated(err, r.scope.Serializer, r.gvk.GroupVersion(), w, req)
}
