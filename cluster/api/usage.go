package api

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	quantity "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/request"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

// usage is metrics.k8s.io, what kubectl top reads: what nodes and pods use now. On other clusters an add-on of its own scrapes
// the kubelets all the time; here they are asked when somebody asks. Processor time becomes a rate between two
// readings: the one of the request before, unless that is old, and one made now.
type usage struct {
	kubelets *kubelets
	objs     store.Reader
	window   time.Duration // least time between two readings
	clock    func() time.Time

	mu   sync.Mutex
	last map[string]*reading // by node
}

// reading is what a node's counters were. Their own times have no fractions of a second.
type reading struct {
	at time.Time
	stats.Summary
}

func newUsage(k *kubelets, objs store.Reader) *usage {
	return &usage{kubelets: k, objs: objs, window: usageWindow, clock: time.Now, last: map[string]*reading{}}
}

const (
	usageWindow = 200 * time.Millisecond // the counters are exact: this is enough to see what is busy
	usageMemory = time.Minute            // an older reading would tell of the past
)

var usageVersion = metricsv1beta1.SchemeGroupVersion

// usageResources is what discovery says of the group.
func usageResources() map[string]*resource {
	verbs := metav1.Verbs{"get", "list"}
	return map[string]*resource{
		"nodes": {info: metav1.APIResource{Name: "nodes", Kind: "NodeMetrics", Group: usageVersion.Group, Version: usageVersion.Version, Verbs: verbs}},
		"pods":  {info: metav1.APIResource{Name: "pods", Kind: "PodMetrics", Group: usageVersion.Group, Version: usageVersion.Version, Namespaced: true, Verbs: verbs}},
	}
}

// serve answers a request for a resource of the group.
func (u *usage) serve(w http.ResponseWriter, req *http.Request, i *request.RequestInfo) error {
	gr := schema.GroupResource{Group: i.APIGroup, Resource: i.Resource}
	if i.APIVersion != usageVersion.Version || i.Subresource != "" || i.Resource != "nodes" && i.Resource != "pods" || i.Resource == "nodes" && i.Namespace != "" {
		return errNoRoute()
	}
	if i.Verb != "get" && i.Verb != "list" {
		return apierrors.NewMethodNotSupported(gr, i.Verb)
	}
	wanted, err := usageSelection(req, i)
	if err != nil {
		return err
	}
	if i.Resource == "nodes" {
		return answerUsage(w, i, "NodeMetrics", u.nodes(req.Context(), wanted))
	}
	return answerUsage(w, i, "PodMetrics", u.pods(req.Context(), i.Namespace, wanted))
}

// usageSelection is which objects a request means: one by its name, or those with the labels and names it selects.
func usageSelection(req *http.Request, i *request.RequestInfo) (func(metav1.Object) bool, error) {
	if i.Verb == "get" {
		return func(o metav1.Object) bool { return o.GetName() == i.Name }, nil
	}
	byLabel, err := labels.Parse(req.URL.Query().Get("labelSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	byField, err := fields.ParseSelector(req.URL.Query().Get("fieldSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	for _, r := range byField.Requirements() {
		if r.Field != "metadata.name" && r.Field != "metadata.namespace" {
			return nil, apierrors.NewBadRequest("field label not supported: " + r.Field)
		}
	}
	return func(o metav1.Object) bool {
		return byLabel.Matches(labels.Set(o.GetLabels())) && byField.Matches(fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()})
	}, nil
}

// answerUsage sends one object, or the list of them.
func answerUsage[T any](w http.ResponseWriter, i *request.RequestInfo, kind string, items []T) error {
	if i.Verb == "list" {
		writeJSON(w, struct {
			metav1.TypeMeta
			metav1.ListMeta `json:"metadata"`
			Items           []T `json:"items"`
		}{TypeMeta: metav1.TypeMeta{Kind: kind + "List", APIVersion: usageVersion.String()}, Items: items})
		return nil
	}
	if len(items) == 0 {
		return apierrors.NewNotFound(schema.GroupResource{Group: usageVersion.Group, Resource: i.Resource}, i.Name)
	}
	writeJSON(w, items[0])
	return nil
}

func (u *usage) nodes(ctx context.Context, wanted func(metav1.Object) bool) []metricsv1beta1.NodeMetrics {
	out := []metricsv1beta1.NodeMetrics{}
	for _, n := range store.List[*corev1.Node](u.objs, kinds.Nodes, "") {
		if !wanted(n) {
			continue
		}
		before, now, err := u.read(ctx, n.Name)
		if err != nil {
			continue // as one whose kubelet does not answer: it is there, and its figures are not
		}
		m := metricsv1beta1.NodeMetrics{TypeMeta: usageType("NodeMetrics"), ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.Now()}}
		m.Timestamp, m.Window.Duration = metav1.NewTime(now.at), now.at.Sub(before.at)
		m.Usage = corev1.ResourceList{corev1.ResourceCPU: rate(before.Node.CPU, now.Node.CPU, m.Window.Duration), corev1.ResourceMemory: workingSet(now.Node.Memory)}
		out = append(out, m)
	}
	return out
}

