package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipway.dev/slipway/test/harness"
)

// TestWorkloads runs jobs and stateful sets, empties namespaces, and lets a service account do only what it may.
func TestWorkloads(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, d *harness.Daemon, ns string)
	}{
		{"jobs", jobs}, {"statefulset", statefulSet}, {"recreate", recreate}, {"a deployment that does not come up", stuck}, {"owners", owners}, {"namespace", namespaces}, {"rbac", rbac},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := "work-" + strings.ReplaceAll(tt.name, " ", "-")
			d.Namespace(t, ns)
			tt.run(t, d, ns)
			d.Kubectl(t, "delete", "namespace", ns)
		})
	}
	if !t.Failed() {
		d.CheckNoPods(t)
	}
}

func jobs(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: batch/v1
kind: Job
metadata: {name: good}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: base:1, command: [echo, done]}]}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec: {backoffLimit: 0, template: {spec: {restartPolicy: Never, containers: [{name: c, image: base:1, command: ["false"]}]}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: stubborn}
spec:
  backoffLimit: 3
  template:
    spec:
      restartPolicy: OnFailure
      volumes: [{name: v, emptyDir: {}}]
      containers: [{name: c, image: base:1, command: [sh, -c, "test -e /v/x || { touch /v/x; exit 1; }"], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	d.Kubectl(t, "wait", "-n", ns, "--for=condition=Complete", "job/good", "job/stubborn", "--timeout=60s")
	d.Kubectl(t, "wait", "-n", ns, "--for=condition=Failed", "job/bad", "--timeout=60s")
	says(t, d.Kubectl(t, "logs", "-n", ns, "job/good"), "done\n")
	tells(t, func() string { return d.Kubectl(t, "describe", "job", "-n", ns, "bad") }, "BackoffLimitExceeded")
	says(t, d.Kubectl(t, "get", "jobs", "-n", ns), "good Complete 1/1", "bad Failed 0/1")
}

func statefulSet(t *testing.T, d *harness.Daemon, ns string) {
	const set = `
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: base:1
        command: [sh, -c, "hostname >> /data/story; exec httpd -f -p 80 -h /data"]
        readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}]
`
	d.Apply(t, ns, set)
	d.Kubectl(t, "rollout", "status", "-n", ns, "statefulset/db", "--timeout=60s")
	says(t, d.Kubectl(t, "get", "pvc", "-n", ns), "data-db-0 Bound", "data-db-1 Bound")
	says(t, d.Exec(t, ns, "db-0", "wget -qO- http://db-1.db/story"), "db-1")
	d.Kubectl(t, "delete", "pod", "-n", ns, "db-1")
	d.Kubectl(t, "rollout", "status", "-n", ns, "statefulset/db", "--timeout=60s")
	if got := d.Exec(t, ns, "db-1", "cat /data/story"); got != "db-1\ndb-1" {
		t.Errorf("after its pod was replaced, the claim holds %q; want both lives", got)
	}
	d.Kubectl(t, "scale", "-n", ns, "statefulset/db", "--replicas=1")
	d.Kubectl(t, "wait", "-n", ns, "--for=delete", "pod/db-1", "--timeout=60s")
	says(t, d.Kubectl(t, "get", "pvc", "-n", ns), "data-db-1 Bound")
}

func recreate(t *testing.T, d *harness.Daemon, ns string) {
	manifest := strings.Replace(site, "spec:\n  replicas: 2", "spec:\n  strategy: {type: Recreate}\n  replicas: 2", 1)
	d.Apply(t, ns, manifest)
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	d.Apply(t, ns, strings.Replace(manifest, "value: one", "value: two", 1))
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	says(t, throughSite(t, d, ns), "two from")
}

func stuck(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, site)
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	d.Kubectl(t, "patch", "-n", ns, "deployment/site", "-p", `{"spec":{"progressDeadlineSeconds":2,"template":{"spec":{"containers":[{"name":"web","image":"127.0.0.1:1/none:1"}]}}}}`)
	r := d.Try(t, "", "kubectl", "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	if r.Code != 1 || !strings.Contains(r.Stderr, "exceeded its progress deadline") {
		t.Errorf("%v\nwant the progress deadline exceeded", r)
	}
	says(t, throughSite(t, d, ns), "one from") // the old version serves on
	d.Kubectl(t, "rollout", "undo", "-n", ns, "deployment/site")
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
}

func owners(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, site)
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	d.Kubectl(t, "delete", "deployment", "-n", ns, "site", "--cascade=orphan")
	if n := len(d.PodNames(t, ns, "app=site")); n != 2 {
		t.Errorf("orphans: %d pods are left of 2", n)
	}
	d.Kubectl(t, "delete", "replicaset", "-n", ns, "-l", "app=site", "--cascade=foreground")
	if n := len(d.PodNames(t, ns, "app=site")); n != 0 {
		t.Errorf("after a deletion in the foreground, %d pods are left", n)
	}
}

