package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"slipway.dev/slipway/cluster/record"
	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
)

// Containers is what the agent asks of the engine's containers.
type Containers interface {
	Create(ctx context.Context, spec container.Spec) (container.Info, error)
	Start(ctx context.Context, ref string) error
	Stop(ctx context.Context, ref string, opts container.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Remove(ctx context.Context, ref string, opts container.RemoveOptions) error
	List(f container.Filter) ([]container.Info, error)
	Logs(ctx context.Context, ref string, opts container.LogOptions) (*container.LogReader, error)
	Stats(ctx context.Context, ref string) (container.Stats, error)
	Attach(ctx context.Context, ref string, opts container.AttachOptions) error
	Resize(ctx context.Context, ref string, rows, cols uint16) error
	ExecCreate(ctx context.Context, ref string, spec container.ExecSpec) (string, error)
	ExecStart(ctx context.Context, id string, io container.ExecIO) error
	ExecInspect(id string) (container.ExecInfo, error)
	ExecResize(ctx context.Context, id string, rows, cols uint16) error
	ExecRun(ctx context.Context, ref string, spec container.ExecSpec, limit int) (container.ExecResult, error)
}

// Sandboxes keep a pod's namespaces alive without a process of their own. The warden is one.
type Sandboxes interface {
	CreateSandbox(ctx context.Context, spec warden.SandboxSpec) (*os.File, error)
	Sandbox(ctx context.Context, id string) (*os.File, error)
	RemoveSandbox(ctx context.Context, id string) error
	Sandboxes(ctx context.Context) ([]string, error)
	RemoveCgroup(ctx context.Context, path string) error
}

// Networks give pods their addresses.
type Networks interface {
	AttachPod(ctx context.Context, netns *os.File, p network.PodAttach) (netip.Addr, error)
	DetachPod(ctx context.Context, id string) error
	Pods() map[string]netip.Addr
}

// Policy is asked before a pod's first packet: when Admit returns, the network policies that apply
// to the pod hold.
type Policy interface {
	Admit(ctx context.Context, pod *corev1.Pod, addr netip.Addr) error
}

// Images says what images this machine has.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
}

// PullFunc fetches an image; auth gives the credentials for a registry host, empty ones for none.
type PullFunc func(ctx context.Context, ref string, auth func(host string) (user, password string)) error

// Options wires an Agent. All fields are required unless they say otherwise.
type Options struct {
	Name     string // of the node
	Instance string // of the data directory, for cgroup paths
	Dir      string // pods' directories
	RunDir   string // pods' secret volumes; best on a tmpfs
	Version  string // reported as kubelet version

	Reader store.Reader
	Writer store.Writer // acts as the node
	Tokens TokenSource

	Containers Containers
	Sandboxes  Sandboxes
	Networks   Networks
	Images     Images
	Pull       PullFunc
	Policy     Policy       // nil: no network policies
	Events     *event.Bus   // of the engine
	Record     *record.Sink // of the cluster

	NodeAddr      netip.Addr // InternalIP
	DNSAddr       netip.Addr // cluster DNS
	ClusterDomain string     // such as cluster.local
	Labels        map[string]string
	Log           *slog.Logger
}

// Agent runs the pods bound to one node.
type Agent struct {
	Options
	volumes  volumes
	record   recorder
	capacity corev1.ResourceList
	memory   int64

	mu      sync.Mutex
	workers map[types.UID]*worker // guarded by mu
	tasks   sync.WaitGroup
}

// New makes an agent; Run starts it.
func New(o Options) (*Agent, error) {
	if o.Name == "" || o.Reader == nil || o.Writer == nil || o.Containers == nil {
		return nil, errors.New("node agent: Name, Reader, Writer and Containers are required")
	}
	a := &Agent{Options: o, workers: map[types.UID]*worker{}}
	a.volumes = volumes{data: filepath.Join(o.Dir, "pods"), run: filepath.Join(o.RunDir, "pods"), tokens: o.Tokens}
	for _, dir := range []string{a.volumes.data, a.volumes.run} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	a.record = recorder{o.Record.For(o.Writer, "kubelet", o.Name)}
	var err error
	a.capacity, a.memory, err = machineCapacity()
	return a, err
}

// Run registers the node and runs its pods until ctx ends. Containers go on without it.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); a.tasks.Wait() }()
	if err := a.register(ctx); err != nil {
		return err
	}
	a.tasks.Go(func() { a.heartbeat(ctx) })
	a.sweep(ctx)
	a.tasks.Go(func() { a.sweepOn(ctx) })
	events := a.Events.Subscribe(time.Time{})
	a.tasks.Go(func() { a.hearEngine(ctx, events) })
	a.tasks.Go(func() {
		store.Follow(ctx, a.Reader, kinds.ConfigMaps, func(e store.Event) { a.contentChanged(e, usesConfigMap) })
	})
	a.tasks.Go(func() {
		store.Follow(ctx, a.Reader, kinds.Secrets, func(e store.Event) { a.contentChanged(e, usesSecret) })
	})
	a.tasks.Go(func() {
		store.Follow(ctx, a.Reader, kinds.PersistentVolumeClaims, func(e store.Event) { a.contentChanged(e, usesClaim) })
	})
	return store.Follow(ctx, a.Reader, kinds.Pods, func(e store.Event) { a.podChanged(ctx, e) })
}

