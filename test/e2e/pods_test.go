package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"slipway.dev/slipway/test/harness"
)

// TestPods runs pods with every kind of volume, environment, probe, hook and limit, on one daemon. Each case
// applies its manifests in a namespace of its own.
func TestPods(t *testing.T) {
	d := harness.Start(t)
	d.BaseImage(t)
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, d *harness.Daemon, ns string)
	}{
		{"volumes", volumes}, {"environment", environment}, {"probes", probes}, {"hooks", hooks}, {"init containers", initContainers},
		{"limits", limits}, {"figures", figures}, {"security", security}, {"images", images}, {"termination", termination}, {"debug", debug}, {"unschedulable", unschedulable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := "pods-" + strings.ReplaceAll(tt.name, " ", "-")
			d.Namespace(t, ns)
			tt.run(t, d, ns)
			d.Kubectl(t, "delete", "namespace", ns)
		})
	}
	if !t.Failed() { // a case that failed has left its pods
		d.CheckNoPods(t)
	}
}

// ended waits for a pod's end and returns it with what its container printed.
func ended(t *testing.T, d *harness.Daemon, ns, name string) (*corev1.Pod, string) {
	t.Helper()
	pod := d.AwaitPod(t, ns, name, "ended", harness.Ended)
	return pod, d.Kubectl(t, "logs", "-n", ns, name)
}

func volumes(t *testing.T, d *harness.Daemon, ns string) {
	dir := t.TempDir()
	d.Apply(t, ns, strings.ReplaceAll(`
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: blue, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {tier: test}}
spec:
  restartPolicy: Never
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: one, configMap: {name: settings, items: [{key: shape, path: deep/form, mode: 0400}]}}
  - {name: secret, secret: {secretName: keys, defaultMode: 0440}}
  - {name: empty, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: DIR, type: Directory}}
  - {name: claim, persistentVolumeClaim: {claimName: disk}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu, divisor: 1m}}]}}
  - {name: mixed, projected: {sources: [{configMap: {name: settings}}, {secret: {name: keys}}, {serviceAccountToken: {path: token, audience: shop, expirationSeconds: 600}}]}}
  containers:
  - name: c
    image: base:1
    resources: {limits: {cpu: 250m}}
    command: [sh, -c]
    args:
    - |
      echo config $(cat /config/colour) $(cat /config/shape)
      echo one $(cat /one/deep/form) $(stat -Lc %a /one/deep/form)
      echo secret $(cat /secret/password) $(stat -Lc %a /secret/password)
      echo written > /empty/f && echo empty $(cat /other/f)
      echo memory $(grep ' /memory ' /proc/mounts | cut -d' ' -f3)
      dd if=/dev/zero of=/memory/big bs=1M count=3 2>/dev/null || echo full
      echo guest > /host/from-pod
      echo kept > /claim/data
      echo down $(cat /down/labels) $(cat /down/cpu)
      echo mixed $(cat /mixed/colour) $(cat /mixed/password) $(cut -d. -f2 /mixed/token | wc -w)
      echo sub $(cat /sub)
      echo account $(cat /var/run/secrets/kubernetes.io/serviceaccount/namespace)
      touch /config/x 2>/dev/null || echo read-only
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: one, mountPath: /one}
    - {name: secret, mountPath: /secret}
    - {name: empty, mountPath: /empty}
    - {name: empty, mountPath: /other}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host}
    - {name: claim, mountPath: /claim}
    - {name: down, mountPath: /down}
    - {name: mixed, mountPath: /mixed}
    - {name: config, mountPath: /sub, subPath: colour}
`, "DIR", dir))
	pod, log := ended(t, d, ns, "all")
	if pod.Status.Phase != corev1.PodSucceeded {
		t.Errorf("the pod %s", pod.Status.Phase)
	}
	says(t, log, "config blue round\n", "one round 400\n", "secret hunter2 440\n", "empty written\n", "memory tmpfs\n", "full\n",
		`down tier="test" 250`, "mixed blue hunter2 1\n", "sub blue\n", "account "+ns+"\n", "read-only\n")
	// What is written to a claim is there for the next pod.
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: next}
spec:
  restartPolicy: Never
  volumes: [{name: claim, persistentVolumeClaim: {claimName: disk}}]
  containers: [{name: c, image: base:1, command: [cat, /claim/data], volumeMounts: [{name: claim, mountPath: /claim}]}]
