package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	ns  = "/api/v1/namespaces/default"
	app = "/apis/apps/v1/namespaces/default"
)

// badRequests are what clients get wrong. The answers are in testdata/bad-requests.golden.
var badRequests = []struct{ name, method, path, body string }{
	{"unknown group", "GET", "/apis/nope.example.com/v1/things", ""},
	{"unknown version", "GET", "/apis/apps/v1beta1/deployments", ""},
	{"unknown resource", "GET", ns + "/podz", ""},
	{"unknown subresource", "GET", ns + "/configmaps/a/scale", ""},
	{"kind that is not served", "GET", app + "/daemonsets", ""},
	{"object that is not there", "GET", ns + "/configmaps/missing", ""},
	{"namespace before a cluster's resource", "GET", ns + "/nodes/a", ""},
	{"no namespace before a namespaced object", "GET", "/api/v1/pods/a", ""},
	{"method not allowed on a collection", "PUT", ns + "/configmaps", "{}"},
	{"method not allowed on a document", "POST", "/version", "{}"},
	{"create with a name in the path", "POST", ns + "/configmaps/a", `{"metadata":{"name":"a"}}`},
	{"not JSON", "POST", ns + "/configmaps", `{"metadata":`},
	{"empty body", "POST", ns + "/configmaps", ` `},
	{"a list instead of an object", "POST", ns + "/configmaps", `[]`},
	{"wrong type of a field", "POST", ns + "/configmaps", `{"metadata":{"name":"a"},"data":{"a":1}}`},
	{"wrong kind", "POST", ns + "/configmaps", `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"a"}}`},
	{"wrong version", "POST", app + "/deployments", `{"kind":"Deployment","apiVersion":"apps/v1beta1","metadata":{"name":"a"}}`},
	{"unknown kind", "POST", ns + "/configmaps", `{"kind":"Thing","apiVersion":"v1"}`},
	{"no name", "POST", ns + "/configmaps", `{}`},
	{"bad name", "POST", ns + "/configmaps", `{"metadata":{"name":"A_b"}}`},
	{"bad label", "POST", ns + "/configmaps", `{"metadata":{"name":"a","labels":{"x y":"z"}}}`},
	{"bad data key", "POST", ns + "/configmaps", `{"metadata":{"name":"a"},"data":{"a b":"c"}}`},
	{"another namespace in the body", "POST", ns + "/configmaps", `{"metadata":{"name":"a","namespace":"other"}}`},
	{"namespace that is not there", "POST", "/api/v1/namespaces/nowhere/configmaps", `{"metadata":{"name":"a"}}`},
	{"version on create", "POST", ns + "/configmaps", `{"metadata":{"name":"a","resourceVersion":"1"}}`},
	{"already there", "POST", "/api/v1/namespaces", `{"metadata":{"name":"default"}}`},
	{"unknown field, strict", "POST", ns + "/configmaps?fieldValidation=Strict", `{"metadata":{"name":"a"},"dat":{}}`},
	{"field given twice, strict", "POST", ns + "/configmaps?fieldValidation=Strict", `{"metadata":{"name":"a","name":"b"}}`},
	{"bad dryRun", "POST", ns + "/configmaps?dryRun=Some", `{"metadata":{"name":"a"}}`},
	{"bad fieldManager", "POST", ns + "/configmaps?fieldManager=" + strings.Repeat("x", 129), `{"metadata":{"name":"a"}}`},
	{"pod without containers", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"containers":[]}}`},
	{"pod with a bad image and port", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":" ","ports":[{"containerPort":70000}]}]}}`},
	{"pod with a bad quantity", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","resources":{"limits":{"memory":"1 GB"}}}]}}`},
	{"pod with a request above its limit", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","resources":{"requests":{"cpu":"2"},"limits":{"cpu":"1"}}}]}}`},
	{"pod mounting no volume", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i","volumeMounts":[{"name":"v","mountPath":"/v"}]}]}}`},
	{"pod with an unknown priority class", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"priorityClassName":"nope","containers":[{"name":"c","image":"i"}]}}`},
	{"pod with an unknown account", "POST", ns + "/pods", `{"metadata":{"name":"a"},"spec":{"serviceAccountName":"nope","containers":[{"name":"c","image":"i"}]}}`},
	{"deployment whose selector misses its template", "POST", app + "/deployments", `{"metadata":{"name":"a"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"c"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`},
	{"deployment with restart policy Never", "POST", app + "/deployments", `{"metadata":{"name":"a"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"i"}]}}}}`},
	{"service without ports", "POST", ns + "/services", `{"metadata":{"name":"a"},"spec":{}}`},
	{"service with an address out of range", "POST", ns + "/services", `{"metadata":{"name":"a"},"spec":{"clusterIP":"10.1.2.3","ports":[{"port":80}]}}`},
	{"service with the API's own address", "POST", ns + "/services", `{"metadata":{"name":"a"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80}]}}`},
	{"service with a node port out of range", "POST", ns + "/services", `{"metadata":{"name":"a"},"spec":{"type":"NodePort","ports":[{"port":80,"nodePort":80}]}}`},
	{"service named like a domain", "POST", ns + "/services", `{"metadata":{"name":"a.b"},"spec":{"ports":[{"port":80}]}}`},
	{"role that grants nothing known", "POST", "/apis/rbac.authorization.k8s.io/v1/clusterroles", `{"metadata":{"name":"a"},"rules":[{"verbs":[]}]}`},
	{"update of another name", "PUT", ns + "/configmaps/b", `{"metadata":{"name":"a"}}`},
	{"update of nothing", "PUT", ns + "/configmaps/missing", `{"metadata":{"name":"missing"}}`},
	{"update of a service's address", "PUT", ns + "/services/kubernetes", `{"metadata":{"name":"kubernetes","resourceVersion":"1"},"spec":{"ports":[{"port":443}]}}`},
	{"bad patch type", "PATCH", ns + "/configmaps/kept", `{}`},
	{"JSON patch that is none", "PATCH json", ns + "/configmaps/kept", `{"op":"add"}`},
	{"JSON patch of a missing path", "PATCH json", ns + "/configmaps/kept", `[{"op":"remove","path":"/data/nope"}]`},
	{"JSON patch whose test fails", "PATCH json", ns + "/configmaps/kept", `[{"op":"test","path":"/data/k","value":"w"}]`},
	{"patch of nothing", "PATCH merge", ns + "/configmaps/missing", `{}`},
	{"apply without a manager", "PATCH apply", ns + "/configmaps/kept", `{"apiVersion":"v1","kind":"ConfigMap"}`},
	{"apply of another's field", "PATCH apply", ns + "/configmaps/kept?fieldManager=me", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept"},"data":{"k":"mine"}}`},
	{"apply of an unknown field", "PATCH apply", ns + "/configmaps/kept?fieldManager=me", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept"},"dat":{"k":"mine"}}`},
	{"apply with managed fields", "PATCH apply", ns + "/configmaps/kept?fieldManager=me", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"kept","managedFields":[{"manager":"x","operation":"Apply","apiVersion":"v1"}]}}`},
	{"delete with a wrong uid", "DELETE", ns + "/configmaps/kept", `{"preconditions":{"uid":"other"}}`},
	{"delete of a namespace that may not go", "DELETE", "/api/v1/namespaces/kube-system", ""},
	{"delete of a built-in priority class", "DELETE", "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical", ""},
	{"bad label selector", "GET", ns + "/configmaps?labelSelector=a=b=c", ""},
	{"field that cannot be selected", "GET", ns + "/configmaps?fieldSelector=data.k=v", ""},
	{"bad limit", "GET", ns + "/configmaps?limit=many", ""},
	{"bad continue token", "GET", ns + "/configmaps?limit=1&continue=xyz", ""},
	{"bad version", "GET", ns + "/configmaps?resourceVersion=new", ""},
	{"version match without a version", "GET", ns + "/configmaps?resourceVersionMatch=Exact", ""},
	{"watch list without match", "GET", ns + "/configmaps?watch=1&sendInitialEvents=true", ""},
	{"exec into a pod that is not there", "POST", ns + "/pods/missing/exec?command=sh", ""},
	{"binding of a pod that is not there", "POST", ns + "/pods/missing/binding", `{"metadata":{"name":"missing"},"target":{"name":"n"}}`},
	{"scale of nothing", "PUT", app + "/deployments/missing/scale", `{"metadata":{"name":"missing"},"spec":{"replicas":1}}`},
	{"scale below zero", "PUT", app + "/deployments/kept/scale", `{"metadata":{"name":"kept"},"spec":{"replicas":-1}}`},
	{"token for no account", "POST", ns + "/serviceaccounts/missing/token", `{"spec":{}}`},
	{"access review without a question", "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", `{"spec":{}}`},
	{"too large", "POST", ns + "/configmaps", `{"metadata":{"name":"a"},"data":{"k":"` + strings.Repeat("x", 3<<20) + `"}}`},
}

func TestBadRequests(t *testing.T) {
	i := start(t)
	makeDefaultAccount(t, i)
	for _, seed := range []struct{ path, body string }{
		{ns + "/configmaps?fieldManager=first", `{"metadata":{"name":"kept"},"data":{"k":"v"}}`},
		{app + "/deployments", `{"metadata":{"name":"kept"},"spec":{"replicas":0,"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`},
	} {
		if code, _, body := i.raw(t, "POST", seed.path, "", seed.body); code != http.StatusCreated {
			t.Fatalf("seed %s: %d %s", seed.path, code, body)
		}
	}
	var out strings.Builder
	for _, tt := range badRequests {
		fmt.Fprintf(&out, "%s\n\t%s\n", tt.name, i.answer(t, tt.method, tt.path, tt.body))
	}
	const golden = "testdata/bad-requests.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(out.String(), "\n"), strings.Split(string(want), "\n")
	for n := range max(len(got), len(wanted)) {
		g, w := lineOf(got, n), lineOf(wanted, n)
		if g != w {
			t.Errorf("line %d of the answers:\n got %s\nwant %s", n+1, g, w)
		}
	}
}

func lineOf(lines []string, n int) string {
	if n < len(lines) {
		return lines[n]
	}
	return "nothing"
}

var uids = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

// answer is the code, the reason and the message of a refusal, in one line.
func (i *instance) answer(t *testing.T, method, path, body string) string {
	t.Helper()
	contentType := "application/json"
	if m, kind, ok := strings.Cut(method, " "); ok {
		method = m
		contentType = map[string]string{"json": "application/json-patch+json", "merge": "application/merge-patch+json", "apply": "application/apply-patch+yaml"}[kind]
	}
	req, err := http.NewRequestWithContext(t.Context(), method, i.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := i.http(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var status metav1.Status
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return fmt.Sprintf("%d no Status: %v", resp.StatusCode, err)
	}
	if int(status.Code) != resp.StatusCode {
		return fmt.Sprintf("%d but the Status says %d", resp.StatusCode, status.Code)
	}
	message := uids.ReplaceAllString(strings.ReplaceAll(status.Message, "\n", `\n`), "UID")
	return fmt.Sprintf("%d %s: %s", status.Code, status.Reason, message)
}
