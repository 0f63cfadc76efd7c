package e2e

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/test/harness"
)

// shop has a site of three replicas behind every kind of service, and a client.
const shop = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: base:1
        command: [sh, -c, "mkdir /www; hostname > /www/index.html; touch /ready; exec httpd -f -p 8080 -h /www"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: node}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: web.services.svc.cluster.local}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {role: client}}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: base:1, command: [sleep, inf]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: base:1, command: [sleep, inf]}]}
`

func TestServices(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	const ns = "services"
	d.Namespace(t, ns)
	d.Apply(t, ns, shop)
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	d.AwaitPod(t, ns, "client", "ready", harness.Ready)
	d.AwaitPod(t, ns, "stranger", "ready", harness.Ready)
	web := d.PodNames(t, ns, "app=web")

	t.Run("every replica answers", func(t *testing.T) {
		for _, name := range []string{"web", "web.services", "web.services.svc.cluster.local", "elsewhere"} {
			port := "80"
			answers := asked(d.Exec(t, ns, "client", "for i in $(seq 40); do wget -qO- http://"+name+":"+port+"; done"))
			if !slices.Equal(answers, web) {
				t.Errorf("http://%s was answered by %q; want every one of %q", name, answers, web)
			}
		}
	})
	t.Run("names", func(t *testing.T) {
		lookup := d.Exec(t, ns, "client", "nslookup headless.services.svc.cluster.local")
		for _, pod := range web {
			p, err := d.Clientset(t).CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
			check(t, err)
			says(t, lookup, p.Status.PodIP)
		}
		if out, err := d.TryExec(t, ns, "client", "nslookup nobody.services.svc.cluster.local"); err == nil || !strings.Contains(out, "NXDOMAIN") {
			t.Errorf("a name that is not there: %v\n%s", err, out)
		}
	})
	t.Run("a replica that is not ready gets nothing", func(t *testing.T) {
		d.Exec(t, ns, web[0], "rm /ready")
		d.AwaitPod(t, ns, web[0], "not ready", func(p *corev1.Pod) bool { return !harness.Ready(p) })
		harness.Eventually(t, "only ready replicas to answer", func() error {
			if answers := asked(d.Exec(t, ns, "client", "for i in $(seq 30); do wget -qO- http://web; done")); !slices.Equal(answers, web[1:]) {
				return fmt.Errorf("it was answered by %q; want %q", answers, web[1:])
			}
			return nil
		})
		d.Exec(t, ns, web[0], "touch /ready")
		d.AwaitPod(t, ns, web[0], "ready", harness.Ready)
	})
	t.Run("node port", func(t *testing.T) {
		port := d.Kubectl(t, "get", "service", "-n", ns, "node", "-o", "jsonpath={.spec.ports[0].nodePort}")
		for _, host := range []string{"127.0.0.1", hostAddress(t)} {
			if got := strings.TrimSpace(get(t, "http://"+net.JoinHostPort(host, port))); !slices.Contains(web, got) {
				t.Errorf("http://%s:%s is answered by %q", host, port, got)
			}
		}
	})
	t.Run("load balancer", func(t *testing.T) {
		port := harness.Port(t)
		d.Apply(t, ns, fmt.Sprintf("---\n{apiVersion: v1, kind: Service, metadata: {name: front}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: %d, targetPort: http}]}}", port))
		d.Kubectl(t, "wait", "-n", ns, "--for=jsonpath={.status.loadBalancer.ingress}", "service/front", "--timeout=30s")
		if got := strings.TrimSpace(get(t, fmt.Sprintf("http://127.0.0.1:%d", port))); !slices.Contains(web, got) {
			t.Errorf("the load balancer's port is answered by %q", got)
		}
		d.Kubectl(t, "delete", "service", "-n", ns, "front")
		harness.Eventually(t, "the port to be free again", func() error {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err == nil {
				l.Close()
			}
			return err
		})
	})
	t.Run("host port", func(t *testing.T) {
		port := harness.Port(t)
		d.Apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: outside}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: base:1, command: [sh, -c, "mkdir /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www"], ports: [{containerPort: 8080, hostPort: %d}]}]
`, port))
		d.AwaitPod(t, ns, "outside", "ready", harness.Ready)
		harness.Eventually(t, "the pod behind the port", func() error {
			// A connection made after the port is reserved and before a rule leads from it waits in vain.
			res, err := (&http.Client{Timeout: time.Second}).Get(fmt.Sprintf("http://127.0.0.1:%d", port))
			if err == nil {
				res.Body.Close()
			}
			return err
		})
		if got := strings.TrimSpace(get(t, fmt.Sprintf("http://127.0.0.1:%d", port))); got != "outside" {
			t.Errorf("the host port is answered by %q", got)
		}
		d.Kubectl(t, "delete", "pod", "-n", ns, "outside")
		harness.Eventually(t, "the port to be free again", func() error {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
			if err == nil {
				l.Close()
			}
			return err
		})
	})
	t.Run("network policy", func(t *testing.T) { policies(t, d, ns) })
	t.Run("no endpoint", func(t *testing.T) {
		d.Kubectl(t, "scale", "-n", ns, "deployment/web", "--replicas=0")
		d.Kubectl(t, "wait", "-n", ns, "--for=delete", "pod", "-l", "app=web", "--timeout=60s")
		if out, err := d.TryExec(t, ns, "client", "timeout 20 wget -qO- http://web 2>&1"); err == nil || !strings.Contains(out, "refused") {
			t.Errorf("a service without endpoints: %v; want the connection refused at once", err)
		}
	})
	d.Kubectl(t, "delete", "namespace", ns)
	if !t.Failed() {
		d.CheckNoPods(t)
	}
}

