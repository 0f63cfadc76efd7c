package auth

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

func serving(t *testing.T, a *Authority) *x509.Certificate {
	t.Helper()
	c, err := a.TLS().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func TestAuthorityIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	names := Names{Hosts: []string{"box"}, IPs: []net.IP{net.IPv4(10, 96, 0, 1)}}
	first, err := OpenAuthority(dir, names)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc.cluster.local", "box", "[::1]"} {
		if err := serving(t, first).VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	again, err := OpenAuthority(dir, names)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.CA(), again.CA()) || !serving(t, first).Equal(serving(t, again)) || !bytes.Equal(first.admin.cert, again.admin.cert) {
		t.Error("a second start made certificates anew")
	}
	moved, err := OpenAuthority(dir, Names{Hosts: []string{"other"}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.CA(), moved.CA()) || serving(t, moved).VerifyHostname("other") != nil || serving(t, moved).VerifyHostname("box") == nil {
		t.Error("with other names the CA must stay and the serving certificate must follow")
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".key") && st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", path, st.Mode())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAuthorityRefusesDamage(t *testing.T) {
	for _, tt := range []struct{ file, content, want string }{
		{"ca.key", "junk", "ca.key is damaged: it holds no PEM block"},
		{"ca.crt", "junk", "ca.crt: damaged: it holds no PEM block"},
		{"sa.key", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "sa.key is damaged"},
	} {
		dir := t.TempDir()
		if _, err := OpenAuthority(dir, Names{}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, tt.file), []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenAuthority(dir, Names{}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("with a damaged %s: %v; want %q", tt.file, err, tt.want)
		}
	}
	dir := t.TempDir()
	if _, err := OpenAuthority(dir, Names{}); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "ca.key"))
	if _, err := OpenAuthority(dir, Names{}); err == nil || !strings.Contains(err.Error(), "does not belong to ca.key") {
		t.Errorf("with another key: %v", err)
	}
	// A leaf can be made again.
	dir = t.TempDir()
	if _, err := OpenAuthority(dir, Names{}); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "admin.key"), []byte("junk"), 0o600)
	if _, err := OpenAuthority(dir, Names{}); err != nil {
		t.Errorf("with a damaged leaf: %v; want it made anew", err)
	}
}

func openStore(t testing.TB) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Options{Kinds: kinds.All(), Backend: store.Memory(), Detector: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// from is a request as it arrives with a client's certificate.
func from(t *testing.T, c *tls.Config) *http.Request {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return &http.Request{Header: http.Header{}, TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}}
}

func TestAuthenticateCertificates(t *testing.T) {
	ours, err := OpenAuthority(t.TempDir(), Names{})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := OpenAuthority(t.TempDir(), Names{})
	if err != nil {
		t.Fatal(err)
	}
	authn, err := NewAuthenticator(ours, openStore(t))
	if err != nil {
		t.Fatal(err)
	}
	good, err := ours.ClientTLS("ann", "dev", "ops")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from memory
		resp, ok, err := authn.AuthenticateRequest(from(t, good))
		if err != nil || !ok || resp.User.GetName() != "ann" || strings.Join(resp.User.GetGroups(), ",") != "dev,ops,system:authenticated" {
			t.Errorf("our certificate: %v %v %v", resp, ok, err)
		}
	}
	bad, err := theirs.ClientTLS("ann", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := authn.AuthenticateRequest(from(t, bad)); ok || err == nil || !strings.Contains(err.Error(), `client certificate of "ann"`) {
		t.Errorf("another CA's certificate: %v %v; want an error", ok, err)
	}
	server := &tls.Config{Certificates: []tls.Certificate{*ours.serving.Load()}}
	if _, ok, err := authn.AuthenticateRequest(from(t, server)); ok || err == nil {
		t.Error("the serving certificate must not be a client's")
	}
	if _, ok, err := authn.AuthenticateRequest(&http.Request{Header: http.Header{}}); ok || err != nil {
		t.Errorf("nothing: %v %v; want no opinion", ok, err)
	}
	for _, token := range []string{"junk", "a.b.c", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMuY2x1c3Rlci5sb2NhbCJ9."} {
		req := &http.Request{Header: http.Header{"Authorization": {"Bearer " + token}}}
		if _, ok, _ := authn.AuthenticateRequest(req.WithContext(t.Context())); ok {
			t.Errorf("token %q was believed", token)
		}
	}
}

