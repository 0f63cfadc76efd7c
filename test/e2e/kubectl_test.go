package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/test/harness"
)

// site is a Deployment that says which version and which replica answers, and its Service.
const site = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: site, labels: {app: site}}
spec:
  replicas: 2
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: base:1
        command: ["sh", "-c", "mkdir -p /www && echo $VERSION from $HOSTNAME > /www/index.html && echo serving $VERSION && exec httpd -f -v -p 80 -h /www"]
        env: [{name: VERSION, value: one}]
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec:
  selector: {app: site}
  ports: [{port: 80}]
`

// TestKubectlSession is a person's afternoon with kubectl: one thing after the other, each on what the one before left.
func TestKubectlSession(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	const ns = "session"
	d.Namespace(t, ns)
	kubectl := func(t *testing.T, args ...string) string {
		t.Helper()
		return d.Kubectl(t, append([]string{"-n", ns}, args...)...)
	}
	watch := d.Open(t, "kubectl", "-n", ns, "get", "pods", "-w", "-v=6")
	watch.Expect("watch=true") // by now it sees what comes
	pod := ""

	for _, step := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"apply", func(t *testing.T) {
			says(t, d.Apply(t, ns, site), "deployment.apps/site created", "service/site created")
			says(t, kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s"), "successfully rolled out")
			says(t, d.Apply(t, ns, site), "deployment.apps/site unchanged", "service/site unchanged")
			pod = d.PodNames(t, ns, "app=site")[0]
		}},
		{"get -w has seen the pods come up", func(t *testing.T) {
			watch.Expect("Pending")
			watch.Expect("0/1     Running")
			watch.Expect("1/1     Running")
			watch.Expect("1/1     Running")
		}},
		{"get", func(t *testing.T) {
			says(t, kubectl(t, "get", "deployment", "site"), "READY", "UP-TO-DATE", "AVAILABLE", "2/2")
			says(t, kubectl(t, "get", "pods", "-o", "wide"), "NODE", "Running", pod)
			says(t, kubectl(t, "get", "all"), "pod/"+pod, "service/site", "deployment.apps/site", "replicaset.apps/site-")
			says(t, kubectl(t, "get", "pod", pod, "-o", "yaml"), "kind: Pod", "image: base:1", "phase: Running", "podIP: ")
			tells(t, func() string { return kubectl(t, "get", "events") }, "Scheduled", "Pulled", "Created", "Started", "SuccessfulCreate", "ScalingReplicaSet")
			says(t, kubectl(t, "get", "endpoints,endpointslices"), "endpoints/site", "site-")
		}},
		{"describe", func(t *testing.T) {
			tells(t, func() string { return kubectl(t, "describe", "pod", pod) }, "Controlled By:  ReplicaSet/site-", "http-get http://:80/ delay=0s timeout=1s period=1s",
				"Successfully assigned session/"+pod, "Container started", "Ready          True", "VERSION:  one")
			says(t, kubectl(t, "describe", "deployment", "site"), "2 desired | 2 updated | 2 total | 2 available | 0 unavailable", "25% max unavailable, 25% max surge", "NewReplicaSetAvailable")
			says(t, kubectl(t, "describe", "service", "site"), "Type:                     ClusterIP", "Endpoints:  ")
			says(t, kubectl(t, "describe", "node"), "Capacity:", "Allocatable:", "Ready", pod)
		}},
		{"logs", func(t *testing.T) {
			says(t, kubectl(t, "logs", pod), "serving one")
			says(t, kubectl(t, "logs", "-l", "app=site", "--prefix", "--tail=-1"), "[pod/"+pod+"/web] serving one")
			follow := d.Open(t, "kubectl", "-n", ns, "logs", "-f", "--timestamps", pod)
			follow.Expect("serving one")
			d.Exec(t, ns, pod, "wget -qO- http://127.0.0.1/wanted >/dev/null 2>&1; true")
			follow.Expect("response:404")
		}},
		{"exec", func(t *testing.T) {
			says(t, d.Exec(t, ns, pod, "wget -qO- http://site"), "one from site-")
			// Older clients may log before it that they did not know a stream yet, which is none of ours.
			if r := d.Try(t, "", "kubectl", "-n", ns, "exec", pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"); r.Code != 7 || r.Stdout != "out\n" || !strings.Contains("\n"+r.Stderr, "\nerr\n") {
				t.Errorf("%v\nwant exit code 7 and each stream by itself", r)
			}
			if r := d.Try(t, "some\nlines\n", "kubectl", "-n", ns, "exec", "-i", pod, "--", "wc", "-l"); strings.TrimSpace(r.Stdout) != "2" {
				t.Errorf("%v\nwant the count of lines on standard input, 2", r)
			}
			if r := d.Try(t, "", "kubectl", "-n", ns, "exec", pod, "--", "no-such-program"); r.Code == 0 || !strings.Contains(r.Stderr, "no-such-program") {
				t.Errorf("%v\nwant an error that names the program", r)
			}
		}},
		{"exec -it", func(t *testing.T) {
			shell := d.OpenTerminal(t, "kubectl", "-n", ns, "exec", "-it", pod, "--", "sh")
			shell.Expect("#")
			shell.Send("tty; stty size; echo $((6*7))\r")
			shell.Expect("/dev/pts/0")
			shell.Expect("30 100")
			shell.Expect("42")
			shell.Resize(40, 120)
			harness.Eventually(t, "the terminal's new size", func() error {
				shell.Send("stty size\r")
				shell.Expect("stty size")
				if size := regexp.MustCompile(`\d+ \d+`).FindString(shell.Expect("#")); size != "40 120" {
					return fmt.Errorf("it is %q", size)
				}
				return nil
			})
			shell.Send("exit 3\r")
			if code := shell.Wait(); code != 3 {
				t.Errorf("the shell's exit code is %d; want 3", code)
			}
		}},
		{"port-forward", func(t *testing.T) {
			for _, target := range []string{"pod/" + pod, "service/site", "deployment/site"} {
				forward := d.Open(t, "kubectl", "-n", ns, "port-forward", target, ":80")
				line := forward.Expect(" -> 80")
				address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
				for range 3 {
					says(t, get(t, "http://"+address), "one from site-")
				}
				forward.Close()
			}
		}},
		{"cp", func(t *testing.T) {
			// kubectl cp needs tar in the container; busybox has it.
			dir := t.TempDir()
			local := filepath.Join(dir, "note")
			check(t, os.WriteFile(local, []byte("to and fro"), 0o600))
			kubectl(t, "cp", local, pod+":/tmp/note")
			kubectl(t, "cp", pod+":/tmp/note", local+".back")
			back, err := os.ReadFile(local + ".back")
			if check(t, err); string(back) != "to and fro" {
				t.Errorf("the copy of the copy holds %q", back)
			}
		}},
		{"scale", func(t *testing.T) {
			kubectl(t, "scale", "deployment/site", "--replicas=4")
			kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s")
			if names := d.PodNames(t, ns, "app=site"); len(names) != 4 {
				t.Errorf("after scaling to 4 there are pods %v", names)
			}
			kubectl(t, "scale", "deployment/site", "--replicas=2")
			kubectl(t, "wait", "--for=jsonpath={.status.replicas}=2", "deployment/site", "--timeout=60s")
		}},
		{"rollout", func(t *testing.T) {
			kubectl(t, "set", "env", "deployment/site", "VERSION=two")
			says(t, kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s"), "successfully rolled out")
			says(t, throughSite(t, d, ns), "two from site-")
			says(t, kubectl(t, "rollout", "history", "deployment/site"), "REVISION", "1 ", "2 ")
			says(t, kubectl(t, "rollout", "history", "deployment/site", "--revision=2"), "VERSION:\ttwo")
			says(t, kubectl(t, "rollout", "undo", "deployment/site"), "rolled back")
			kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s")
			says(t, throughSite(t, d, ns), "one from site-")
			kubectl(t, "rollout", "restart", "deployment/site")
			kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s")
			kubectl(t, "rollout", "pause", "deployment/site")
			kubectl(t, "rollout", "resume", "deployment/site")
		}},
		{"a killed container is started again", func(t *testing.T) {
			pod = d.PodNames(t, ns, "app=site")[0]
			d.KillContainer(t, ns, pod)
			d.AwaitPod(t, ns, pod, "ready after a restart", func(p *corev1.Pod) bool {
				return harness.Ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1
			})
			says(t, kubectl(t, "logs", "--previous", pod), "serving one")
		}},
		{"a deleted pod is replaced", func(t *testing.T) {
			kubectl(t, "delete", "pod", pod)
			kubectl(t, "rollout", "status", "deployment/site", "--timeout=60s")
			kubectl(t, "wait", "--for=jsonpath={.status.readyReplicas}=2", "deployment/site", "--timeout=60s")
			for _, name := range d.PodNames(t, ns, "app=site") {
				if name == pod {
					t.Errorf("pod %s is still there", pod)
				}
			}
		}},
		{"edit, patch, label, annotate, diff, explain", func(t *testing.T) {
			pod = d.PodNames(t, ns, "app=site")[0]
			says(t, kubectl(t, "label", "pod", pod, "colour=blue"), "labeled")
			says(t, kubectl(t, "get", "pods", "-l", "colour=blue", "-o", "name"), "pod/"+pod)
			says(t, kubectl(t, "annotate", "pod", pod, "note=seen"), "annotated")
			says(t, kubectl(t, "patch", "deployment", "site", "-p", `{"spec":{"revisionHistoryLimit":3}}`), "patched")
			says(t, kubectl(t, "patch", "deployment", "site", "--type=json", "-p", `[{"op":"remove","path":"/spec/revisionHistoryLimit"}]`), "patched")
			says(t, kubectl(t, "explain", "deployment.spec.strategy"), "FIELD: strategy", "rollingUpdate")
			says(t, kubectl(t, "api-resources"), "deployments", "networkpolicies")
			says(t, kubectl(t, "auth", "can-i", "create", "pods"), "yes")
			if r := d.Try(t, strings.Replace(site, "replicas: 2", "replicas: 5", 1), "kubectl", "-n", ns, "diff", "-f", "-"); r.Code != 1 || !strings.Contains(r.Stdout, "+  replicas: 5") {
				t.Errorf("%v\nwant exit code 1 and the changed line", r)
			}
		}},
		{"delete", func(t *testing.T) {
			says(t, d.KubectlWith(t, site, "delete", "-n", ns, "-f", "-"), `deployment.apps "site" deleted`, `service "site" deleted`)
			kubectl(t, "wait", "--for=delete", "pod", "-l", "app=site", "--timeout=60s")
			says(t, kubectl(t, "get", "all"), "")
			d.CheckNoPods(t)
		}},
	} {
		if !t.Run(step.name, step.run) {
			t.FailNow() // the steps after it would only confuse
		}
	}
}

// throughSite asks the site from a pod of its own, through its service's name.
func throughSite(t *testing.T, d *harness.Daemon, ns string) string {
	t.Helper()
	return d.Exec(t, ns, d.PodNames(t, ns, "app=site")[0], "wget -qO- http://site."+ns+".svc.cluster.local")
}

// TestKubectlErrors pins what people see when they ask for what cannot be.
func TestKubectlErrors(t *testing.T) {
	d := harness.Start(t)
	const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"base:1"%s}]}}`
	for _, tt := range []struct {
		name  string
		stdin string
		args  string
		want  string
	}{
		{"an object that is not there", "", "get pod nothing", `Error from server (NotFound): pods "nothing" not found`},
		{"a kind that is not there", "", "get gadgets", `error: the server doesn't have a resource type "gadgets"`},
		{"a manifest of a kind that is not there", `{"apiVersion":"batch/v1","kind":"CronJob","metadata":{"name":"c"}}`, "apply -f -", `no matches for kind "CronJob" in version "batch/v1"`},
		{"a namespace that is not there", "", "-n nowhere create configmap c", `error: failed to create configmap: namespaces "nowhere" not found`},
		{"a container that is not there", fmt.Sprintf(pod, `},{"name":"c","image":"x"`), "create -f -", `spec.containers[1].name: Duplicate value: "c"`},
		{"a field that is not there", fmt.Sprintf(pod, `,"imagee":"x"`), "create -f -", `strict decoding error: unknown field "spec.containers[0].imagee"`},
		{"a quantity that is none", fmt.Sprintf(pod, `,"resources":{"limits":{"memory":"lots"}}`), "create -f -", `quantities must match the regular expression`},
		{"a bad name", strings.Replace(fmt.Sprintf(pod, ""), `"p"`, `"Not_A_Name"`, 1), "create -f -", `a lowercase RFC 1123 subdomain must consist of`},
		{"an immutable field", "", "patch service kubernetes -n default -p {\"spec\":{\"clusterIP\":\"10.1.2.3\"}}", `spec.clusterIPs[0]: Invalid value`},
		{"a logs request for nobody", "", "logs nothing", `pods "nothing" not found`},
		{"an exec into nobody", "", "exec nothing -- true", `pods "nothing" not found`},
		{"an object that is there already", "", "create namespace default", `Error from server (AlreadyExists): namespaces "default" already exists`},
		{"scaling nobody", "", "scale deployment/nothing --replicas=2", `deployments.apps "nothing" not found`},
		{"a bad selector", "", "get pods -l a==b==c", `found '==', expected: ','`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := d.Try(t, tt.stdin, "kubectl", strings.Fields(tt.args)...)
			if r.Code != 1 || !strings.Contains(r.Stderr, tt.want) {
				t.Errorf("%v\nwant exit code 1 and: %s", r, tt.want)
			}
		})
	}
}

// says fails the test for each of want that text lacks; how columns are aligned does not matter.
func says(t *testing.T, text string, want ...string) {
	t.Helper()
	var missing []string
	for _, w := range want {
		if !strings.Contains(narrow(text), narrow(w)) {
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%q missing in:\n%s", missing, text)
	}
}

var blanks = regexp.MustCompile(`[ \t]+`)

func narrow(text string) string { return blanks.ReplaceAllString(text, " ") }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get fetches a page over a connection of its own.
func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	return string(body)
}

// tells is says for what shows events, which are written down a moment after what they tell of.
func tells(t *testing.T, text func() string, want ...string) {
	t.Helper()
	harness.Eventually(t, "the events", func() error { return contains(text(), want...) })
}

// contains is says for what may take a moment.
func contains(text string, want ...string) error {
	for _, w := range want {
		if !strings.Contains(narrow(text), narrow(w)) {
			return fmt.Errorf("%q is missing in:\n%s", w, text)
		}
	}
	return nil
}
