package apply

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

// fakeAPI is as much of a Kubernetes API as this package uses: get, list with selectors, watch from a
// revision, create, server-side apply (as a merge), merge patch and delete, over objects in memory. What
// controllers would do is the test's business, by status.
type fakeAPI struct {
	t *testing.T

	mu      sync.Mutex
	version int
	objects map[string]map[string]any // by path
	history []fakeEvent
	changed chan struct{} // closed and replaced at every change
	applied []string      // kind/name of each real apply that changed something, in order
	deleted []string      // kind/name, in order
	dryRuns int
	refuse  map[string]string // kind/name to the error that applying it gives
	logs    map[string]string // pod to its log
}

type fakeEvent struct {
	version    int
	kind       string // ADDED, MODIFIED or DELETED
	collection string
	object     map[string]any
}

func newFakeAPI(t *testing.T) (*fakeAPI, *Cluster) {
	t.Helper()
	f := &fakeAPI{t: t, version: 1, objects: map[string]map[string]any{}, changed: make(chan struct{}), refuse: map[string]string{}, logs: map[string]string{}}
	server := httptest.NewServer(f)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	config := &rest.Config{Host: server.URL, QPS: -1}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return f, &Cluster{config: config, client: client, Slipway: true}
}

// place is a path taken apart: where an object or a list of them is.
type place struct{ collection, name, sub string }

func parsePlace(path string) place {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	head := 2 // api/v1
	if parts[0] == "apis" {
		head = 3
	}
	if len(parts) > head+2 && parts[head] == "namespaces" {
		head += 2
	}
	p := place{collection: "/" + strings.Join(parts[:head+1], "/")}
	if len(parts) > head+1 {
		p.name = parts[head+1]
	}
	if len(parts) > head+2 {
		p.sub = parts[head+2]
	}
	return p
}

func (f *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p := parsePlace(r.URL.Path)
	path := p.collection + "/" + p.name
	switch {
	case r.Method == "GET" && p.sub == "log":
		f.mu.Lock()
		text := f.logs[p.name]
		f.mu.Unlock()
		fmt.Fprint(w, text)
	case r.Method == "GET" && p.name == "" && r.URL.Query().Get("watch") != "":
		f.watch(w, r, p.collection)
	case r.Method == "GET" && p.name == "":
		f.list(w, r, p.collection)
	case r.Method == "GET":
		f.mu.Lock()
		defer f.mu.Unlock()
		f.answer(w, f.objects[path])
	case r.Method == "POST", r.Method == "PATCH":
		f.write(w, r, p)
	case r.Method == "DELETE":
		f.mu.Lock()
		defer f.mu.Unlock()
		f.answer(w, f.objects[path])
		f.remove(path)
	default:
		http.Error(w, r.Method+" is not in the fake", http.StatusMethodNotAllowed)
	}
}