func namespaces(t *testing.T, d *harness.Daemon, ns string) {
	d.Namespace(t, "doomed")
	d.Apply(t, "doomed", site)
	d.Kubectl(t, "create", "configmap", "-n", "doomed", "c", "--from-literal=a=b")
	d.Kubectl(t, "rollout", "status", "-n", "doomed", "deployment/site", "--timeout=60s")
	d.Kubectl(t, "delete", "namespace", "doomed")
	if r := d.Try(t, "", "kubectl", "get", "namespace", "doomed"); r.Code != 1 || !strings.Contains(r.Stderr, "NotFound") {
		t.Errorf("%v\nwant the namespace gone", r)
	}
	d.Namespace(t, "doomed")
	says(t, d.Kubectl(t, "get", "all,configmaps,secrets", "-n", "doomed"), "kube-root-ca.crt")
	if out := d.Kubectl(t, "get", "all", "-n", "doomed"); out != "" {
		t.Errorf("a new namespace of the same name holds\n%s", out)
	}
	d.Kubectl(t, "delete", "namespace", "doomed")
}

// rbac: a service account with a token may read pods in its namespace and nothing else.
func rbac(t *testing.T, d *harness.Daemon, ns string) {
	d.Kubectl(t, "create", "serviceaccount", "-n", ns, "reader")
	d.Kubectl(t, "create", "role", "-n", ns, "reads", "--verb=get,list", "--resource=pods")
	d.Kubectl(t, "create", "rolebinding", "-n", ns, "reads", "--role=reads", "--serviceaccount="+ns+":reader")
	token := strings.TrimSpace(d.Kubectl(t, "create", "token", "-n", ns, "reader"))
	as := kubeconfig(t, d, token)
	for _, tt := range []struct {
		args string
		want string // in the error; empty: it is allowed
	}{
		{"get pods -n " + ns, ""},
		{"get pods -n default", `User "system:serviceaccount:` + ns + `:reader" cannot list resource "pods" in API group "" in the namespace "default"`},
		{"get secrets -n " + ns, `cannot list resource "secrets"`},
		{"delete pod x -n " + ns, `cannot delete resource "pods"`},
		{"get nodes", `cannot list resource "nodes" in API group "" at the cluster scope`},
		{"auth can-i list pods -n " + ns, ""},
	} {
		r := d.Try(t, "", "kubectl", append([]string{"--kubeconfig", as}, strings.Fields(tt.args)...)...)
		if (r.Code == 0) != (tt.want == "") || !strings.Contains(r.Stderr, tt.want) {
			t.Errorf("%v\nwant: %s", r, or(tt.want, "it allowed"))
		}
	}
	forged := kubeconfig(t, d, token[:len(token)-4]+"AAAA")
	if r := d.Try(t, "", "kubectl", "--kubeconfig", forged, "get", "pods", "-n", ns); r.Code == 0 || !strings.Contains(r.Stderr, "Unauthorized") && !strings.Contains(r.Stderr, "logged in") {
		t.Errorf("%v\nwant a forged token refused", r)
	}
	inPod(t, d, ns)
}

// inPod: a program in a pod reaches the API with the pod's own token.
func inPod(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: inside}
spec: {serviceAccountName: reader, terminationGracePeriodSeconds: 0, containers: [{name: c, image: base:1, command: [sleep, inf]}]}
`)
	d.AwaitPod(t, ns, "inside", "ready", harness.Ready)
	token := d.Exec(t, ns, "inside", "cat /var/run/secrets/kubernetes.io/serviceaccount/token")
	ca := d.Exec(t, ns, "inside", "cat /var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
	if !strings.Contains(ca, "BEGIN CERTIFICATE") {
		t.Errorf("the pod's ca.crt holds %q", ca)
	}
	says(t, d.Kubectl(t, "--kubeconfig", kubeconfig(t, d, token), "get", "pods", "-n", ns), "inside")
	harness.Eventually(t, "the API's service address to connect", func() error {
		_, err := d.TryExec(t, ns, "inside", "nc -w 5 kubernetes.default.svc 443 </dev/null")
		return err
	})
}

// kubeconfig is a client's configuration with nothing but a token.
func kubeconfig(t *testing.T, d *harness.Daemon, token string) string {
	t.Helper()
	config := d.Config(t)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	check(t, os.WriteFile(path, fmt.Appendf(nil, `
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: u, user: {token: %q}}]
`, config.Host, base64.StdEncoding.EncodeToString(config.CAData), token), 0o600))
	return path
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
