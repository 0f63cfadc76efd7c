package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config is the administrator's way to the Kubernetes API.
func (d *Daemon) Config(t testing.TB) *rest.Config {
	t.Helper()
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(d.Run, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	c.QPS = -1 // no limit of the client's own
	return c
}

// Clientset is client-go's typed client, as the administrator.
func (d *Daemon) Clientset(t testing.TB) *kubernetes.Clientset {
	t.Helper()
	c, err := kubernetes.NewForConfig(d.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Namespace makes a namespace.
func (d *Daemon) Namespace(t testing.TB, name string) string {
	t.Helper()
	d.Kubectl(t, "create", "namespace", name)
	return name
}

// AwaitPod watches a pod until is says that it is as wanted, and returns it; describe is for the failure.
func (d *Daemon) AwaitPod(t testing.TB, namespace, name, what string, is func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	pods := d.Clientset(t).CoreV1().Pods(namespace)
	seconds := int64(commandLimit.Seconds())
	w, err := pods.Watch(t.Context(), metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), TimeoutSeconds: &seconds})
	if err != nil {
		t.Fatalf("watch pod %s/%s: %v", namespace, name, err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if ok && is(pod) {
			return pod
		}
		if event.Type == watch.Deleted {
			t.Fatalf("pod %s/%s was deleted before it became %s; its status was %+v", namespace, name, what, pod.Status)
		}
	}
	t.Fatalf("pod %s/%s did not become %s:\n%s", namespace, name, what, d.Try(t, "", "kubectl", "describe", "pod", "-n", namespace, name).Stdout)
	return nil
}

// Ready tells whether a pod is ready.
func Ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// Ended tells whether a pod has run to its end.
func Ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// PodNames lists the pods that a selector matches and that are not going away.
func (d *Daemon) PodNames(t testing.TB, namespace, selector string) []string {
	t.Helper()
	pods, err := d.Clientset(t).CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, pod := range pods.Items {
		if pod.DeletionTimestamp == nil {
			names = append(names, pod.Name)
		}
	}
	return names
}

// KillContainer ends a pod's first container from outside, as the kernel does when memory is short.
func (d *Daemon) KillContainer(t testing.TB, namespace, pod string) {
	t.Helper()
	p, err := d.Clientset(t).CoreV1().Pods(namespace).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	found := false
	for _, pid := range pids() {
		if cgroup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); id != "" && strings.Contains(string(cgroup), id) {
			found = true
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if !found {
		t.Fatalf("no process is in container %q of pod %s/%s", id, namespace, pod)
	}
}

// Exec runs a shell script in a pod and returns what it printed.
func (d *Daemon) Exec(t testing.TB, namespace, pod, script string) string {
	t.Helper()
	return strings.TrimSpace(d.Kubectl(t, "exec", "-n", namespace, pod, "--", "sh", "-c", script))
}

// TryExec runs a shell script in a pod; it may fail.
func (d *Daemon) TryExec(t testing.TB, namespace, pod, script string) (string, error) {
	t.Helper()
	r := d.Try(t, "", "kubectl", "exec", "-n", namespace, pod, "--", "sh", "-c", script)
	if r.Code != 0 {
		return strings.TrimSpace(r.Stdout), fmt.Errorf("%v", r)
	}
	return strings.TrimSpace(r.Stdout), nil
}
