package api

import (
	"strings"
	"testing"
)

// TestMetrics: requests show under upstream's names, and what clients invent makes no series.
func TestMetrics(t *testing.T) {
	i := start(t)
	root := i.http(t)
	for _, path := range []string{"/api/v1/namespaces/default/configmaps", "/apis/made.up/v1/namespaces/default/inventions", "/api/v1/nonsense/x"} {
		i.ask(t, root, "GET", path, "")
	}
	i.ask(t, root, "INVENT", "/version", "")
	_, text := i.ask(t, root, "GET", "/metrics", "")
	for _, want := range []string{
		`apiserver_request_total{code="200",group="",resource="configmaps",subresource="",verb="LIST"} 1`,
		`apiserver_request_total{code="404",group="",resource="",subresource="",verb="OTHER"} 2`,
		`apiserver_request_total{code="405",group="",resource="",subresource="",verb="OTHER"} 1`,
		`apiserver_request_duration_seconds_count{group="",resource="configmaps",subresource="",verb="LIST"} 1`,
		`apiserver_resource_objects{group="",resource="namespaces"} 4`,
		"go_goroutines ", "process_resident_memory_bytes ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has no line %s", want)
		}
	}
	for _, invented := range []string{"inventions", "nonsense", "INVENT"} {
		if strings.Contains(text, invented) {
			t.Errorf("/metrics repeats %q, which a client made up", invented)
		}
	}
	if t.Failed() {
		t.Logf("/metrics:\n%s", text)
	}
}

// TestProfile: the profiles are there for administrators, and for nobody else.
func TestProfile(t *testing.T) {
	i := start(t)
	if code, text := i.ask(t, i.http(t), "GET", "/debug/pprof/goroutine?debug=1", ""); code != 200 || !strings.Contains(text, "goroutine profile: total") {
		t.Errorf("an administrator gets %d %.80s", code, text)
	}
	if code, text := i.ask(t, i.as(t, "ann"), "GET", "/debug/pprof/goroutine?debug=1", ""); code != 403 {
		t.Errorf("ann gets %d %.80s; want 403", code, text)
	}
}