`)
	_, log = ended(t, d, ns, "next")
	says(t, log, "kept\n")
	changedConfig(t, d, ns)
}

// changedConfig: a running pod sees a changed ConfigMap, and its own new label, without a restart.
func changedConfig(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: follower}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers: [{name: c, image: base:1, command: [sleep, inf], volumeMounts: [{name: config, mountPath: /config}, {name: down, mountPath: /down}]}]
`)
	d.AwaitPod(t, ns, "follower", "ready", harness.Ready)
	d.Kubectl(t, "label", "pod", "follower", "-n", ns, "mood=sunny")
	harness.Eventually(t, "the new label", func() error {
		_, err := d.TryExec(t, ns, "follower", "grep sunny /down/labels")
		return err
	})
	d.Kubectl(t, "patch", "configmap", "settings", "-n", ns, "-p", `{"data":{"colour":"green"}}`)
	harness.Eventually(t, "the changed configuration", func() error {
		_, err := d.TryExec(t, ns, "follower", "grep green /config/colour")
		return err
	})
}

func environment(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: blue, SHAPE: round, dashed-name.x: "yes"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {PASSWORD: hunter2}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: shop}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: env, annotations: {note: hello}}
spec:
  restartPolicy: Never
  hostname: myhost
  subdomain: sub
  hostAliases: [{ip: 10.1.2.3, hostnames: [elsewhere]}]
  containers:
  - name: c
    image: base:1
    workingDir: /work/dir
    command: [sh, -c, "tr '\\0' '\\n' </proc/1/environ | sort; hostname; hostname -f; pwd; cat /etc/hosts; cat /etc/resolv.conf; echo args $0 $*"]
    args: ["$(PLAIN)", "$$(PLAIN)", "$(UNKNOWN)"]
    resources: {requests: {memory: 16Mi}, limits: {memory: 64Mi}}
    envFrom: [{configMapRef: {name: settings}, prefix: C_}, {secretRef: {name: keys}}, {configMapRef: {name: absent, optional: true}}]
    env:
    - {name: PLAIN, value: plain}
    - {name: COMPOSED, value: "$(PLAIN) and $(PASSWORD)"}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: SHAPE}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
