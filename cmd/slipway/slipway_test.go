package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"
)

func TestHandOver(t *testing.T) {
	inside := folder{
		project:     true,
		isContainer: func(name string) bool { return name == "box" },
		isDirectory: func(name string) bool { return name == "." || name == "ctx" },
	}
	outside := inside
	outside.project = false
	for _, tt := range []struct {
		line   string
		folder folder
		want   string // what slipway-compose gets; "-": nothing
	}{
		{"up -d", outside, "up -d"},
		{"down --all", outside, "down --all"},
		{"scale web=3", outside, "scale web=3"},
		{"--run-dir /r up", outside, "up"},
		{"--run-dir=/r up", outside, "up"},
		{"ps", outside, "-"},
		{"ps", inside, "ps"},
		{"ps --format json", inside, "ps --format json"},
		{"ps -a", inside, "-"},
		{"ps -qa", inside, "-"},
		{"ps --all", inside, "-"},
		{"-p other ps -a", outside, "-p other ps -a"},
		{"-f a.yaml -f b.yaml logs", outside, "-f a.yaml -f b.yaml logs"},
		{"--profile=x up", outside, "--profile=x up"},
		{"logs", inside, "logs"},
		{"logs -f web", inside, "logs -f web"},
		{"logs -f box", inside, "-"},
		{"logs --tail 5 box", inside, "-"},
		{"logs -n 5 web", inside, "logs -n 5 web"},
		{"logs -f box", outside, "-"},
		{"exec web sh", inside, "exec web sh"},
		{"exec -it -e A=1 box sh", inside, "-"},
		{"build", inside, "build"},
		{"build web", inside, "build web"},
		{"build -t x .", inside, "-"},
		{"build -f ctx/Dockerfile ctx", inside, "-"},
		{"build -t x -", inside, "-"},
		{"build -t x .", outside, "-"},
		{"run -it img up", inside, "-"},
		{"images", inside, "-"},
		{"help up", outside, "up --help"},
		{"help run", inside, "-"},
		{"help", inside, "-"},
		{"logs -t box", inside, "-"},
		{"ls", outside, "ls"},
		{"stop", inside, "stop"},
		{"stop", outside, "-"},
		{"stop -t 5 web", inside, "stop -t 5 web"},
		{"stop -t 5 box", inside, "-"},
		{"restart web", inside, "restart web"},
		{"start box", inside, "-"},
		{"pull", inside, "pull"},
		{"pull web", inside, "-"},
		{"push", outside, "-"},
		{"rm", inside, "-"},
		{"rm -s web", inside, "rm -s web"},
		{"kill -s HUP web", inside, "kill -s HUP web"},
		{"kill -s HUP box", inside, "-"},
		{"port web 80", inside, "port web 80"},
		{"top", inside, "-"},
		{"cp web:/etc/hosts .", inside, "cp web:/etc/hosts ."},
		{"cp box:/etc/hosts .", inside, "-"},
		{"cp ./a:b ./c", inside, "-"},
		{"-p shop run web sh", outside, "-p shop run web sh"},
		{"__complete up w", inside, "__complete up w"},
		{"__completeNoDesc -f a.yaml logs w", outside, "__completeNoDesc -f a.yaml logs w"},
		{"__complete images w", inside, "-"},
		{"__complete up", outside, "__complete up"},
		{"config --quiet", outside, "config --quiet"},
		{"", inside, "-"},
		{"--help", inside, "-"},
	} {
		h, ok := handOver(strings.Fields(tt.line), tt.folder)
		got := strings.Join(h.args, " ")
		if !ok {
			got = "-"
		}
		if got != tt.want {
			t.Errorf("slipway %s (project %v) hands over %q; want %q", tt.line, tt.folder.project, got, tt.want)
		}
		if ok && strings.Contains(tt.line, "--run-dir") && h.runDir != "/r" {
			t.Errorf("slipway %s has run directory %q; want /r", tt.line, h.runDir)
		}
	}
}

// fakeDaemon answers on a unix socket and remembers what it was asked.
type fakeDaemon struct {
	dir    string
	asked  []string
	bodies map[string]string
}

