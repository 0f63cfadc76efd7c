package api

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/cluster/auth"
	"slipway.dev/slipway/cluster/store"
)

// as is an HTTP client that is the named user; "" is nobody.
func (i *instance) as(t testing.TB, name string, groups ...string) *http.Client {
	t.Helper()
	ca := i.opts.Authority
	config := &tls.Config{RootCAs: ca.Pool()}
	if name != "" {
		var err error
		if config, err = ca.ClientTLS(name, groups...); err != nil {
			t.Fatal(err)
		}
	}
	tr := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// ask is the code and the message of an answer.
func (i *instance) ask(t testing.TB, c *http.Client, method, path, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, i.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for n := 0; n+1 < len(header); n += 2 {
		req.Header.Add(header[n], header[n+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	var status metav1.Status
	if json.Unmarshal(buf.Bytes(), &status) == nil && status.Kind == "Status" {
		return resp.StatusCode, status.Message
	}
	return resp.StatusCode, buf.String()
}

func TestAnonymousSeesOnlyHealth(t *testing.T) {
	i := start(t)
	nobody := i.as(t, "")
	for _, tt := range []struct {
		path string
		code int
	}{
		{"/healthz", 200}, {"/livez", 200}, {"/readyz", 200}, {"/readyz/ping", 200}, {"/livez/nothing", 404}, {"/version", 200},
		{"/", 401}, {"/api", 401}, {"/apis", 401}, {"/metrics", 401}, {"/openapi/v2", 401}, {"/openid/v1/jwks", 401},
		{"/api/v1/namespaces/default/secrets", 401}, {"/healthzz", 401}, {"/healthz/../api/v1/namespaces", 404},
	} {
		if code, body := i.ask(t, nobody, "GET", tt.path, ""); code != tt.code {
			t.Errorf("anonymous GET %s: %d %s; want %d", tt.path, code, body, tt.code)
		}
	}
	if code, body := i.ask(t, nobody, "GET", "/api/v1/pods", "", "Authorization", "Bearer junk"); code != 401 || body != "Unauthorized" {
		t.Errorf("a junk token: %d %s", code, body)
	}
}

func TestHealthNamesItsChecks(t *testing.T) {
	i := start(t)
	for path, want := range map[string]string{
		"/readyz":          "ok",
		"/readyz?verbose":  "[+]ping ok\n[+]bootstrap ok\nreadyz check passed\n",
		"/healthz?verbose": "[+]ping ok\n[+]bootstrap ok\nhealthz check passed\n",
		"/livez?verbose=1": "[+]ping ok\nlivez check passed\n",
	} {
		if code, got := i.ask(t, i.as(t, ""), "GET", path, ""); code != 200 || got != want {
			t.Errorf("GET %s answers %d, %q; want 200, %q", path, code, got, want)
		}
	}
}

func TestRBAC(t *testing.T) {
	i := start(t)
	if _, err := i.Client().Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "ann", Namespace: "default"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "ann"}},
	}); err != nil {
		t.Fatal(err)
	}
	ann := i.as(t, "ann")
	for _, tt := range []struct {
		method, path, body string
		code               int
		message            string
	}{
		{"GET", "/api/v1/namespaces/default/pods", "", 200, ""},
		{"POST", ns + "/configmaps", `{"metadata":{"name":"a"}}`, 201, ""},
		{"GET", "/api/v1/pods", "", 403, `pods is forbidden: User "ann" cannot list resource "pods" in API group "" at the cluster scope`},
		{"GET", "/api/v1/namespaces/kube-system/secrets/x", "", 403, `secrets "x" is forbidden: User "ann" cannot get resource "secrets" in API group "" in the namespace "kube-system"`},
		{"GET", "/api/v1/nodes", "", 403, `nodes is forbidden: User "ann" cannot list resource "nodes" in API group "" at the cluster scope`},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", `{"metadata":{"name":"a"}}`, 403, `roles.rbac.authorization.k8s.io is forbidden: User "ann" cannot create resource "roles" in API group "rbac.authorization.k8s.io" in the namespace "default"`},
		{"GET", "/metrics", "", 403, `forbidden: User "ann" cannot get path "/metrics"`},
		{"GET", "/apis", "", 200, ""},
		{"GET", "/openapi/v3", "", 200, ""},
		{"GET", "/.well-known/openid-configuration", "", 403, `forbidden: User "ann" cannot get path "/.well-known/openid-configuration"`},
	} {
		code, message := i.ask(t, ann, tt.method, tt.path, tt.body)
		if code != tt.code || tt.message != "" && message != tt.message {
			t.Errorf("ann %s %s: %d %s; want %d %s", tt.method, tt.path, code, message, tt.code, tt.message)
		}
	}
	// Nobody can grant what he does not have.
	if _, err := i.Client().Create(t.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "bob"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:controller:clusterrole-aggregation-controller"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "bob"}},
	}); err != nil {
		t.Fatal(err)
	}
	grant := `{"metadata":{"name":"x"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"kind":"User","apiGroup":"rbac.authorization.k8s.io","name":"ann"}]}`
	if _, err := i.Client().Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "carol", Namespace: "default"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "admin"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "carol"}},
	}); err != nil {
		t.Fatal(err)
	}
	code, message := i.ask(t, i.as(t, "carol"), "POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", grant)
	if code != 403 || !strings.Contains(message, `user "carol" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held`) {
		t.Errorf("an escalation: %d %s", code, message)
	}
}