`)
	pod, log := ended(t, d, ns, "env")
	says(t, log, "C_COLOUR=blue\n", "C_dashed-name.x=yes\n", "PASSWORD=hunter2\n", "PLAIN=plain\n", "COMPOSED=plain and hunter2\n", "KEY=round\n", "NOTE=hello\n", "NODE="+pod.Spec.NodeName+"\n",
		"IP="+pod.Status.PodIP+"\n", "LIMIT=64\n", "SHOP_SERVICE_PORT=8080\n", "KUBERNETES_SERVICE_PORT=443\n", "\nmyhost\n", "myhost.sub."+ns+".svc.cluster.local\n", "\n/work/dir\n",
		"10.1.2.3\telsewhere\n", "search "+ns+".svc.cluster.local svc.cluster.local cluster.local", "args plain $(PLAIN) $(UNKNOWN)\n")
}

func probes(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: exec}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: base:1
    command: [sleep, inf]
    startupProbe: {exec: {command: [test, -e, /started]}, periodSeconds: 1, failureThreshold: 60}
    readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, "!", -e, /broken]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: net}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: http
    image: base:1
    command: [sh, -c, "mkdir /www; echo ok > /www/health; exec httpd -f -p 8000 -h /www"]
    ports: [{name: web, containerPort: 8000}]
    readinessProbe: {httpGet: {path: /health, port: web, httpHeaders: [{name: X-Probe, value: "1"}]}, periodSeconds: 1}
  - name: tcp
    image: base:1
    command: [httpd, -f, -p, "9000"]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1}
`)
	started := d.AwaitPod(t, ns, "exec", "running", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if s := started.Status.ContainerStatuses[0]; s.Ready || s.Started == nil || *s.Started {
		t.Errorf("before its startup probe has succeeded, the container is ready %v, started %v", s.Ready, s.Started)
	}
	d.Exec(t, ns, "exec", "touch /started")
	d.AwaitPod(t, ns, "exec", "started", func(p *corev1.Pod) bool { s := p.Status.ContainerStatuses[0].Started; return s != nil && *s })
	d.Exec(t, ns, "exec", "touch /ready")
	d.AwaitPod(t, ns, "exec", "ready", harness.Ready)
	d.Exec(t, ns, "exec", "rm /ready")
	d.AwaitPod(t, ns, "exec", "not ready", func(p *corev1.Pod) bool { return !harness.Ready(p) })
	d.Exec(t, ns, "exec", "touch /broken")
	d.AwaitPod(t, ns, "exec", "restarted by its liveness probe", func(p *corev1.Pod) bool {
		return p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	tells(t, func() string { return d.Kubectl(t, "describe", "pod", "-n", ns, "exec") }, "Readiness probe failed", "Liveness probe failed", "Container c failed liveness probe, will be restarted", "Exit Code:    137")
	d.AwaitPod(t, ns, "net", "ready", harness.Ready)
}

func hooks(t *testing.T, d *harness.Daemon, ns string) {
	dir := t.TempDir()
	d.Apply(t, ns, strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata: {name: hooks}
spec:
  volumes: [{name: host, hostPath: {path: DIR}}]
  containers:
  - name: c
    image: base:1
    command: [sh, -c, "trap 'echo term >> /host/story; exit 0' TERM; while :; do sleep 0.05; done"]
    volumeMounts: [{name: host, mountPath: /host}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo started >> /host/story"]}}
      preStop: {exec: {command: [sh, -c, "echo stopping >> /host/story"]}}
---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: host, hostPath: {path: DIR}}]
  containers: [{name: c, image: base:1, command: [sleep, inf], volumeMounts: [{name: host, mountPath: /host, readOnly: true}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: base:1, command: [sleep, inf], lifecycle: {postStart: {exec: {command: ["false"]}}}}
`, "DIR", dir))
	d.AwaitPod(t, ns, "hooks", "ready", harness.Ready)
	d.AwaitPod(t, ns, "reader", "ready", harness.Ready)
	d.Kubectl(t, "delete", "pod", "-n", ns, "hooks")
	if got, want := d.Exec(t, ns, "reader", "cat /host/story"), "started\nstopping\nterm"; got != want {
		t.Errorf("the hooks wrote %q; want %q", got, want)
	}
	d.AwaitPod(t, ns, "bad", "failed by its hook", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	tells(t, func() string { return d.Kubectl(t, "get", "events", "-n", ns) }, "FailedPostStartHook")
}

func initContainers(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - {name: first, image: base:1, command: [sh, -c, "echo first >> /s/order"], volumeMounts: [{name: shared, mountPath: /s}]}
  - {name: second, image: base:1, command: [sh, -c, "echo second >> /s/order"], volumeMounts: [{name: shared, mountPath: /s}]}
  - name: sidecar
    image: base:1
    restartPolicy: Always
    command: [sh, -c, "echo sidecar >> /s/order; trap 'exit 0' TERM; while :; do sleep 0.05; done"]
    startupProbe: {exec: {command: [test, -s, /s/order]}, periodSeconds: 1}
    volumeMounts: [{name: shared, mountPath: /s}]
  containers:
  - {name: main, image: base:1, command: [cat, /s/order], volumeMounts: [{name: shared, mountPath: /s}]}
---
apiVersion: v1
kind: Pod
metadata: {name: failing}
spec:
  restartPolicy: Never
  initContainers: [{name: broken, image: base:1, command: [sh, -c, "echo no; exit 3"]}]
  containers: [{name: main, image: base:1, command: [echo, never]}]
`)
	pod := d.AwaitPod(t, ns, "ordered", "ended", harness.Ended)
	if pod.Status.Phase != corev1.PodSucceeded {
		t.Errorf("a pod whose sidecar never ends by itself is %s", pod.Status.Phase)
	}
	says(t, d.Kubectl(t, "logs", "-n", ns, "ordered", "-c", "main"), "first\nsecond\nsidecar\n")
	pod = d.AwaitPod(t, ns, "failing", "ended", harness.Ended)
	if s := pod.Status.InitContainerStatuses[0].State.Terminated; pod.Status.Phase != corev1.PodFailed || s == nil || s.ExitCode != 3 {
		t.Errorf("after its init container exited with 3, the pod is %+v", pod.Status)
	}
	says(t, d.Kubectl(t, "get", "pods", "-n", ns), "Init:Error", "Completed")
}

func limits(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: base:1
    command: [sh, -c, "tail /dev/zero"]
    resources: {limits: {memory: 16Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  restartPolicy: Never
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: base:1, command: [sleep, inf]}]
`)
	pod := d.AwaitPod(t, ns, "greedy", "ended", harness.Ended)
	if s := pod.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
		t.Errorf("a container that took more memory than its limit ended with %+v; want OOMKilled, 137", pod.Status.ContainerStatuses[0].State)
	}
	pod = d.AwaitPod(t, ns, "late", "ended", harness.Ended)
	if pod.Status.Reason != "DeadlineExceeded" {
		t.Errorf("a pod past its deadline has reason %q; want DeadlineExceeded", pod.Status.Reason)
	}
}

// figures: what tools read of a node through the API server.
func figures(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: base:1, command: [sh, -c, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; touch /done; exec sleep inf"], readinessProbe: {exec: {command: [ls, /done]}, periodSeconds: 1}}]
`)
	pod := d.AwaitPod(t, ns, "busy", "ready", harness.Ready)
	raw := func(path string) string {
		return d.Kubectl(t, "get", "--raw", "/api/v1/nodes/"+pod.Spec.NodeName+"/proxy/"+path)
	}

	var summary stats.Summary
	check(t, json.Unmarshal([]byte(raw("stats/summary")), &summary))
	if n := summary.Node; n.NodeName != pod.Spec.NodeName || *n.CPU.UsageCoreNanoSeconds == 0 || *n.Memory.WorkingSetBytes == 0 || *n.Fs.CapacityBytes == 0 {
		t.Errorf("the node's figures are %+v; want none of them zero", n)
	}
	at := slices.IndexFunc(summary.Pods, func(p stats.PodStats) bool { return p.PodRef.UID == string(pod.UID) })
	if at < 0 {
		t.Fatalf("the pods with figures are %+v; want %s/busy among them", summary.Pods, ns)
	}
	p := summary.Pods[at]
	if len(p.Containers) != 1 || p.Containers[0].Name != "c" || *p.CPU.UsageCoreNanoSeconds < 10_000_000 || *p.Memory.WorkingSetBytes == 0 || p.Network == nil || p.Network.Name != "eth0" {
		t.Errorf("the figures of a pod that counted to 100,000 are %+v; want those of one container, 10 ms of processor time at least, and its network", p)
	}

	labels := fmt.Sprintf(`{container="c",namespace=%q,pod="busy"} `, ns)
	for _, path := range []string{"metrics", "metrics/resource"} {
		says(t, raw(path), "container_cpu_usage_seconds_total"+labels, "container_memory_working_set_bytes"+labels, "node_cpu_usage_seconds_total ", "kubelet_running_pods ")
	}
	var pods corev1.PodList
	check(t, json.Unmarshal([]byte(raw("pods")), &pods))
	if !slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool { return p.UID == pod.UID }) {
		t.Errorf("the kubelet lists %d pods; want %s/busy among them", len(pods.Items), ns)
	}
	if got := raw("healthz"); got != "ok" {
		t.Errorf("the kubelet's health is %q; want ok", got)
	}
	says(t, d.Kubectl(t, "top", "pods", "-n", ns, "--containers"), "POD NAME CPU(cores) MEMORY(bytes)", "busy c ")
	says(t, d.Kubectl(t, "top", "nodes"), "NAME CPU(cores) CPU", pod.Spec.NodeName+" ")
}

func security(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: confined}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1234, runAsGroup: 2345, fsGroup: 3456, supplementalGroups: [4567]}
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: c
    image: base:1
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    command: [sh, -c]
    args:
    - |
      echo ids $(id -u) $(id -g) groups $(id -G)
      echo $(grep NoNewPrivs /proc/self/status) $(grep CapBnd /proc/self/status) $(grep Seccomp: /proc/self/status)
      touch /x 2>/dev/null || echo read-only
      touch /data/x && echo file $(stat -c %g /data/x)
    volumeMounts: [{name: data, mountPath: /data}]