func newFakeDaemon(t *testing.T, answers map[string]string) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{dir: t.TempDir(), bodies: map[string]string{}}
	l, err := net.Listen("unix", filepath.Join(d.dir, "docker.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Method + " " + strings.TrimPrefix(r.URL.Path, apiPath)
		body, _ := io.ReadAll(r.Body)
		d.asked, d.bodies[key] = append(d.asked, key+"?"+r.URL.RawQuery), string(body)
		answer, ok := answers[key]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"No such thing"}`)
			return
		}
		io.WriteString(w, answer)
	}))
	ts.Listener.Close()
	ts.Listener = l
	ts.Start()
	t.Cleanup(ts.Close)
	return d
}

// slipway runs a command line and returns its exit code and output.
func (d *fakeDaemon) slipway(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("SLIPWAY_RUN_DIR", d.dir)
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Chdir(t.TempDir())
	var out, errs bytes.Buffer
	code = run(t.Context(), args, streams{in: strings.NewReader(stdin), out: &out, err: &errs})
	return code, out.String(), errs.String()
}

// TestContainerExists: a service called db must not be taken for the container whose id happens to begin like that.
func TestContainerExists(t *testing.T) {
	id := "db1234567890" + strings.Repeat("f", 52)
	answers := map[string]string{}
	for _, ref := range []string{"db", "db12345678", "db1234567890", id, "quiet"} {
		answers["GET /containers/"+ref+"/json"] = `{"Id":"` + id + `","Name":"/quiet"}`
	}
	d := newFakeDaemon(t, answers)
	c := &cli{runDir: d.dir}
	for name, want := range map[string]bool{"quiet": true, "db1234567890": true, id: true, "db": false, "db12345678": false, "web": false} {
		if got := c.containerExists(name); got != want {
			t.Errorf("a container %q exists: %v; want %v", name, got, want)
		}
	}
}

// TestBadCommandLines is what wrong command lines are told, and their exit codes, which are docker's.
func TestBadCommandLines(t *testing.T) {
	d := newFakeDaemon(t, nil)
	if err := os.WriteFile(filepath.Join(d.dir, "cid"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		line string
		code int
		text string
	}{
		{"nonsense", 1, `unknown command "nonsense" for "slipway"`},
		{"run", 125, "slipway run needs an image"},
		{"run --nope img", 125, "unknown flag: --nope"},
		{"run -m lots img", 125, `--memory "lots": want a size such as 256m`},
		{"run --cpus many img", 125, `--cpus "many": want a number such as 1.5`},
		{"run -p 99999:80 img", 125, "--publish: invalid hostPort: 99999"},
		{"run -p nonsense img", 125, "--publish: invalid containerPort: nonsense"},
		{"run -e = img", 125, `--env "=": want NAME=VALUE or NAME`},
		{"run --env-file /does/not/exist img", 125, "--env-file: open /does/not/exist: no such file or directory"},
		{"run --restart sometimes img", 125, `--restart "sometimes": invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'`},
		{"run --restart on-failure:x img", 125, `--restart "on-failure:x": maximum retry count must be an integer`},
		{"run --mount type=bind img", 125, `--mount "type=bind": target is required`},
		{"run --mount type=bind,target=/a,odd=1 img", 125, "unexpected key 'odd' in 'odd=1'"},
		{"run --mount type=tmpfs,target=/a,tmpfs-size=x img", 125, "invalid value for tmpfs-size: x"},
		{"run --network a --network a img", 125, `network "a" is specified multiple times`},
		{"run --network alias=x img", 125, "network name is required"},
		{"run --network name=a,ip=x img", 125, `ip "x" is no IP address`},
		{"run --mac-address zz img", 125, "zz is not a valid mac address"},
		{"run --add-host web img", 125, `--add-host "web": want NAME:IP`},
		{"run --add-host web:x img", 125, `"x" is no IP address`},
		{"run --dns x img", 125, `--dns "x": not an IP address`},
		{"run --ulimit x img", 125, `--ulimit "x": `},
		{"run --device /a:/b:zz img", 125, "bad mode specified: zz"},
		{"run --security-opt odd img", 125, `--security-opt "odd": want KEY=VALUE`},
		{"run --security-opt seccomp=/does/not/exist img", 125, "opening seccomp profile (/does/not/exist) failed"},
		{"run --no-healthcheck --health-cmd x img", 125, "--no-healthcheck conflicts with --health-* options"},
		{"run --pull often img", 125, `--pull "often": want always, missing or never`},
		{"run -d -a stdout img", 125, "cannot specify both --attach and --detach"},
		{"run -a stdsomething img", 125, `--attach "stdsomething": want stdin, stdout or stderr`},
		{"run -it img", 1, "the input device is not a TTY"},
		{"run --cidfile " + d.dir + "/cid img", 125, "container id file found"},
		{"run --pull never img", 125, "No such thing"},
		{"exec box", 125, "slipway exec needs a container and a command"},
		{"exec -it box sh", 1, "the input device is not a TTY"},
		{"exec box sh", 1, "No such thing"},
		{"logs", 125, "slipway logs needs a container"},
		{"logs --since yesterday box", 125, `--since: "yesterday" is neither a time such as 2026-01-02T15:04:05 nor a duration such as 10m`},
		{"ps --filter odd", 125, `--filter "odd": want KEY=VALUE`},
		{"ps -o yaml", 125, `--output "yaml": only json is known`},
		{"ps surplus", 1, `unknown command "surplus" for "slipway ps"`},
		{"stop", 125, "slipway stop needs a container"},
		{"stop none", 1, "No such thing"},
		{"cp a b", 125, "must specify at least one container source"},
		{"cp a:/x b:/y", 125, "copying between containers is not supported"},
		{"build", 125, "slipway build needs a directory, the build context"},
		{"build /does/not/exist", 1, "build context: stat /does/not/exist: no such file or directory"},
		{"build https://example.com/a.git", 125, "remote build contexts are not supported"},
		{"build .", 1, "no Dockerfile in "},
		{"build -f nowhere .", 1, "read the Dockerfile: "},
		{"build -m x .", 125, `--memory "x": want a size such as 256m`},
		{"build -f - -", 125, "can't use stdin for both build context and dockerfile"},
		{"tag a b@sha256:00", 125, "want a tag, not a digest"},
		{"tag a b:", 125, "the tag after the colon is missing"},
		{"save", 125, "slipway save needs an image"},
		{"network create --subnet x n", 125, `--subnet "x": want addresses such as 10.7.0.0/24`},
		{"network create --gateway 10.0.0.1 n", 125, "--ip-range, --gateway and --aux-address need --subnet"},
		{"network rm none", 1, "No such thing"},
		{"inspect none", 1, "no such object: none"},
		{"inspect --type image none", 1, "no such image: none"},
		{"port box 80", 1, "No such thing"},
	} {
		code, _, stderr := d.slipway(t, "", strings.Fields(tt.line)...)
		if code != tt.code || !strings.Contains(stderr, tt.text) {
			t.Errorf("slipway %s\n got %d %q\nwant %d %q", tt.line, code, stderr, tt.code, tt.text)
		}
	}
}