func (u *usage) pods(ctx context.Context, namespace string, wanted func(metav1.Object) bool) []metricsv1beta1.PodMetrics {
	out := []metricsv1beta1.PodMetrics{}
	for _, n := range store.List[*corev1.Node](u.objs, kinds.Nodes, "") {
		before, now, err := u.read(ctx, n.Name)
		if err != nil {
			continue
		}
		then := map[string]*stats.CPUStats{}
		for _, p := range before.Pods {
			for _, c := range p.Containers {
				then[p.PodRef.UID+"/"+c.Name] = c.CPU
			}
		}
		for _, p := range now.Pods {
			pod, ok := store.Get[*corev1.Pod](u.objs, kinds.Pods, p.PodRef.Namespace, p.PodRef.Name)
			if !ok || string(pod.UID) != p.PodRef.UID || namespace != "" && pod.Namespace != namespace || !wanted(pod) || len(p.Containers) == 0 {
				continue
			}
			m := metricsv1beta1.PodMetrics{TypeMeta: usageType("PodMetrics"),
				ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels, CreationTimestamp: metav1.Now()}}
			m.Timestamp, m.Window.Duration = metav1.NewTime(now.at), now.at.Sub(before.at)
			for _, c := range p.Containers {
				old, took := then[p.PodRef.UID+"/"+c.Name], m.Window.Duration
				if old == nil || *old.UsageCoreNanoSeconds > *c.CPU.UsageCoreNanoSeconds { // it has started since, maybe anew
					old, took = nil, now.at.Sub(c.StartTime.Time)
				}
				m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: c.Name, Usage: corev1.ResourceList{
					corev1.ResourceCPU: rate(old, c.CPU, took), corev1.ResourceMemory: workingSet(c.Memory)}})
			}
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(x, y metricsv1beta1.PodMetrics) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
	})
	return out
}

func usageType(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{Kind: kind, APIVersion: usageVersion.String()}
}

// rate is the processor time that was used between two readings, by the time between them. Without a first one it began with nothing.
func rate(before, now *stats.CPUStats, took time.Duration) quantity.Quantity {
	used := *now.UsageCoreNanoSeconds
	if before != nil {
		used -= min(*before.UsageCoreNanoSeconds, used)
	}
	if took <= 0 {
		used, took = 0, time.Second
	}
	return *quantity.NewScaledQuantity(int64(float64(used)/took.Seconds()), quantity.Nano)
}

// workingSet counts what the kernel cannot drop, as metrics-server does.
func workingSet(m *stats.MemoryStats) quantity.Quantity {
	return *quantity.NewQuantity(int64(*m.WorkingSetBytes), quantity.BinarySI)
}

// read gives two readings of a node, at least the window apart. The second is kept for the next request.
func (u *usage) read(ctx context.Context, node string) (before, now *reading, err error) {
	u.mu.Lock()
	before = u.last[node]
	u.mu.Unlock()
	if before == nil || u.clock().Sub(before.at) > usageMemory {
		if before, err = u.ask(ctx, node); err != nil {
			return nil, nil, err
		}
	}
	select {
	case <-time.After(u.window - u.clock().Sub(before.at)):
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if now, err = u.ask(ctx, node); err != nil {
		return nil, nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.last[node] = now
	return before, now, nil
}

func (u *usage) ask(ctx context.Context, node string) (*reading, error) {
	info, err := u.kubelets.GetConnectionInfo(ctx, types.NodeName(node))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s://%s:%s/stats/summary", info.Scheme, info.Hostname, info.Port), nil)
	if err != nil {
		return nil, err
	}
	resp, err := info.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	r := &reading{}
	if err := json.NewDecoder(resp.Body).Decode(&r.Summary); err != nil || resp.StatusCode != http.StatusOK || r.Node.CPU == nil || r.Node.Memory == nil {
		return nil, fmt.Errorf("figures of node %s: %s: %v", node, resp.Status, err)
	}
	r.at = u.clock()
	return r, nil
}