---
apiVersion: v1
kind: Pod
metadata: {name: root}
spec:
  restartPolicy: Never
  containers: [{name: c, image: base:1, command: ["true"], securityContext: {runAsNonRoot: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: shared}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
  - {name: a, image: base:1, command: [sleep, "1234567"]}
  - {name: b, image: base:1, command: [sleep, inf]}
---
apiVersion: v1
kind: Pod
metadata: {name: mighty}
spec:
  restartPolicy: Never
  containers: [{name: c, image: base:1, command: [sh, -c, "grep CapEff /proc/self/status"], securityContext: {privileged: true}}]
`)
	_, log := ended(t, d, ns, "mighty")
	if says(t, log, "CapEff:"); strings.Contains(log, "00000000a80425fb") {
		t.Errorf("a privileged container has %s; want more than the default capabilities", log)
	}
	_, log = ended(t, d, ns, "confined")
	says(t, log, "ids 1234 2345 groups", "3456", "4567", "NoNewPrivs: 1 CapBnd: 0000000000000000", "read-only\n", "file 3456\n")
	pod := d.AwaitPod(t, ns, "root", "refused", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	says(t, pod.Status.ContainerStatuses[0].State.Waiting.Message, "container has runAsNonRoot and image will run as root")
	d.AwaitPod(t, ns, "shared", "ready", harness.Ready)
	harness.Eventually(t, "the other container's program", func() error {
		return contains(d.Kubectl(t, "exec", "-n", ns, "shared", "-c", "b", "--", "ps"), "sleep 1234567")
	})
}

func images(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: absent}
spec: {containers: [{name: c, image: "127.0.0.1:1/none:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec: {containers: [{name: c, image: "nowhere:1", imagePullPolicy: Never}]}
---
apiVersion: v1
kind: Pod
metadata: {name: misspelt}
spec: {restartPolicy: Never, containers: [{name: c, image: "base:1", command: [no-such-program]}]}
`)
	waits := func(pod, reason string) {
		d.AwaitPod(t, ns, pod, reason, func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == reason
		})
	}
	waits("absent", "ImagePullBackOff")
	waits("never", "ErrImageNeverPull")
	pod := d.AwaitPod(t, ns, "misspelt", "ended", harness.Ended)
	if s := pod.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Reason != "StartError" || s.ExitCode != 128 {
		t.Errorf("a container without a program ended with %+v; want StartError, 128", pod.Status.ContainerStatuses[0].State)
	}
	says(t, d.Kubectl(t, "describe", "pod", "-n", ns, "misspelt"), "no-such-program")
}