func TestNoDaemonIsExplained(t *testing.T) {
	d := &fakeDaemon{dir: t.TempDir()}
	code, _, stderr := d.slipway(t, "", "ps")
	if want := "no daemon at " + d.dir + "/docker.sock: start it with `slipway serve --detach --run-dir " + d.dir + " --data-dir DIR`"; code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("slipway ps without a daemon = %d %q; want %q", code, stderr, want)
	}
}

func TestRunRequest(t *testing.T) {
	d := newFakeDaemon(t, map[string]string{
		"POST /containers/create": `{"Id":"abc","Warnings":["mind the gap"]}`, "POST /containers/abc/start": "",
	})
	t.Setenv("PASSED", "on")
	code, stdout, stderr := d.slipway(t, "", "run", "-d", "--name", "web", "-e", "PASSED", "-e", "A=1", "-p", "127.0.0.1:8080:80", "-p", "53:53/udp",
		"-v", "data:/data:ro", "-v", "/anonymous", "--mount", "type=tmpfs,dst=/t,tmpfs-size=1m", "--tmpfs", "/tmp:size=2m", "-m", "64m", "--cpus", "1.5",
		"--network", "name=back,alias=w,ip=10.0.0.5", "--network-alias", "x", "--restart", "on-failure:3", "--health-cmd", "true", "--health-retries", "2",
		"--ulimit", "nofile=10:20", "--add-host", "h:1.2.3.4", "--init", "--entrypoint", "sh", "-h", "host", "img:1", "-c", "echo")
	if code != 0 || stdout != "abc\n" || stderr != "WARNING: mind the gap\n" {
		t.Fatalf("run = %d %q %q", code, stdout, stderr)
	}
	var body bytes.Buffer
	if err := json.Indent(&body, []byte(d.bodies["POST /containers/create"]), "", "  "); err != nil {
		t.Fatal(err)
	}
	golden(t, "run-request", body.Bytes())
	if want := []string{"POST /containers/create?name=web", "POST /containers/abc/start?"}; !slices.Equal(d.asked, want) {
		t.Errorf("run asked for %q; want %q", d.asked, want)
	}
}

