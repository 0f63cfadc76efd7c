package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"slipway.dev/slipway/cluster/store"
)

// kubelet answers like a node's agent, without any container: exec runs the words of its
// command by a few rules.
type kubelet struct {
	release chan struct{}
	asked   atomic.Int64 // for figures
	uid     atomic.Value // of pod a
}

// figures are stats/summary: from one answer to the next the node uses a second of processor time, and pod a a quarter.
func (k *kubelet) figures() string {
	n := k.asked.Add(1)
	uid, _ := k.uid.Load().(string)
	return fmt.Sprintf(`{"node":{"nodeName":"n1","cpu":{"usageCoreNanoSeconds":%d},"memory":{"workingSetBytes":3145728}},"pods":[
		{"podRef":{"namespace":"default","name":"a","uid":%q},"containers":[{"name":"c","cpu":{"usageCoreNanoSeconds":%d},"memory":{"workingSetBytes":2048}}]},
		{"podRef":{"namespace":"default","name":"gone","uid":"x"},"containers":[{"name":"c","cpu":{"usageCoreNanoSeconds":1},"memory":{"workingSetBytes":1}}]}]}`, n*1e9, uid, n*250e6)
}

func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{ns}/{pod}/{container}", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "log of %s/%s/%s?%s\n", req.PathValue("ns"), req.PathValue("pod"), req.PathValue("container"), req.URL.RawQuery)
		if req.URL.Query().Get("follow") == "true" {
			w.(http.Flusher).Flush()
			<-k.release
			fmt.Fprintln(w, "second line")
		}
	})
	mux.HandleFunc("/exec/{ns}/{pod}/{container}", func(w http.ResponseWriter, req *http.Request) {
		opts, err := criremote.NewOptions(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criremote.ServeExec(w, req, k, req.PathValue("pod"), "", req.PathValue("container"), req.URL.Query()["command"], opts,
			time.Minute, time.Minute, criremote.SupportedStreamingProtocols)
	})
	mux.HandleFunc("GET /stats/summary", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, k.figures()) })
	mux.HandleFunc("/portForward/{ns}/{pod}", func(w http.ResponseWriter, req *http.Request) {
		opts, err := portforward.NewV4Options(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, req, k, req.PathValue("pod"), "", opts, time.Minute, time.Minute, portforward.SupportedProtocols)
	})
	return mux
}

func (k *kubelet) ExecInContainer(ctx context.Context, _ string, _ string, container string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, _ <-chan criremote.TerminalSize, _ time.Duration) error {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "exit":
		fmt.Fprintln(errOut, "leaving", container)
		return utilexec.CodeExitError{Err: fmt.Errorf("exit code %s", cmd[1]), Code: 7}
	}
	fmt.Fprintln(out, strings.Join(cmd, " "))
	return nil
}

func (k *kubelet) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	line, err := bufio.NewReader(stream).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "port %d got %s", port, line)
	return err
}

// withKubelet starts a server with one node, whose pod "a" runs, reached over a Loopback.
func withKubelet(t *testing.T) (*instance, *kubelet) {
	t.Helper()
	lo := NewLoopback()
	k := &kubelet{release: make(chan struct{})}
	hs := &http.Server{Handler: k.handler()}
	done := make(chan error, 1)
	go func() { done <- hs.Serve(lo) }()
	i := start(t, func(o *Options) { o.DialNode = lo.Dial })
	t.Cleanup(func() { hs.Close(); <-done })
	makeDefaultAccount(t, i)
	w := i.Client()
	for _, o := range []store.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, podOf("a")} {
		if _, err := w.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: "default"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	pod, _ := store.Get[*corev1.Pod](i.store, podResource, "default", "a")
	k.uid.Store(string(pod.UID))
	pod = store.Copy(pod)
	pod.Status.Phase = corev1.PodRunning
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", Image: "nginx", ImageID: "x", ContainerID: "slipway://1", Ready: true, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	if _, err := w.UpdateStatus(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return i, k
}

// kubectl runs the real client and returns what it prints, both streams.
func (i *instance) kubectl(t testing.TB, stdin string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed: it is the client under test")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+i.kubeconfig, "HOME="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	var kept []string
	for line := range strings.Lines(string(out)) {
		// Up to 1.34, kubectl may read the message that opens a stream before it has made the stream, and says that it drops it.
		if !strings.HasPrefix(line, "WARNING: version difference") && !strings.Contains(line, "Unknown stream id 1, discarding message") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, ""), err
}

