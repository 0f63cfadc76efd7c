package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// impersonate lets a user act as another (kubectl --as), if each part of that other identity
// may be taken on by it. It answers the request itself when that is refused.
func (c *call) impersonate() bool {
	h := c.req.Header
	name := h.Get(authenticationv1.ImpersonateUserHeader)
	groups := h.Values(authenticationv1.ImpersonateGroupHeader)
	uid := h.Get(authenticationv1.ImpersonateUIDHeader)
	extra, err := impersonatedExtra(h)
	if err != nil {
		c.fail(apierrors.NewBadRequest(err.Error()))
		return false
	}
	if name == "" {
		if len(groups) > 0 || uid != "" || len(extra) > 0 {
			c.fail(apierrors.NewBadRequest(fmt.Sprintf("requested %v without impersonating a user name: set %s as well", groups, authenticationv1.ImpersonateUserHeader)))
			return false
		}
		return true
	}
	for _, attrs := range impersonations(c.user, name, groups, uid, extra) {
		decision, reason, _ := c.s.authz.Authorize(c.req.Context(), attrs)
		if decision != authorizer.DecisionAllow {
			c.why = reason
			c.s.forbid(c.w, c.req, attrs, reason)
			return false
		}
	}
	c.as = impersonated(name, groups, uid, extra)
	for key := range h {
		if strings.HasPrefix(key, "Impersonate-") {
			h.Del(key) // a proxied pod must not see them
		}
	}
	c.req = c.req.WithContext(request.WithUser(c.req.Context(), c.as))
	return true
}

// impersonations is each single thing that the user must be allowed.
func impersonations(u user.Info, name string, groups []string, uid string, extra map[string][]string) []authorizer.AttributesRecord {
	base := authorizer.AttributesRecord{User: u, Verb: "impersonate", APIVersion: "v1", ResourceRequest: true}
	one := base
	one.Resource, one.Name = "users", name
	if namespace, account, err := serviceaccount.SplitUsername(name); err == nil {
		one.Resource, one.Namespace, one.Name = "serviceaccounts", namespace, account
	}
	list := []authorizer.AttributesRecord{one}
	for _, g := range groups {
		a := base
		a.Resource, a.Name = "groups", g
		list = append(list, a)
	}
	if uid != "" {
		a := base
		a.APIGroup, a.Resource, a.Name = authenticationv1.GroupName, "uids", uid
		list = append(list, a)
	}
	for key, values := range extra {
		for _, v := range values {
			a := base
			a.APIGroup, a.Resource, a.Subresource, a.Name = authenticationv1.GroupName, "userextras", key, v
			list = append(list, a)
		}
	}
	return list
}

func impersonated(name string, groups []string, uid string, extra map[string][]string) user.Info {
	u := &user.DefaultInfo{Name: name, UID: uid, Extra: extra, Groups: append([]string{}, groups...)}
	if namespace, _, err := serviceaccount.SplitUsername(name); err == nil && len(groups) == 0 {
		u.Groups = serviceaccount.MakeGroupNames(namespace)
	}
	everybody := user.AllAuthenticated
	if name == user.Anonymous {
		everybody = user.AllUnauthenticated
	}
	for _, g := range u.Groups {
		if g == everybody {
			return u
		}
	}
	u.Groups = append(u.Groups, everybody)
	return u
}

func impersonatedExtra(h http.Header) (map[string][]string, error) {
	var extra map[string][]string
	for key, values := range h {
		rest, ok := strings.CutPrefix(key, authenticationv1.ImpersonateUserExtraHeaderPrefix)
		if !ok {
			continue
		}
		name, err := url.PathUnescape(strings.ToLower(rest))
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", key, err)
		}
		if extra == nil {
			extra = map[string][]string{}
		}
		extra[name] = append(extra[name], values...)
	}
	return extra, nil
}