func TestRunPullsWhatIsMissing(t *testing.T) {
	d := newFakeDaemon(t, map[string]string{
		"POST /images/create": `{"status":"Pulling from img","id":"1"}` + "\n" + `{"errorDetail":{"message":"registry is away"},"error":"registry is away"}`,
	})
	d.bodies["x"] = ""
	code, _, stderr := d.slipway(t, "", "create", "img")
	// The fake says "No such thing", so the image is not what is missing and nothing is pulled.
	if code != 125 || !strings.Contains(stderr, "No such thing") || len(d.asked) != 1 {
		t.Errorf("create = %d %q after %q", code, stderr, d.asked)
	}
	code, _, stderr = d.slipway(t, "", "create", "--pull", "always", "img")
	if code != 125 || !strings.Contains(stderr, "1: Pulling from img\n") || !strings.Contains(stderr, "registry is away") {
		t.Errorf("create --pull always = %d %q", code, stderr)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	v := progressView{out: &out, width: 40}
	var in bytes.Buffer
	enc := json.NewEncoder(&in)
	for _, m := range []jsonstream.Message{
		{ID: "latest", Status: "Pulling from web"},
		{ID: "aaa", Status: "Downloading", Progress: &jsonstream.Progress{Current: 50, Total: 100}},
		{ID: "bbb", Status: "Waiting"},
		{ID: "aaa", Status: "Pull complete"},
		{Status: "Digest: sha256:1"},
	} {
		if err := enc.Encode(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.show(&in); err != nil {
		t.Fatal(err)
	}
	golden(t, "progress", out.Bytes())
}

func TestImageNames(t *testing.T) {
	for _, tt := range []struct{ in, repo, version, registry, full string }{
		{"web", "web", "latest", hub, "web:latest"},
		{"web:1", "web", "1", hub, "web:1"},
		{"team/web", "team/web", "latest", hub, "team/web:latest"},
		{"localhost:5000/web", "localhost:5000/web", "latest", "localhost:5000", "localhost:5000/web:latest"},
		{"localhost/web:2", "localhost/web", "2", "localhost", "localhost/web:2"},
		{"r.example/a/b@sha256:12", "r.example/a/b", "sha256:12", "r.example", "r.example/a/b@sha256:12"},
		{"docker.io/library/web", "docker.io/library/web", "latest", hub, "docker.io/library/web:latest"},
	} {
		n, err := parseImage(tt.in)
		if err != nil || n.repo != tt.repo || n.version() != tt.version || n.registry() != tt.registry || n.String() != tt.full {
			t.Errorf("parseImage(%q) = %q %q %q %q, %v; want %q %q %q %q", tt.in, n.repo, n.version(), n.registry(), n, err, tt.repo, tt.version, tt.registry, tt.full)
		}
	}
}

func TestMoment(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"10m", "1777895400.000000000"},
		{"2026-05-04T12:00:00Z", "1777896000.000000000"},
		{"1777896000.5", "1777896000.5"},
	} {
		if got, err := moment(tt.in, now); err != nil || got != tt.want {
			t.Errorf("moment(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}

// write makes files below dir.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func members(t *testing.T, r io.Reader) []string {
	t.Helper()
	var list []string
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(list)
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			list = append(list, h.Name)
		}
	}
}

func TestBuildContext(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"Dockerfile": "FROM scratch", "a.txt": "", "b.log": "", "sub/c.log": "", "sub/keep.log": "", "node_modules/x/y.js": "", "deploy/Dockerfile": "FROM scratch",
		"deploy/Dockerfile.dockerignore": "**\n!a.txt\n",
		".dockerignore":                  "# comment\n**/*.log\n!sub/keep.log\nnode_modules\nDockerfile\n",
	})
	outside := filepath.Join(t.TempDir(), "Elsewhere")
	write(t, filepath.Dir(outside), map[string]string{"Elsewhere": "FROM scratch\n"})
	c := &cli{}
	for _, tt := range []struct {
		file, dockerfile string
		want             []string
	}{
		{"", "Dockerfile", []string{".dockerignore", "Dockerfile", "a.txt", "deploy/Dockerfile", "deploy/Dockerfile.dockerignore", "sub/keep.log"}},
		{filepath.Join(dir, "deploy/Dockerfile"), "deploy/Dockerfile", []string{".dockerignore", "a.txt", "deploy/Dockerfile", "deploy/Dockerfile.dockerignore"}},
		{outside, outsideName, []string{".dockerignore", outsideName, "a.txt", "deploy/Dockerfile", "deploy/Dockerfile.dockerignore", "sub/keep.log"}},
	} {
		r, name, err := c.buildContext(dir, tt.file)
		if err != nil {
			t.Fatalf("context with -f %q: %v", tt.file, err)
		}
		got := members(t, r)
		r.Close()
		if name != tt.dockerfile || !slices.Equal(got, tt.want) {
			t.Errorf("context with -f %q is %s %q; want %s %q", tt.file, name, got, tt.dockerfile, tt.want)
		}
	}
}

