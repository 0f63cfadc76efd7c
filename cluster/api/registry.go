package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/registry/rest"
	core "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	controllerrevisions "k8s.io/kubernetes/pkg/registry/apps/controllerrevision/storage"
	deployments "k8s.io/kubernetes/pkg/registry/apps/deployment/storage"
	replicasets "k8s.io/kubernetes/pkg/registry/apps/replicaset/storage"
	statefulsets "k8s.io/kubernetes/pkg/registry/apps/statefulset/storage"
	"k8s.io/kubernetes/pkg/registry/authentication/selfsubjectreview"
	"k8s.io/kubernetes/pkg/registry/authentication/tokenreview"
	"k8s.io/kubernetes/pkg/registry/authorization/localsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectrulesreview"
	"k8s.io/kubernetes/pkg/registry/authorization/subjectaccessreview"
	jobs "k8s.io/kubernetes/pkg/registry/batch/job/storage"
	leases "k8s.io/kubernetes/pkg/registry/coordination/lease/storage"
	configmaps "k8s.io/kubernetes/pkg/registry/core/configmap/storage"
	endpoints "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	events "k8s.io/kubernetes/pkg/registry/core/event/storage"
	namespaces "k8s.io/kubernetes/pkg/registry/core/namespace/storage"
	nodes "k8s.io/kubernetes/pkg/registry/core/node/storage"
	persistentvolumes "k8s.io/kubernetes/pkg/registry/core/persistentvolume/storage"
	persistentvolumeclaims "k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim/storage"
	pods "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	podtemplates "k8s.io/kubernetes/pkg/registry/core/podtemplate/storage"
	replicationcontrollers "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	secrets "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	services "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccounts "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
	endpointslices "k8s.io/kubernetes/pkg/registry/discovery/endpointslice/storage"
	ipaddresses "k8s.io/kubernetes/pkg/registry/networking/ipaddress/storage"
	networkpolicies "k8s.io/kubernetes/pkg/registry/networking/networkpolicy/storage"
	servicecidrs "k8s.io/kubernetes/pkg/registry/networking/servicecidr/storage"
	poddisruptionbudgets "k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget/storage"
	clusterrolepolicy "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/policybased"
	clusterroles "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/storage"
	clusterrolebindingpolicy "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/policybased"
	clusterrolebindings "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/storage"
	rolepolicy "k8s.io/kubernetes/pkg/registry/rbac/role/policybased"
	roles "k8s.io/kubernetes/pkg/registry/rbac/role/storage"
	rolebindingpolicy "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/policybased"
	rolebindings "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	priorityclasses "k8s.io/kubernetes/pkg/registry/scheduling/priorityclass/storage"
	storageclasses "k8s.io/kubernetes/pkg/registry/storage/storageclass/storage"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// registry makes upstream's REST storages, which hold the meaning of every mutation:
// strategies, defaults, validation, graceful deletion, allocation, eviction, tokens.
type registry struct {
	storages      *storages
	authorizer    ruleAuthorizer
	rules         validation.AuthorizationRuleResolver
	authenticator authenticator.Request
	audiences     authenticator.Audiences
	tokens        serviceaccount.TokenGenerator
	kubelets      kubeletclient.ConnectionInfoGetter
	addresses     ipallocator.Interface
	ports         portallocator.Interface
	endpoints     *endpointReader
	budgets       *budgetClient
	proxy         http.RoundTripper
}

// ruleAuthorizer decides, and lists what it would allow.
type ruleAuthorizer interface {
	authorizer.Authorizer
	authorizer.RuleResolver
}

// group is everything served under one group and version, by "resource" or "resource/subresource".
type group map[string]rest.Storage

// groups is the whole served surface.
func (r *registry) groups() (map[schema.GroupVersion]group, error) {
	out := map[schema.GroupVersion]group{}
	var errs []error
	for gv, build := range map[schema.GroupVersion]func() (group, error){
		{Version: "v1"}:                                     r.core,
		{Group: "apps", Version: "v1"}:                      r.apps,
		{Group: "batch", Version: "v1"}:                     r.batch,
		{Group: "networking.k8s.io", Version: "v1"}:         r.networking,
		{Group: "discovery.k8s.io", Version: "v1"}:          r.discovery,
		{Group: "coordination.k8s.io", Version: "v1"}:       r.coordination,
		{Group: "rbac.authorization.k8s.io", Version: "v1"}: r.rbac,
		{Group: "storage.k8s.io", Version: "v1"}:            r.storage,
		{Group: "scheduling.k8s.io", Version: "v1"}:         r.scheduling,
		{Group: "policy", Version: "v1"}:                    r.policy,
		{Group: "authentication.k8s.io", Version: "v1"}:     r.authentication,
		{Group: "authorization.k8s.io", Version: "v1"}:      r.authorization,
		{Group: "events.k8s.io", Version: "v1"}:             r.events,
	} {
		g, err := build()
		if err != nil {
			errs = append(errs, fmt.Errorf("storages of %s: %w", gv, err))
		}
		out[gv] = g
	}
	return out, errors.Join(errs...)
}

