package apply

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"slipway.dev/slipway/compose"
)

// Replica is one pod of a project, as `ps` lists it.
type Replica struct {
	Name      string    `json:"name"`
	Service   string    `json:"service"`
	Image     string    `json:"image"`
	Status    string    `json:"status"`
	ExitCode  *int32    `json:"exitCode,omitempty"` // of the last end, of one that has ended
	Restarts  int32     `json:"restarts"`
	Started   time.Time `json:"started"`
	Age       string    `json:"-"`
	Ports     []string  `json:"ports,omitempty"`
	Address   string    `json:"address,omitempty"`
	Container string    `json:"container,omitempty"` // the engine's id
}

// Replicas lists a project's pods by service and name.
func (c *Cluster) Replicas(ctx context.Context, namespace string) ([]Replica, error) {
	pods, err := c.list(ctx, podsGVR, namespace)
	if err != nil {
		return nil, err
	}
	ports, err := c.published(ctx, namespace)
	if err != nil {
		return nil, err
	}
	var out []Replica
	for i := range pods {
		if p := &pods[i]; p.Labels[labelService] != "" {
			for j := range p.Spec.Containers {
				out = append(out, replica(p, &p.Spec.Containers[j], ports))
			}
		}
	}
	stopped, err := c.stopped(ctx, namespace)
	if err != nil {
		return nil, err
	}
	out = append(out, stopped...)
	sort.Slice(out, func(i, j int) bool {
		if out[i].Service != out[j].Service {
			return out[i].Service < out[j].Service
		}
		return out[i].Name < out[j].Name
	})
	return out, nil
}

// replica is one container of a pod, as people see it: a service's.
func replica(p *corev1.Pod, c *corev1.Container, ports map[string][]string) Replica {
	service := serviceOf(p, c.Name)
	r := Replica{Name: p.Name, Service: service, Status: podStatus(p, c.Name), Started: p.CreationTimestamp.Time,
		Age: since(p.CreationTimestamp.Time), Ports: ports[service], Address: p.Status.PodIP}
	r.Image, _, _ = strings.Cut(c.Image, "@")
	for _, s := range p.Status.ContainerStatuses {
		if s.Name != c.Name {
			continue
		}
		r.Restarts = s.RestartCount
		_, r.Container, _ = strings.Cut(s.ContainerID, "://")
		for _, end := range []*corev1.ContainerStateTerminated{s.LastTerminationState.Terminated, s.State.Terminated} {
			if end != nil && s.State.Running == nil {
				r.ExitCode = &end.ExitCode
			}
		}
	}
	return r
}

// stopped are services that have no replicas, because somebody wants it so.
func (c *Cluster) stopped(ctx context.Context, namespace string) (out []Replica, err error) {
	list, err := c.client.Resource(deploymentsGVR).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labelManagedBy + "=" + fieldManager})
	if err != nil {
		return nil, err
	}
	for i := range list.Items {
		d, err := typed[appsv1.Deployment](&list.Items[i])
		if err != nil {
			return nil, err
		}
		if d.Spec.Replicas == nil || *d.Spec.Replicas > 0 {
			continue
		}
		services := servicesOf(d)
		for j, c := range d.Spec.Template.Spec.Containers {
			r := Replica{Name: "-", Service: services[min(j, len(services)-1)], Status: "stopped", Started: d.CreationTimestamp.Time, Age: since(d.CreationTimestamp.Time)}
			r.Image, _, _ = strings.Cut(c.Image, "@")
			out = append(out, r)
		}
	}
	return out, nil
}

// Project is one that is up, as `ls` lists it.
type Project struct {
	Name   string   `json:"name"`
	Status string   `json:"status"`
	Files  []string `json:"files"`
}

