package node

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/container"
)

// servePods lists the pods of this node, as the API server has them.
func (a *Agent) servePods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, pod := range store.List[*corev1.Pod](a.Reader, kinds.Pods, "") {
		if pod.Spec.NodeName == a.Name {
			list.Items = append(list.Items, *pod)
		}
	}
	answerJSON(w, &list)
}

// serveSummary answers with the kubelet's stats/summary: what is used of processor, memory and network, by node, pod and
// container. What nobody counts here (the disks of containers, rates) is left out, as the kubelet does when it does not know.
func (a *Agent) serveSummary(w http.ResponseWriter, r *http.Request) {
	s, err := a.summary(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answerJSON(w, s)
}

func answerJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body)
}

// summary reads all counters now: nothing is sampled while nobody asks.
func (a *Agent) summary(ctx context.Context) (*stats.Summary, error) {
	running, err := a.Containers.List(container.Filter{Owner: container.OwnerNode})
	if err != nil {
		return nil, err
	}
	s := &stats.Summary{Node: a.nodeStats(time.Now())}
	byPod := map[string]int{}
	for i := range running {
		c := &running[i]
		counters, err := a.Containers.Stats(ctx, c.ID)
		uid, name := c.Spec.Labels[labelPodUID], c.Spec.Labels[labelContainer]
		if err != nil || counters.Read.IsZero() || name == "" {
			continue // it has ended meanwhile, or is no container of a pod's own
		}
		at, ok := byPod[uid]
		if !ok {
			at = len(s.Pods)
			byPod[uid] = at
			s.Pods = append(s.Pods, a.podStats(c, counters.Networks))
		}
		p := &s.Pods[at]
		cs := stats.ContainerStats{Name: name, StartTime: metav1.NewTime(c.State.StartedAt), CPU: cpuStats(counters), Memory: memoryStats(counters)}
		p.Containers = append(p.Containers, cs)
		p.CPU = &stats.CPUStats{Time: cs.CPU.Time, UsageCoreNanoSeconds: plus(p.CPU.UsageCoreNanoSeconds, cs.CPU.UsageCoreNanoSeconds)}
		p.Memory = &stats.MemoryStats{Time: cs.Memory.Time, UsageBytes: plus(p.Memory.UsageBytes, cs.Memory.UsageBytes),
			WorkingSetBytes: plus(p.Memory.WorkingSetBytes, cs.Memory.WorkingSetBytes), RSSBytes: plus(p.Memory.RSSBytes, cs.Memory.RSSBytes)}
	}
	slices.SortFunc(s.Pods, func(x, y stats.PodStats) int {
		return strings.Compare(x.PodRef.Namespace+"/"+x.PodRef.Name, y.PodRef.Namespace+"/"+y.PodRef.Name)
	})
	return s, nil
}

// plus adds counters, of which the first may be absent.
func plus(x, y *uint64) *uint64 {
	if x == nil {
		return y
	}
	return new(*x + *y)
}

// podStats begins with what the containers of a pod share.
func (a *Agent) podStats(c *container.Info, networks map[string]container.NetworkStats) stats.PodStats {
	labels := c.Spec.Labels
	p := stats.PodStats{
		PodRef: stats.PodReference{Name: labels[labelPodName], Namespace: labels[labelPodNS], UID: labels[labelPodUID]},
		CPU:    &stats.CPUStats{}, Memory: &stats.MemoryStats{},
	}
	if pod, ok := store.Get[*corev1.Pod](a.Reader, kinds.Pods, p.PodRef.Namespace, p.PodRef.Name); ok && pod.Status.StartTime != nil {
		p.StartTime = *pod.Status.StartTime
	}
	if len(networks) > 0 {
		p.Network = &stats.NetworkStats{Time: metav1.Now()}
	}
	for name, n := range networks {
		i := stats.InterfaceStats{Name: name, RxBytes: &n.RxBytes, RxErrors: &n.RxErrors, TxBytes: &n.TxBytes, TxErrors: &n.TxErrors}
		p.Network.Interfaces = append(p.Network.Interfaces, i)
		if name == "eth0" {
			p.Network.InterfaceStats = i
		}
	}
	return p
}

func cpuStats(c container.Stats) *stats.CPUStats {
	return &stats.CPUStats{Time: metav1.NewTime(c.Read), UsageCoreNanoSeconds: &c.CPU.Total}
}

// memoryStats counts as the working set what the kernel cannot drop at once, as the kubelet does.
func memoryStats(c container.Stats) *stats.MemoryStats {
	m := &stats.MemoryStats{Time: metav1.NewTime(c.Read), UsageBytes: &c.Memory.Usage}
	m.WorkingSetBytes = new(c.Memory.Usage - min(c.Memory.InactiveFile, c.Memory.Usage))
	rss, ok := c.Memory.Stat["anon"] // cgroup v2's name
	if !ok {
		rss = c.Memory.Stat["total_rss"]
	}
	m.RSSBytes = &rss
	if limit := c.Memory.Limit; limit > 0 && limit < c.HostMem {
		m.AvailableBytes = new(limit - min(*m.WorkingSetBytes, limit))
	}
	return m
}

