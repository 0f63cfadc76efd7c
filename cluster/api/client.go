package api

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/store"
)

// Client is how controllers, scheduler and node agents of this process write. A write joins
// the pipeline after authentication: RBAC, admission, strategy, validation and audit hold for
// it as for everybody's. It carries no encoding and leaves no managed fields on what it
// creates (they would be most of its cost, and nobody applies to those objects); objects that
// have managed fields go on having them.
type Client struct {
	s    *Server
	user user.Info
}

var _ store.Writer = (*Client)(nil)

// Client writes as the API server itself, which may do everything.
func (s *Server) Client() *Client {
	return &Client{s, &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}}
}

// As is the client of another user; the groups follow from the name.
func (c *Client) As(name string) store.Writer { return c.ActAs(name) }

// ActAs is As with all of Client's methods.
func (c *Client) ActAs(name string) *Client {
	u := &user.DefaultInfo{Name: name}
	if namespace, account, err := serviceaccount.SplitUsername(name); err == nil {
		u.Groups = serviceaccount.MakeGroupNames(namespace)
		if sa, ok := c.s.account(namespace, account); ok {
			u.UID = string(sa.UID)
		}
	}
	if strings.HasPrefix(name, "system:node:") {
		u.Groups = append(u.Groups, user.NodesGroup)
	}
	u.Groups = append(u.Groups, user.AllAuthenticated)
	return &Client{c.s, u}
}

// write is one write of a client.
type write struct {
	c      *Client
	r      *resource
	verb   string
	name   string
	ns     string
	result stored
	ctx    context.Context
	began  time.Time
}

// begin finds the resource, checks that the user may, and makes the context that upstream's
// strategies look into.
func (c *Client) begin(ctx context.Context, gr schema.GroupResource, verb, sub, ns, name string) (*write, error) {
	r := c.s.written(gr, sub)
	if r == nil {
		return nil, apierrors.NewNotFound(gr, name)
	}
	w := &write{c: c, r: r, verb: verb, ns: ns, name: name, began: time.Now()}
	info := &request.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIPrefix: "apis", APIGroup: r.gvr.Group, APIVersion: r.gvr.Version,
		Namespace: ns, Resource: r.gvr.Resource, Subresource: sub, Name: name,
	}
	if gr.Group == "" {
		info.APIPrefix = "api"
	}
	w.ctx = withStored(request.WithUser(request.WithNamespace(request.WithRequestInfo(ctx, info), ns), c.user), &w.result)
	attrs := authorizer.AttributesRecord{
		User: c.user, Verb: verb, Namespace: ns, APIGroup: r.gvr.Group, APIVersion: r.gvr.Version,
		Resource: r.gvr.Resource, Subresource: sub, Name: name, ResourceRequest: true,
	}
	if reason, ok := c.mayWrite(w.ctx, attrs); !ok {
		return nil, w.done(responsewriters.ForbiddenStatusError(attrs, reason))
	}
	return w, nil
}

// mayWrite asks for the verb. Upstream's controllers patch where a client of this process
// updates, and the roles say so: who may patch an object may turn it into any other.
func (c *Client) mayWrite(ctx context.Context, attrs authorizer.AttributesRecord) (reason string, ok bool) {
	decision, reason, _ := c.s.authz.Authorize(ctx, attrs)
	if decision != authorizer.DecisionAllow && attrs.Verb == "update" {
		attrs.Verb = "patch"
		decision, _, _ = c.s.authz.Authorize(ctx, attrs)
	}
	return reason, decision == authorizer.DecisionAllow
}

// written is the resource through which objects of the store are written.
func (s *Server) written(gr schema.GroupResource, sub string) *resource {
	gvr := gr.WithVersion("v1")
	if sub == "" {
		return s.resources[gvr]
	}
	return s.subs[subKey{gvr, sub}]
}

// done records the write and passes its error on.
func (w *write) done(err error) error {
	a := w.c.s.opts.Audit
	if a == nil {
		return err
	}
	info, _ := request.RequestInfoFrom(w.ctx)
	if err == nil && w.c.s.unremarkable(info) {
		return nil
	}
	code := http.StatusOK
	if err != nil {
		code = int(responsewriters.ErrorToAPIStatus(err).Code)
	}
	a.Write(auth.AuditRecord{
		ID: newID(), User: w.c.user, Info: info, Verb: w.verb, URI: uriOf(info), UserAgent: "slipwayd (in process)", Code: code, Received: w.began,
	})
	return err
}

