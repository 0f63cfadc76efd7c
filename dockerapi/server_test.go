package dockerapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
)

func TestRouter(t *testing.T) {
	var rt router
	for _, p := range []string{"GET /images/json", "GET /images/{name...}/json", "GET /images/{name...}/get", "DELETE /images/{name...}", "GET /containers/{id}/json", "POST /plugins/{name...}/enable"} {
		method, pattern, _ := strings.Cut(p, " ")
		rt.add(method, pattern, func(w *reply, _ *request) error { return nil })
	}
	for _, tt := range []struct{ in, want string }{
		{"GET /images/json", "map[]"},
		{"GET /images/localhost:5000/team/app:1/json", "map[name:localhost:5000/team/app:1]"},
		{"GET /images/app/get", "map[name:app]"},
		{"DELETE /images/a/b", "map[name:a/b]"},
		{"DELETE /images/", "none"},
		{"DELETE /images", "none"},
		{"GET /containers/web/json", "map[id:web]"},
		{"GET /containers//json", "none"},
		{"GET /containers/a/b/json", "none"},
		{"PUT /containers/web/json", "none"},
	} {
		method, path, _ := strings.Cut(tt.in, " ")
		got := "none"
		if h, vars := rt.find(method, path); h != nil {
			got = fmt.Sprint(vars)
		}
		if tt.in == "DELETE /images/" && got == "map[name:]" {
			got = "none"
		}
		if got != tt.want {
			t.Errorf("%s found %s; want %s", tt.in, got, tt.want)
		}
	}
}

func TestPingHeaders(t *testing.T) {
	h := newHarness(t)
	for _, method := range []string{"GET", "HEAD"} {
		resp := h.open(method, "/_ping", "")
		resp.Body.Close()
		for key, want := range map[string]string{
			"Api-Version": "1.51", "Builder-Version": "1", "Ostype": "linux", "Docker-Experimental": "false", "Swarm": "inactive",
			"Server": "Slipway/0.1.0 (linux)", "Cache-Control": "no-cache, no-store, must-revalidate",
		} {
			if got := resp.Header.Get(key); got != want {
				t.Errorf("%s /_ping: %s: %q; want %q", method, key, got, want)
			}
		}
	}
}