// Projects lists what is up in all namespaces.
func (c *Cluster) Projects(ctx context.Context) ([]Project, error) {
	parents, err := c.client.Resource(configMapsGVR).List(ctx, metav1.ListOptions{LabelSelector: labelManagedBy + "=" + fieldManager, FieldSelector: "metadata.name=" + parentName})
	if err != nil {
		return nil, fmt.Errorf("list projects: %w", err)
	}
	pods, err := c.list(ctx, podsGVR, "")
	if err != nil {
		return nil, err
	}
	counts := map[string]map[string]int{} // by namespace and word
	for i := range pods {
		p := &pods[i]
		if counts[p.Namespace] == nil {
			counts[p.Namespace] = map[string]int{}
		}
		word, _, _ := strings.Cut(podStatus(p, ""), " ")
		counts[p.Namespace][word]++
	}
	out := []Project{}
	for i := range parents.Items {
		known := parentOf(&parents.Items[i])
		p := Project{Name: known.project, Files: known.files, Status: "stopped"}
		var words []string
		for _, word := range sortedKeys(counts[parents.Items[i].GetNamespace()]) {
			words = append(words, fmt.Sprintf("%s(%d)", word, counts[parents.Items[i].GetNamespace()][word]))
		}
		if len(words) > 0 {
			p.Status = strings.Join(words, ", ")
		}
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (c *Cluster) list(ctx context.Context, gvr schema.GroupVersionResource, namespace string) ([]corev1.Pod, error) {
	list, err := c.client.Resource(gvr).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labelManagedBy + "=" + fieldManager})
	if err != nil {
		return nil, err
	}
	out := make([]corev1.Pod, 0, len(list.Items))
	for i := range list.Items {
		p, err := typed[corev1.Pod](&list.Items[i])
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	return out, nil
}

// podStatus is what kubectl shows of a pod, or of one of its containers, in Compose's words where it has them.
func podStatus(p *corev1.Pod, container string) string {
	if p.DeletionTimestamp != nil {
		return "stopping"
	}
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if container != "" && s.Name != container {
			continue
		}
		if w, last := s.State.Waiting, s.LastTerminationState.Terminated; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			if w.Reason == "CrashLoopBackOff" && last != nil {
				return fmt.Sprintf("restarting (%d)", last.ExitCode)
			}
			return w.Reason
		}
		if t := s.State.Terminated; t != nil && p.Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("exited (%d)", t.ExitCode)
		}
	}
	if p.Status.Phase != corev1.PodRunning {
		return strings.ToLower(string(p.Status.Phase))
	}
	probed := false
	for i := range p.Spec.Containers {
		if c := &p.Spec.Containers[i]; container == "" || c.Name == container {
			probed = probed || c.ReadinessProbe != nil
		}
	}
	ready := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	for _, s := range p.Status.ContainerStatuses {
		if s.Name == container && len(p.Status.ContainerStatuses) > 1 {
			ready = s.Ready // of those that share a pod, each for itself
		}
	}
	switch {
	case !ready:
		return "running (not ready)"
	case probed:
		return "running (healthy)"
	}
	return "running"
}

// published finds the host ports of each service.
func (c *Cluster) published(ctx context.Context, namespace string) (map[string][]string, error) {
	list, err := c.client.Resource(servicesGVR).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: labelManagedBy + "=" + fieldManager})
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for i := range list.Items {
		s, err := typed[corev1.Service](&list.Items[i])
		if err != nil {
			return nil, err
		}
		for _, p := range s.Spec.Ports {
			host := int32(0)
			switch s.Spec.Type {
			case corev1.ServiceTypeLoadBalancer:
				host = p.Port
			case corev1.ServiceTypeNodePort:
				host = p.NodePort
			}
			if host != 0 {
				if portProblem(s) != "" {
					continue // somebody else has it
				}
				name := s.Labels[labelService]
				address := net.JoinHostPort(cmp.Or(s.Annotations[annotationHostIP], "0.0.0.0"), strconv.Itoa(int(host)))
				out[name] = append(out[name], fmt.Sprintf("%s->%d/%s", address, p.TargetPort.IntVal, strings.ToLower(string(p.Protocol))))
			}
		}
	}
	return out, nil
}

// annotationHostIP is where a LoadBalancer of Slipway's binds.
const annotationHostIP = "slipway.dev/host-ip"

// PublishedPorts is what `up` tells about where services are.
func (c *Cluster) PublishedPorts(ctx context.Context, namespace string) (map[string][]string, error) {
	return c.published(ctx, namespace)
}

// LogOptions select log lines.
type LogOptions struct {
	Services   []string // empty: all
	Follow     bool
	Tail       int64 // negative: all
	Since      time.Duration
	Timestamps bool
	// Line receives each line; source is the replica's name.
	Line func(source, line string)
}