func uriOf(i *request.RequestInfo) string {
	parts := []string{"", i.APIPrefix}
	if i.APIGroup != "" {
		parts = append(parts, i.APIGroup)
	}
	parts = append(parts, i.APIVersion)
	if i.Namespace != "" && i.Resource != "namespaces" {
		parts = append(parts, "namespaces", i.Namespace)
	}
	parts = append(parts, i.Resource)
	for _, p := range []string{i.Name, i.Subresource} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/")
}

// internal is a private internal copy of what a caller passed in, defaulted as a decoder
// would have. The v1 copy is this function's own, so that sharing its memory is safe.
func internal(obj runtime.Object, group string) (runtime.Object, error) {
	own := obj.DeepCopyObject()
	scheme.Default(own)
	return scheme.UnsafeConvertToVersion(own, schema.GroupVersion{Group: group, Version: runtime.APIVersionInternal})
}

func (w *write) attributes(op admission.Operation, obj, old, options runtime.Object) admission.Attributes {
	return admission.NewAttributesRecord(obj, old, w.r.gvk, w.ns, w.name, w.r.gvr, w.r.subresource, op, options, false, w.c.user)
}

// Create makes the object named in its metadata, or by its generateName.
func (c *Client) Create(ctx context.Context, obj store.Object) (store.Object, error) {
	gr, ok := c.s.objects.ResourceOf(obj)
	if !ok {
		return nil, fmt.Errorf("create %T %s: the store holds no such kind", obj, obj.GetName())
	}
	w, err := c.begin(ctx, gr, "create", "", obj.GetNamespace(), "")
	if err != nil {
		return nil, err
	}
	w.name = obj.GetName()
	if err := w.done(w.create(obj)); err != nil {
		return nil, err
	}
	return w.result.obj, nil
}

func (w *write) create(obj store.Object) error {
	s, ok := w.r.storage.(rest.Creater)
	if !ok {
		return apierrors.NewMethodNotSupported(w.r.gvr.GroupResource(), "create")
	}
	in, err := internal(obj, w.r.gvk.Group)
	if err != nil {
		return err
	}
	m, err := meta.Accessor(in)
	if err != nil {
		return err
	}
	rest.WipeObjectMetaSystemFields(m)
	m.SetResourceVersion("")
	m.SetManagedFields(nil)
	options := &metav1.CreateOptions{}
	attrs := w.attributes(admission.Create, in, nil, options)
	if err := w.c.s.admission.Admit(w.ctx, attrs, w.r.scope); err != nil {
		return err
	}
	var validate rest.ValidateObjectFunc
	if w.c.s.admission.validates(attrs) {
		validate = rest.AdmissionToValidateObjectFunc(w.c.s.admission, attrs, w.r.scope)
	}
	_, err = s.Create(w.ctx, in, validate, options)
	return err
}

// Update replaces all but the status. A resourceVersion in obj makes it conditional.
func (c *Client) Update(ctx context.Context, obj store.Object) (store.Object, error) {
	return c.update(ctx, obj, "")
}

// UpdateStatus replaces the status alone.
func (c *Client) UpdateStatus(ctx context.Context, obj store.Object) (store.Object, error) {
	return c.update(ctx, obj, "status")
}

// Finalize replaces a namespace's spec.finalizers.
func (c *Client) Finalize(ctx context.Context, ns *corev1.Namespace) (*corev1.Namespace, error) {
	o, err := c.update(ctx, ns, "finalize")
	if err != nil || o == nil {
		return nil, err
	}
	return o.(*corev1.Namespace), nil
}

func (c *Client) update(ctx context.Context, obj store.Object, sub string) (store.Object, error) {
	gr, ok := c.s.objects.ResourceOf(obj)
	if !ok {
		return nil, fmt.Errorf("update %T %s: the store holds no such kind", obj, obj.GetName())
	}
	w, err := c.begin(ctx, gr, "update", sub, obj.GetNamespace(), obj.GetName())
	if err != nil {
		return nil, err
	}
	if err := w.done(w.update(obj)); err != nil {
		return nil, err
	}
	return w.result.obj, nil
}

