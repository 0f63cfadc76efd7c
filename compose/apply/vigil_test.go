package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// container is the status of a pod's one container.
func container(name string, restarts int, state map[string]any, last map[string]any) map[string]any {
	c := map[string]any{"name": name, "image": "", "imageID": "", "containerID": "slipway://" + name, "ready": false, "restartCount": restarts, "state": state}
	if last != nil {
		c["lastState"] = map[string]any{"terminated": last}
	}
	return map[string]any{"phase": "Running", "containerStatuses": []any{c}}
}

var (
	runs     = map[string]any{"running": map[string]any{}}
	waits10s = map[string]any{"waiting": map[string]any{"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
	exit3    = map[string]any{"exitCode": 3, "reason": "Error"}
)

func TestUpFailsOnWhatExitsAgainAndAgain(t *testing.T) {
	f, c := newFakeAPI(t)
	f.logs["web-x"] = "starting\nno such table: users\n"
	f.create(pods+"web-x", pod("web", container("web", 1, waits10s, exit3)))
	go f.status(deployments+"web", map[string]any{"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1})
	_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Wait: true, Progress: &recorder{}})
	if want := "service web: it exits with code 3, again and again (1 restart)"; err == nil || err.Error() != want {
		t.Errorf("error %v; want %s", err, want)
	}
	var failed *FailedError
	if !errors.As(err, &failed) || failed.Service != "web" || !slices.Equal(failed.Log, []string{"starting", "no such table: users"}) {
		t.Errorf("the failure %+v does not show the end of the log", failed)
	}
}

// TestUpLetsCrashWhatWaitsForOthers: without depends_on a program may well crash until its database takes connections.
func TestUpLetsCrashWhatWaitsForOthers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after map[string]any // what comes of the try after the database is up
		ready bool
		want  string
	}{
		{"and runs then", container("web", 2, runs, exit3), true, ""},
		{"and crashes still", container("web", 2, waits10s, exit3), false, "service web: it exits with code 3, again and again (2 restarts)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, c := newFakeAPI(t)
			f.create(pods+"web-x", pod("web", container("web", 1, waits10s, exit3)))
			progress := &recorder{}
			go func() {
				f.status(deployments+"web", map[string]any{"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1})
				progress.await(t.Context(), "web: it exits with code 3, again and again (1 restart) 0/1")
				f.healthy("db")
				progress.await(t.Context(), "db: running 1/1")
				f.status(pods+"web-x", tt.after)
				if tt.ready {
					f.healthy("web")
				}
			}()
			go f.status(deployments+"db", map[string]any{"observedGeneration": 1, "replicas": 1})
			_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil, "db": nil}), UpOptions{Project: "shop", Wait: true, Progress: progress})
			if got := errorText(err); got != tt.want {
				t.Errorf("error %q; want %q", got, tt.want)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestVigil decides about one service from what its pods tell, step by step.
func TestVigil(t *testing.T) {
	up := func(id string) state {
		return state{want: 1, ready: 1, healthy: true, started: true, look: look{running: 1, up: 1, runs: id}}
	}
	crash := func(restarts int32) state {
		return state{want: 1, look: look{trouble: "it exits", crash: true, restarts: restarts}}
	}
	stuck := state{want: 1, look: look{trouble: "no room for it", stuck: true}}
	pull := state{want: 1, look: look{trouble: "ErrImagePull"}}
	for _, tt := range []struct {
		name     string
		settle   time.Duration
		patience time.Duration
		others   bool // another service still moves
		fresh    bool // another one has just been started, and has no health check
		steps    []state
		want     string // of the last step
	}{
		{"at once, where nothing has to settle", 0, 0, false, false, []state{up("a")}, "done"},
		{"not before it has run for a while", time.Hour, 0, false, false, []state{up("a"), up("a")}, "waits"},
		{"running is over already", time.Hour, 0, false, false, []state{up("")}, "waits"},
		{"it has run for long", time.Hour, 0, false, false, []state{{want: 1, ready: 1, healthy: true, look: look{runs: "a", since: 1}}}, "done"},
		{"its health check says so", time.Hour, 0, false, false, []state{{want: 1, ready: 1, healthy: true, look: look{runs: "a", probed: true}}}, "done"},
		{"nothing is wanted", time.Hour, 0, false, false, []state{{healthy: true}}, "done"},
		{"no room, and no patience asked for", 0, 0, false, false, []state{stuck, stuck}, "waits"},
		{"no room, for too long", 0, time.Nanosecond, false, false, []state{stuck, stuck}, "no room for it"},
		{"no room, while others come and go", 0, time.Nanosecond, true, false, []state{stuck, stuck}, "waits"},
		{"two exits", 0, 0, false, false, []state{crash(1)}, "it exits"},
		{"two exits, while others come", 0, 0, true, false, []state{crash(1)}, "waits"},
		{"two exits, beside one that may not serve yet", 0, 0, false, true, []state{crash(1)}, "waits"},
		{"three exits, beside one that may not serve yet", 0, 0, false, true, []state{crash(1), crash(2)}, "it exits"},
		{"a pull that hiccups", 0, time.Nanosecond, false, false, []state{pull, pull}, "waits"},
	} {
		tr := &tracker{changed: make(chan struct{})}
		r := &rollout{t: tr, o: UpOptions{Settle: tt.settle, Patience: tt.patience, Progress: &recorder{}}, ends: map[string]bool{}, phases: map[string]phase{}}
		if tt.others {
			r.phases["db"] = moves
		}
		r.fresh = map[string]bool{"db": tt.fresh}
		if !tt.fresh {
			delete(r.fresh, "db")
		}
		v := &vigil{r: r, service: "web"}
		got := ""
		for _, s := range tt.steps {
			done, err := v.look(s)
			switch got = "waits"; {
			case err != nil:
				got = err.Error()
			case done:
				got = "done"
			}
		}
		if got != tt.want {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
}

// TestSettle: a moment, measured by what is known of the program and the machine.
func TestSettle(t *testing.T) {
	for _, tt := range []struct {
		name     string
		pace     time.Duration
		restarts int32
		want     time.Duration
	}{
		{"a container that started at once", 20 * time.Millisecond, 0, 100 * time.Millisecond},
		{"one that took its time", 600 * time.Millisecond, 0, 300 * time.Millisecond},
		{"one whose image was pulled first", time.Minute, 0, time.Second},
		{"one that has exited before", 20 * time.Millisecond, 1, time.Second},
	} {
		v := &vigil{r: &rollout{o: UpOptions{Settle: 100 * time.Millisecond}}, pace: tt.pace}
		if got := v.settle(state{look: look{restarts: tt.restarts}}); got != tt.want {
			t.Errorf("%s has to run for %v; want %v", tt.name, got, tt.want)
		}
	}
}

// TestUpWaitsForTheNewsOfThePod: that a job has failed may be seen before how its pod ended.
func TestUpWaitsForTheNewsOfThePod(t *testing.T) {
	f, c := newFakeAPI(t)
	progress := &recorder{}
	f.logs["migrate-x"] = "no such table\n"
	f.create(pods+"migrate-x", pod("migrate", container("migrate", 0, runs, nil)))
	go func() {
		f.status(jobs+"migrate", failed)
		progress.await(t.Context(), "migrate: failed: it did not complete: Job has reached the specified backoff limit 0/1")
		f.status(pods+"migrate-x", container("migrate", 0, map[string]any{"terminated": exit3}, nil))
	}()
	_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"migrate": once}), UpOptions{Project: "shop", Wait: true, Progress: progress})
	var told *FailedError
	if errorText(err) != "service migrate: it exits with code 3" || !errors.As(err, &told) || !slices.Equal(told.Log, []string{"no such table"}) {
		t.Errorf("error %v, %+v; want the exit code and the log", err, told)
	}
}

// TestUpDoesNotBlameTheOldVersion: what is being replaced may well be broken, that is why it is replaced.
func TestUpDoesNotBlameTheOldVersion(t *testing.T) {
	f, c := newFakeAPI(t)
	old := pod("web", container("web", 1, waits10s, map[string]any{"exitCode": 128, "reason": "StartError", "message": "no such program"}))
	old["metadata"].(map[string]any)["ownerReferences"] = []any{map[string]any{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "old", "controller": true}}
	f.create(pods+"web-x", old)
	set := func(uid, revision string) map[string]any {
		return map[string]any{"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": map[string]any{
			"name": "web-" + revision, "namespace": "shop", "uid": uid, "annotations": map[string]any{annotationRevision: revision},
			"ownerReferences": []any{map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "web", "controller": true}}}}
	}
	f.create("/apis/apps/v1/namespaces/shop/replicasets/web-1", set("old", "1"))
	f.create(deployments+"web", map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{
		"name": "web", "namespace": "shop", "uid": "web", "annotations": map[string]any{annotationRevision: "2"}, "labels": map[string]any{labelPartOf: setID("shop")}}})
	progress := &recorder{}
	go func() {
		f.until(deployments+"web", func(o map[string]any) bool { return o != nil && o["spec"] != nil })
		// Two watches keep no order: the deployment may be seen before its new set is.
		f.status(deployments+"web", map[string]any{"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1})
		f.create("/apis/apps/v1/namespaces/shop/replicasets/web-2", set("new", "2"))
		f.status(deployments+"web", map[string]any{"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1})
	}()
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Wait: true, Progress: progress}); err != nil {
		t.Errorf("an up that mends a service failed with what was wrong before: %v", err)
	}
}

// TestUpTriesAgain: who types `up` again has mended something.
func TestUpTriesAgain(t *testing.T) {
	f, c := newFakeAPI(t)
	services := map[string]func(*types.ServiceConfig){"web": nil, "slow": nil, "migrate": once}
	if _, err := c.Up(context.Background(), plan(t, services), UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	f.status(jobs+"migrate", failed)
	f.status(deployments+"slow", map[string]any{"conditions": []any{map[string]any{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}}})
	f.create(pods+"web-x", pod("web", container("web", 5, waits10s, exit3)))
	out, err := c.Up(context.Background(), plan(t, services), UpOptions{Project: "shop", Progress: &recorder{}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.deleted, []string{"Job/migrate", "Pod/web-x"}) && !slices.Equal(f.deleted, []string{"Pod/web-x", "Job/migrate"}) {
		t.Errorf("deleted %v; want the failed job and the pod that waits for its back-off", f.deleted)
	}
	if out.Changed != 2 || !strings.Contains(textOf(f, deployments+"slow"), annotationRestarted) {
		t.Errorf("outcome %+v; want the job changed, and what had taken too long started anew", out)
	}
}

func TestUpRecreates(t *testing.T) {
	f, c := newFakeAPI(t)
	services := map[string]func(*types.ServiceConfig){"web": nil, "migrate": once}
	up := func(recreate bool) Outcome {
		t.Helper()
		out, err := c.Up(context.Background(), plan(t, services), UpOptions{Project: "shop", Recreate: recreate, Progress: &recorder{}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	up(false)
	if out := up(false); !out.Nothing() {
		t.Errorf("without a change: %+v", out)
	}
	if out := up(true); out != (Outcome{Changed: 2}) || !slices.Equal(f.deleted, []string{"Job/migrate"}) {
		t.Errorf("recreated: %+v, deleted %v", out, f.deleted)
	}
	if !strings.Contains(textOf(f, deployments+"web"), annotationRestarted) {
		t.Error("the deployment's template is as before")
	}
}

func TestUpTakesNothingOver(t *testing.T) {
	f, c := newFakeAPI(t)
	f.create(deployments+"web", map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web", "namespace": "shop"}})
	_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Progress: &recorder{}})
	want := "Deployment web exists in namespace shop, and is not this project's: delete it, or give the project another name with -p"
	if errorText(err) != want {
		t.Errorf("error %v; want %s", err, want)
	}
}

func TestUpReplacesNobodysJob(t *testing.T) {
	f, c := newFakeAPI(t)
	f.create(jobs+"migrate", map[string]any{"apiVersion": "batch/v1", "kind": "Job", "metadata": map[string]any{"name": "migrate", "namespace": "shop"},
		"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"restartPolicy": "Never"}}}})
	_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"migrate": once}), UpOptions{Project: "shop", Progress: &recorder{}})
	want := "Job migrate exists in namespace shop, and is not this project's: delete it, or give the project another name with -p"
	if errorText(err) != want || len(f.deleted) > 0 || !slices.Equal(f.applied, []string{"Namespace/shop"}) {
		t.Errorf("error %v, deleted %v, applied %v; want %s and nothing done", err, f.deleted, f.applied, want)
	}
}

func TestUpKnowsItsNamespace(t *testing.T) {
	_, c := newFakeAPI(t)
	up := func(project string) error {
		_, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: project, Progress: &recorder{}})
		return err
	}
	if err := up("sh_op"); err != nil {
		t.Fatal(err)
	}
	want := "project sh-op: namespace shop is project sh_op's, since names of namespaces have no _: choose another name with -p"
	if got := errorText(up("sh-op")); got != want {
		t.Errorf("error %s; want %s", got, want)
	}
	if got := errorText(c.Refuse(context.Background(), "shop", "sh-op")); got != want {
		t.Errorf("what is done to the other project is refused with %s; want %s", got, want)
	}
	if err := c.Refuse(context.Background(), "shop", "sh_op"); err != nil {
		t.Errorf("the project itself is refused: %v", err)
	}
}

// TestUpFromAnotherFolder: two folders of one name are no reason to lose what the other one runs.
func TestUpFromAnotherFolder(t *testing.T) {
	f, c := newFakeAPI(t)
	progress := &recorder{}
	up := func(file, service string, remove bool) {
		t.Helper()
		o := UpOptions{Project: "shop", Files: []string{file}, RemoveOrphans: remove, Progress: progress}
		if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){service: nil}), o); err != nil {
			t.Fatal(err)
		}
	}
	up("/a/compose.yaml", "web", false)
	up("/b/compose.yaml", "api", false)
	up("/b/compose.yaml", "db", false)
	if !f.exists(deployments+"web") || f.exists(deployments+"api") || !f.exists(deployments+"db") {
		t.Errorf("want web of the other folder kept, api of this one removed, and db: deleted %v", f.deleted)
	}
	if note := "note: project shop also has web, which came from other files: --remove-orphans removes what these files do not have, and -p gives this project another name"; !progress.has(note) {
		t.Errorf("nobody was told: %q", progress.lines)
	}
	up("/b/compose.yaml", "db", true)
	if f.exists(deployments + "web") {
		t.Error("asked to remove orphans, up has kept one")
	}
}