func (f *fakeAPI) answer(w http.ResponseWriter, o map[string]any) {
	if o == nil {
		status(w, 404, "NotFound", "not found")
		return
	}
	reply(w, o)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

func (f *fakeAPI) list(w http.ResponseWriter, r *http.Request, collection string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	items := []any{}
	for _, path := range slices.Sorted(maps.Keys(f.objects)) {
		if o := f.objects[path]; in(collection, path) && selects(r, o) {
			items = append(items, o)
		}
	}
	reply(w, map[string]any{"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}, "items": items})
}

// in says whether an object's path is in a collection: of one namespace, or of all.
func in(collection, path string) bool {
	if strings.HasPrefix(path, collection+"/") {
		return true
	}
	i := strings.LastIndex(collection, "/")
	return !strings.Contains(collection, "/namespaces/") && strings.HasPrefix(path, collection[:i]+"/namespaces/") && parsePlace(path).collection[strings.LastIndex(parsePlace(path).collection, "/"):] == collection[i:]
}

// selects knows label=value and metadata.name=value.
func selects(r *http.Request, o map[string]any) bool {
	if key, value, ok := strings.Cut(r.URL.Query().Get("labelSelector"), "="); ok && text(o, "metadata", "labels", key) != value {
		return false
	}
	if _, name, ok := strings.Cut(r.URL.Query().Get("fieldSelector"), "="); ok && text(o, "metadata", "name") != name {
		return false
	}
	return true
}

func text(o map[string]any, path ...string) string {
	var v any = o
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	s, _ := v.(string)
	return s
}

func (f *fakeAPI) watch(w http.ResponseWriter, r *http.Request, collection string) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		status(w, 400, "BadRequest", "a watch of the fake needs a resourceVersion")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		f.mu.Lock()
		var events []any
		for _, e := range f.history {
			if e.version > from && e.collection == collection && selects(r, e.object) {
				events = append(events, map[string]any{"type": e.kind, "object": e.object})
			}
		}
		from = f.version
		changed := f.changed
		f.mu.Unlock()
		for _, e := range events {
			json.NewEncoder(w).Encode(e)
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeAPI) write(w http.ResponseWriter, r *http.Request, p place) {
	var in map[string]any
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		status(w, 400, "BadRequest", err.Error())
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.name == "" {
		p.name = text(in, "metadata", "name")
	}
	path := p.collection + "/" + p.name
	have := f.objects[path]
	merge := r.Header.Get("Content-Type") == "application/merge-patch+json"
	id := text(in, "kind") + "/" + p.name
	switch {
	case r.Method == "POST" && have != nil:
		status(w, 409, "AlreadyExists", "already exists")
		return
	case merge && have == nil:
		status(w, 404, "NotFound", "not found")
		return
	case f.refuse[id] != "":
		status(w, 422, "Invalid", f.refuse[id])
		return
	case strings.HasPrefix(id, "Job/") && have != nil && !reflect.DeepEqual(mergeMaps(have, in)["spec"], have["spec"]):
		status(w, 422, "Invalid", "field is immutable")
		return
	}
	next := mergeMaps(have, in)
	if r.URL.Query().Get("dryRun") != "" {
		f.dryRuns++
		reply(w, next)
		return
	}
	if have == nil || !reflect.DeepEqual(have, next) {
		if !merge {
			f.applied = append(f.applied, id)
		}
		f.put(path, p.collection, next, have)
	}
	reply(w, f.objects[path])
}

// mergeMaps is a deep copy of a with b over it.
func mergeMaps(a, b map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range a {
		if m, ok := v.(map[string]any); ok {
			v = mergeMaps(m, nil)
		}
		out[k] = v
	}
	for k, v := range b {
		if m, ok := v.(map[string]any); ok {
			old, _ := out[k].(map[string]any)
			v = mergeMaps(old, m)
		}
		out[k] = v
	}
	return out
}

// put stores a version; it is called under the lock.
func (f *fakeAPI) put(path, collection string, next, before map[string]any) {
	f.version++
	meta, _ := next["metadata"].(map[string]any)
	meta["resourceVersion"] = strconv.Itoa(f.version)
	generation, _ := meta["generation"].(float64)
	if !reflect.DeepEqual(next["spec"], before["spec"]) || before == nil {
		generation++
	}
	meta["generation"] = generation
	kind := "MODIFIED"
	if before == nil {
		kind = "ADDED"
		if meta["uid"] == nil {
			meta["uid"] = "uid-" + strconv.Itoa(f.version)
		}
	}
	f.objects[path] = next
	f.note(fakeEvent{f.version, kind, collection, next})
}

func (f *fakeAPI) note(e fakeEvent) {
	f.history = append(f.history, e)
	close(f.changed)
	f.changed = make(chan struct{})
}

// remove deletes an object, and a workload's pods with it; it is called under the lock.
func (f *fakeAPI) remove(path string) {
	o := f.objects[path]
	if o == nil {
		return
	}
	delete(f.objects, path)
	f.version++
	f.deleted = append(f.deleted, text(o, "kind")+"/"+text(o, "metadata", "name"))
	f.note(fakeEvent{f.version, "DELETED", path[:strings.LastIndex(path, "/")], o})
	if kind := text(o, "kind"); kind != "Deployment" && kind != "Job" {
		return
	}
	for p, pod := range f.objects {
		if text(pod, "kind") == "Pod" && text(pod, "metadata", "labels", labelName) == text(o, "metadata", "labels", labelName) {
			f.remove(p)
		}
	}
}

// status is what a controller writes: it waits until the object is there.
func (f *fakeAPI) status(path string, status map[string]any) {
	f.t.Helper()
	f.until(path, func(o map[string]any) bool { return o != nil })
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.objects[path]
	if have == nil {
		return // the test is over
	}
	raw, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		f.t.Error(err)
	}
	var patch map[string]any
	if err := json.Unmarshal(raw, &patch); err != nil {
		f.t.Error(err)
	}
	f.put(path, path[:strings.LastIndex(path, "/")], mergeMaps(have, patch), have)
}

// until waits for an object to be as wanted.
func (f *fakeAPI) until(path string, as func(map[string]any) bool) {
	for {
		f.mu.Lock()
		ok, changed := as(f.objects[path]), f.changed
		f.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-f.t.Context().Done():
			return
		}
	}
}

// create puts an object as it is.
func (f *fakeAPI) create(path string, o map[string]any) {
	raw, err := json.Marshal(o)
	if err != nil {
		f.t.Fatal(err)
	}
	var copied map[string]any
	if err := json.Unmarshal(raw, &copied); err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(path, path[:strings.LastIndex(path, "/")], copied, nil)
}

func (f *fakeAPI) exists(path string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.objects[path] != nil
}

// textOf is an object as JSON.
func textOf(f *fakeAPI, path string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw, err := json.Marshal(f.objects[path])
	if err != nil {
		f.t.Error(err)
	}
	return string(raw)
}