func termination(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: says-why}
spec:
  restartPolicy: Never
  containers: [{name: c, image: base:1, command: [sh, -c, "echo because > /dev/termination-log; exit 4"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: log-tells}
spec:
  restartPolicy: Never
  containers: [{name: c, image: base:1, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo last words; exit 5"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  containers: [{name: c, image: base:1, command: ["false"]}]
`)
	for pod, want := range map[string]string{"says-why": "because\n", "log-tells": "last words\n"} {
		p := d.AwaitPod(t, ns, pod, "ended", harness.Ended)
		if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Message != want || s.Reason != "Error" {
			t.Errorf("pod %s ended with %+v; want the message %q", pod, s, want)
		}
	}
	d.AwaitPod(t, ns, "crashing", "in back-off", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses
		return len(s) > 0 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff" && s[0].RestartCount > 0
	})
	says(t, d.Kubectl(t, "get", "pods", "-n", ns), "CrashLoopBackOff")
	harness.Eventually(t, "a warning of the back-off", func() error {
		return contains(d.Kubectl(t, "events", "-n", ns, "--for", "pod/crashing", "--types=Warning"), "BackOff", "Back-off restarting failed container c in pod crashing_"+ns)
	})
	// A program that has ended before the client attaches: nothing is left to wait for.
	for range 3 {
		if r := d.Try(t, "", "kubectl", "run", "quick", "-n", ns, "--rm", "-i", "--image=base:1", "--restart=Never", "--", "sh", "-c", "exit 4"); r.Code != 4 {
			t.Errorf("a pod whose program ends at once: %v; want its exit code, 4", r)
		}
	}
}

// debug adds a container to a pod that runs, which sees the processes of another.
func debug(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: quiet}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: base:1, command: [sleep, "4711"]}]
`)
	d.AwaitPod(t, ns, "quiet", "ready", harness.Ready)
	d.Kubectl(t, "debug", "quiet", "-n", ns, "--image=base:1", "--target=c", "--container=look", "--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 3")
	pod := d.AwaitPod(t, ns, "quiet", "looked into", func(p *corev1.Pod) bool {
		s := p.Status.EphemeralContainerStatuses
		return len(s) == 1 && s[0].State.Terminated != nil
	})
	if got := pod.Status.EphemeralContainerStatuses[0].State.Terminated.ExitCode; got != 3 {
		t.Errorf("the ephemeral container exited with %d; want 3", got)
	}
	if !harness.Ready(pod) {
		t.Errorf("the pod is not ready any more: %+v", pod.Status.Conditions)
	}
	says(t, d.Kubectl(t, "logs", "-n", ns, "quiet", "-c", "look"), "sleep 4711")
}

func unschedulable(t *testing.T, d *harness.Daemon, ns string) {
	d.Apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec: {containers: [{name: c, image: base:1, resources: {requests: {cpu: "1000"}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: picky}
spec: {nodeSelector: {disk: ssd}, containers: [{name: c, image: base:1, command: [sleep, inf]}], terminationGracePeriodSeconds: 0}
`)
	for pod, want := range map[string]string{"huge": "0/1 nodes are available: 1 Insufficient cpu", "picky": "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector"} {
		p := d.AwaitPod(t, ns, pod, "unschedulable", func(p *corev1.Pod) bool {
			return len(p.Status.Conditions) > 0 && p.Status.Conditions[0].Reason == corev1.PodReasonUnschedulable
		})
		says(t, p.Status.Conditions[0].Message, want)
		tells(t, func() string {
			return d.Kubectl(t, "get", "events", "-n", ns, "--field-selector", "involvedObject.name="+pod)
		}, "FailedScheduling", want)
	}
	d.Kubectl(t, "label", "node", "--all", "disk=ssd")
	d.AwaitPod(t, ns, "picky", "ready", harness.Ready)
	d.Kubectl(t, "label", "node", "--all", "disk-")
}
