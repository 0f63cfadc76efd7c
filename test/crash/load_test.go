package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"slipway.dev/slipway/test/harness"
)

// patience is how long a client waits for an answer while the daemon is being started again.
const patience = 30 * time.Second

// load writes to every API until it is stopped, and keeps what was acknowledged.
type load struct {
	t    testing.TB
	d    *harness.Daemon
	http *http.Client
	kube *kubernetes.Clientset

	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu                                   sync.Mutex
	configs, volumes, containers, images []string
	removed                              []string // containers

	project  string         // directory of a Compose project
	promised string         // the version of it that runs, "none", or empty: unknown, because a verb was cut short
	verbs    map[string]int // that succeeded
	step     int
}

// compose is what `slipway up` brings up: two services, one with a volume. Another version is a rolling update.
const compose = `name: five
services:
  front: {image: "base:1", command: [sleep, inf], init: true, stop_grace_period: 0s, environment: {VERSION: "${VERSION:-0}"}, deploy: {replicas: 2}}
  back: {image: "base:1", command: [sleep, inf], init: true, stop_grace_period: 0s, volumes: ["data:/data"]}
volumes: {data: {}}
`

// slipway runs the command in the project's directory; arguments with a = are variables.
func slipway(ctx context.Context, t testing.TB, d *harness.Daemon, dir string, args ...string) error {
	assigns := func(arg string) bool { return strings.Contains(arg, "=") }
	cmd := d.Command(ctx, t, "slipway", slices.DeleteFunc(slices.Clone(args), assigns)...)
	cmd.Dir, cmd.Path = dir, filepath.Join(dir, "slipway")
	for _, arg := range args {
		if assigns(arg) {
			cmd.Env = append(cmd.Env, arg)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("slipway %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// newProject writes the project's file, with the commands beside it: away from slipwayd, which they would start
// themselves after a kill, ahead of the test.
func newProject(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(compose), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"slipway", "slipway-compose"} {
		program, err := os.ReadFile(filepath.Join(harness.Binaries(t), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), program, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func newLoad(t *testing.T, d *harness.Daemon) *load {
	client := d.DockerHTTP()
	client.Timeout = patience
	return &load{t: t, d: d, http: client, kube: d.Clientset(t), project: newProject(t), verbs: map[string]int{}}
}

// start begins a round. Each task goes on until the round's end; requests that fail were not acknowledged.
func (l *load) start(round int) {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel = cancel
	every := func(task func(ctx context.Context, name string)) {
		l.tasks.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				task(ctx, fmt.Sprintf("r%d-%d", round, i))
			}
		})
	}
	every(l.config)
	every(l.volume)
	every(l.container)
	every(l.build)
	every(l.rollout)
	every(l.upAndDown)
}

// stop ends a round once something was built in it, by whichever daemon.
func (l *load) stop(round int) {
	harness.Eventually(l.t, "a build in the round", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if n := len(l.images); n == 0 || !strings.HasPrefix(l.images[n-1], fmt.Sprintf("built:r%d-", round)) {
			return errors.New("none has ended")
		}
		return nil
	})
	l.cancel()
	l.tasks.Wait()
}

func (l *load) keep(list *[]string, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*list = append(*list, name)
}

func (l *load) config(ctx context.Context, name string) {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"k": name}}
	if _, err := l.kube.CoreV1().ConfigMaps(ns).Create(ctx, c, metav1.CreateOptions{}); err == nil {
		l.keep(&l.configs, name)
	}
}

func (l *load) volume(ctx context.Context, name string) {
	if l.post(ctx, "/volumes/create", map[string]any{"Name": name}) {
		l.keep(&l.volumes, name)
	}
}

// container makes two containers, one of which is removed again.
func (l *load) container(ctx context.Context, name string) {
	body := map[string]any{"Image": harness.Base, "Cmd": []string{"sleep", "inf"}, "HostConfig": map[string]any{"Init": false}}
	if l.post(ctx, "/containers/create?name="+name, body) {
		l.keep(&l.containers, name)
	}
	if l.post(ctx, "/containers/create?name=gone-"+name, body) && l.post(ctx, "/containers/gone-"+name+"/start", nil) && l.delete(ctx, "/containers/gone-"+name+"?force=1") {
		l.keep(&l.removed, "gone-"+name)
	}
}