func TestExec(t *testing.T) {
	i, _ := withKubelet(t)
	for _, websockets := range []string{"true", "false"} {
		t.Setenv("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
		if out, err := i.kubectl(t, "", "exec", "a", "--", "echo", "hello world"); err != nil || out != "echo hello world\n" {
			t.Errorf("websockets %s: exec printed %q, %v", websockets, out, err)
		}
		if out, err := i.kubectl(t, "over and back", "exec", "-i", "a", "-c", "c", "--", "cat"); err != nil || out != "over and back" {
			t.Errorf("websockets %s: exec -i printed %q, %v", websockets, out, err)
		}
		out, err := i.kubectl(t, "", "exec", "a", "--", "exit", "7")
		if ee, ok := err.(*exec.ExitError); !ok || ee.ExitCode() != 7 || !strings.Contains(out, "leaving c\n") {
			t.Errorf("websockets %s: exec of a failing command printed %q, %v; want exit code 7", websockets, out, err)
		}
	}
	out, _ := i.kubectl(t, "", "exec", "a", "-c", "nope", "--", "true")
	// The server's words; kubectl 1.33 and later find out by themselves and say the same.
	if want := "container nope is not valid for pod a"; !strings.Contains(out, want) {
		t.Errorf("exec in a container that is not there printed %q; want %q", out, want)
	}
}

func TestExecByWebSocketFromClientGo(t *testing.T) {
	i, _ := withKubelet(t)
	ex, err := remotecommand.NewWebSocketExecutor(i.config, "GET", i.url+"/api/v1/namespaces/default/pods/a/exec?command=cat&stdin=true&stdout=true&container=c")
	if err != nil {
		t.Fatal(err)
	}
	in := strings.Repeat("0123456789abcdef", 64<<10) // 1 MB
	var out bytes.Buffer
	if err := ex.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(in), Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if out.String() != in {
		t.Errorf("%d bytes went in, %d came back", len(in), out.Len())
	}
}

func TestLogs(t *testing.T) {
	i, k := withKubelet(t)
	if out, err := i.kubectl(t, "", "logs", "a", "--tail=5", "--timestamps"); err != nil || out != "log of default/a/c?tailLines=5&timestamps=true\n" {
		t.Errorf("logs printed %q, %v", out, err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", i.url+"/api/v1/namespaces/default/pods/a/log?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := i.http(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "log of default/a/c?follow=true" {
		t.Fatalf("the first line is %q; it must come before the log ends", lines.Text())
	}
	close(k.release)
	if !lines.Scan() || lines.Text() != "second line" {
		t.Errorf("the second line is %q", lines.Text())
	}
	if out, _ := i.kubectl(t, "", "logs", "missing"); out != "error: error from server (NotFound): pods \"missing\" not found in namespace \"default\"\n" {
		t.Errorf("logs of a missing pod printed %q", out)
	}
}

// Whoever may get nodes/proxy sees what the kubelet shows of the node, and reaches nothing else through it.
func TestNodeProxy(t *testing.T) {
	i, _ := withKubelet(t)
	admin, w := i.http(t), i.Client()
	for _, o := range []store.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "watcher"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"nodes/proxy"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "watcher"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "watcher"},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "ann"}}},
	} {
		if _, err := w.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	const has = "it has /healthz, /metrics, /metrics/resource, /pods, /stats/summary"
	for _, tt := range []struct {
		client       *http.Client
		method, path string
		code         int
		want         string
	}{
		{admin, "GET", "n1/proxy/stats/summary", 200, `"nodeName":"n1"`},
		{admin, "GET", "n1/proxy/stats/summary/", 200, `"nodeName":"n1"`},
		{admin, "GET", "n1:10250/proxy/stats/summary", 200, `"nodeName":"n1"`},
		{admin, "GET", "https:n1:10250/proxy/stats/summary?only_cpu_and_memory=true", 200, `"nodeName":"n1"`},
		{i.as(t, "ann"), "GET", "n1/proxy/stats/summary", 200, `"nodeName":"n1"`},
		{i.as(t, "bob"), "GET", "n1/proxy/stats/summary", 403, `nodes "n1" is forbidden: User "bob" cannot get resource "nodes/proxy" in API group "" at the cluster scope`},
		{i.as(t, "ann"), "POST", "n1/proxy/stats/summary", 403, `nodes "n1" is forbidden: User "ann" cannot create resource "nodes/proxy" in API group "" at the cluster scope`},
		{admin, "POST", "n1/proxy/stats/summary", 405, "the kubelet of node n1 is only read through its proxy: POST is not allowed"},
		{admin, "GET", "n1/proxy/configz", 404, "the kubelet of node n1 has no /configz to show: " + has},
		{admin, "GET", "n1/proxy/", 404, "the kubelet of node n1 has no / to show: " + has},
		{admin, "GET", "n1/proxy/exec/default/a/c?command=id&output=1", 404, "the kubelet of node n1 has no /exec/default/a/c to show: " + has},
		{admin, "GET", "n1/proxy/pods/../exec/default/a/c", 404, "the kubelet of node n1 has no /pods/../exec/default/a/c to show: " + has},
		{admin, "GET", "n2/proxy/healthz", 404, `nodes "n2" not found`},
		{admin, "GET", "n1:22/proxy/healthz", 400, "node n1 is reached at its kubelet's port 10250 alone, not at 22"},
	} {
		if code, got := i.ask(t, tt.client, tt.method, "/api/v1/nodes/"+tt.path, ""); code != tt.code || !strings.Contains(got, tt.want) {
			t.Errorf("%s %s answers %d, %s; want %d, %s", tt.method, tt.path, code, got, tt.code, tt.want)
		}
	}
}

