package api

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/uuid"
	schedulinghelpers "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// bootstrapRetry is how long a failed write of the cluster's own objects waits.
const bootstrapRetry = time.Second

// bootstrap makes what every cluster has, and tries again until it is all there. What exists
// is left as it is: administrators may have changed it.
func (s *Server) bootstrap(ctx context.Context) {
	for {
		err := s.bootstrapOnce(ctx)
		if err == nil {
			close(s.ready)
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Error("the cluster's own objects could not be made, trying again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(bootstrapRetry):
		}
	}
}

// repair puts right what a crash has left of the giving out of addresses and ports. It has to come before the first request:
// what is being given to a new service at that moment looks as if it were nobody's.
func (s *Server) repair(ctx context.Context) error {
	addrs := &addresses{objects: s.opts.Store, prefix: s.opts.ServiceRange}
	return errors.Join(addrs.repair(ctx), newPorts(s.opts.Store, s.opts.NodePorts).repair())
}

func (s *Server) bootstrapOnce(ctx context.Context) error {
	objects := append(namespaceObjects(), policyObjects()...)
	objects = append(objects, schedulingObjects()...)
	objects = append(objects, s.serviceRangeObject())
	if err := s.ensure(ctx, objects); err != nil {
		return err
	}
	return s.ensureOwnService(ctx, &addresses{objects: s.opts.Store, prefix: s.opts.ServiceRange})
}

// writers is how many objects are written at once: a durable store commits them together.
const writers = 64

// ensure creates what is missing.
func (s *Server) ensure(ctx context.Context, objects []store.Object) error {
	var (
		tasks sync.WaitGroup
		slots = make(chan struct{}, writers)
		mu    sync.Mutex
		errs  []error
	)
	for _, o := range objects {
		gr, ok := s.objects.ResourceOf(o)
		if !ok {
			continue
		}
		if _, exists := s.objects.Snapshot(gr).Get(o.GetNamespace(), o.GetName()); exists {
			continue
		}
		slots <- struct{}{}
		tasks.Go(func() {
			defer func() { <-slots }()
			scheme.Default(o) // as a decoder would have
			o.SetUID(uuid.NewUUID())
			o.SetCreationTimestamp(metav1.Now())
			if _, err := s.objects.Create(ctx, gr, o); err != nil && !apierrors.IsAlreadyExists(err) {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	tasks.Wait()
	return errors.Join(errs...)
}

func namespaceObjects() []store.Object {
	var out []store.Object
	for _, name := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		out = append(out, &corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelMetadataName: name}},
			Spec:       corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}},
			Status:     corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		})
	}
	return out
}

// policyObjects are upstream's default roles and bindings.
func policyObjects() []store.Object {
	var out []store.Object
	controllers := bootstrappolicy.ControllerRoles()
	updateWherePatch(controllers)
	roles := append(bootstrappolicy.ClusterRoles(), controllers...)
	aggregateRoles(roles)
	for i := range roles {
		out = append(out, &roles[i])
	}
	bindings := append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...)
	for i := range bindings {
		if bindings[i].Name == "system:node" {
			// Upstream leaves this binding empty because its node authorizer decides. Here the
			// agents of a cluster's own nodes are trusted with what a node's role allows.
			bindings[i].Subjects = []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: "system:nodes"}}
		}
		out = append(out, &bindings[i])
	}
	// These two are upstream's own variables, the same for every server in the process: copies.
	for _, list := range bootstrappolicy.NamespaceRoles() {
		for i := range list {
			out = append(out, list[i].DeepCopy())
		}
	}
	for _, list := range bootstrappolicy.NamespaceRoleBindings() {
		for i := range list {
			out = append(out, list[i].DeepCopy())
		}
	}
	return out
}

// updateWherePatch lets controllers update what upstream's patch: ours read the newest version in
// memory and write it back whole, on condition that it still is the newest.
func updateWherePatch(roles []rbacv1.ClusterRole) {
	for i := range roles {
		for j := range roles[i].Rules {
			r := &roles[i].Rules[j]
			if slices.Contains(r.Verbs, "patch") && !slices.Contains(r.Verbs, "update") {
				r.Verbs = append(slices.Clone(r.Verbs), "update")
			}
		}
	}
}

// aggregateRoles fills in the rules of admin, edit and view, which gather those of other
// roles: until a controller follows changes, they are right from the start.
func aggregateRoles(roles []rbacv1.ClusterRole) {
	// edit gathers view, and admin gathers edit: three rounds reach every rule.
	for range 3 {
		for i := range roles {
			if roles[i].AggregationRule != nil {
				roles[i].Rules = gather(roles, &roles[i])
			}
		}
	}
}

func gather(roles []rbacv1.ClusterRole, into *rbacv1.ClusterRole) []rbacv1.PolicyRule {
	var parts []*rbacv1.ClusterRole
	for i := range roles {
		for _, sel := range into.AggregationRule.ClusterRoleSelectors {
			selector, err := metav1.LabelSelectorAsSelector(&sel)
			if err == nil && roles[i].Name != into.Name && selector.Matches(labels.Set(roles[i].Labels)) {
				parts = append(parts, &roles[i])
			}
		}
	}
	sort.Slice(parts, func(i, j int) bool { return parts[i].Name < parts[j].Name })
	var rules []rbacv1.PolicyRule
	seen := map[string]bool{}
	for _, p := range parts {
		for _, r := range p.Rules {
			if key := r.String(); !seen[key] {
				seen[key] = true
				rules = append(rules, *r.DeepCopy())
			}
		}
	}
	return rules
}

