package apply

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"slipway.dev/slipway/compose"
)

// recorder is a Progress that remembers.
type recorder struct {
	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed and replaced at every line; nil: nobody waits
}

// await waits until a line has been told.
func (r *recorder) await(ctx context.Context, line string) {
	for {
		r.mu.Lock()
		if r.more == nil {
			r.more = make(chan struct{})
		}
		told, more := slices.Contains(r.lines, line), r.more
		r.mu.Unlock()
		if told {
			return
		}
		select {
		case <-more:
		case <-ctx.Done():
			return
		}
	}
}

func (r *recorder) Say(service, line string) { r.add(strings.TrimPrefix(service+": "+line, ": ")) }
func (r *recorder) State(service, state string, ready, want int32) {
	r.add(fmt.Sprintf("%s: %s %d/%d", service, state, ready, want))
}

func (r *recorder) add(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, line)
	if r.more != nil {
		close(r.more)
		r.more = nil
	}
}

func (r *recorder) has(line string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.lines, line)
}

// plan translates services that are given as changes to an empty one.
func plan(t *testing.T, services map[string]func(*types.ServiceConfig)) *compose.Plan {
	t.Helper()
	p := &types.Project{Name: "shop", Services: types.Services{}, Networks: types.Networks{"default": {}}, Volumes: types.Volumes{"data": {}}}
	for name, change := range services {
		s := types.ServiceConfig{Name: name}
		s.Image = name
		if change != nil {
			change(&s)
		}
		p.Services[name] = s
	}
	out, err := compose.Translate(compose.Input{Project: p, Node: "node-1", Slipway: true})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func needs(condition string, names ...string) func(*types.ServiceConfig) {
	return func(s *types.ServiceConfig) {
		s.DependsOn = types.DependsOnConfig{}
		for _, n := range names {
			s.DependsOn[n] = types.ServiceDependency{Condition: condition, Required: true}
		}
	}
}

func once(s *types.ServiceConfig) { s.Restart = "no" }

const (
	deployments = "/apis/apps/v1/namespaces/shop/deployments/"
	jobs        = "/apis/batch/v1/namespaces/shop/jobs/"
	pods        = "/api/v1/namespaces/shop/pods/"
)

var healthy = map[string]any{"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}

func (f *fakeAPI) healthy(services ...string) {
	for _, s := range services {
		f.status(deployments+s, healthy)
	}
}

func TestUpWaitsForWhatServicesDependOn(t *testing.T) {
	f, c := newFakeAPI(t)
	p := plan(t, map[string]func(*types.ServiceConfig){
		"web": needs("service_healthy", "api"), "api": needs("service_healthy", "db"), "db": nil,
	})
	go func() {
		for _, step := range []struct{ up, not string }{{"db", "api"}, {"api", "web"}, {"web", ""}} {
			f.until(deployments+step.up, func(o map[string]any) bool { return o != nil })
			if step.not != "" && f.exists(deployments+step.not) {
				t.Errorf("%s was applied before %s was healthy", step.not, step.up)
			}
			f.healthy(step.up)
		}
	}()
	progress := &recorder{}
	out, err := c.Up(context.Background(), p, UpOptions{Project: "shop", Wait: true, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Outcome{Created: len(p.Shared) + 3}); out != want {
		t.Errorf("outcome %+v; want %+v", out, want)
	}
	if f.dryRuns != len(p.Shared)+3 {
		t.Errorf("%d objects were checked by a dry run; want %d", f.dryRuns, len(p.Shared)+3)
	}
	for _, line := range []string{"db: running 1/1", "api: running 1/1", "web: running 1/1"} {
		if !progress.has(line) {
			t.Errorf("progress does not tell %q: %q", line, progress.lines)
		}
	}
	again, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){
		"web": needs("service_healthy", "api"), "api": needs("service_healthy", "db"), "db": nil,
	}), UpOptions{Project: "shop", Wait: true, Progress: progress})
	if err != nil || !again.Nothing() {
		t.Errorf("a second up: %+v, %v; want nothing changed", again, err)
	}
}