// TestBadRequests is what wrong requests are told, word for word: clients match on these texts.
func TestBadRequests(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	h.do("POST", "/containers/create?name=idle", `{"Image":"app"}`)
	for _, tt := range []struct {
		method, path, body string
		status             int
		message            string
	}{
		{"GET", "/v1.23/version", "", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"},
		{"GET", "/v1.99/version", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"},
		{"GET", "/v1.51/nothing", "", 404, "page not found"},
		{"GET", "/containers/json?filters=nope", "", 400, `invalid filter: nope: want a JSON object of the form {"key":{"value":true}}`},
		{"GET", `/containers/json?filters={"color":{"red":true}}`, "", 400, "invalid filter 'color'"},
		{"GET", `/containers/json?filters={"status":{"odd":true}}`, "", 400, "invalid filter 'status=odd'"},
		{"GET", `/containers/json?filters={"exited":["x"]}`, "", 400, "invalid filter 'exited=x': must be an integer"},
		{"GET", "/containers/json?limit=x", "", 400, `parameter limit="x": must be an integer`},
		{"GET", "/containers/none/json", "", 404, "No such container: none"},
		{"POST", "/containers/create", "", 400, "invalid JSON: got EOF while reading request body"},
		{"POST", "/containers/create", "{", 400, "invalid JSON: unexpected EOF"},
		{"POST", "/containers/create", `{}{}`, 400, "unexpected content after JSON"},
		{"POST", "/containers/create", `null`, 400, "config cannot be empty in order to create a container"},
		{"POST", "/containers/create", `{"Image":"missing"}`, 404, "No such image: missing:latest"},
		{"POST", "/containers/create?name=web", `{"Image":"app"}`, 409, "Conflict. The container name \"/web\" is already in use by container "},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Memory":1024}}`, 400, "Minimum memory limit allowed is 6MB"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"MemorySwap":10000000}}`, 400, "You should always set the Memory limit when using Memoryswap limit, see usage"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"NanoCpus":99000000000000}}`, 400, "Range of CPUs is from 0.01 to "},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"CpuPeriod":10}}`, 400, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Links":["gone:alias"]}}`, 400, "could not get container for gone: No such container: gone"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"NetworkMode":"container"}}`, 400, "invalid container format container:<name|id>"},
		{"POST", "/containers/create", `{"Image":"app","NetworkingConfig":{"EndpointsConfig":{"bridge":{"Aliases":["a"]}}}}`, 400, "network-scoped aliases are only supported for user-defined networks"},
		{"POST", "/containers/create", `{"Image":"app","Env":["=x"]}`, 400, "invalid environment variable: =x"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Annotations":{"":"x"}}}`, 400, "invalid Annotations: the empty string is not permitted as an annotation key"},
		{"POST", "/v1.43/containers/create", `{"Image":"app","NetworkingConfig":{"EndpointsConfig":{"a":{},"b":{}}}}`, 400, "Container cannot be created with multiple network endpoints: a, b"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"CpusetCpus":"0-9999"}}`, 400, "Requested CPUs are not available - requested 0-9999, available: "},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"CpusetMems":"x"}}`, 400, "Invalid value x for a set of memory nodes: "},
		{"POST", "/containers/create", `{"Image":"app","Volumes":{"a:b":{}}}`, 400, "invalid volume specification: 'a:b': the path in the container must be absolute and not '/'"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"BlkioWeight":5}}`, 400, "Range of blkio weight is from 10 to 1000"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"RestartPolicy":{"Name":"sometimes"}}}`, 400, "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"AutoRemove":true,"RestartPolicy":{"Name":"always"}}}`, 400, "can't create 'AutoRemove' container with restart policy"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["a:b:c:d"]}}`, 400, "invalid volume specification: 'a:b:c:d'"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["/a:b"]}}`, 400, "invalid volume specification: '/a:b': invalid mount config for type \"bind\": invalid mount path: 'b' mount path must be absolute"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["/a:/b:odd"]}}`, 400, "invalid mode: odd"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["/a:/b","/c:/b"]}}`, 400, "Duplicate mount point: /b"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["/a:/"]}}`, 400, "invalid mount config for type \"bind\": invalid specification: destination can't be '/'"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Binds":["some/dir:/b"]}}`, 400, `invalid volume specification: 'some/dir:/b': "some/dir" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Mounts":[{"Type":"bind","Target":"/b"}]}}`, 400, "invalid mount config for type \"bind\": field Source must not be empty"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Mounts":[{"Type":"bind","Source":"/does/not/exist","Target":"/b"}]}}`, 400, "invalid mount config for type \"bind\": bind source path does not exist: /does/not/exist"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Mounts":[{"Type":"odd","Target":"/b"}]}}`, 400, "invalid mount config for type \"odd\": mount type unknown"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Mounts":[{"Type":"tmpfs","Target":"/b","BindOptions":{}}]}}`, 400, "invalid mount config for type \"tmpfs\": field BindOptions must not be specified"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}}`, 400, `invalid port specification: "x"`},
		{"POST", "/containers/create", `{"Image":"app","ExposedPorts":{"99999/tcp":{}}}`, 400, "invalid JSON: invalid port '99999': "},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"LogConfig":{"Type":"syslog"}}}`, 400, "logger: no log driver named 'syslog' is registered: use json-file, local or none"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"odd":"1"}}}}`, 400, "unknown log opt 'odd' for json-file log driver"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"max-size":"x"}}}}`, 400, `invalid value "x" for log opt max-size: `},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"env-regex":"("}}}}`, 400, `invalid value "(" for log opt env-regex: `},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"LogConfig":{"Type":"json-file","Config":{"tag":"{{"}}}}`, 400, `invalid value "{{" for log opt tag: `},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"DeviceRequests":[{"Count":-1,"Capabilities":[["gpu"]]}]}}`, 400, `could not select device driver "" with capabilities: [[gpu]]`},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Runtime":"kata"}}`, 400, "unknown or invalid runtime name: kata"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"PidMode":"odd"}}`, 400, "invalid PID mode: odd"},
		{"POST", "/containers/create", `{"Image":"app","Hostname":"h","HostConfig":{"NetworkMode":"container:web"}}`, 400, "conflicting options: hostname and the network mode"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"NetworkMode":"container:web","PortBindings":{"80/tcp":[{}]}}}`, 400, "conflicting options: port publishing and the container type network mode"},
		{"POST", "/containers/create", `{"Image":"app","Healthcheck":{"Interval":1}}`, 400, "Interval in Healthcheck cannot be less than 1ms"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"VolumesFrom":["gone"]}}`, 400, "No such container: gone"},
		{"POST", "/containers/create", `{"Image":"app","HostConfig":{"Ulimits":[{"Name":"nofile","Soft":5,"Hard":2}]}}`, 400, "ulimit nofile: soft limit 5 is above the hard limit 2"},
		{"POST", "/containers/web/rename", "", 400, "Neither old nor new names may be empty"},
		{"POST", "/containers/web/stop?t=x", "", 400, `parameter t="x": must be an integer`},
		{"POST", "/containers/web/wait?condition=odd", "", 400, `invalid condition: "odd"`},
		{"POST", "/containers/idle/kill", "", 409, " is not running"},
		{"POST", "/containers/web/resize?h=x&w=1", "", 400, `invalid resize height "x": invalid syntax`},
		{"POST", "/containers/web/resize?h=1", "", 400, `invalid resize width "": invalid syntax`},
		{"POST", "/containers/web/resize?h=-1&w=1", "", 400, `invalid resize height "-1": value out of range`},
		{"POST", "/containers/web/attach?detachKeys=ctrl-!", "", 400, "Invalid detach keys (ctrl-!) provided"},
		{"GET", "/containers/web/logs", "", 400, "Bad parameters: you must choose at least one stream"},
		{"GET", "/containers/web/logs?stdout=1&since=yesterday", "", 400, `parameter since: failed to parse value as time or duration: "yesterday"`},
		{"GET", "/containers/web/archive", "", 400, "bad parameter: 'path' cannot be empty"},
		{"GET", "/containers/web/stats?stream=1&one-shot=1", "", 400, "cannot have stream=true and one-shot=true"},
		{"POST", "/containers/web/exec", `{"Cmd":[]}`, 400, "no exec command specified"},
		{"POST", "/containers/idle/exec", `{"Cmd":["true"]}`, 409, " is not running"},
		{"POST", "/exec/none/start", `{}`, 404, "not found"},
		{"GET", "/exec/none/json", "", 404, "No such exec instance: none"},
		{"GET", "/images/none/json", "", 404, "No such image: none"},
		{"POST", "/images/create?fromImage=app", "", 501, "pulling all tags of app is not supported: name one, as in app:latest"},
		{"POST", "/images/create?fromImage=UPPER&tag=1", "", 400, "invalid reference format: \"UPPER\": "},
		{"POST", "/images/create?fromImage=app&tag=1&platform=a/b/c/d/e", "", 400, "invalid platform: "},
		{"POST", "/images/app/tag?repo=Bad", "", 400, "invalid reference format: \"Bad\": "},
		{"POST", "/images/nowhere/push?tag=1", "", 404, "An image does not exist locally with the tag: nowhere"},
		{"GET", "/images/get", "", 400, "no image names given"},
		{"GET", "/images/search?term=x", "", 501, "searching registries is not supported: pull images by name"},
		{"POST", "/networks/create", `{"Name":""}`, 400, "network name cannot be empty"},
		{"POST", "/networks/create", `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.0.0.1/24"}]}}`, 400, "invalid network config: invalid subnet 10.0.0.1/24: it should be 10.0.0.0/24"},
		{"POST", "/networks/create", `{"Name":"n","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.1.0.1"}]}}`, 400, "invalid network config: invalid gateway 10.1.0.1: parent subnet 10.0.0.0/24 doesn't contain this address"},
		{"GET", "/networks/none", "", 404, "network none not found"},
		{"GET", `/networks?filters={"type":["odd"]}`, "", 400, "invalid filter: 'type'='odd'"},
		{"GET", `/volumes?filters={"dangling":["odd"]}`, "", 400, "invalid filter 'dangling=odd': must be a boolean"},
		{"GET", "/events?since=2&until=1", "", 400, "`since` time (2) cannot be after `until` time (1)"},
		{"GET", "/system/df?type=odd", "", 400, "unknown object type: odd"},
		{"GET", "/swarm", "", 503, notManager},
		{"GET", "/services", "", 503, notManager},
		{"POST", "/session", "", 501, "BuildKit sessions are not served yet: build with the classic builder (DOCKER_BUILDKIT=0 docker build, or slipway build)"},
		{"POST", "/build?version=2", "", 501, "BuildKit sessions are not served yet: "},
		{"POST", "/build?remote=https://example.com/x.git", "", 501, "remote build contexts are not supported: "},
		{"POST", "/build?buildargs=x", "", 400, "error reading buildargs: "},
		{"GET", "/plugins/odd/json", "", 404, `plugin "odd" not found`},
	} {
		status, raw := h.do(tt.method, strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(tt.path), tt.body)
		var e struct{ Message string }
		if err := json.Unmarshal([]byte(raw), &e); err != nil {
			t.Errorf("%s %s answered %q, not an error in JSON", tt.method, tt.path, raw)
			continue
		}
		if status != tt.status || !strings.Contains(e.Message, tt.message) {
			t.Errorf("%s %s %s\n got %d %q\nwant %d %q", tt.method, tt.path, tt.body, status, e.Message, tt.status, tt.message)
		}
	}
}