func (a *Agent) nodeStats(now time.Time) stats.NodeStats {
	at := metav1.NewTime(now)
	s := stats.NodeStats{NodeName: a.Name}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		s.StartTime = metav1.NewTime(now.Add(-time.Duration(info.Uptime) * time.Second).Truncate(time.Second))
	}
	if busy, ok := busyTime(readLine("/proc/stat")); ok {
		s.CPU = &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &busy}
	}
	if raw, err := os.ReadFile("/proc/meminfo"); err == nil {
		m := memoryInfo(string(raw))
		total, available := m["MemTotal"], m["MemAvailable"]
		s.Memory = &stats.MemoryStats{Time: at, AvailableBytes: &available, UsageBytes: new(total - min(m["MemFree"], total)),
			WorkingSetBytes: new(total - min(available, total)), RSSBytes: new(m["AnonPages"])}
	}
	var fs unix.Statfs_t
	if unix.Statfs(a.Dir, &fs) == nil {
		size := uint64(fs.Bsize)
		s.Fs = &stats.FsStats{Time: at, CapacityBytes: new(fs.Blocks * size), AvailableBytes: new(fs.Bavail * size),
			UsedBytes: new((fs.Blocks - fs.Bfree) * size), Inodes: &fs.Files, InodesFree: &fs.Ffree, InodesUsed: new(fs.Files - fs.Ffree)}
	}
	return s
}

// busyTime is what all processors spent on work since boot, in nanoseconds, from the beginning of /proc/stat.
func busyTime(stat string) (uint64, bool) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, false
	}
	var ticks uint64
	for i, v := range fields[1:9] { // user nice system idle iowait irq softirq steal; guest time is user time
		if i == 3 || i == 4 {
			continue
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return 0, false
		}
		ticks += n
	}
	return ticks * uint64(time.Second) / 100, true // in hundredths of a second on every architecture that Linux has containers on
}

// memoryInfo reads /proc/meminfo, in bytes.
func memoryInfo(text string) map[string]uint64 {
	out := map[string]uint64{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err == nil {
			out[name] = n << 10
		}
	}
	return out
}

// scrape is what Prometheus reads of one answer, by the kubelet's names.
type scrape struct {
	node    string
	summary *stats.Summary
}

var (
	containerLabels = []string{"container", "namespace", "pod"}
	podLabels       = containerLabels[1:]

	nodeNameDesc        = prometheus.NewDesc("kubelet_node_name", "The node's name. The count is always 1.", []string{"node"}, nil)
	runningPodsDesc     = prometheus.NewDesc("kubelet_running_pods", "Number of pods that have a running container", nil, nil)
	runningDesc         = prometheus.NewDesc("kubelet_running_containers", "Number of containers currently running", []string{"container_state"}, nil)
	nodeCPUDesc         = prometheus.NewDesc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", nil, nil)
	nodeMemoryDesc      = prometheus.NewDesc("node_memory_working_set_bytes", "Current working set of the node in bytes", nil, nil)
	podCPUDesc          = prometheus.NewDesc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", podLabels, nil)
	podMemoryDesc       = prometheus.NewDesc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", podLabels, nil)
	containerCPUDesc    = prometheus.NewDesc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", containerLabels, nil)
	containerMemoryDesc = prometheus.NewDesc("container_memory_working_set_bytes", "Current working set of the container in bytes", containerLabels, nil)
	containerStartDesc  = prometheus.NewDesc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", containerLabels, nil)
)

// Describe tells nothing: what is collected was read before.
func (s scrape) Describe(chan<- *prometheus.Desc) {}

func (s scrape) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	cpu := func(d *prometheus.Desc, c *stats.CPUStats, labels ...string) {
		if c != nil {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, time.Duration(*c.UsageCoreNanoSeconds).Seconds(), labels...)
		}
	}
	memory := func(d *prometheus.Desc, m *stats.MemoryStats, labels ...string) {
		if m != nil {
			gauge(d, float64(*m.WorkingSetBytes), labels...)
		}
	}
	gauge(nodeNameDesc, 1, s.node)
	gauge(runningPodsDesc, float64(len(s.summary.Pods)))
	cpu(nodeCPUDesc, s.summary.Node.CPU)
	memory(nodeMemoryDesc, s.summary.Node.Memory)
	containers := 0
	for _, p := range s.summary.Pods {
		cpu(podCPUDesc, p.CPU, p.PodRef.Namespace, p.PodRef.Name)
		memory(podMemoryDesc, p.Memory, p.PodRef.Namespace, p.PodRef.Name)
		for _, c := range p.Containers {
			containers++
			cpu(containerCPUDesc, c.CPU, c.Name, p.PodRef.Namespace, p.PodRef.Name)
			memory(containerMemoryDesc, c.Memory, c.Name, p.PodRef.Namespace, p.PodRef.Name)
			gauge(containerStartDesc, float64(c.StartTime.UnixNano())/1e9, c.Name, p.PodRef.Namespace, p.PodRef.Name)
		}
	}
	gauge(runningDesc, float64(containers), "running")
}

// serveMetrics answers /metrics and /metrics/resource alike: the second is the part of the kubelet's that is known here.
func (a *Agent) serveMetrics(w http.ResponseWriter, r *http.Request) {
	s, err := a.summary(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(scrape{a.Name, s})
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, r)
}
