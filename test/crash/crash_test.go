package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

func TestMain(m *testing.M) { networktest.Main(m) }

const ns = "crash"

// steady is served by pods that nobody touches; moving is what the load rolls out and deletes.
const apps = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: steady}
spec:
  replicas: 2
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: base:1
        command: [sh, -c, "mkdir /www; echo steady > /www/index.html; exec httpd -f -p 80 -h /www"]
        readinessProbe: {httpGet: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}
---
apiVersion: v1
kind: Service
metadata: {name: steady}
spec: {selector: {app: steady}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: moving}
spec:
  replicas: 2
  selector: {matchLabels: {app: moving}}
  template:
    metadata: {labels: {app: moving}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: base:1, command: [sleep, inf], env: [{name: ROUND, value: start}]}]
`

// count prints a number every 20 ms: an interruption or a lost line shows.
const count = `i=0; while [ ! -e /end ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 7`

func rounds(t *testing.T) int {
	n, err := strconv.Atoi(or(os.Getenv("SLIPWAY_CRASH_ROUNDS"), "5"))
	if err != nil {
		t.Fatalf("SLIPWAY_CRASH_ROUNDS: %v", err)
	}
	return n
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func random(t *testing.T) *rand.Rand {
	seed, err := strconv.ParseUint(or(os.Getenv("SLIPWAY_CRASH_SEED"), strconv.FormatInt(time.Now().UnixNano(), 10)), 10, 64)
	if err != nil {
		t.Fatalf("SLIPWAY_CRASH_SEED: %v", err)
	}
	t.Logf("SLIPWAY_CRASH_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// start gives a daemon with the base image and both apps running.
func start(t *testing.T) *harness.Daemon {
	t.Helper()
	networktest.NewMachine(t)
	d := harness.Start(t)
	d.BaseImage(t)
	d.Namespace(t, ns)
	d.Apply(t, ns, apps)
	for _, app := range []string{"steady", "moving"} {
		d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/"+app, "--timeout=60s")
	}
	return d
}

func TestDaemonKilled(t *testing.T) {
	d := start(t)
	pick := random(t)
	d.Docker(t, "run", "-d", "--name", "counter", harness.Base, "sh", "-c", count)
	before := d.Docker(t, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "counter")
	steady := identities(t, d, "steady")

	watch := observe(t, d)
	load := newLoad(t, d)
	for round := range rounds(t) {
		load.start(round)
		time.Sleep(time.Duration(pick.IntN(1500)) * time.Millisecond) // not to wait for anything: this is the random moment
		d.Kill()
		d.Launch()
		load.stop(round)
		load.verify(t, round)
		if after := d.Docker(t, "inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}}", "counter"); after != before {
			t.Fatalf("round %d: the container was %q and is %q", round, before, after)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	load.finish(t)
	watch.end(t)
	if after := identities(t, d, "steady"); after != steady {
		t.Errorf("the pods of a deployment that nobody touched were\n%s\nand are\n%s", steady, after)
	}
	d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/moving", "--timeout=60s")
	d.Try(t, "", "docker", "exec", "counter", "touch", "/end") // dies with the container, or ends before
	if code := strings.TrimSpace(d.Docker(t, "wait", "counter")); code != "7" {
		t.Errorf("the container's exit code is %s; want 7", code)
	}
	countedOn(t, d.Docker(t, "logs", "counter"))
	cleanUp(t, d)
}

// identities of an app's pods: uid, restarts and container.
func identities(t *testing.T, d *harness.Daemon, app string) string {
	t.Helper()
	return d.Kubectl(t, "get", "pods", "-n", ns, "-l", "app="+app, "-o",
		`jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].containerID}{"\n"}{end}`)
}

// countedOn checks that a log has every number from 0 on.
func countedOn(t *testing.T, log string) {
	t.Helper()
	lines := strings.Fields(log)
	if len(lines) < 10 {
		t.Errorf("the container has counted only %v", lines)
	}
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Errorf("after %d lines, the log goes on with %q", i, line)
			return
		}
	}
}

// cleanUp removes all that tests made and checks that the running daemon has nothing left of it.
func cleanUp(t *testing.T, d *harness.Daemon) {
	t.Helper()
	d.Kubectl(t, "delete", "namespace", ns)
	if ids := strings.Fields(d.Docker(t, "ps", "-aq")); len(ids) > 0 {
		d.Docker(t, append([]string{"rm", "-f"}, ids...)...)
	}
	if !t.Failed() {
		d.CheckNoPods(t)
	}
}

func TestWardenKilled(t *testing.T) {
	d := start(t)
	d.Docker(t, "run", "-d", "--name", "counter", harness.Base, "sh", "-c", count)
	steady := identities(t, d, "steady")
	pick := random(t)
	for range rounds(t) {
		time.Sleep(time.Duration(pick.IntN(100)) * time.Millisecond) // not to wait for anything: this is the random moment
		d.KillWarden()
		// Whatever needs the warden waits for the new one.
		if got := d.Docker(t, "exec", "counter", "echo", "inside"); got != "inside\n" {
			t.Errorf("exec says %q", got)
		}
		if got := d.Docker(t, "run", "--rm", harness.Base, "echo", "new"); got != "new\n" {
			t.Errorf("run says %q", got)
		}
	}
	if after := identities(t, d, "steady"); after != steady {
		t.Errorf("pods were\n%s\nand are\n%s", steady, after)
	}
	if got := d.Exec(t, ns, d.PodNames(t, ns, "app=steady")[0], "wget -qO- http://steady"); got != "steady" {
		t.Errorf("the service answers %q", got)
	}
	d.Try(t, "", "docker", "exec", "counter", "touch", "/end") // dies with the container, or ends before
	if code := strings.TrimSpace(d.Docker(t, "wait", "counter")); code != "7" {
		t.Errorf("the exit code of a container whose warden was killed is reported as %s; want 7", code)
	}
	countedOn(t, d.Docker(t, "logs", "counter"))
	d.KillContainer(t, ns, d.PodNames(t, ns, "app=steady")[0])
	harness.Eventually(t, "the restart of a killed container", func() error {
		out := d.Kubectl(t, "get", "deployment", "-n", ns, "steady", "-o", "jsonpath={.status.readyReplicas}")
		if restarted := d.Kubectl(t, "get", "pods", "-n", ns, "-l", "app=steady", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"); !strings.Contains(restarted, "1") || out != "2" {
			return fmt.Errorf("restarts %s, ready %s", restarted, out)
		}
		return nil
	})
	cleanUp(t, d)
}

// TestBothKilled: the daemon dies, then its warden, as in an upgrade that goes wrong twice.
func TestBothKilled(t *testing.T) {
	d := start(t)
	d.Docker(t, "run", "-d", "--name", "counter", "--restart=no", harness.Base, "sh", "-c", count)
	d.Kill()
	d.KillWarden()
	d.Launch()
	// Nobody held the output's pipes, so the containers could not go on; what is told of them has to be true.
	harness.Eventually(t, "the deployments to be whole again", func() error {
		for _, app := range []string{"steady", "moving"} {
			if n := d.Kubectl(t, "get", "deployment", "-n", ns, app, "-o", "jsonpath={.status.readyReplicas}"); n != "2" {
				return fmt.Errorf("%s has %q ready replicas", app, n)
			}
		}
		return nil
	})
	if got := d.Exec(t, ns, d.PodNames(t, ns, "app=steady")[0], "wget -qO- http://steady"); got != "steady" {
		t.Errorf("the service answers %q", got)
	}
	cleanUp(t, d)
}

func TestTwoDaemonsSideBySide(t *testing.T) {
	networktest.NewMachine(t)
	a, b := harness.Start(t), harness.Start(t)
	for _, d := range []*harness.Daemon{a, b} {
		d.BaseImage(t)
		d.Namespace(t, ns)
		d.Apply(t, ns, apps)
		d.Docker(t, "network", "create", "shop")
		d.Docker(t, "run", "-d", "--name", "web", "--network", "shop", "-p", "127.0.0.1::80", harness.Base, "sh", "-c", "mkdir /www; echo "+d.Record.Instance+" > /www/index.html; exec httpd -f -p 80 -h /www")
	}
	published := func(d *harness.Daemon) string { return strings.TrimSpace(d.Docker(t, "port", "web", "80/tcp")) }
	alive := func(d *harness.Daemon) {
		t.Helper()
		d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/steady", "--timeout=60s")
		if got := d.Exec(t, ns, d.PodNames(t, ns, "app=steady")[0], "wget -qO- http://steady"); got != "steady" {
			t.Errorf("the service of daemon %s answers %q", d.Record.Instance, got)
		}
		harness.Eventually(t, "the published port of daemon "+d.Record.Instance, func() error { // its server listens a moment after its start
			got, err := fetchOnce(published(d))
			if err == nil && got != d.Record.Instance {
				err = fmt.Errorf("it is answered by %q", got)
			}
			return err
		})
		if n := len(strings.Fields(d.Docker(t, "ps", "-q"))); n != 1 {
			t.Errorf("daemon %s lists %d containers; want its own one", d.Record.Instance, n)
		}
	}
	alive(a)
	alive(b)
	a.Restart()
	alive(b)
	alive(a)
	a.Teardown()
	alive(b)
}

// TestForeignFirewall runs everything that forwards packets on machines whose firewall drops forwarded traffic.
func TestForeignFirewall(t *testing.T) {
	for _, bridgeNF := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+bridgeNF, func(t *testing.T) {
			m := networktest.NewMachine(t)
			networktest.Sh(t, "modprobe br_netfilter 2>/dev/null; [ ! -e /proc/sys/net/bridge ] || echo "+bridgeNF+" > /proc/sys/net/bridge/bridge-nf-call-iptables")
			networktest.Sh(t, "iptables -w -P FORWARD DROP")
			t.Cleanup(func() { networktest.Sh(t, "nft flush ruleset") })
			networktest.Greet(t, m.Outside, networktest.OutsideAddr+":7000", "from outside")
			d := harness.Start(t)
			d.BaseImage(t)
			ask := "nc " + networktest.OutsideAddr + " 7000 </dev/null"

			if got := d.Docker(t, "run", "--rm", harness.Base, "sh", "-c", ask); !strings.HasPrefix(got, "from outside") {
				t.Errorf("a container reaches outside: %q", got)
			}
			if out, err := d.Build(t.Context(), "net:1", map[string]string{"Dockerfile": "FROM " + harness.Base + "\nRUN " + ask + " | grep 'from outside'\n"}); err != nil {
				t.Errorf("RUN with network: %v\n%s", err, out)
			}
			d.Docker(t, "run", "-d", "--name", "web", "-p", networktest.HostAddr+":8080:80", harness.Base, "sh", "-c", "mkdir /www; echo published > /www/index.html; exec httpd -f -p 80 -h /www")
			networktest.In(t, m.Outside, func() {
				harness.Eventually(t, "the published port from outside", func() error {
					got, err := fetchOnce(networktest.HostAddr + ":8080")
					if err == nil && got != "published" {
						err = fmt.Errorf("it answers %q", got)
					}
					return err
				})
			})
			if got := d.Docker(t, "run", "--rm", "--link", "web", harness.Base, "wget", "-qO-", "http://web"); strings.TrimSpace(got) != "published" {
				t.Errorf("container to container: %q", got)
			}
			d.Namespace(t, ns)
			d.Apply(t, ns, apps)
			d.Kubectl(t, "rollout", "status", "-n", ns, "deployment/steady", "--timeout=60s")
			pods := d.PodNames(t, ns, "app=steady")
			for _, pod := range pods {
				if got := d.Exec(t, ns, pod, "for i in 1 2 3 4; do wget -qO- http://steady; done"); strings.Count(got, "steady") != 4 {
					t.Errorf("pod to service: %q", got)
				}
			}
			if got := d.Exec(t, ns, pods[0], ask); !strings.HasPrefix(got, "from outside") {
				t.Errorf("a pod reaches outside: %q", got)
			}
			dir := newProject(t)
			for _, verb := range []string{"up", "down"} {
				if err := slipway(t.Context(), t, d, dir, verb); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// acknowledged says what is missing of objects that the API said yes to.
func acknowledged(t *testing.T, d *harness.Daemon, want []string) error {
	list, err := d.Clientset(t).CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, c := range list.Items {
		have[c.Name] = true
	}
	return missing("config map", want, have)
}

func missing(kind string, want []string, have map[string]bool) error {
	var errs []error
	for _, name := range want {
		if !have[name] {
			errs = append(errs, fmt.Errorf("%s %s was acknowledged and is not there", kind, name))
		}
	}
	return errors.Join(errs...)
}