func TestStartTwiceIsNotModified(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	if status, raw := h.do("POST", "/containers/web/start", ""); status != http.StatusNotModified || raw != "" {
		t.Errorf("second start = %d %q; want 304 without a body", status, raw)
	}
}

// TestWaitSendsHeadersAtOnce: docker run waits for these headers before it starts the container.
func TestWaitSendsHeadersAtOnce(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	resp := h.open("POST", "/containers/web/wait?condition=next-exit", "")
	defer resp.Body.Close()
	h.containers.exit("web", 3)
	var answer struct{ StatusCode int }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.StatusCode != 3 {
		t.Errorf("wait = %+v, %v; want status code 3", answer, err)
	}
}

// hijack makes a request that takes its connection over.
func (h *harness) hijack(path, body string) (net.Conn, *bufio.Reader, *http.Response) {
	h.t.Helper()
	conn, err := net.Dial("unix", h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		h.t.Fatalf("%s: %v", path, err)
	}
	return conn, r, resp
}

func frames(r io.Reader) string {
	var b strings.Builder
	for {
		var head [8]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return b.String()
		}
		p := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(r, p); err != nil {
			return b.String()
		}
		fmt.Fprintf(&b, "%d:%s;", head[0], p)
	}
}

func TestAttachEchoesInFrames(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	conn, r, resp := h.hijack("/v1.51/containers/web/attach?stdin=1&stdout=1&stderr=1&stream=1", "")
	if resp.StatusCode != 101 || resp.Status != "101 UPGRADED" || resp.Header.Get("Content-Type") != "application/vnd.docker.multiplexed-stream" {
		t.Fatalf("attach = %s %s; want 101 UPGRADED and multiplexed frames", resp.Status, resp.Header)
	}
	io.WriteString(conn, "hello")
	conn.(*net.UnixConn).CloseWrite()
	got := frames(r)
	if !strings.HasPrefix(got, "1:out;2:err;") || !strings.HasSuffix(got, "hello;") {
		t.Errorf("attach answered %q; want out, err and the echo", got)
	}
}

