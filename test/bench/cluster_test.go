package bench

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"

	"slipway.dev/slipway/test/harness"
)

const ns = "bench"

// podNamed is an idle pod; what it runs ends at once when told to.
func podNamed(name string) *corev1.Pod {
	grace := int64(0)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		Containers:                    []corev1.Container{{Name: "c", Image: harness.Base, Command: []string{"sleep", "inf"}}},
	}}
}

// cluster is a client with a watch on the namespace's pods.
type cluster struct {
	t    *testing.T
	kube *kubernetes.Clientset
}

// ready creates n pods and waits until all are ready; it returns how long that took.
func (c cluster) ready(prefix string, n int) time.Duration {
	c.t.Helper()
	pods := c.kube.CoreV1().Pods(ns)
	w, err := pods.Watch(c.t.Context(), metav1.ListOptions{})
	check(c.t, err)
	defer w.Stop()
	start := time.Now()
	for i := range n {
		_, err := pods.Create(c.t.Context(), podNamed(fmt.Sprintf("%s-%d", prefix, i)), metav1.CreateOptions{})
		check(c.t, err)
	}
	up := map[string]bool{}
	for event := range w.ResultChan() {
		if pod, ok := event.Object.(*corev1.Pod); ok && strings.HasPrefix(pod.Name, prefix+"-") && harness.Ready(pod) {
			if up[pod.Name] = true; len(up) == n {
				return time.Since(start)
			}
		}
	}
	c.t.Fatalf("only %d of %d pods became ready", len(up), n)
	return 0
}

// clear deletes all pods and waits for their end.
func (c cluster) clear(d *harness.Daemon) {
	c.t.Helper()
	check(c.t, c.kube.CoreV1().Pods(ns).DeleteCollection(c.t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	d.CheckNoPods(c.t)
}

func pods(t *testing.T, out table, d *harness.Daemon) {
	d.Namespace(t, ns)
	c := cluster{t, protobuf(t, d)}
	var one, fifty []time.Duration
	for i := range runs + 1 {
		took := c.ready(fmt.Sprintf("one%d", i), 1)
		if i > 0 {
			one = append(one, took)
		}
	}
	c.clear(d)
	for i := range 10 {
		fifty = append(fifty, c.ready(fmt.Sprintf("fifty%d", i), 50))
		c.clear(d)
	}
	out.times("pod created through the API -> Ready, image present", one, nil, "100 ms")
	out.times("50 pods at once -> all Ready", fifty, nil, "1500 ms")
}

func protobuf(t *testing.T, d *harness.Daemon) *kubernetes.Clientset {
	config := d.Config(t)
	config.ContentType = runtime.ContentTypeProtobuf
	kube, err := kubernetes.NewForConfig(config)
	check(t, err)
	return kube
}

// requests measures the API with 16 workers, on config maps of a common size.
func requests(t *testing.T, out table, d *harness.Daemon) {
	const workers, objects = 16, 1000
	maps := protobuf(t, d).CoreV1().ConfigMaps(ns)
	data := map[string]string{"settings": strings.Repeat("x", 1000)}
	name := func(i int) string { return fmt.Sprintf("c-%d", i) }
	rate := func(n int, do func(i int) error) string {
		var next atomic.Int64
		var tasks sync.WaitGroup
		start := time.Now()
		for range workers {
			tasks.Go(func() {
				for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
					if err := do(i); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		tasks.Wait()
		return fmt.Sprintf("%.0f/s", float64(n)/time.Since(start).Seconds())
	}
	ctx := t.Context()
	create := rate(objects, func(i int) error {
		_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name(i)}, Data: data}, metav1.CreateOptions{})
		return err
	})
	get := rate(5*objects, func(i int) error {
		_, err := maps.Get(ctx, name(i%objects), metav1.GetOptions{})
		return err
	})
	update := rate(objects, func(i int) error {
		_, err := maps.Update(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name(i)}, Data: map[string]string{"i": strconv.Itoa(i)}}, metav1.UpdateOptions{})
		return err
	})
	list := rate(200, func(int) error {
		_, err := maps.List(ctx, metav1.ListOptions{})
		return err
	})
	out.row("API, 16 workers, protobuf: create", create, "", "2142/s")
	out.row("API, 16 workers, protobuf: get", get, "", "4239/s")
	out.row("API, 16 workers, protobuf: update", update, "", "1866/s")
	out.row("API, 16 workers, protobuf: list of 1,000", list, "", "264/s")
	check(t, maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
}

// memory in kilobytes.
type memory struct{ resident, anonymous int }

func (m memory) String() string {
	return fmt.Sprintf("%.0f MB, %.0f MB anonymous", float64(m.resident)/1024, float64(m.anonymous)/1024)
}

// memoryOf adds up the daemon and its warden.
func memoryOf(t *testing.T, d *harness.Daemon) memory {
	t.Helper()
	var m memory
	for _, pid := range []int{d.Record.PID, d.WardenPID()} {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		check(t, err)
		m.resident += field(t, string(status), "VmRSS")
		m.anonymous += field(t, string(status), "RssAnon")
	}
	return m
}

func field(t *testing.T, status, name string) int {
	t.Helper()
	found := regexp.MustCompile(name + `:\s+(\d+) kB`).FindStringSubmatch(status)
	if found == nil {
		t.Fatalf("no %s in:\n%s", name, status)
	}
	n, err := strconv.Atoi(found[1])
	check(t, err)
	return n
}

// perPod is what each of 50 idle pods adds to daemon and warden.
func perPod(t *testing.T, out table, d *harness.Daemon) {
	const n = 50
	c := cluster{t, protobuf(t, d)}
	before := memoryOf(t, d)
	c.ready("idle", n)
	time.Sleep(settle / 2)
	after := memoryOf(t, d)
	out.row("memory per idle pod, of 50", fmt.Sprintf("%.2f MB", float64(after.resident-before.resident)/1024/n), "", "1 MB")
	c.clear(d)
}
