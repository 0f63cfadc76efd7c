package api

import (
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// metrics is what /metrics shows: requests by upstream's names, so that dashboards made for
// kube-apiserver work, the objects in the store, and this process.
type metrics struct {
	registry *prometheus.Registry
	total    *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// requestLabels are upstream's, as far as they are known here.
var requestLabels = []string{"verb", "group", "resource", "subresource", "code"}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Counter of apiserver requests broken out for each verb, group, resource, subresource and HTTP response code."}, requestLabels),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Response latency distribution in seconds for each verb, group, resource and subresource.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, requestLabels[:len(requestLabels)-1]),
	}
	m.registry.MustRegister(m.total, m.duration, objectCounts{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe counts one request that has been answered. What names no resource of this server is counted
// without names: clients must not be able to make series, which stay for good.
func (s *Server) observe(i *request.RequestInfo, code int, took time.Duration) {
	if i == nil {
		return
	}
	labels := []string{strings.ToUpper(i.Verb), "", "", ""}
	switch r, ok := s.find(i); {
	case ok:
		labels = []string{strings.ToUpper(i.Verb), r.gvr.Group, r.gvr.Resource, r.subresource}
	case i.IsResourceRequest || !knownMethod(i.Verb):
		labels[0] = "OTHER"
	}
	s.metrics.total.WithLabelValues(append(labels, strconv.Itoa(code))...).Inc()
	if !longRunning(i) {
		s.metrics.duration.WithLabelValues(labels...).Observe(took.Seconds())
	}
}

// knownMethod says whether a verb of a request that names no resource, its HTTP method, is one that exists.
func knownMethod(verb string) bool {
	switch verb {
	case "get", "head", "post", "put", "patch", "delete", "options":
		return true
	}
	return false
}

// objectCounts counts the store's objects whenever somebody asks.
type objectCounts struct{ s *Server }

var objectsDesc = prometheus.NewDesc("apiserver_resource_objects", "Number of stored objects at the time of last check split by kind.", []string{"group", "resource"}, nil)

func (objectCounts) Describe(ch chan<- *prometheus.Desc) { ch <- objectsDesc }

func (c objectCounts) Collect(ch chan<- prometheus.Metric) {
	for gvr, r := range c.s.resources {
		if r.kind != nil && r.gvk == r.kind.GVK {
			n := c.s.objects.Snapshot(r.kind.Resource).Len()
			ch <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(n), gvr.Group, gvr.Resource)
		}
	}
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// serveProfile answers below /debug/pprof, as kube-apiserver does: whoever may read that path may see
// what this process does.
func serveProfile(w http.ResponseWriter, req *http.Request) {
	switch strings.TrimPrefix(req.URL.Path, "/debug/pprof/") {
	case "cmdline":
		pprof.Cmdline(w, req)
	case "profile":
		pprof.Profile(w, req)
	case "symbol":
		pprof.Symbol(w, req)
	case "trace":
		pprof.Trace(w, req)
	default:
		pprof.Index(w, req)
	}
}