// Logs reads the logs of a project's replicas, and with Follow those of replicas to come, until ctx ends.
func (c *Cluster) Logs(ctx context.Context, namespace string, o LogOptions) error {
	wanted := map[string]bool{}
	for _, s := range o.Services {
		wanted[s] = true
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.track(ctx, namespace)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	line := func(source, text string) {
		mu.Lock()
		defer mu.Unlock()
		o.Line(source, text)
	}
	var streams sync.WaitGroup
	began := time.Now()
	reading := map[string]bool{} // by container: a restarted one has a log of its own
	err = t.await(ctx, func() (bool, error) {
		for _, p := range t.pods {
			for i := range p.Status.ContainerStatuses {
				from, id := containerLog(p, &p.Status.ContainerStatuses[i])
				if from.service == "" || id == "" || reading[id] || (len(wanted) > 0 && !wanted[from.service]) {
					continue
				}
				o := o
				if reading[from.pod+"/"+from.container] {
					o.Tail, o.Since = -1, time.Since(began) // it is new: all of it is news
				}
				reading[id], reading[from.pod+"/"+from.container] = true, true
				name := p.Name
				if len(p.Spec.Containers) > 1 {
					name += "/" + from.service
				}
				streams.Go(func() { c.logs(ctx, namespace, from, name, o, line) })
			}
		}
		return !o.Follow, nil
	})
	streams.Wait()
	cancel()
	t.tasks.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// containerLog is the log of a container, and which run of it; empty: none has started.
func containerLog(p *corev1.Pod, s *corev1.ContainerStatus) (from source, run string) {
	if s.State.Running == nil && s.State.Terminated == nil && s.LastTerminationState.Terminated == nil {
		return source{}, ""
	}
	return source{p.Name, s.Name, serviceOf(p, s.Name)}, p.Name + "/" + s.Name + "/" + s.ContainerID
}

// logs reads one container's log to its end.
func (c *Cluster) logs(ctx context.Context, namespace string, from source, name string, o LogOptions, line func(source, text string)) {
	q := url.Values{"container": {from.container}}
	if o.Follow {
		q.Set("follow", "true")
	}
	if o.Tail >= 0 {
		q.Set("tailLines", strconv.FormatInt(o.Tail, 10))
	}
	if o.Since > 0 {
		q.Set("sinceSeconds", strconv.FormatInt(max(int64(o.Since/time.Second), 1), 10))
	}
	if o.Timestamps {
		q.Set("timestamps", "true")
	}
	stream, err := c.raw(ctx, "/api/v1/namespaces/"+namespace+"/pods/"+from.pod+"/log?"+q.Encode())
	if err != nil {
		if ctx.Err() == nil {
			line(name, "logs: "+err.Error())
		}
		return
	}
	defer stream.Close()
	for r := bufio.NewReaderSize(stream, 64<<10); ; {
		text, err := r.ReadString('\n')
		if text != "" {
			line(name, strings.TrimSuffix(text, "\n"))
		}
		if err != nil {
			return
		}
	}
}

func (c *Cluster) raw(ctx context.Context, path string) (io.ReadCloser, error) {
	client, err := c.rest()
	if err != nil {
		return nil, err
	}
	return client.Get().AbsPath(strings.SplitN(path, "?", 2)[0]).RequestURI(path).Stream(ctx)
}

func (c *Cluster) rest() (*rest.RESTClient, error) {
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.APIPath = "/api"
	config.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
	return rest.RESTClientFor(config)
}

// ExecOptions describe one command in a replica.
type ExecOptions struct {
	Service string
	Index   int // from 1, among the service's replicas by name; 0: the first that runs
	Command []string
	TTY     bool
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Sizes   remotecommand.TerminalSizeQueue
}

// Exec runs a command in a replica; its exit code comes as an error that has ExitStatus.
func (c *Cluster) Exec(ctx context.Context, namespace string, o ExecOptions) error {
	pods, err := c.list(ctx, podsGVR, namespace)
	if err != nil {
		return err
	}
	sort.Slice(pods, func(i, j int) bool { return pods[i].Name < pods[j].Name })
	var running []string
	for i := range pods {
		if p := &pods[i]; slices.Contains(servicesOf(p), o.Service) && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			running = append(running, p.Name)
		}
	}
	if len(running) == 0 {
		return fmt.Errorf("service %q is not running", o.Service)
	}
	if o.Index > len(running) {
		return fmt.Errorf("service %q has %d running replicas, not %d", o.Service, len(running), o.Index)
	}
	pod := running[max(o.Index-1, 0)]
	client, err := c.rest()
	if err != nil {
		return err
	}
	req := client.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource("exec").VersionedParams(&corev1.PodExecOptions{
		Container: compose.LegalName(o.Service), Command: o.Command, Stdin: o.Stdin != nil, Stdout: true, Stderr: !o.TTY, TTY: o.TTY}, scheme.ParameterCodec)
	// WebSocket first, as kubectl; SPDY for older clusters.
	ws, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String())
	if err != nil {
		return err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", req.URL())
	if err != nil {
		return err
	}
	exec, err := remotecommand.NewFallbackExecutor(ws, spdy, isUpgradeFailure)
	if err != nil {
		return err
	}
	streams := remotecommand.StreamOptions{Stdin: o.Stdin, Stdout: o.Stdout, Tty: o.TTY, TerminalSizeQueue: o.Sizes}
	if !o.TTY {
		streams.Stderr = o.Stderr
	}
	return exec.StreamWithContext(ctx, streams)
}
