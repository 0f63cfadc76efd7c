package auth

import (
	"context"
	"fmt"
	"sync/atomic"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/kubernetes/pkg/registry/rbac/validation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// Authorizer decides by the roles and bindings in the store. The group system:masters may do
// everything: it is how an administrator gets back in when the roles are broken.
type Authorizer struct {
	*rbac.RBACAuthorizer
	roles *Roles
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// NewAuthorizer is RBAC over what is in the store.
func NewAuthorizer(objects store.Reader) *Authorizer {
	r := &Roles{objects: objects}
	return &Authorizer{RBACAuthorizer: rbac.New(r, r, r, r), roles: r}
}

// Rules resolves which rules apply to a user, for the checks against escalation.
func (a *Authorizer) Rules() validation.AuthorizationRuleResolver {
	return validation.NewDefaultRuleResolver(a.roles, a.roles, a.roles, a.roles)
}

// Authorize answers whether a user may.
func (a *Authorizer) Authorize(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	if privileged(attrs.GetUser()) {
		return authorizer.DecisionAllow, "", nil
	}
	return a.RBACAuthorizer.Authorize(ctx, attrs)
}

// ConditionsAwareAuthorize is Authorize: RBAC has no conditions.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attrs authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.AuthorizerFunc(a.Authorize).ConditionsAwareAuthorize(ctx, attrs)
}

// RulesFor lists what a user may do, for kubectl auth can-i --list.
func (a *Authorizer) RulesFor(ctx context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	if privileged(u) {
		all := []string{"*"}
		return []authorizer.ResourceRuleInfo{&authorizer.DefaultResourceRuleInfo{Verbs: all, APIGroups: all, Resources: all}},
			[]authorizer.NonResourceRuleInfo{&authorizer.DefaultNonResourceRuleInfo{Verbs: all, NonResourceURLs: all}}, false, nil
	}
	return a.RBACAuthorizer.RulesFor(ctx, u, namespace)
}

func privileged(u user.Info) bool {
	if u == nil {
		return false
	}
	for _, g := range u.GetGroups() {
		if g == user.SystemPrivilegedGroup {
			return true
		}
	}
	return false
}

// Roles gives upstream's rule resolution the roles and bindings in the store.
type Roles struct {
	objects store.Reader
	// bindings is the list of cluster role bindings of one revision: every request asks for
	// all of them, and they hardly ever change.
	bindings atomic.Pointer[clusterBindings]
}

type clusterBindings struct {
	snapshot store.Snapshot
	list     []*rbacv1.ClusterRoleBinding
}

func (r *Roles) GetRole(_ context.Context, namespace, name string) (*rbacv1.Role, error) {
	return find[*rbacv1.Role](r.objects, kinds.Roles, namespace, name)
}

func (r *Roles) GetClusterRole(_ context.Context, name string) (*rbacv1.ClusterRole, error) {
	return find[*rbacv1.ClusterRole](r.objects, kinds.ClusterRoles, "", name)
}

func (r *Roles) ListRoleBindings(_ context.Context, namespace string) ([]*rbacv1.RoleBinding, error) {
	if namespace == "" {
		return nil, fmt.Errorf("list role bindings: a namespace is needed")
	}
	return store.List[*rbacv1.RoleBinding](r.objects, kinds.RoleBindings, namespace), nil
}

func (r *Roles) ListClusterRoleBindings(context.Context) ([]*rbacv1.ClusterRoleBinding, error) {
	snap := r.objects.Snapshot(kinds.ClusterRoleBindings)
	if c := r.bindings.Load(); c != nil && c.snapshot.Same(snap) {
		return c.list, nil
	}
	c := &clusterBindings{snapshot: snap}
	for o := range snap.All("") {
		c.list = append(c.list, o.(*rbacv1.ClusterRoleBinding))
	}
	r.bindings.Store(c)
	return c.list, nil
}