func TestImpersonation(t *testing.T) {
	i := start(t)
	root := i.http(t)
	code, body := i.ask(t, root, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{}`,
		"Impersonate-User", "ann", "Impersonate-Group", "dev", "Impersonate-Extra-Team", "blue")
	if code != 201 || !strings.Contains(body, `"username":"ann"`) || !strings.Contains(body, `"groups":["dev","system:authenticated"]`) || !strings.Contains(body, `"team":["blue"]`) {
		t.Errorf("as ann: %d %s", code, body)
	}
	if code, message := i.ask(t, root, "GET", "/api/v1/pods", "", "Impersonate-User", "ann"); code != 403 {
		t.Errorf("as ann the administrator may list pods: %d %s", code, message)
	}
	if code, message := i.ask(t, i.as(t, "ann"), "GET", "/api", "", "Impersonate-User", "root", "Impersonate-Group", "system:masters"); code != 403 || message != `users "root" is forbidden: User "ann" cannot impersonate resource "users" in API group "" at the cluster scope` {
		t.Errorf("ann as root: %d %s", code, message)
	}
	if code, _ := i.ask(t, root, "GET", "/api", "", "Impersonate-Group", "dev"); code != 400 {
		t.Errorf("a group without a user: %d", code)
	}
}

func TestAuditLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := auth.OpenAudit(auth.AuditOptions{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	i := start(t, func(o *Options) { o.Audit = a })
	i.ask(t, i.http(t), "POST", ns+"/secrets", `{"metadata":{"name":"s"},"stringData":{"password":"hunter2"}}`, "User-Agent", "test/1")
	i.ask(t, i.http(t), "GET", ns+"/configmaps", "")
	i.ask(t, i.as(t, "ann"), "DELETE", ns+"/secrets/s", "")
	if _, err := i.Client().As(saPrefix+"service-account-controller").Create(t.Context(), configMap("x", nil)); err == nil {
		t.Error("the service account controller may create config maps")
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("hunter2")) {
		t.Error("the content of a secret is in the audit log")
	}
	var got []string
	for line := range bytes.Lines(data) {
		var e struct {
			Verb           string
			User           struct{ Username string }
			ObjectRef      struct{ Resource, Name string }
			ResponseStatus struct{ Code int }
		}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(e.User.Username, " ", e.Verb, " ", e.ObjectRef.Resource, " ", e.ResponseStatus.Code))
	}
	want := "kubernetes-admin create secrets 201|ann delete secrets 403|" + saPrefix + "service-account-controller create configmaps 403"
	if strings.Join(got, "|") != want {
		t.Errorf("the log says\n%s\nwant\n%s", strings.Join(got, "|"), want)
	}
}

func TestTooManyRequests(t *testing.T) {
	i := start(t)
	i.load.short.Store(maxShort)
	req, err := http.NewRequestWithContext(t.Context(), "GET", i.url+"/api", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := i.http(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("one request too many: %s, Retry-After %q; want 429 and 1", resp.Status, resp.Header.Get("Retry-After"))
	}
	i.load.short.Store(0)
	if code, _ := i.ask(t, i.http(t), "GET", "/api", ""); code != 200 || i.load.short.Load() != 0 {
		t.Errorf("afterwards: %d, %d in hand", code, i.load.short.Load())
	}
}

func TestDiscoveryETag(t *testing.T) {
	i := start(t)
	accept := "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
	_, h, body := i.raw(t, "GET", "/apis", accept, "")
	if !strings.HasPrefix(h.Get("Content-Type"), "application/json;g=apidiscovery.k8s.io") || !strings.Contains(body, `"resource":"deployments"`) {
		t.Fatalf("aggregated discovery: %s %.200s", h.Get("Content-Type"), body)
	}
	if code, _ := i.ask(t, i.http(t), "GET", "/apis", "", "Accept", accept, "If-None-Match", h.Get("ETag")); code != http.StatusNotModified {
		t.Errorf("the same again: %d; want 304", code)
	}
	if _, _, body := i.raw(t, "GET", "/apis", "application/json", ""); !strings.Contains(body, `"kind": "APIGroupList"`) && !strings.Contains(body, `"kind":"APIGroupList"`) {
		t.Errorf("plain discovery: %.200s", body)
	}
	for _, p := range []string{"/api", "/api/v1", "/apis/apps", "/apis/apps/v1"} {
		if code, _, body := i.raw(t, "GET", p, "application/json", ""); code != 200 {
			t.Errorf("GET %s: %d %.100s", p, code, body)
		}
	}
}

func TestServiceAllocation(t *testing.T) {
	i := start(t)
	post := func(body string) (int, map[string]any) {
		_, _, out := i.raw(t, "POST", ns+"/services", "application/json", body)
		var o map[string]any
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			t.Fatal(err)
		}
		code, _ := o["code"].(float64)
		return int(code), o
	}
	_, first := post(`{"metadata":{"name":"a"},"spec":{"type":"NodePort","ports":[{"port":80}]}}`)
	spec := first["spec"].(map[string]any)
	ip, port := spec["clusterIP"].(string), spec["ports"].([]any)[0].(map[string]any)["nodePort"].(float64)
	if code, o := post(fmt.Sprintf(`{"metadata":{"name":"b"},"spec":{"clusterIP":%q,"ports":[{"port":80}]}}`, ip)); code != 422 {
		t.Errorf("the same address twice: %v", o)
	}
	if code, o := post(fmt.Sprintf(`{"metadata":{"name":"b"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":%d}]}}`, int(port))); code != 422 {
		t.Errorf("the same node port twice: %v", o)
	}
	if code, _, body := i.raw(t, "POST", ns+"/services?dryRun=All", "", `{"metadata":{"name":"dry"},"spec":{"ports":[{"port":80}]}}`); code != 201 {
		t.Errorf("dry run: %d %s", code, body)
	}
	if n := i.store.Snapshot(ipAddresses).Len(); n != 2 { // the API's own and a's
		t.Errorf("%d addresses are taken; want 2", n)
	}
	if code, _, body := i.raw(t, "DELETE", ns+"/services/a", "", ""); code != 200 {
		t.Fatalf("delete: %d %s", code, body)
	}
	if code, o := post(fmt.Sprintf(`{"metadata":{"name":"b"},"spec":{"type":"NodePort","clusterIP":%q,"ports":[{"port":80,"nodePort":%d}]}}`, ip, int(port))); code != 0 {
		t.Errorf("address and port were not given back: %v", o)
	}
}

// A crash between taking an address and making its service leaves nothing taken after a start, and nothing of what
// services are given after it is taken for such a leak.
func TestAllocationRepair(t *testing.T) {
	i := start(t)
	a := &addresses{objects: i.store, prefix: i.opts.ServiceRange}
	leaked, err := a.AllocateNext()
	if err != nil {
		t.Fatal(err)
	}
	p := newPorts(i.store, i.opts.NodePorts)
	port, err := p.AllocateNext()
	if err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), i.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close(t.Context())
	if a.Has(leaked) || p.Has(port) || !a.Has(a.nth(1).AsSlice()) {
		t.Errorf("after the repair: leaked address %v, leaked port %v, own address %v", a.Has(leaked), p.Has(port), a.Has(a.nth(1).AsSlice()))
	}
}

func TestSmallRangesAreUsedUp(t *testing.T) {
	i := start(t)
	a, err := newAddresses(i.store, mustPrefix(t, "10.97.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 14 {
		if _, err := a.AllocateNext(); err != nil {
			t.Fatalf("address %d of 14: %v", n+1, err)
		}
	}
	if ip, err := a.AllocateNext(); err == nil {
		t.Errorf("a fifteenth address: %v", ip)
	}
	if _, err := newAddresses(i.store, mustPrefix(t, "10.97.0.0/30")); err == nil {
		t.Error("a range of four addresses was taken")
	}
}

var _ store.Writer = (*Client)(nil)

func TestBootstrapObjects(t *testing.T) {
	i := start(t)
	for path, want := range map[string]string{
		"/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical":        `"preemptionPolicy":"PreemptLowerPriority"`,
		"/api/v1/namespaces/kube-node-lease":                                     `"finalizers":["kubernetes"]`,
		"/api/v1/namespaces/default/services/kubernetes":                         `"clusterIP":"10.96.0.1"`,
		"/api/v1/namespaces/default/endpoints/kubernetes":                        `"addresses":[{"ip":"192.0.2.1"}],"ports":[{"name":"https","port":6443,"protocol":"TCP"}]`,
		"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes": `"addresses":["192.0.2.1"]`,
		"/apis/networking.k8s.io/v1/servicecidrs/kubernetes":                     `"cidrs":["10.96.0.0/16"]`,
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/view":                   `"resources":["configmaps"`,
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin":   `"name":"system:masters"`,
	} {
		if code, _, body := i.raw(t, "GET", path, "application/json", ""); code != 200 || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %.600s; want %s in it", path, code, body, want)
		}
	}
}

// A body that never ends is not waited for longer than the request may take, by either version of HTTP.
func TestSlowBodyIsNotWaitedFor(t *testing.T) {
	i := start(t)
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(version, func(t *testing.T) {
			client := i.as(t, "slow")
			if version == "HTTP/1.1" {
				client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
			}
			body, pen := io.Pipe()
			defer pen.Close()
			go io.WriteString(pen, `{"kind":"SelfSubjectAccessReview",`) // ends with the pipe
			req, err := http.NewRequestWithContext(t.Context(), "POST", i.url+"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews?timeout=50ms", body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				t.Logf("the connection was cut: %v", err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode < 400 || resp.Proto != version {
				t.Errorf("half a request got %s by %s; want an error by %s", resp.Status, resp.Proto, version)
			}
		})
	}
}

// A server may be closed before the goroutine that was to serve ran at all.
func TestServeAfterCloseIsNoError(t *testing.T) {
	i := start(t)
	i.stop()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Serve(l); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener is still open after Serve after Close")
	}
}

// A connection that is accepted when shutdown has looked for unused ones already would hold it up for five seconds.
func TestLateConnectionsAreClosed(t *testing.T) {
	var set serverSet
	if err := set.shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer far.Close()
	set.note(near, http.StateNew)
	if _, err := near.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("writing to a connection that came late: %v; want it closed", err)
	}
}