func TestUpPrunesWhatIsGone(t *testing.T) {
	f, c := newFakeAPI(t)
	up := func(o UpOptions, services map[string]func(*types.ServiceConfig)) Outcome {
		t.Helper()
		o.Project, o.Progress = "shop", &recorder{}
		out, err := c.Up(context.Background(), plan(t, services), o)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	withData := func(s *types.ServiceConfig) {
		s.Volumes = []types.ServiceVolumeConfig{{Type: "volume", Source: "data", Target: "/data"}}
	}
	up(UpOptions{}, map[string]func(*types.ServiceConfig){"web": nil, "old": withData})
	if out := up(UpOptions{Orphan: func(string) bool { return false }}, map[string]func(*types.ServiceConfig){"web": nil}); out.Removed != 0 || !f.exists(deployments+"old") {
		t.Errorf("an up of a part removed %d objects", out.Removed)
	}
	out := up(UpOptions{}, map[string]func(*types.ServiceConfig){"web": nil})
	if out != (Outcome{Removed: 2}) {
		t.Errorf("outcome %+v; want the service's Deployment and Service removed, and nothing else", out)
	}
	if !f.exists("/api/v1/namespaces/shop/persistentvolumeclaims/data") {
		t.Error("the claim was pruned, and its data with it")
	}
	if !f.exists("/api/v1/namespaces/shop/configmaps/" + parentName) {
		t.Error("the set's parent was pruned")
	}
}

func TestUpRefusesBeforeItChanges(t *testing.T) {
	f, c := newFakeAPI(t)
	f.refuse["Deployment/web"] = "spec.template.spec.containers[0].image: Invalid value"
	_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil, "db": nil}), UpOptions{Project: "shop", Progress: &recorder{}})
	if err == nil || err.Error() != "Deployment web: spec.template.spec.containers[0].image: Invalid value" {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(f.applied, []string{"Namespace/shop"}) {
		t.Errorf("applied %v before the whole was known to be right", f.applied)
	}
	f.refuse = map[string]string{"Job/migrate": "spec.template.spec.containers[0].image: Invalid value"}
	_, err = c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"migrate": once, "db": nil}), UpOptions{Project: "shop", Progress: &recorder{}})
	if err == nil || !slices.Equal(f.applied, []string{"Namespace/shop"}) {
		t.Errorf("error %v, applied %v, where the job was wrong", err, f.applied)
	}
}