func TestAttachToMissingContainerIsAnHTTPError(t *testing.T) {
	h := newHarness(t)
	_, _, resp := h.hijack("/containers/none/attach?stdout=1&stream=1", "")
	if resp.StatusCode != 404 {
		t.Errorf("attach to nothing = %s; want 404", resp.Status)
	}
}

func TestOldClientsGetTheRawMediaType(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	_, _, resp := h.hijack("/v1.41/containers/web/attach?stdout=1&stream=1", "")
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.docker.raw-stream" {
		t.Errorf("attach in 1.41 = %q; want the raw media type", got)
	}
}

func TestExec(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	for _, tt := range []struct {
		cmd, output string
		code        float64
	}{
		{`["ls","/"]`, "1:ran [ls /];", 0},
		{`["nosuch"]`, "1:exec: \"nosuch\": executable file not found in $PATH\r\n;", 127},
	} {
		id := h.json("POST", "/containers/web/exec", `{"Cmd":`+tt.cmd+`,"AttachStdout":true,"AttachStderr":true}`)["Id"].(string)
		_, r, resp := h.hijack("/exec/"+id+"/start", `{"Detach":false,"Tty":false}`)
		if resp.StatusCode != 101 {
			t.Fatalf("exec %s = %s", tt.cmd, resp.Status)
		}
		if got := frames(r); got != tt.output {
			t.Errorf("exec %s printed %q; want %q", tt.cmd, got, tt.output)
		}
		if got := h.json("GET", "/exec/"+id+"/json", "")["ExitCode"]; got != tt.code {
			t.Errorf("exec %s has exit code %v; want %v", tt.cmd, got, tt.code)
		}
		if status, _ := h.do("POST", "/exec/"+id+"/start", `{}`); status != 409 {
			t.Errorf("exec %s a second time = %d; want 409", tt.cmd, status)
		}
	}
}

func TestLogs(t *testing.T) {
	h := newHarness(t)
	h.running("web")
	h.containers.entries = []container.LogEntry{
		{Stream: 1, Time: epoch, Line: []byte("one\n")},
		{Stream: 2, Time: epoch.Add(time.Millisecond), Line: []byte("two\n")},
	}
	for _, tt := range []struct{ query, want string }{
		{"stdout=1&stderr=1", "1:one\n;2:two\n;"},
		{"stderr=1", "2:two\n;"},
		{"stdout=1&timestamps=1", "1:2026-05-04T03:02:01.000000000Z one\n;"},
	} {
		resp := h.open("GET", "/containers/web/logs?"+tt.query, "")
		got := frames(resp.Body)
		resp.Body.Close()
		if got != tt.want {
			t.Errorf("logs?%s = %q; want %q", tt.query, got, tt.want)
		}
	}
}