func (l *load) build(ctx context.Context, name string) {
	_, err := l.d.Build(ctx, "built:"+name, map[string]string{"Dockerfile": "FROM " + harness.Base + "\nRUN echo " + name + " > /name\nCOPY file /\n", "file": name})
	if err == nil {
		l.keep(&l.images, "built:"+name)
	}
}

// rollout changes the moving deployment and deletes one of its pods.
func (l *load) rollout(ctx context.Context, name string) {
	patch := fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"c","env":[{"name":"ROUND","value":%q}]}]}}}}`, name)
	l.kube.AppsV1().Deployments(ns).Patch(ctx, "moving", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	pods, err := l.kube.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: "app=moving"})
	if err == nil && len(pods.Items) > 0 {
		l.kube.CoreV1().Pods(ns).Delete(ctx, pods.Items[0].Name, metav1.DeleteOptions{})
	}
}

// upAndDown is one verb of a project's life: it is brought up, updated, and taken down. One that meets a kill may fail,
// and the next one has to cope with what it finds. One that succeeds has promised something.
func (l *load) upAndDown(_ context.Context, _ string) {
	version := fmt.Sprintf("v%d", l.step)
	life := []struct{ name, verb, promise string }{{"up", "up", version}, {"update", "up", version}, {"down", "down", "none"}}
	now := life[l.step%len(life)]
	l.step++
	l.promised = ""
	// The round's end does not cut it short: a verb that is interrupted has promised nothing, and most would be.
	if err := slipway(l.t.Context(), l.t, l.d, l.project, now.verb, "VERSION="+version); err == nil {
		l.promised = now.promise
		l.verbs[now.name]++
	}
}

// kept checks that the project is as the last verb left it, if that one succeeded.
func (l *load) kept(t *testing.T, round int) {
	t.Helper()
	if l.promised == "" {
		return
	}
	versions := l.d.Kubectl(t, "get", "deployments", "-n", "five", "--ignore-not-found", "-o", `jsonpath={.items[?(@.metadata.name=="front")].spec.template.spec.containers[0].env[?(@.name=="VERSION")].value}`)
	if l.promised == "none" {
		if versions != "" {
			t.Errorf("round %d: the project was taken down, and version %s of it is there", round, versions)
		}
		return
	}
	if versions != l.promised {
		t.Errorf("round %d: version %s of the project was brought up, and %q is there", round, l.promised, versions)
	}
	for _, service := range []string{"front", "back"} {
		l.d.Kubectl(t, "rollout", "status", "-n", "five", "deployment/"+service, "--timeout=60s")
	}
}

// finish brings the project up, updates it and takes it down, undisturbed.
func (l *load) finish(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"up", "VERSION=old"}, {"up", "VERSION=new"}, {"down"}} {
		if err := slipway(t.Context(), t, l.d, l.project, args...); err != nil {
			t.Errorf("after all the rounds: %v", err)
		}
	}
}

func (l *load) post(ctx context.Context, path string, body any) bool {
	raw, err := json.Marshal(body)
	if err != nil {
		l.t.Error(err)
		return false
	}
	if body == nil {
		raw = nil
	}
	return l.do(ctx, http.MethodPost, path, raw)
}

func (l *load) delete(ctx context.Context, path string) bool {
	return l.do(ctx, http.MethodDelete, path, nil)
}

func (l *load) do(ctx context.Context, method, path string, body []byte) bool {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, bytes.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := l.http.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode/100 == 2
}

// verify looks for everything that was acknowledged in any round so far.
func (l *load) verify(t *testing.T, round int) {
	t.Helper()
	if err := acknowledged(t, l.d, l.configs); err != nil {
		t.Errorf("round %d: %v", round, err)
	}
	volumes := set(l.d.Docker(t, "volume", "ls", "-q"))
	containers := set(l.d.Docker(t, "ps", "-a", "--format", "{{.Names}}"))
	images := set(l.d.Docker(t, "images", "--format", "{{.Repository}}:{{.Tag}}"))
	for _, err := range []error{missing("volume", l.volumes, volumes), missing("container", l.containers, containers), missing("image", l.images, images)} {
		if err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	for _, name := range l.removed {
		if containers[name] {
			t.Errorf("round %d: container %s was removed and is there again", round, name)
		}
	}
	l.usable(t, round)
	l.kept(t, round)
	t.Logf("round %d: so far %d config maps, %d volumes, %d containers, %d images acknowledged, %d containers removed; verbs %v",
		round, len(l.configs), len(l.volumes), len(l.containers), len(l.images), len(l.removed), l.verbs)
}

// usable runs the newest image: its layers have to be whole, too.
func (l *load) usable(t *testing.T, round int) {
	t.Helper()
	if len(l.images) == 0 {
		return
	}
	image := l.images[len(l.images)-1]
	_, want, _ := strings.Cut(image, ":")
	if got := l.d.Docker(t, "run", "--rm", image, "sh", "-c", "cat /name; cat /file"); got != want+"\n"+want {
		t.Errorf("round %d: image %s holds %q; want %q twice", round, image, got, want)
	}
}

func set(lines string) map[string]bool {
	s := map[string]bool{}
	for line := range strings.Lines(lines) {
		s[strings.TrimSpace(line)] = true
	}
	return s
}

// observer asks all the time: the API for a connection, DNS for a name, a service for a page.
type observer struct {
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	asked  map[string]int
	failed []error
}

func observe(t *testing.T, d *harness.Daemon) *observer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o := &observer{cancel: cancel, asked: map[string]int{}}
	address := d.Kubectl(t, "get", "service", "-n", ns, "steady", "-o", "jsonpath={.spec.clusterIP}")
	pod := d.PodNames(t, ns, "app=steady")[0]
	nameserver := d.Exec(t, ns, pod, "grep nameserver /etc/resolv.conf | head -1 | cut -d' ' -f2")
	o.every(ctx, "API connection", func() error {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", d.Record.APIPort), patience)
		if err == nil {
			conn.Close()
		}
		return err
	})
	o.every(ctx, "docker connection", func() error {
		conn, err := net.DialTimeout("unix", d.DockerSocket(), patience)
		if err == nil {
			conn.Close()
		}
		return err
	})
	o.every(ctx, "DNS query", func() error { return resolve(nameserver, "steady."+ns+".svc.cluster.local.", address) })
	o.every(ctx, "service request", func() error {
		got, err := fetchOnce(address + ":80")
		if err == nil && got != "steady" {
			err = fmt.Errorf("the answer is %q", got)
		}
		return err
	})
	t.Cleanup(func() { cancel(); o.tasks.Wait() })
	return o
}

func (o *observer) every(ctx context.Context, what string, ask func() error) {
	o.tasks.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			err := ask()
			o.mu.Lock()
			o.asked[what]++
			if err != nil {
				o.failed = append(o.failed, fmt.Errorf("%s at %s: %w", what, time.Now().Format("15:04:05.000"), err))
			}
			o.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// end stops asking and fails the test with what was refused.
func (o *observer) end(t *testing.T) {
	t.Helper()
	o.cancel()
	o.tasks.Wait()
	t.Logf("asked meanwhile: %v", o.asked)
	for i, err := range o.failed {
		if i == 10 {
			t.Errorf("and %d more", len(o.failed)-i)
			break
		}
		t.Error(err)
	}
}

func resolve(server, name, want string) error {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	client := dns.Client{Timeout: 5 * time.Second} // as resolvers do
	var reply *dns.Msg
	var err error
	for asked := time.Now(); time.Since(asked) < patience; {
		reply, _, err = client.Exchange(m, net.JoinHostPort(server, "53"))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			break
		}
		// The daemon that is killed had read the query and not yet answered: resolvers ask again.
	}
	if err != nil {
		return err
	}
	if len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "\t"+want) {
		return fmt.Errorf("%s: %v", dns.RcodeToString[reply.Rcode], reply.Answer)
	}
	return nil
}

// fetchOnce gets a page over a connection of its own.
func fetchOnce(address string) (string, error) {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(body)), err
}
