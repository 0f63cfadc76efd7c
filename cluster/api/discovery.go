package api

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"sort"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// discoveryDocs are the answers to "what do you serve", worked out once.
type discoveryDocs struct {
	core, named aggregated // /api and /apis in one document each
	groups      *metav1.APIGroupList
	byGroup     map[string]*metav1.APIGroup
	resources   map[schema.GroupVersion]*metav1.APIResourceList
}

// aggregated is one aggregated discovery document, encoded, with its ETag.
type aggregated struct {
	body []byte
	etag string
}

// groupOrder is the order in which kubectl prefers groups: upstream's.
var groupOrder = []string{
	"", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io",
	"networking.k8s.io", "policy", "rbac.authorization.k8s.io", "storage.k8s.io", "admissionregistration.k8s.io",
	"apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io", "metrics.k8s.io",
}

func newDiscovery(served map[schema.GroupVersion]map[string]*resource) (*discoveryDocs, error) {
	d := &discoveryDocs{
		groups:    &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}},
		byGroup:   map[string]*metav1.APIGroup{},
		resources: map[schema.GroupVersion]*metav1.APIResourceList{},
	}
	var core, named apidiscoveryv2.APIGroupDiscoveryList
	for _, gv := range ordered(served) {
		list := resourceList(gv, served[gv])
		d.resources[gv] = list
		doc := apidiscoveryv2.APIGroupDiscovery{Versions: []apidiscoveryv2.APIVersionDiscovery{{
			Version: gv.Version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Resources: aggregate(list.APIResources),
		}}}
		if gv.Group == "" {
			core.Items = append(core.Items, doc)
			continue
		}
		doc.Name = gv.Group
		named.Items = append(named.Items, doc)
		v := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
		g := metav1.APIGroup{Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v}
		d.groups.Groups = append(d.groups.Groups, g)
		single := g
		single.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		d.byGroup[gv.Group] = &single
	}
	var err error
	if d.core, err = encodeAggregated(&core); err != nil {
		return nil, err
	}
	d.named, err = encodeAggregated(&named)
	return d, err
}

func ordered(served map[schema.GroupVersion]map[string]*resource) []schema.GroupVersion {
	gvs := make([]schema.GroupVersion, 0, len(served))
	for gv := range served {
		gvs = append(gvs, gv)
	}
	sort.Slice(gvs, func(i, j int) bool {
		a, b := slices.Index(groupOrder, gvs[i].Group), slices.Index(groupOrder, gvs[j].Group)
		if a != b {
			return a < b
		}
		return gvs[i].String() < gvs[j].String()
	})
	return gvs
}

func resourceList(gv schema.GroupVersion, rs map[string]*resource) *metav1.APIResourceList {
	list := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
	for _, r := range rs {
		list.APIResources = append(list.APIResources, r.info)
	}
	sort.Slice(list.APIResources, func(i, j int) bool { return list.APIResources[i].Name < list.APIResources[j].Name })
	return list
}

// aggregate puts subresources under their resources. The list is sorted, so that a resource
// comes before its subresources.
func aggregate(list []metav1.APIResource) []apidiscoveryv2.APIResourceDiscovery {
	var out []apidiscoveryv2.APIResourceDiscovery
	for _, r := range list {
		kind := &metav1.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
		name, sub, isSub := strings.Cut(r.Name, "/")
		if isSub {
			parent := &out[slices.IndexFunc(out, func(d apidiscoveryv2.APIResourceDiscovery) bool { return d.Resource == name })]
			parent.Subresources = append(parent.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kind, Verbs: r.Verbs})
			continue
		}
		scope := apidiscoveryv2.ScopeCluster
		if r.Namespaced {
			scope = apidiscoveryv2.ScopeNamespace
		}
		out = append(out, apidiscoveryv2.APIResourceDiscovery{
			Resource: r.Name, ResponseKind: kind, Scope: scope, SingularResource: r.SingularName,
			Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
		})
	}
	return out
}

func encodeAggregated(list *apidiscoveryv2.APIGroupDiscoveryList) (aggregated, error) {
	list.TypeMeta = metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}
	body, err := json.Marshal(list)
	if err != nil {
		return aggregated{}, fmt.Errorf("discovery document: %w", err)
	}
	return aggregated{body, fmt.Sprintf("%q", fmt.Sprintf("%X", sha256.Sum256(body)))}, nil
}

const aggregatedType = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// wantsAggregated says whether the first acceptable answer is the aggregated document.
func wantsAggregated(req *http.Request) bool {
	for clause := range strings.SplitSeq(req.Header.Get("Accept"), ",") {
		typ, params, err := mime.ParseMediaType(clause)
		if err != nil {
			continue
		}
		json := typ == "application/json" || typ == "*/*"
		switch {
		case json && params["as"] == "APIGroupDiscoveryList" && params["g"] == "apidiscovery.k8s.io" && params["v"] == "v2":
			return true
		case params["as"] == "" && (json || typ == "application/vnd.kubernetes.protobuf" || typ == "application/yaml"):
			return false
		}
	}
	return false
}

// serve answers /api, /apis and what is below them as far as it names no resource.
func (d *discoveryDocs) serve(w http.ResponseWriter, req *http.Request) bool {
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	root := &d.core
	if parts[0] == "apis" {
		root = &d.named
	}
	switch {
	case len(parts) == 1 && wantsAggregated(req):
		root.serve(w, req)
	case len(parts) == 1 && parts[0] == "api":
		d.write(w, req, &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: localAddr(req)}}})
	case len(parts) == 1:
		d.write(w, req, d.groups)
	case len(parts) == 2 && parts[0] == "api":
		return d.writeResources(w, req, schema.GroupVersion{Version: parts[1]})
	case len(parts) == 2:
		g, ok := d.byGroup[parts[1]]
		if ok {
			d.write(w, req, g)
		}
		return ok
	case len(parts) == 3 && parts[0] == "apis":
		return d.writeResources(w, req, schema.GroupVersion{Group: parts[1], Version: parts[2]})
	default:
		return false
	}
	return true
}

func (d *discoveryDocs) writeResources(w http.ResponseWriter, req *http.Request, gv schema.GroupVersion) bool {
	list, ok := d.resources[gv]
	if ok {
		d.write(w, req, list)
	}
	return ok
}

func (d *discoveryDocs) write(w http.ResponseWriter, req *http.Request, obj runtime.Object) {
	responsewriters.WriteObjectNegotiated(legacyscheme.Codecs, negotiation.DefaultEndpointRestrictions,
		schema.GroupVersion{Version: "v1"}, w, req, http.StatusOK, obj.DeepCopyObject(), false)
}

func (a *aggregated) serve(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("ETag", a.etag)
	h.Set("Vary", "Accept")
	h.Set("Cache-Control", "public")
	if req.Header.Get("If-None-Match") == a.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", aggregatedType)
	w.Write(a.body)
}