// podChanged hands a pod's new version to its worker, making one for a pod that is new here.
func (a *Agent) podChanged(ctx context.Context, e store.Event) {
	pod, ok := e.Object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName != a.Name {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.workers[pod.UID]
	if e.Type == store.Deleted {
		if w != nil {
			w.update(pod, true)
		}
		return
	}
	if w == nil {
		w = newWorker(a, pod)
		a.workers[pod.UID] = w
		a.tasks.Go(func() { a.work(ctx, w) })
		return
	}
	w.update(pod, false)
}

// hearEngine wakes the worker of a container that something happened to.
func (a *Agent) hearEngine(ctx context.Context, events *event.Subscription) {
	for {
		e, err := events.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // it fell behind: any container may have changed
			a.each(func(w *worker) { w.nudge() })
			continue
		}
		if e.Type != event.Container {
			continue
		}
		if uid := e.Actor.Attributes[labelPodUID]; uid != "" && e.Action == "die" {
			a.mu.Lock()
			w := a.workers[types.UID(uid)]
			a.mu.Unlock()
			if w != nil {
				w.nudge()
			}
		}
	}
}

func (a *Agent) each(fn func(*worker)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		fn(w)
	}
}

// contentChanged wakes the pods that use a ConfigMap, Secret or claim, to bring volumes up to date
// and to try again what waited for it.
func (a *Agent) contentChanged(e store.Event, uses func(*corev1.Pod, string) bool) {
	if e.Object == nil {
		return
	}
	a.each(func(w *worker) {
		if pod := w.latest(); pod.Namespace == e.Object.GetNamespace() && uses(pod, e.Object.GetName()) {
			w.refreshVolumes()
		}
	})
}

func usesConfigMap(pod *corev1.Pod, name string) bool {
	return anyVolume(pod, func(v *corev1.Volume) bool {
		if v.ConfigMap != nil && v.ConfigMap.Name == name {
			return true
		}
		return anyProjection(v, func(p *corev1.VolumeProjection) bool { return p.ConfigMap != nil && p.ConfigMap.Name == name })
	}) || anyContainer(pod, func(c *corev1.Container) bool {
		for _, e := range c.EnvFrom {
			if e.ConfigMapRef != nil && e.ConfigMapRef.Name == name {
				return true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil && e.ValueFrom.ConfigMapKeyRef.Name == name {
				return true
			}
		}
		return false
	})
}

func usesSecret(pod *corev1.Pod, name string) bool {
	for _, ref := range pod.Spec.ImagePullSecrets {
		if ref.Name == name {
			return true
		}
	}
	return anyVolume(pod, func(v *corev1.Volume) bool {
		if v.Secret != nil && v.Secret.SecretName == name {
			return true
		}
		return anyProjection(v, func(p *corev1.VolumeProjection) bool { return p.Secret != nil && p.Secret.Name == name })
	}) || anyContainer(pod, func(c *corev1.Container) bool {
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil && e.SecretRef.Name == name {
				return true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Name == name {
				return true
			}
		}
		return false
	})
}

func usesClaim(pod *corev1.Pod, name string) bool {
	return anyVolume(pod, func(v *corev1.Volume) bool {
		return v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == name
	})
}

func anyVolume(pod *corev1.Pod, fn func(*corev1.Volume) bool) bool {
	for i := range pod.Spec.Volumes {
		if fn(&pod.Spec.Volumes[i]) {
			return true
		}
	}
	return false
}

func anyProjection(v *corev1.Volume, fn func(*corev1.VolumeProjection) bool) bool {
	if v.Projected == nil {
		return false
	}
	for i := range v.Projected.Sources {
		if fn(&v.Projected.Sources[i]) {
			return true
		}
	}
	return false
}

// sweepEvery is how often the agent looks for what nobody told it of: a pod that was deleted while the
// agent was being started, for one.
const sweepEvery = 10 * time.Second

func (a *Agent) sweepOn(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			a.sweep(ctx)
		}
	}
}

// sweep removes what pods that are no more have left on this machine.
func (a *Agent) sweep(ctx context.Context) {
	// The machine first, then the store: a pod that came meanwhile is in the store.
	there := a.traces(ctx)
	for _, pod := range store.Indexed[*corev1.Pod](a.Reader, kinds.Pods, kinds.ByNode, a.Name) {
		delete(there, string(pod.UID))
	}
	for uid := range there {
		w := newWorker(a, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: uid}})
		w.gone = true
		a.mu.Lock()
		busy := a.workers[w.uid] != nil
		if !busy {
			a.workers[w.uid] = w
		}
		a.mu.Unlock()
		if !busy {
			a.tasks.Go(func() { a.work(ctx, w) })
		}
	}
}

// traces are the pods, by UID, that something on this machine belongs to.
func (a *Agent) traces(ctx context.Context) map[string]bool {
	there := map[string]bool{}
	mine, err := a.Containers.List(container.Filter{Owner: container.OwnerNode, All: true})
	if err != nil {
		a.Log.Error("list containers of pods", "error", err)
	}
	for _, info := range mine {
		there[info.Spec.Labels[labelPodUID]] = true
	}
	boxes, err := a.Sandboxes.Sandboxes(ctx)
	if err != nil && ctx.Err() == nil {
		a.Log.Error("list sandboxes of pods", "error", err)
	}
	for _, id := range boxes {
		if uid, ok := sandboxPod(id); ok {
			there[uid] = true
		}
	}
	for uid := range a.Networks.Pods() {
		there[uid] = true
	}
	for _, root := range []string{a.volumes.data, a.volumes.run} {
		entries, _ := os.ReadDir(root)
		for _, e := range entries {
			there[e.Name()] = true
		}
	}
	delete(there, "") // nobody's
	return there
}

// work runs a worker to its end and forgets it.
func (a *Agent) work(ctx context.Context, w *worker) {
	w.run(ctx)
	a.mu.Lock()
	delete(a.workers, w.uid)
	a.mu.Unlock()
}
