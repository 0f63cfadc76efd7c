package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"slipway.dev/slipway/compose/apply"
	"slipway.dev/slipway/compose/machine"
)

// command runs one command line in a folder with a Compose file and no daemon.
func command(t *testing.T, file string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	if file != "" {
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	t.Setenv("SLIPWAY_RUN_DIR", filepath.Join(dir, "run"))
	t.Setenv("SLIPWAY_DATA_DIR", "")
	var out, err bytes.Buffer
	code = run(context.Background(), args, streams{in: strings.NewReader(""), out: &out, err: &err})
	return code, strings.ReplaceAll(out.String(), dir, "DIR"), strings.ReplaceAll(err.String(), dir, "DIR")
}

const shop = "name: shop\nservices: {web: {image: web, ports: ['80:80'], depends_on: [db]}, db: {image: db}, debug: {image: d, profiles: [debug]}}"

func TestWrongCommandLines(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"up", "--build", "--no-build"}, "slipway: --build and --no-build exclude each other\n"},
		{[]string{"up", "--pull", "often"}, "slipway: --pull \"often\": use always, missing or never\n"},
		{[]string{"up", "-o", "yaml"}, "slipway: --output is for --dry-run\n"},
		{[]string{"up", "--dry-run", "-o", "xml"}, "slipway: --output \"xml\": use yaml or json\n"},
		{[]string{"up", "--scale", "web"}, "slipway: \"web\": want SERVICE=N, such as web=3\n"},
		{[]string{"up", "--scale", "nobody=3"}, "slipway: no such service: nobody\n"},
		{[]string{"up", "nobody"}, "slipway: no such service: nobody\n"},
		{[]string{"up", "--wat"}, "slipway: unknown flag: --wat\nRun 'slipway up --help' for the flags it has.\n"},
		{[]string{"down", "nobody"}, "slipway: no such service: nobody\n"},
		{[]string{"up", "--attach", "web"}, "slipway: --attach: up returns when everything runs: `slipway logs -f` follows the output\n"},
		{[]string{"up", "--wait-timeout", "soon"}, "slipway: --wait-timeout \"soon\": want a duration such as 90s or 2m, or a number of seconds\n"},
		{[]string{"logs", "nobody"}, "slipway: no such service: nobody\n"},
		{[]string{"restart", "nobody"}, "slipway: no such service: nobody\n"},
		{[]string{"run", "web"}, "slipway: run is not a verb for projects: `slipway exec SERVICE COMMAND` runs one in a replica, `slipway run IMAGE COMMAND` in a container of its own\n"},
		{[]string{"rm"}, "slipway: slipway rm needs a service: `slipway down` removes the whole project\n"},
		{[]string{"config", "--format", "xml"}, "slipway: --format \"xml\": use yaml, json or kubernetes\n"},
		{[]string{"scale"}, "slipway: slipway scale needs SERVICE=N, such as web=3\n"},
		{[]string{"scale", "web=-1"}, "slipway: \"web=-1\": want SERVICE=N, such as web=3\n"},
		{[]string{"exec", "web"}, "slipway: slipway exec needs a service and a command\n"},
		{[]string{"logs", "-n", "few"}, "slipway: --tail \"few\": want a number of lines, or all\n"},
		{[]string{"logs", "--since", "tomorrow"}, "slipway: --since \"tomorrow\": want a past time such as 2026-01-02T15:04:05, or a duration such as 10m\n"},
		{[]string{"ps", "-o", "xml"}, "slipway: --output \"xml\": use table or json\n"},
		{[]string{"build"}, "slipway: no service that is selected has build\n"},
		{[]string{"-f", "other.yaml", "config"}, "slipway: compose file \"DIR/other.yaml\" is invalid: open DIR/other.yaml: no such file or directory\n"},
		{[]string{"-p", "kube-system", "ps"}, "slipway: project name \"kube-system\": namespace kube-system is reserved: choose another name with -p or in the file\n"},
		{[]string{"ps"}, "slipway: no daemon at DIR/run/docker.sock: start it with `slipway serve --detach --run-dir DIR/run --data-dir DIR`\n"},
		{[]string{"down", "--all"}, "slipway: DIR/run: no daemon ran here: nothing to take down\n"},
		{[]string{"fly"}, "slipway: unknown command \"fly\" for a project: see slipway --help\n"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			code, _, got := command(t, shop, tt.args...)
			if code != 1 || got != tt.want {
				t.Errorf("code %d, error:\n%s\nwant:\n%s", code, got, tt.want)
			}
		})
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"config", "--services"}, "db\nweb\n"},
		{[]string{"--profile", "debug", "config", "--services"}, "db\ndebug\nweb\n"},
		{[]string{"config", "--services", "db"}, "db\n"},
		{[]string{"config", "--services", "debug"}, "debug\n"},
		{[]string{"config", "--images"}, "db\nweb\n"},
		{[]string{"config", "-q"}, ""},
	} {
		if code, got, errors := command(t, shop, tt.args...); code != 0 || got != tt.want {
			t.Errorf("slipway %s: code %d, %q, %s; want %q", strings.Join(tt.args, " "), code, got, errors, tt.want)
		}
	}
}

func TestConfigIntoAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "services")
	if code, out, errors := command(t, shop, "config", "--services", "-o", path); code != 0 || out != "" {
		t.Errorf("code %d, %q, %s; want nothing said", code, out, errors)
	}
	if got, err := os.ReadFile(path); string(got) != "db\nweb\n" || err != nil {
		t.Errorf("the file holds %q (%v); want the services", got, err)
	}
	if code, _, got := command(t, shop, "config", "--services", "-o", "/dev/full"); code != 1 || got != "slipway: write /dev/full: no space left on device\n" {
		t.Errorf("where nothing can be written: code %d, %s; want the error", code, got)
	}
}

func TestDryRunNeedsNoDaemon(t *testing.T) {
	code, out, errors := command(t, shop, "up", "--dry-run", "db")
	if code != 0 || !strings.Contains(out, "kind: Deployment") || strings.Contains(out, "name: web") || strings.Contains(out, "creationTimestamp") {
		t.Errorf("code %d, error %s, output:\n%s", code, errors, out)
	}
	if code, out, _ := command(t, shop, "up", "--dry-run", "-o", "json", "--scale", "web=4"); code != 0 || !strings.Contains(out, `"replicas": 4`) {
		t.Errorf("code %d, output:\n%s", code, out)
	}
}

func TestCompletion(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"__complete", "up", ""}, "db\nweb\n:4\n"},
		{[]string{"__complete", "scale", "w"}, "db=\nweb=\n:6\n"},
		{[]string{"__complete", "up", "--pull", ""}, "always\nmissing\nnever\n:4\n"},
	} {
		if _, got, _ := command(t, shop, tt.args...); got != tt.want {
			t.Errorf("%s: %q; want %q", strings.Join(tt.args, " "), got, tt.want)
		}
	}
}

func TestUser(t *testing.T) {
	files := map[string]string{
		"/etc/passwd": "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:998::/var/lib:/bin/sh\n",
		"/etc/group":  "root:x:0:\nstaff:x:50:postgres\n",
	}
	read := func(path string) ([]byte, error) {
		if text, ok := files[path]; ok {
			return []byte(text), nil
		}
		return nil, errors.New("no such file")
	}
	for _, tt := range []struct{ in, want, err string }{
		{"", "", ""},
		{"1000", "1000", ""},
		{"1000:50", "1000:50", ""},
		{"postgres", "999:998", ""},
		{"postgres:staff", "999:50", ""},
		{"postgres:7", "999:7", ""},
		{"1000:staff", "1000:50", ""},
		{"nobody", "", `user "nobody": the image has no user nobody in /etc/passwd`},
		{"root:wheel", "", `user "root:wheel": the image has no group wheel in /etc/group`},
	} {
		got, err := user(tt.in, read)
		if got != tt.want || (err == nil) != (tt.err == "") || (err != nil && err.Error() != tt.err) {
			t.Errorf("user(%q) = %q, %v; want %q, %s", tt.in, got, err, tt.want, tt.err)
		}
	}
	if _, err := user("www", func(string) ([]byte, error) { return nil, errors.New("no such file") }); err == nil ||
		err.Error() != `user "www": read /etc/passwd of the image: no such file` {
		t.Errorf("error of an image without accounts: %v", err)
	}
}