func TestStdinContext(t *testing.T) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Name: "Dockerfile", Size: 0, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for _, tt := range []struct{ name, in string }{{"a tar", archive.String()}, {"a Dockerfile", "FROM scratch\n"}} {
		c := &cli{streams: streams{in: strings.NewReader(tt.in)}}
		r, dockerfile, err := c.buildContext("-", "")
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := members(t, r); dockerfile != "Dockerfile" || !slices.Equal(got, []string{"Dockerfile"}) {
			t.Errorf("%s on standard input is %q in %q", tt.name, dockerfile, got)
		}
	}
}

// TestCopyOutStaysInside: the archive comes from a container, which may be hostile.
func TestCopyOutStaysInside(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	for _, h := range []tar.Header{
		{Name: "x/../../escape", Typeflag: tar.TypeReg},
		{Name: "/absolute/../../../" + secret, Typeflag: tar.TypeReg},
		{Name: "x/link", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if err := extract(&b, dir, "x", "y"); err == nil {
			t.Errorf("archive with %s was unpacked", h.Name)
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "x/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "x/out", Typeflag: tar.TypeSymlink, Linkname: filepath.Dir(secret)},
		{Name: "x/out/secret", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if err := extract(&b, dir, "x", ""); err == nil {
		t.Error("a file was written through a symbolic link that leads out")
	}
	if _, err := os.Stat(secret); err == nil {
		t.Error("a file appeared outside the destination")
	}
}

func TestSplitCopy(t *testing.T) {
	for _, tt := range []struct{ in, name, path string }{
		{"web:/etc", "web", "/etc"}, {"./a:b", "", "./a:b"}, {"/a:b", "", "/a:b"}, {"dir/a:b", "", "dir/a:b"}, {"-", "", "-"}, {"web:", "web", ""},
	} {
		if name, p := splitCopy(tt.in); name != tt.name || p != tt.path {
			t.Errorf("splitCopy(%q) = %q, %q; want %q, %q", tt.in, name, p, tt.name, tt.path)
		}
	}
}

func TestCredentials(t *testing.T) {
	var c dockerConfig
	raw := `{"auths":{"https://index.docker.io/v1/":{"auth":"YW5uOnNlY3JldA=="},"r.example":{"username":"bob","password":"p"}}}`
	if err := json.Unmarshal([]byte(raw), &c); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ server, user, password string }{{hub, "ann", "secret"}, {"r.example", "bob", "p"}, {"other", "", ""}} {
		auth, err := c.credentials(tt.server)
		if err != nil || auth.Username != tt.user || auth.Password != tt.password {
			t.Errorf("credentials(%q) = %q %q, %v; want %q %q", tt.server, auth.Username, auth.Password, err, tt.user, tt.password)
		}
	}
}

func TestUnframeRefusesNonsense(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"\x01\x00\x00\x00\xff\xff\xff\xff", "frame of 4294967295 bytes is too large"},
		{"\x01\x00\x00", "unexpected EOF"},
		{"\x03\x00\x00\x00\x00\x00\x00\x04oops", "oops"},
	} {
		if err := unframe(io.Discard, io.Discard, strings.NewReader(tt.in)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("unframe(%q) = %v; want %q", tt.in, err, tt.want)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	for _, s := range []string{"type=bind,src=/a,dst=/b,readonly", "type=volume,source=v,target=/d,volume-opt=type=nfs", `type=tmpfs,dst=/t,"tmpfs-size=1m"`, ",,,", "="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMount(s)
		if err == nil && m.Target == "" {
			t.Errorf("parseMount(%q) accepted a mount without a target", s)
		}
	})
}

func BenchmarkContainerListing(b *testing.B) {
	var list []container.Summary
	for range 100 {
		list = append(list, someContainers()...)
	}
	for b.Loop() {
		if err := containerListing(list, time.Now(), true, false).print(io.Discard, outputFlags{}); err != nil {
			b.Fatal(err)
		}
	}
}

// A line may be long, as one with a certificate is; what follows it counts, too.
func TestEnvFileWithALongLine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "env")
	long := "LONG=" + strings.Repeat("x", 100_000)
	if err := os.WriteFile(name, []byte("\ufeffA=1\r\n# no\n\n"+long+"\n  B=2 "), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := environment(nil, []string{name}); err != nil || !slices.Equal(got, []string{"A=1", long, "B=2 "}) {
		t.Errorf("environment has %d variables, %v; want A, LONG and B", len(got), err)
	}
}