// policies: nobody may in, then clients may, then only to another port.
func policies(t *testing.T, d *harness.Daemon, ns string) {
	reaches := func(pod string) bool {
		_, err := d.TryExec(t, ns, pod, "timeout 2 wget -qO- http://web")
		return err == nil
	}
	becomes := func(what string, client, stranger bool) {
		t.Helper()
		harness.Eventually(t, what, func() error {
			if c, s := reaches("client"), reaches("stranger"); c != client || s != stranger {
				return fmt.Errorf("the client reaches the site: %v, a stranger: %v", c, s)
			}
			return nil
		})
	}
	becomes("an open site", true, true)
	const policy = `---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: guard}, spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]%s}}`
	d.Apply(t, ns, fmt.Sprintf(policy, ""))
	becomes("a site closed to all", false, false)
	d.Apply(t, ns, fmt.Sprintf(policy, ", ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: http}]}]"))
	becomes("a site open to clients", true, false)
	d.Kubectl(t, "label", "pod", "-n", ns, "stranger", "role=client")
	becomes("a stranger with a client's label let in", true, true)
	d.Kubectl(t, "label", "pod", "-n", ns, "stranger", "role-")
	d.Apply(t, ns, fmt.Sprintf(policy, ", ingress: [{from: [{podSelector: {}}], ports: [{port: 9999}]}]"))
	becomes("a site open at another port", false, false)
	d.Kubectl(t, "delete", "networkpolicy", "-n", ns, "guard")
	becomes("an open site again", true, true)
}

// asked sorts the lines of many answers and takes each once.
func asked(answers string) []string {
	lines := strings.Fields(answers)
	slices.Sort(lines)
	return slices.Compact(lines)
}

// hostAddress is this machine's own address on a network, or a loopback one when it has none.
func hostAddress(t *testing.T) string {
	t.Helper()
	conn, err := net.Dial("udp", "192.0.2.1:9") // sends nothing
	if err != nil {
		return "127.0.0.2"
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// TestRollingUpdateLosesNoRequest changes a site's version under load; no request may fail.
func TestRollingUpdateLosesNoRequest(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	const ns = "update"
	d.Namespace(t, ns)
	// A server that goes on for a moment after it was told to end, as a preStop hook has it: connections that were
	// on their way when the endpoint was withdrawn still find it.
	manifest := strings.Replace(site, "        readinessProbe:", "        lifecycle: {preStop: {sleep: {seconds: 5}}}\n        readinessProbe:", 1)
	manifest = strings.Replace(manifest, "GracePeriodSeconds: 1", "GracePeriodSeconds: 10", 1)
	d.Apply(t, ns, manifest)
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	address := d.Kubectl(t, "get", "service", "-n", ns, "site", "-o", "jsonpath={.spec.clusterIP}")

	stop := make(chan struct{})
	type tally struct {
		answers map[string]int
		failed  []error
	}
	result := make(chan tally)
	for range 4 {
		go func() {
			sum := tally{answers: map[string]int{}}
			client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
			for {
				select {
				case <-stop:
					result <- sum
					return
				default:
				}
				version, err := versionOf(&client, "http://"+address)
				if err != nil {
					sum.failed = append(sum.failed, err)
				} else {
					sum.answers[version]++
				}
			}
		}()
	}
	for _, version := range []string{"two", "three"} {
		d.Kubectl(t, "set", "env", "-n", ns, "deployment/site", "VERSION="+version)
		d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/site", "--timeout=60s")
	}
	close(stop)
	answers := map[string]int{}
	for range 4 {
		sum := <-result
		for version, n := range sum.answers {
			answers[version] += n
		}
		for _, err := range sum.failed {
			t.Errorf("a request during the update: %v", err)
		}
	}
	t.Logf("answers: %v", answers)
	if answers["one"] == 0 || answers["two"] == 0 {
		t.Errorf("the load has not seen the update: %v", answers)
	}
}

func versionOf(client *http.Client, url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var version, from, host string
	if _, err := fmt.Fscan(resp.Body, &version, &from, &host); err != nil {
		return "", fmt.Errorf("%s: %w", resp.Status, err)
	}
	return version, nil
}