func TestUpTellsWhyAServiceFails(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		services   map[string]func(*types.ServiceConfig)
		happens    func(*fakeAPI)
	}{
		{
			"job", "service migrate: it exits with code 3",
			map[string]func(*types.ServiceConfig){"migrate": once},
			func(f *fakeAPI) {
				f.create(pods+"migrate-x", pod("migrate", map[string]any{"phase": "Failed", "containerStatuses": []any{
					map[string]any{"name": "migrate", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": map[string]any{"terminated": map[string]any{"exitCode": 3}}}}}))
				f.status(jobs+"migrate", failed)
			},
		}, {
			"dependency", "service web: depends on migrate, which failed: it did not complete: Job has reached the specified backoff limit",
			map[string]func(*types.ServiceConfig){"web": needs("service_completed_successfully", "migrate"), "migrate": once},
			func(f *fakeAPI) { f.status(jobs+"migrate", failed) },
		}, {
			"deadline", "service web: Deployment exceeded its progress deadline",
			map[string]func(*types.ServiceConfig){"web": nil},
			func(f *fakeAPI) {
				f.status(deployments+"web", map[string]any{"observedGeneration": 1, "conditions": []any{
					map[string]any{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "Deployment exceeded its progress deadline"}}})
			},
		}, {
			"port", "service web: host port 80/tcp is taken by nginx",
			map[string]func(*types.ServiceConfig){"web": func(s *types.ServiceConfig) {
				s.Ports = []types.ServicePortConfig{{Target: 80, Published: "80"}}
			}},
			func(f *fakeAPI) {
				f.healthy("web")
				f.status("/api/v1/namespaces/shop/services/web-published", map[string]any{"conditions": []any{
					map[string]any{"type": conditionPorts, "status": "False", "reason": "PortsNotBound", "message": "host port 80/tcp is taken by nginx", "observedGeneration": 1}}})
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, c := newFakeAPI(t)
			go tt.happens(f)
			_, err := c.Up(context.Background(), plan(t, tt.services), UpOptions{Project: "shop", Wait: true, Progress: &recorder{}})
			if tt.name == "dependency" && err != nil {
				// Both services tell of it, and either may be first.
				if got := err.Error(); got == tt.want || strings.HasPrefix(got, "service migrate: it did not complete") {
					return
				}
			}
			if err == nil || err.Error() != tt.want {
				t.Errorf("error:\n  %v\nwant:\n  %s", err, tt.want)
			}
		})
	}
}

var failed = map[string]any{"conditions": []any{
	map[string]any{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit"}}}

func pod(service string, status map[string]any) map[string]any {
	return map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{
		"name": service + "-x", "namespace": "shop", "labels": map[string]any{labelName: service, labelService: service, labelManagedBy: fieldManager}},
		"spec": map[string]any{"containers": []any{map[string]any{"name": service, "image": service}}}, "status": status}
}

func TestUpReplacesChangedJobs(t *testing.T) {
	f, c := newFakeAPI(t)
	complete := map[string]any{"succeeded": 1, "conditions": []any{map[string]any{"type": "Complete", "status": "True"}}}
	go f.status(jobs+"migrate", complete)
	up := func(image string) Outcome {
		t.Helper()
		p := plan(t, map[string]func(*types.ServiceConfig){"migrate": func(s *types.ServiceConfig) { once(s); s.Image = image }})
		out, err := c.Up(context.Background(), p, UpOptions{Project: "shop", Wait: true, Progress: &recorder{}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	up("one")
	if out := up("one"); !out.Nothing() {
		t.Errorf("an unchanged job: %+v; want it left alone", out)
	}
	go func() {
		f.until(jobs+"migrate", func(o map[string]any) bool { return o != nil && o["status"] == nil }) // the new one
		f.status(jobs+"migrate", complete)
	}()
	if out := up("two"); out != (Outcome{Changed: 1}) {
		t.Errorf("a changed job: %+v; want it changed", out)
	}
	if !slices.Equal(f.deleted, []string{"Job/migrate"}) {
		t.Errorf("deleted %v; want the old job", f.deleted)
	}
}

// TestTally: what controllers write meanwhile is not what people have changed.
func TestTally(t *testing.T) {
	object := func(edit func(o map[string]any)) *unstructured.Unstructured {
		o := map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "spec": map[string]any{"replicas": int64(1)},
			"metadata": map[string]any{"name": "web", "uid": "u", "resourceVersion": "1", "labels": map[string]any{"a": "b"}}}
		edit(o)
		return &unstructured.Unstructured{Object: o}
	}
	before := object(func(map[string]any) {})
	for _, tt := range []struct {
		name    string
		edit    func(o map[string]any)
		changed bool
	}{
		{"nothing", func(map[string]any) {}, false},
		{"its status", func(o map[string]any) {
			o["status"] = map[string]any{"availableReplicas": int64(1)}
			o["metadata"].(map[string]any)["resourceVersion"] = "2"
		}, false},
		{"the number of its version", func(o map[string]any) {
			o["metadata"].(map[string]any)["annotations"] = map[string]any{annotationRevision: "1"}
		}, false},
		{"its spec", func(o map[string]any) { o["spec"].(map[string]any)["replicas"] = int64(2) }, true},
		{"its labels", func(o map[string]any) { o["metadata"].(map[string]any)["labels"] = map[string]any{"a": "c"} }, true},
		{"all of it, another has its name", func(o map[string]any) { o["metadata"].(map[string]any)["uid"] = "v" }, true},
	} {
		tally := newTally(map[string][]unstructured.Unstructured{"Deployment.apps": {*before}})
		if got := tally.count(object(tt.edit)); got != tt.changed {
			t.Errorf("with %s changed, it counts as changed: %v; want %v", tt.name, got, tt.changed)
		}
	}
}

func TestUpIsCancelled(t *testing.T) {
	f, c := newFakeAPI(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		f.until(deployments+"web", func(o map[string]any) bool { return o != nil })
		cancel(fmt.Errorf("the person is impatient"))
	}()
	_, err := c.Up(ctx, plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Wait: true, Progress: &recorder{}})
	if err == nil || !strings.Contains(err.Error(), "the person is impatient") {
		t.Errorf("error %v; want the cancellation's cause", err)
	}
}

func TestDown(t *testing.T) {
	f, c := newFakeAPI(t)
	p := plan(t, map[string]func(*types.ServiceConfig){"web": nil, "db": func(s *types.ServiceConfig) {
		s.Volumes = []types.ServiceVolumeConfig{{Type: "volume", Source: "data", Target: "/data"}}
	}})
	if _, err := c.Up(context.Background(), p, UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	f.create(pods+"web-x", pod("web", map[string]any{"phase": "Running"}))
	if err := c.Down(context.Background(), "shop", DownOptions{Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	last := f.deleted[len(f.deleted)-1]
	if last != "ConfigMap/"+parentName {
		t.Errorf("the set's parent must go last, but that was %s: %v", last, f.deleted)
	}
	if at := slices.Index(f.deleted, "Pod/web-x"); at < 0 || at > slices.IndexFunc(f.deleted, func(s string) bool { return strings.HasPrefix(s, "NetworkPolicy/") }) {
		t.Errorf("policies must hold as long as pods run: %v", f.deleted)
	}
	if !f.exists("/api/v1/namespaces/shop/persistentvolumeclaims/data") || !f.exists("/api/v1/namespaces/shop") {
		t.Error("down without -v took the data")
	}
	if err := c.Down(context.Background(), "shop", DownOptions{Volumes: true, Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	if len(f.objects) != 0 {
		t.Errorf("down -v left %v", f.objects)
	}
}

func TestScale(t *testing.T) {
	f, c := newFakeAPI(t)
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	go func() {
		f.until(deployments+"web", func(o map[string]any) bool { return o["spec"].(map[string]any)["replicas"] == float64(3) })
		f.status(deployments+"web", map[string]any{"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3})
	}()
	progress := &recorder{}
	if err := c.Scale(context.Background(), "shop", map[string]int32{"web": 3}, ChangeOptions{Progress: progress}); err != nil {
		t.Fatal(err)
	}
	if !progress.has("web: running 3/3") {
		t.Errorf("progress %q", progress.lines)
	}
	err := c.Scale(context.Background(), "shop", map[string]int32{"nobody": 1}, ChangeOptions{Progress: progress})
	if want := "service nobody is not up: `slipway up nobody` starts it"; err == nil || err.Error() != want {
		t.Errorf("error %v; want %s", err, want)
	}
}

func TestReplicasAndLogs(t *testing.T) {
	f, c := newFakeAPI(t)
	running := map[string]any{"phase": "Running", "podIP": "10.0.0.7", "conditions": []any{map[string]any{"type": "Ready", "status": "True"}},
		"containerStatuses": []any{map[string]any{"name": "web", "image": "", "imageID": "", "ready": true, "restartCount": 2, "state": map[string]any{"running": map[string]any{}}}}}
	f.create(pods+"web-x", pod("web", running))
	f.create("/api/v1/namespaces/shop/services/web-published", map[string]any{"apiVersion": "v1", "kind": "Service",
		"metadata": map[string]any{"name": "web-published", "namespace": "shop", "labels": map[string]any{labelManagedBy: fieldManager, labelService: "web"}, "annotations": map[string]any{annotationHostIP: "127.0.0.1"}},
		"spec":     map[string]any{"type": "LoadBalancer", "ports": []any{map[string]any{"port": 8080, "targetPort": 80, "protocol": "TCP"}}}})
	list, err := c.Replicas(context.Background(), "shop")
	if err != nil || len(list) != 1 {
		t.Fatalf("replicas %+v, %v", list, err)
	}
	r := list[0]
	if got := fmt.Sprintf("%s %s %s %d %s %s", r.Name, r.Service, r.Status, r.Restarts, r.Address, r.Ports); got != "web-x web running 2 10.0.0.7 [127.0.0.1:8080->80/tcp]" {
		t.Errorf("replica %s", got)
	}
	f.logs["web-x"] = "one\ntwo\nno newline"
	var lines []string
	err = c.Logs(context.Background(), "shop", LogOptions{Tail: -1, Line: func(source, line string) { lines = append(lines, source+" "+line) }})
	if want := []string{"web-x one", "web-x two", "web-x no newline"}; err != nil || !slices.Equal(lines, want) {
		t.Errorf("logs %q, %v; want %q", lines, err, want)
	}
}