func TestPinned(t *testing.T) {
	found := machine.Image{ID: "sha256:aa", RepoDigests: []string{"other@sha256:cc", "reg.example/web@sha256:bb"}}
	for _, tt := range []struct {
		name      string
		elsewhere bool
		want      string
	}{
		{"web", false, "web@sha256:aa"},
		{"reg.example:5000/team/web:1.2", false, "reg.example:5000/team/web@sha256:aa"},
		{"reg.example/web:1", true, "reg.example/web@sha256:bb"},
		{"reg.example/new:1", true, "reg.example/new:1"},
	} {
		if got, err := pinned(tt.name, found, tt.elsewhere); err != nil || got != tt.want {
			t.Errorf("pinned(%q, elsewhere %v) = %q, %v; want %q", tt.name, tt.elsewhere, got, err, tt.want)
		}
	}
}

func TestOrphans(t *testing.T) {
	whole := &types.Project{Services: types.Services{"web": {}}}
	profiled := &types.Project{Services: types.Services{"web": {}}, DisabledServices: types.Services{"debug": {}}}
	for _, tt := range []struct {
		name    string
		project *types.Project
		partial bool
		service string
		want    bool
	}{
		{"gone from the file", whole, false, "old", true},
		{"a config that nobody uses", whole, false, "", true},
		{"gone, but this is a partial up", whole, true, "old", false},
		{"in a profile that is not enabled", profiled, false, "debug", false},
		{"perhaps of a service in a profile", profiled, false, "", false},
		{"gone, beside profiles", profiled, false, "old", true},
	} {
		if got := orphans(tt.project, tt.partial)(tt.service); got != tt.want {
			t.Errorf("%s: orphan %v; want %v", tt.name, got, tt.want)
		}
	}
}

func TestPullable(t *testing.T) {
	p := &types.Project{Name: "shop", Services: types.Services{}}
	for name, image := range map[string]string{"web": "", "api": "registry.example/shop/api", "own": "me/own"} {
		s := types.ServiceConfig{Name: name}
		s.Image, s.Build = image, &types.BuildConfig{}
		p.Services[name] = s
	}
	db := types.ServiceConfig{Name: "db"}
	db.Image = "postgres"
	p.Services["db"] = db
	want := "service web: image shop-web is built here, and its name has no registry that another cluster can pull it from: give it one, such as image: registry.example/shop-web"
	if err := pullable(p); err == nil || err.Error() != want {
		t.Errorf("error %v; want %s", err, want)
	}
}

func TestSummary(t *testing.T) {
	if got := summary("shop", apply.Outcome{}, time.Second); got != "shop: nothing has changed" {
		t.Errorf("summary of nothing: %q", got)
	}
	if got := summary("shop", apply.Outcome{Created: 2, Removed: 1}, 1500*time.Millisecond); got != "shop: up in 1.5s (objects: 2 created, 1 removed)" {
		t.Errorf("summary: %q", got)
	}
}

func TestBoardInAPipe(t *testing.T) {
	var out bytes.Buffer
	b := newBoard(&out, false)
	b.State("web", "building", 0, 0)
	b.detail("web", "building: Step 1/3")
	b.Say("", "note: something")
	b.State("web", "starting", 1, 3)
	if want := "web: building\nnote: something\nweb: starting 1/3\n"; out.String() != want {
		t.Errorf("output %q; want %q", out.String(), want)
	}
}