func TestAuthorize(t *testing.T) {
	s := openStore(t)
	ctx := t.Context()
	for _, o := range []store.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get", "list"}, APIGroups: []string{""}, Resources: []string{"pods"}}}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "b", Namespace: "one"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "app", Namespace: "one"}}},
	} {
		gr, _ := s.ResourceOf(o)
		if _, err := s.Create(ctx, gr, o); err != nil {
			t.Fatal(err)
		}
	}
	authz := NewAuthorizer(s)
	app := &user.DefaultInfo{Name: "system:serviceaccount:one:app", Groups: []string{"system:serviceaccounts"}}
	may := func(u user.Info, verb, namespace, resource string) bool {
		d, _, err := authz.Authorize(ctx, authorizer.AttributesRecord{User: u, Verb: verb, Namespace: namespace, Resource: resource, ResourceRequest: true})
		if err != nil {
			t.Fatal(err)
		}
		return d == authorizer.DecisionAllow
	}
	for _, tt := range []struct {
		user                      user.Info
		verb, namespace, resource string
		want                      bool
	}{
		{app, "get", "one", "pods", true},
		{app, "delete", "one", "pods", false},
		{app, "get", "two", "pods", false},
		{app, "get", "one", "secrets", false},
		{&user.DefaultInfo{Name: "root", Groups: []string{"system:masters"}}, "delete", "two", "secrets", true},
		{&user.DefaultInfo{Name: "nobody"}, "get", "one", "pods", false},
	} {
		if got := may(tt.user, tt.verb, tt.namespace, tt.resource); got != tt.want {
			t.Errorf("%s may %s %s in %s: %v; want %v", tt.user.GetName(), tt.verb, tt.resource, tt.namespace, got, tt.want)
		}
	}
	// A new binding holds at once, although the list of them is kept.
	all := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "all"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "reader"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "nobody"}}}
	if _, err := s.Create(ctx, kinds.ClusterRoleBindings, all); err != nil {
		t.Fatal(err)
	}
	if !may(&user.DefaultInfo{Name: "nobody"}, "get", "two", "pods") {
		t.Error("a new cluster role binding does not hold")
	}
}

func TestAuditIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	a, err := OpenAudit(AuditOptions{Path: path, MaxBytes: 4096, Keep: 2})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		a.Write(AuditRecord{ID: "id", User: &user.DefaultInfo{Name: "ann"}, Verb: "create", URI: "/api/v1/namespaces/default/secrets",
			Info: &request.RequestInfo{IsResourceRequest: true, Resource: "secrets", Namespace: "default", APIVersion: "v1"}, Code: 201, Received: time.Unix(int64(n), 0)})
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files are %v; want the log and two old ones", files)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 4096 {
			t.Errorf("%s has %d bytes; want at most 4096", f, len(data))
		}
		for line := range bytes.Lines(data) {
			var e struct {
				Kind, Level, Verb string
				User              struct{ Username string }
				ObjectRef         struct{ Resource string }
			}
			if err := json.Unmarshal(line, &e); err != nil || e.Kind != "Event" || e.Level != "Metadata" || e.User.Username != "ann" || e.ObjectRef.Resource != "secrets" {
				t.Fatalf("%s: line %s: %v", f, line, err)
			}
		}
	}
}

// A log that cannot be opened after a rotation is opened by the first write that can.
func TestAuditOpensAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "audit.log")
	a, err := OpenAudit(AuditOptions{Path: path, MaxBytes: 1024, Keep: 2})
	if err != nil {
		t.Fatal(err)
	}
	write := func(id string) { a.Write(AuditRecord{ID: id, URI: "/" + strings.Repeat("x", 600)}) }
	write("first")
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	write("lost") // rotates, and there is no directory to open a file in
	write("lost too")
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	write("last")
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for file, id := range map[string]string{path: "last", path + ".1": "first"} {
		data, err := os.ReadFile(file)
		if err != nil || bytes.Count(data, []byte("\n")) != 1 || !bytes.Contains(data, []byte(`"auditID":"`+id+`"`)) {
			t.Errorf("%s holds %s (%v); want the record %q", file, data, err, id)
		}
	}
	if _, err := os.Stat(path + ".2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s.2: %v; want that one rotation moved the files once", path, err)
	}
}

// A full disk is reported once, and does not fail requests.
func TestAuditReportsOnce(t *testing.T) {
	var log bytes.Buffer
	a, err := OpenAudit(AuditOptions{Path: filepath.Join(t.TempDir(), "audit.log"), Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		a.report(errors.New("no space left on device"))
	}
	a.report(nil)
	a.report(errors.New("no space left on device"))
	if n := strings.Count(log.String(), "cannot be written"); n != 2 {
		t.Errorf("reported %d times; want once for each time it began", n)
	}
	var none *Audit
	none.Write(AuditRecord{})
	if err := errors.Join(none.Close(), a.Close()); err != nil {
		t.Error(err)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	s := openStore(b)
	for n := range 70 {
		o := &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: strings.Repeat("b", n+1)}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "none"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "x", Namespace: "kube-system"}}}
		if _, err := s.Create(b.Context(), kinds.ClusterRoleBindings, o); err != nil {
			b.Fatal(err)
		}
	}
	authz := NewAuthorizer(s)
	attrs := authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "system:serviceaccount:a:b"}, Verb: "get", Resource: "pods", Namespace: "a", ResourceRequest: true}
	b.ReportAllocs()
	for b.Loop() {
		authz.Authorize(b.Context(), attrs)
	}
}