func (r *registry) core() (group, error) {
	g := group{}
	for _, add := range []func(group) error{r.namespaces, r.podsAndServices, r.config, r.volumes, r.templates} {
		if err := add(g); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (r *registry) namespaces(g group) error {
	ns, status, finalize, err := namespaces.NewREST(r.storages)
	g["namespaces"], g["namespaces/status"], g["namespaces/finalize"] = ns, status, finalize
	return err
}

// podsAndServices also makes nodes and service accounts, because they need one another.
func (r *registry) podsAndServices(g group) error {
	node, err := nodes.NewStorage(r.storages, kubeletclient.KubeletClientConfig{}, r.proxy)
	if err != nil {
		return err
	}
	g["nodes"], g["nodes/status"] = node.Node, node.Status
	g["nodes/proxy"] = nodeProxy{r.kubelets}

	pod, err := pods.NewStorage(r.storages, r.kubelets, r.proxy, r.budgets, r.authorizer)
	if err != nil {
		return err
	}
	g["pods"], g["pods/status"], g["pods/ephemeralcontainers"] = pod.Pod, pod.Status, pod.EphemeralContainers
	g["pods/binding"], g["bindings"], g["pods/eviction"] = pod.Binding, pod.LegacyBinding, pod.Eviction
	g["pods/log"], g["pods/exec"], g["pods/attach"], g["pods/portforward"] = pod.Log, pod.Exec, pod.Attach, pod.PortForward
	g["pods/proxy"] = pod.Proxy

	family := r.addresses.IPFamily()
	svc, status, proxy, err := services.NewREST(r.storages, family, map[core.IPFamily]ipallocator.Interface{family: r.addresses},
		r.ports, r.endpoints, pod.Pod, r.proxy)
	if err != nil {
		return err
	}
	g["services"], g["services/status"], g["services/proxy"] = svc, status, proxy

	secret, err := secrets.NewREST(r.storages)
	if err != nil {
		return err
	}
	g["secrets"] = secret
	sa, err := serviceaccounts.NewREST(r.storages, r.tokens, r.audiences, r.authorizer, 0, pod.Pod.Store, secret, node.Node.Store,
		noWebhooks[*admissionregistrationv1.ValidatingWebhookConfiguration]{},
		noWebhooks[*admissionregistrationv1.MutatingWebhookConfiguration]{}, false, 0)
	if err != nil {
		return err
	}
	g["serviceaccounts"], g["serviceaccounts/token"] = sa, sa.Token
	return nil
}

// noWebhooks answers the token request's question for a webhook configuration to bind to:
// that group is not served.
type noWebhooks[T any] struct{}

func (noWebhooks[T]) Get(_ context.Context, name string, _ metav1.GetOptions) (none T, err error) {
	return none, apierrors.NewNotFound(schema.GroupResource{Group: "admissionregistration.k8s.io", Resource: "webhookconfigurations"}, name)
}

func (r *registry) config(g group) error {
	cm, err := configmaps.NewREST(r.storages)
	if err != nil {
		return err
	}
	ep, err := endpoints.NewREST(r.storages)
	if err != nil {
		return err
	}
	ev, err := events.NewREST(r.storages, 0) // how long they live is the store's business
	g["configmaps"], g["endpoints"], g["events"] = cm, ep, ev
	return err
}

func (r *registry) volumes(g group) error {
	pv, pvStatus, err := persistentvolumes.NewREST(r.storages)
	if err != nil {
		return err
	}
	pvc, pvcStatus, err := persistentvolumeclaims.NewREST(r.storages)
	g["persistentvolumes"], g["persistentvolumes/status"] = pv, pvStatus
	g["persistentvolumeclaims"], g["persistentvolumeclaims/status"] = pvc, pvcStatus
	return err
}

func (r *registry) templates(g group) error {
	pt, err := podtemplates.NewREST(r.storages)
	if err != nil {
		return err
	}
	rc, err := replicationcontrollers.NewStorage(r.storages)
	g["podtemplates"] = pt
	g["replicationcontrollers"], g["replicationcontrollers/status"], g["replicationcontrollers/scale"] = rc.Controller, rc.Status, rc.Scale
	return err
}

func (r *registry) apps() (group, error) {
	d, err := deployments.NewStorage(r.storages)
	if err != nil {
		return nil, err
	}
	rs, err := replicasets.NewStorage(r.storages)
	if err != nil {
		return nil, err
	}
	ss, err := statefulsets.NewStorage(r.storages)
	if err != nil {
		return nil, err
	}
	cr, err := controllerrevisions.NewREST(r.storages)
	return group{
		"deployments": d.Deployment, "deployments/status": d.Status, "deployments/scale": d.Scale,
		"replicasets": rs.ReplicaSet, "replicasets/status": rs.Status, "replicasets/scale": rs.Scale,
		"statefulsets": ss.StatefulSet, "statefulsets/status": ss.Status, "statefulsets/scale": ss.Scale,
		"controllerrevisions": cr,
	}, err
}

func (r *registry) batch() (group, error) {
	j, err := jobs.NewStorage(r.storages)
	return group{"jobs": j.Job, "jobs/status": j.Status}, err
}

func (r *registry) networking() (group, error) {
	np, err := networkpolicies.NewREST(r.storages)
	if err != nil {
		return nil, err
	}
	ip, err := ipaddresses.NewREST(r.storages)
	if err != nil {
		return nil, err
	}
	cidr, status, err := servicecidrs.NewREST(r.storages)
	return group{"networkpolicies": np, "ipaddresses": ip, "servicecidrs": cidr, "servicecidrs/status": status}, err
}

func (r *registry) discovery() (group, error) {
	es, err := endpointslices.NewREST(r.storages)
	return group{"endpointslices": es}, err
}

func (r *registry) coordination() (group, error) {
	l, err := leases.NewREST(r.storages)
	return group{"leases": l}, err
}

func (r *registry) storage() (group, error) {
	sc, err := storageclasses.NewREST(r.storages)
	return group{"storageclasses": sc}, err
}

func (r *registry) scheduling() (group, error) {
	pc, err := priorityclasses.NewREST(r.storages)
	return group{"priorityclasses": pc}, err
}

func (r *registry) policy() (group, error) {
	pdb, status, err := poddisruptionbudgets.NewREST(r.storages)
	return group{"poddisruptionbudgets": pdb, "poddisruptionbudgets/status": status}, err
}

func (r *registry) events() (group, error) {
	ev, err := events.NewREST(r.storages, 0)
	return group{"events": ev}, err
}

// rbac wraps the plain storages in those that refuse to grant what the granter does not have.
func (r *registry) rbac() (group, error) {
	role, err := roles.NewREST(r.storages)
	if err != nil {
		return nil, err
	}
	roleBinding, err := rolebindings.NewREST(r.storages)
	if err != nil {
		return nil, err
	}
	clusterRole, err := clusterroles.NewREST(r.storages)
	if err != nil {
		return nil, err
	}
	clusterRoleBinding, err := clusterrolebindings.NewREST(r.storages)
	return group{
		"roles":               rolepolicy.NewStorage(role, r.authorizer, r.rules),
		"rolebindings":        rolebindingpolicy.NewStorage(roleBinding, r.authorizer, r.rules),
		"clusterroles":        clusterrolepolicy.NewStorage(clusterRole, r.authorizer, r.rules),
		"clusterrolebindings": clusterrolebindingpolicy.NewStorage(clusterRoleBinding, r.authorizer, r.rules),
	}, err
}

func (r *registry) authentication() (group, error) {
	return group{
		"tokenreviews":       tokenreview.NewREST(r.authenticator, r.audiences),
		"selfsubjectreviews": selfsubjectreview.NewREST(),
	}, nil
}

func (r *registry) authorization() (group, error) {
	return group{
		"subjectaccessreviews":      subjectaccessreview.NewREST(r.authorizer, scheme),
		"selfsubjectaccessreviews":  selfsubjectaccessreview.NewREST(r.authorizer, scheme),
		"localsubjectaccessreviews": localsubjectaccessreview.NewREST(r.authorizer, scheme),
		"selfsubjectrulesreviews":   selfsubjectrulesreview.NewREST(r.authorizer),
	}, nil
}