func TestEventsReplayAndFilter(t *testing.T) {
	h := newHarness(t)
	publish := func(kind, action, id string, attributes map[string]string) {
		h.events.Publish(event.Event{Type: kind, Action: action, Actor: event.Actor{ID: id, Attributes: attributes}, Time: epoch})
	}
	publish("container", "start", "c1", map[string]string{"name": "web", "image": "app:1"})
	publish("container", "health_status: healthy", "c1", map[string]string{"name": "web", "image": "app:1"})
	publish("container", "start", "c2", map[string]string{"name": "pod", "image": "app:1", "slipway.owner": "node"})
	publish("network", "connect", "n1", map[string]string{"name": "net", "container": "c1"})
	publish("image", "tag", "sha256:1", map[string]string{"name": "app:1"})
	for _, tt := range []struct{ filters, want string }{
		{`{}`, "start health_status: healthy connect tag"},
		{`{"type":{"image":true}}`, "tag"},
		{`{"event":["health_status"]}`, "health_status: healthy"},
		{`{"container":["web"]}`, "start health_status: healthy"},
		{`{"container":["c1"]}`, "start health_status: healthy"}, // connect happens to the network
		{`{"container":["web"],"image":["app:1"]}`, "start health_status: healthy"},
		{`{"container":["web"],"image":["other"]}`, ""},
		{`{"container":["web","net"],"event":["start","connect"]}`, "start"},
		{`{"network":["net"]}`, "connect"},
		{`{"image":["app"]}`, "start health_status: healthy tag"},
		{`{"label":["slipway.owner=node"]}`, "start"},
	} {
		// Without a beginning it is everything that is remembered.
		path := fmt.Sprintf("/events?until=%d&filters=%s", epoch.Unix()+1, tt.filters)
		_, raw := h.do("GET", strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(path), "")
		var actions []string
		for dec := json.NewDecoder(bytes.NewReader([]byte(raw))); dec.More(); {
			var e struct{ Action string }
			if err := dec.Decode(&e); err != nil {
				t.Fatalf("events answered %q: %v", raw, err)
			}
			actions = append(actions, e.Action)
		}
		if got := strings.Join(actions, " "); got != tt.want {
			t.Errorf("events with %s = %q; want %q", tt.filters, got, tt.want)
		}
	}
}

func TestParseTime(t *testing.T) {
	now := epoch
	for _, tt := range []struct {
		in   string
		want time.Time
	}{
		{"", time.Time{}},
		{"0", time.Time{}},
		{"1577836800", time.Unix(1577836800, 0)},
		{"1577836800.5", time.Unix(1577836800, 500000000)},
		{"1577836800.000000001", time.Unix(1577836800, 1)},
		{"1h30m", now.Add(-90 * time.Minute)},
		{"2020-01-01T00:00:00Z", time.Unix(1577836800, 0)},
	} {
		got, err := parseTime(tt.in, now)
		if err != nil || !got.Equal(tt.want) {
			t.Errorf("parseTime(%q) = %v, %v; want %v", tt.in, got, err, tt.want)
		}
	}
}

// subscribed notes that somebody listens.
type subscribed struct {
	Events
	yes bool
}

func (s *subscribed) Subscribe(since time.Time) *event.Subscription {
	s.yes = true
	return s.Events.Subscribe(since)
}

// flushed is a client that acts when it sees an answer begin, and when it sees more of it.
type flushed struct {
	*httptest.ResponseRecorder
	began, more func()
}

func (f flushed) Flush() { f.began() }

func (f flushed) Write(p []byte) (int, error) {
	defer f.more()
	return f.ResponseRecorder.Write(p)
}

// A client that has the beginning of the answer counts on hearing of what it does next.
func TestEventsFromTheBeginningOfTheAnswer(t *testing.T) {
	h := newHarness(t)
	events := &subscribed{Events: h.events}
	h.server.events = events
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := sync.OnceFunc(func() {
		h.events.Publish(event.Event{Type: event.Network, Action: "create", Actor: event.Actor{ID: "first"}, Time: epoch})
		if !events.yes {
			cancel() // it would wait for the next one for ever
		}
	})
	w := flushed{httptest.NewRecorder(), began, cancel}
	h.server.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/events", nil))
	if !strings.Contains(w.Body.String(), `"first"`) {
		t.Errorf("the answer is %q; want the event that followed its beginning", w.Body)
	}
}