// kubectl top reads what nodes and pods use: rates between two readings, and no pod that is not there.
func TestUsage(t *testing.T) {
	i, _ := withKubelet(t)
	now := time.Now()
	i.usage.clock = func() time.Time { now = now.Add(500 * time.Millisecond); return now } // a request looks at it three or four times
	i.usage.window = 0
	admin := i.http(t)
	const group = "/apis/metrics.k8s.io/v1beta1"
	for _, tt := range []struct {
		client *http.Client
		path   string
		code   int
		want   string
	}{
		{admin, group + "/nodes", 200, `"kind": "NodeMetricsList"`},
		{admin, group + "/nodes/n1", 200, `"memory": "3Mi"`},
		{admin, group + "/nodes/n2", 404, `nodes.metrics.k8s.io "n2" not found`},
		{admin, group + "/pods", 200, `"memory": "2Ki"`},
		{admin, group + "/namespaces/default/pods", 200, `"name": "a"`},
		{admin, group + "/namespaces/default/pods?labelSelector=x%3Dy", 200, `"items": []`},
		{admin, group + "/namespaces/default/pods?fieldSelector=metadata.name%3Da", 200, `"name": "a"`},
		{admin, group + "/namespaces/default/pods?fieldSelector=metadata.name%3Db", 200, `"items": []`},
		{admin, group + "/namespaces/default/pods?fieldSelector=status.phase%3DRunning", 400, "field label not supported: status.phase"},
		{admin, group + "/namespaces/kube-system/pods", 200, `"items": []`},
		{admin, group + "/namespaces/default/pods/a", 200, `"kind": "PodMetrics"`},
		{admin, group + "/namespaces/default/pods/gone", 404, `pods.metrics.k8s.io "gone" not found`},
		{admin, group + "/namespaces/default/pods?watch=1", 405, `watch is not supported on resources of kind "pods.metrics.k8s.io"`},
		{admin, group + "/namespaces/default/services", 404, "the server could not find the requested resource"},
		{i.as(t, "bob"), group + "/nodes", 403, `nodes.metrics.k8s.io is forbidden: User "bob" cannot list resource "nodes" in API group "metrics.k8s.io" at the cluster scope`},
	} {
		if code, got := i.ask(t, tt.client, "GET", tt.path, ""); code != tt.code || !strings.Contains(got, tt.want) || strings.Contains(got, `"name": "gone"`) {
			t.Errorf("GET %s answers %d, %s; want %d, %s", tt.path, code, got, tt.code, tt.want)
		}
	}
	// A second of processor time lies between two readings; the clock is looked at three times between those of two requests.
	if out, err := i.kubectl(t, "", "top", "pods", "--containers", "--no-headers"); err != nil || strings.Join(strings.Fields(out), " ") != "a c 167m 0Mi" {
		t.Errorf("kubectl top pods prints %q, %v; want a c 167m 0Mi", out, err)
	}
	if out, err := i.kubectl(t, "", "top", "nodes", "--no-headers"); err != nil || !strings.HasPrefix(strings.Join(strings.Fields(out), " "), "n1 667m") {
		t.Errorf("kubectl top nodes prints %q, %v; want 667m of n1", out, err)
	}
}

func TestPortForward(t *testing.T) {
	i, _ := withKubelet(t)
	for _, websockets := range []string{"true", "false"} {
		t.Setenv("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
		port := i.forward(t)
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(c, "hello")
		answer, err := io.ReadAll(c)
		c.Close()
		if string(answer) != "port 80 got hello\n" {
			t.Errorf("websockets %s: the forwarded port answered %q, %v", websockets, answer, err)
		}
	}
}

// forward starts kubectl port-forward and returns the local port.
func (i *instance) forward(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		t.Skip("kubectl is not installed: it is the client under test")
	}
	cmd := exec.CommandContext(t.Context(), path, "port-forward", "pod/a", ":80")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+i.kubeconfig)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(line[strings.LastIndexByte(strings.Split(line, " -> ")[0], ':')+1:])[0]
}