func schedulingObjects() []store.Object {
	var out []store.Object
	for _, pc := range schedulinghelpers.SystemPriorityClasses() {
		out = append(out, pc.DeepCopy())
	}
	return out
}

func (s *Server) serviceRangeObject() store.Object {
	return &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Generation: 1},
		Spec:       networkingv1.ServiceCIDRSpec{CIDRs: []string{s.opts.ServiceRange.String()}},
		Status: networkingv1.ServiceCIDRStatus{Conditions: []metav1.Condition{{
			Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue, LastTransitionTime: metav1.Now(),
			Reason: "NetworkReady", Message: "addresses are given out from this range",
		}}},
	}
}

// ensureOwnService makes default/kubernetes and points it at this server.
func (s *Server) ensureOwnService(ctx context.Context, addrs *addresses) error {
	ip := addrs.nth(1).String()
	family, ipFamily := discoveryv1.AddressTypeIPv4, corev1.IPv4Protocol
	if s.opts.ServiceRange.Addr().Is6() {
		family, ipFamily = discoveryv1.AddressTypeIPv6, corev1.IPv6Protocol
	}
	own := map[string]string{"component": "apiserver", "provider": "kubernetes"}
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	port := s.opts.Endpoint.Port()
	if port == 0 {
		port = 6443
	}
	if err := addrs.take(addrs.nth(1)); err != nil && !addrs.has(addrs.nth(1)) {
		return err
	}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault, Labels: own},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilies: []corev1.IPFamily{ipFamily}, IPFamilyPolicy: &single, InternalTrafficPolicy: &cluster,
			Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(int32(port))}},
		},
	}
	if err := s.ensure(ctx, []store.Object{service}); err != nil {
		return err
	}
	if !s.opts.Endpoint.IsValid() {
		return nil
	}
	return errors.Join(s.pointService(ctx, int32(port)), s.pointSlice(ctx, family, int32(port)), s.pointEndpoints(ctx, int32(port)))
}

// pointService follows a changed port: the service range is kept, the port is an option.
func (s *Server) pointService(ctx context.Context, port int32) error {
	_, err := store.Edit(ctx, s.opts.Store, kinds.Services, metav1.NamespaceDefault, "kubernetes", func(svc *corev1.Service) error {
		if len(svc.Spec.Ports) == 1 && svc.Spec.Ports[0].TargetPort == intstr.FromInt32(port) {
			return errUnchanged
		}
		svc.Spec.Ports = []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(port)}}
		return nil
	})
	return ignoreUnchanged(err)
}

var errUnchanged = errors.New("unchanged")

func ignoreUnchanged(err error) error {
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

func (s *Server) pointSlice(ctx context.Context, family discoveryv1.AddressType, port int32) error {
	name, proto, ready, addr := "https", corev1.ProtocolTCP, true, s.opts.Endpoint.Addr().String()
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault, Generation: 1,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		AddressType: family,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}},
	}
	if err := s.ensure(ctx, []store.Object{want.DeepCopy()}); err != nil {
		return err
	}
	_, err := store.Edit(ctx, s.opts.Store, kinds.EndpointSlices, metav1.NamespaceDefault, "kubernetes", func(e *discoveryv1.EndpointSlice) error {
		if len(e.Endpoints) == 1 && len(e.Ports) == 1 && e.Endpoints[0].Addresses[0] == addr && *e.Ports[0].Port == port {
			return errUnchanged
		}
		e.Endpoints, e.Ports = want.Endpoints, want.Ports
		e.Generation++
		return nil
	})
	return ignoreUnchanged(err)
}

func (s *Server) pointEndpoints(ctx context.Context, port int32) error {
	want := []corev1.EndpointSubset{{
		Addresses: []corev1.EndpointAddress{{IP: s.opts.Endpoint.Addr().String()}},
		Ports:     []corev1.EndpointPort{{Name: "https", Port: port, Protocol: corev1.ProtocolTCP}},
	}}
	if err := s.ensure(ctx, []store.Object{&corev1.Endpoints{
		// The slice is made here as well: nobody is to mirror these endpoints into a second one.
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: metav1.NamespaceDefault, Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"}},
		Subsets:    want,
	}}); err != nil {
		return err
	}
	_, err := store.Edit(ctx, s.opts.Store, kinds.Endpoints, metav1.NamespaceDefault, "kubernetes", func(e *corev1.Endpoints) error {
		if len(e.Subsets) == 1 && e.Subsets[0].Addresses[0].IP == want[0].Addresses[0].IP && e.Subsets[0].Ports[0].Port == port {
			return errUnchanged
		}
		e.Subsets = want
		return nil
	})
	return ignoreUnchanged(err)
}

// ServiceIP is the address of the kubernetes service in a service range: the API's serving
// certificate must name it.
func ServiceIP(prefix netip.Prefix) netip.Addr { return (&addresses{prefix: prefix}).nth(1) }