func (w *write) update(obj store.Object) error {
	s, ok := w.r.storage.(rest.Updater)
	if !ok {
		return apierrors.NewMethodNotSupported(w.r.gvr.GroupResource(), "update")
	}
	options := &metav1.UpdateOptions{}
	var validate rest.ValidateObjectUpdateFunc
	if attrs := w.attributes(admission.Update, nil, nil, options); w.c.s.admission.validates(attrs) {
		validate = rest.AdmissionToValidateObjectUpdateFunc(w.c.s.admission, attrs, w.r.scope)
	}
	_, _, err := s.Update(w.ctx, w.name, &replacement{w, obj, options}, rest.ValidateAllObjectFunc, validate, false, options)
	return err
}

// replacement tells upstream's storage what to put in the place of what is there.
type replacement struct {
	w       *write
	obj     store.Object
	options *metav1.UpdateOptions
}

// Preconditions: an object that has been made anew under the same name is not this one.
func (r *replacement) Preconditions() *metav1.Preconditions {
	uid := r.obj.GetUID()
	if uid == "" {
		return nil
	}
	return &metav1.Preconditions{UID: &uid}
}

// UpdatedObject may be called several times, each time against another old object.
func (r *replacement) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	next, err := internal(r.obj, r.w.r.gvk.Group)
	if err != nil {
		return nil, err
	}
	if m, err := meta.Accessor(old); err == nil && len(m.GetManagedFields()) > 0 {
		next = r.w.r.scope.FieldManager.UpdateNoErrors(old, next, managerName(r.w.c.user))
	}
	return next, r.w.c.s.admission.Admit(ctx, r.w.attributes(admission.Update, next, old, r.options), r.w.r.scope)
}

// managerName is a user's name in managed fields: a controller's own, without where it lives.
func managerName(u user.Info) string {
	name := u.GetName()
	return name[strings.LastIndexByte(name, ':')+1:]
}

// Delete deletes an object, gracefully where its kind knows grace.
func (c *Client) Delete(ctx context.Context, gr schema.GroupResource, namespace, name string, opts metav1.DeleteOptions) error {
	w, err := c.begin(ctx, gr, "delete", "", namespace, name)
	if err != nil {
		return err
	}
	return w.done(w.delete(&opts))
}

func (w *write) delete(options *metav1.DeleteOptions) error {
	s, ok := w.r.storage.(rest.GracefulDeleter)
	if !ok {
		return apierrors.NewMethodNotSupported(w.r.gvr.GroupResource(), "delete")
	}
	attrs := w.attributes(admission.Delete, nil, nil, options)
	_, _, err := s.Delete(w.ctx, w.name, rest.AdmissionToValidateObjectDeleteFunc(w.c.s.admission, attrs, w.r.scope), options)
	return err
}

// Bind binds a pod to a node.
func (c *Client) Bind(ctx context.Context, b *corev1.Binding) error {
	w, err := c.begin(ctx, podResource, "create", "binding", b.Namespace, b.Name)
	if err != nil {
		return err
	}
	_, err = w.named(b)
	return w.done(err)
}

// Token makes a token for a service account, as the serviceaccounts/token subresource does.
func (c *Client) Token(ctx context.Context, namespace, account string, tr *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	w, err := c.begin(ctx, schema.GroupResource{Resource: "serviceaccounts"}, "create", "token", namespace, account)
	if err != nil {
		return nil, err
	}
	out, err := w.named(tr)
	if w.done(err) != nil {
		return nil, err
	}
	v1, err := scheme.ConvertToVersion(out, authenticationv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return v1.(*authenticationv1.TokenRequest), nil
}

// named creates a subresource of a named object.
func (w *write) named(obj runtime.Object) (runtime.Object, error) {
	s, ok := w.r.storage.(rest.NamedCreater)
	if !ok {
		return nil, apierrors.NewMethodNotSupported(w.r.gvr.GroupResource(), "create")
	}
	in, err := internal(obj, w.r.gvk.Group)
	if err != nil {
		return nil, err
	}
	options := &metav1.CreateOptions{}
	attrs := w.attributes(admission.Create, in, nil, options)
	if err := w.c.s.admission.Admit(w.ctx, attrs, w.r.scope); err != nil {
		return nil, err
	}
	var validate rest.ValidateObjectFunc
	if w.c.s.admission.validates(attrs) {
		validate = rest.AdmissionToValidateObjectFunc(w.c.s.admission, attrs, w.r.scope)
	}
	return s.Create(w.ctx, w.name, in, validate, options)
}