func TestStopStartRestart(t *testing.T) {
	f, c := newFakeAPI(t)
	two := func(s *types.ServiceConfig) { s.SetScale(2) }
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": two, "db": nil, "migrate": once}), UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	replicas := func() float64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.objects[deployments+"web"]["spec"].(map[string]any)["replicas"].(float64)
	}
	o := ChangeOptions{Services: []string{"web"}, NoWait: true, Progress: &recorder{}}
	if err := c.Stop(context.Background(), "shop", o); err != nil || replicas() != 0 {
		t.Fatalf("stopped: %v, %v replicas", err, replicas())
	}
	if list, err := c.Replicas(context.Background(), "shop"); err != nil || len(list) != 1 || list[0].Service != "web" || list[0].Status != "stopped" {
		t.Errorf("a stopped service is listed as %+v, %v", list, err)
	}
	if err := c.Start(context.Background(), "shop", o); err != nil || replicas() != 2 {
		t.Fatalf("started: %v, %v replicas; want as many as before", err, replicas())
	}
	f.status(jobs+"migrate", map[string]any{"conditions": []any{map[string]any{"type": "Complete", "status": "True"}}})
	if err := c.Restart(context.Background(), "shop", ChangeOptions{NoWait: true, Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(textOf(f, deployments+"web"), annotationRestarted) || !slices.Equal(f.deleted, []string{"Job/migrate"}) || !f.exists(jobs+"migrate") {
		t.Errorf("after a restart the job was not made anew, or the deployment is as before: deleted %v", f.deleted)
	}
	if got, want := errorText(c.Stop(context.Background(), "shop", ChangeOptions{Services: []string{"nobody"}, Progress: &recorder{}})), "service nobody is not up: `slipway up nobody` starts it"; got != want {
		t.Errorf("error %q; want %q", got, want)
	}
}

func TestDownOfOneService(t *testing.T) {
	f, c := newFakeAPI(t)
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil, "db": nil}), UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	if err := c.DownServices(context.Background(), "shop", ChangeOptions{Services: []string{"web"}, Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.deleted, []string{"Deployment/web", "Service/web"}) {
		t.Errorf("deleted %v; want web and nothing else", f.deleted)
	}
}