func TestBoardOnATerminal(t *testing.T) {
	var out bytes.Buffer
	b := newBoard(&out, false)
	b.width = 40
	b.State("web", "starting", 1, 2)
	b.State("database", "running", 1, 1)
	b.Say("", "note")
	want := "  web [=====     ] starting 1/2\n" +
		"\x1b[1A\r\x1b[J  web      [=====     ] starting 1/2\n  database [==========] running 1/1\n" +
		"\x1b[2A\r\x1b[Jnote\n  web      [=====     ] starting 1/2\n  database [==========] running 1/1\n"
	if out.String() != want {
		t.Errorf("output\n%q; want\n%q", out.String(), want)
	}
	out.Reset()
	b.State("web", strings.Repeat("a long story ", 10), 0, 0)
	for _, line := range strings.Split(out.String(), "\n") {
		if n := len([]rune(line)); n > 40+len("\x1b[2A\r\x1b[J") {
			t.Errorf("a line of %d characters would wrap: %q", n, line)
		}
	}
}

// TestBoardOnASmallTerminal: what is still on its way is worth the few lines that there are, and a terminal that becomes narrower
// wraps what was drawn before.
func TestBoardOnASmallTerminal(t *testing.T) {
	var out bytes.Buffer
	b := newBoard(&out, false)
	width, rows := 40, 5
	b.size = func() (int, int) { return width, rows }
	b.width, b.rows = width, rows
	for _, s := range []string{"a", "b", "c", "d", "e"} {
		b.State(s, "starting", 0, 1)
	}
	out.Reset()
	b.State("d", "running", 1, 1)
	if want := "\x1b[3A\r\x1b[J  c [          ] starting 0/1\n  e [          ] starting 0/1\n  … and 3 more\n"; out.String() != want {
		t.Errorf("output\n%q; want\n%q", out.String(), want)
	}
	out.Reset()
	width = 20 // two lines of 29 characters take four rows now, and the third one
	rows = 20
	b.State("d", "running", 1, 1)
	if want := "\x1b[5A\r\x1b[J"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("output %q; want it to begin with %q", out.String(), want)
	}
}

func TestIgnoredOfBuild(t *testing.T) {
	b := &types.BuildConfig{CacheFrom: types.StringList{"x"}, SBOM: "true"}
	if got := ignoredOfBuild(b); !slices.Equal(got, []string{"cache_from", "sbom"}) {
		t.Errorf("ignored: %v", got)
	}
	for _, tt := range []struct {
		build types.BuildConfig
		want  string
	}{
		{types.BuildConfig{Privileged: true}, "build.privileged is not supported"},
		{types.BuildConfig{Platforms: types.StringList{"a", "b"}}, "build.platforms names 2 platforms: one is possible"},
		{types.BuildConfig{AdditionalContexts: types.Mapping{"a": "b"}}, "build.additional_contexts is not supported: put what the build needs into its context"},
	} {
		if got := fmt.Sprint(unsupported(&tt.build)); got != tt.want {
			t.Errorf("%q; want %q", got, tt.want)
		}
	}
}

func TestExecError(t *testing.T) {
	long := "Internal error occurred: error executing command in container: OCI runtime exec failed: exec failed: exec in container \"4e\": unable to start container process: "
	for _, tt := range []struct {
		in   error
		code int
		want string
	}{
		{errors.New(long + `exec: "nosuch": executable file not found in $PATH`), 127, `exec: "nosuch": executable file not found in $PATH`},
		{errors.New(long + `exec: "/etc": permission denied`), 126, `exec: "/etc": permission denied`},
		{errors.New("connection refused"), 0, "connection refused"},
	} {
		got := execError(tt.in)
		code := 0
		if status, ok := got.(exitStatus); ok {
			code = status.ExitStatus()
		}
		if code != tt.code || got.Error() != tt.want {
			t.Errorf("execError(%v) = %v with code %d; want %s with code %d", tt.in, got, code, tt.want, tt.code)
		}
	}
}