// TestServicesThatSharePods: they are scaled and removed together, by whichever name.
func TestServicesThatSharePods(t *testing.T) {
	f, c := newFakeAPI(t)
	sidecar := func(s *types.ServiceConfig) { s.NetworkMode = "service:web" }
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil, "proxy": sidecar}), UpOptions{Project: "shop", Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	o := ChangeOptions{NoWait: true, Progress: &recorder{}}
	if err := c.Scale(context.Background(), "shop", map[string]int32{"proxy": 3}, o); err != nil || !strings.Contains(textOf(f, deployments+"web"), `"replicas":3`) {
		t.Errorf("scaled proxy to 3: %v, %s", err, textOf(f, deployments+"web"))
	}
	err := c.Scale(context.Background(), "shop", map[string]int32{"web": 2, "proxy": 1}, o)
	if want := "services web and proxy share their pods: both need the same number of replicas"; errorText(err) != want {
		t.Errorf("error %v; want %s", err, want)
	}
	o.Services = []string{"proxy"}
	err = c.DownServices(context.Background(), "shop", o)
	if want := "services web, proxy share their pods: remove all of them, with `slipway down web proxy`"; errorText(err) != want || len(f.deleted) > 0 {
		t.Errorf("error %v, deleted %v; want %s and nothing deleted", err, f.deleted, want)
	}
}

func TestProjects(t *testing.T) {
	_, c := newFakeAPI(t)
	if _, err := c.Up(context.Background(), plan(t, map[string]func(*types.ServiceConfig){"web": nil}), UpOptions{Project: "shop", Files: []string{"/srv/compose.yaml"}, Progress: &recorder{}}); err != nil {
		t.Fatal(err)
	}
	list, err := c.Projects(context.Background())
	if err != nil || len(list) != 1 || list[0].Name != "shop" || list[0].Status != "stopped" || !slices.Equal(list[0].Files, []string{"/srv/compose.yaml"}) {
		t.Errorf("projects %+v, %v", list, err)
	}
}

// TestOthersFailureIsLeftAlone: a wait that was called off over another service's failure ends with that failure, and must
// not take away what is known of it.
func TestOthersFailureIsLeftAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	failed := &FailedError{Service: "db", Reason: "it exits", Log: []string{"no such table"}, from: source{pod: "db-1", container: "db"}}
	r := &rollout{c: &Cluster{}, t: &tracker{}}
	if err := r.explain(ctx, fmt.Errorf("service db: %w", failed)); !errors.Is(err, failed) {
		t.Errorf("explained as %v", err)
	}
	if !slices.Equal(failed.Log, []string{"no such table"}) {
		t.Errorf("the log of the failure has become %q", failed.Log)
	}
}
