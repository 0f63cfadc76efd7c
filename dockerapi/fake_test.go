package dockerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"slipway.dev/slipway/engine/build"
	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/volume"
)

var epoch = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

// fakeContainers keeps containers in a map and runs "programs" that echo their standard input.
type fakeContainers struct {
	Containers // what a test does not use panics

	mu      sync.Mutex
	list    []container.Info
	waiters map[string]chan container.ExitStatus
	execs   map[string]*container.ExecInfo
	entries []container.LogEntry
	calls   []string
}

func (f *fakeContainers) called(format string, args ...any) {
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeContainers) Create(_ context.Context, spec container.Spec) (container.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if spec.Image == "missing" {
		return container.Info{}, errdefs.ErrNotFound.WithMessage("No such image: missing:latest")
	}
	for _, c := range f.list {
		if spec.Name != "" && c.Name == spec.Name {
			return container.Info{}, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", spec.Name, c.ID))
		}
	}
	if spec.Name == "" {
		spec.Name = "random"
	}
	id := digest.FromString(spec.Name).Encoded()
	info := container.Info{
		ID: id, Name: spec.Name, Spec: &spec, Created: epoch, ImageID: "sha256:" + strings.Repeat("a", 64),
		State: container.State{Status: container.StatusCreated},
	}
	if len(spec.Cmd) > 0 {
		info.Path, info.Args = spec.Cmd[0], spec.Cmd[1:]
	}
	f.list = append(f.list, info)
	return info, nil
}

func (f *fakeContainers) index(ref string) (int, error) {
	i := slices.IndexFunc(f.list, func(c container.Info) bool { return c.Name == ref || strings.HasPrefix(c.ID, ref) })
	if i < 0 {
		return i, errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	}
	return i, nil
}

func (f *fakeContainers) Get(ref string) (container.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.index(ref)
	if err != nil {
		return container.Info{}, err
	}
	return f.list[i], nil
}

func (f *fakeContainers) List(filter container.Filter) ([]container.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called("list %+v", filter)
	var out []container.Info
	for _, c := range f.list {
		if (filter.All || c.State.Running) && (filter.Owner == "" || filter.Owner == c.Spec.Owner) {
			out = append(out, c)
		}
	}
	return out, nil
}

func (f *fakeContainers) set(ref string, edit func(*container.Info)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.index(ref)
	if err == nil {
		edit(&f.list[i])
	}
	return err
}

func (f *fakeContainers) Start(_ context.Context, ref string) error {
	info, err := f.Get(ref)
	if err != nil {
		return err
	}
	if info.State.Running {
		return errdefs.ErrNotModified
	}
	return f.set(ref, func(c *container.Info) {
		c.State = container.State{Status: container.StatusRunning, Running: true, Pid: 7, StartedAt: epoch}
	})
}

func (f *fakeContainers) Stop(_ context.Context, ref string, o container.StopOptions) error {
	return f.set(ref, func(c *container.Info) {
		f.called("stop %s signal=%s", ref, o.Signal)
		c.State = container.State{Status: container.StatusExited, ExitCode: 143, StartedAt: epoch, FinishedAt: epoch.Add(time.Minute)}
	})
}

func (f *fakeContainers) Kill(_ context.Context, ref, signal string) error {
	info, err := f.Get(ref)
	if err != nil {
		return err
	}
	if !info.State.Running {
		return errdefs.ErrConflict.WithMessage("container " + info.ID + " is not running")
	}
	f.called("kill %s %s", ref, signal)
	return nil
}

func (f *fakeContainers) Remove(_ context.Context, ref string, o container.RemoveOptions) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.index(ref)
	if err != nil {
		return err
	}
	f.called("remove %s %+v", ref, o)
	f.list = slices.Delete(f.list, i, i+1)
	return nil
}

func (f *fakeContainers) Wait(ctx context.Context, ref string, c container.WaitCondition) (<-chan container.ExitStatus, error) {
	if _, err := f.Get(ref); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan container.ExitStatus, 1)
	if f.waiters == nil {
		f.waiters = map[string]chan container.ExitStatus{}
	}
	f.waiters[ref] = ch
	return ch, nil
}

func (f *fakeContainers) exit(ref string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiters[ref] <- container.ExitStatus{Code: code}
	close(f.waiters[ref])
}

// Attach answers "out" and "err", then echoes its input until that ends.
func (f *fakeContainers) Attach(ctx context.Context, ref string, o container.AttachOptions) error {
	o.Attached()
	if o.Stdout != nil {
		_, _ = io.WriteString(o.Stdout, "out")
	}
	if o.Stderr != nil {
		_, _ = io.WriteString(o.Stderr, "err")
	}
	if o.Stdin != nil {
		_, _ = io.Copy(o.Stdout, o.Stdin)
	}
	return nil
}

func (f *fakeContainers) ExecCreate(_ context.Context, ref string, spec container.ExecSpec) (string, error) {
	info, err := f.Get(ref)
	if err != nil {
		return "", err
	}
	if !info.State.Running {
		return "", errdefs.ErrConflict.WithMessage("container " + info.ID + " is not running")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.execs == nil {
		f.execs = map[string]*container.ExecInfo{}
	}
	id := fmt.Sprintf("exec%d", len(f.execs))
	f.execs[id] = &container.ExecInfo{ID: id, ContainerID: info.ID, Spec: spec}
	return id, nil
}

func (f *fakeContainers) ExecInspect(id string) (container.ExecInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.execs[id]
	if !ok {
		return container.ExecInfo{}, errdefs.ErrNotFound
	}
	return *e, nil
}

func (f *fakeContainers) ExecStart(_ context.Context, id string, o container.ExecIO) error {
	e, err := f.ExecInspect(id)
	if err != nil {
		return err
	}
	if e.Spec.Cmd[0] == "nosuch" {
		f.execEnded(id, 127)
		return errors.New(`exec: "nosuch": executable file not found in $PATH`)
	}
	if o.Started != nil {
		o.Started()
	}
	if o.Stdout != nil {
		fmt.Fprintf(o.Stdout, "ran %s", e.Spec.Cmd)
	}
	f.execEnded(id, 0)
	return nil
}

func (f *fakeContainers) execEnded(id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.execs[id].Started, f.execs[id].ExitCode = true, &code
}

func (f *fakeContainers) Logs(_ context.Context, ref string, o container.LogOptions) (LogReader, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var entries []container.LogEntry
	for _, e := range f.entries {
		if e.Stream == stdoutStream && o.Stdout || e.Stream == stderrStream && o.Stderr {
			entries = append(entries, e)
		}
	}
	return &fakeLog{entries}, nil
}

type fakeLog struct{ entries []container.LogEntry }

func (l *fakeLog) Next() (container.LogEntry, error) {
	if len(l.entries) == 0 {
		return container.LogEntry{}, io.EOF
	}
	e := l.entries[0]
	l.entries = l.entries[1:]
	return e, nil
}

func (l *fakeLog) Close() error { return nil }

type fakeImages struct {
	Images
	list []image.Image
}

func (f *fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	for _, img := range f.list {
		if slices.Contains(img.Names, ref) || slices.Contains(img.Names, ref+":latest") || strings.HasPrefix(img.ID.Encoded(), ref) || img.ID.String() == ref {
			return img, nil
		}
	}
	return image.Image{}, errdefs.ErrNotFound.WithMessage("No such image: " + ref)
}

func (f *fakeImages) List(context.Context) ([]image.Image, error) { return f.list, nil }
func (f *fakeImages) Tag(_ context.Context, source, target string) error {
	_, err := f.Get(context.Background(), source)
	return err
}

func (f *fakeImages) Usage(context.Context) (image.Usage, error) { return image.Usage{Images: 42}, nil }

type fakeNetworks struct {
	Networks
	list []network.Network
}

func (f *fakeNetworks) List() []network.Network { return f.list }
func (f *fakeNetworks) NetworkEndpoints(string) ([]network.Endpoint, error) {
	return nil, nil
}

func (f *fakeNetworks) Get(ref string) (network.Network, error) {
	for _, n := range f.list {
		if n.Name == ref || n.ID == ref {
			return n, nil
		}
	}
	return network.Network{}, errdefs.ErrNotFound.WithMessage("network " + ref + " not found")
}

func (f *fakeNetworks) Create(_ context.Context, spec network.Spec) (network.Network, error) {
	n := network.Network{ID: digest.FromString(spec.Name).Encoded(), Name: spec.Name, Driver: "bridge", Subnet: spec.Subnet, Created: epoch}
	f.list = append(f.list, n)
	return n, nil
}

type fakeVolumes struct {
	Volumes
	list []volume.Volume
}

func (f *fakeVolumes) List() []volume.Volume { return f.list }
func (f *fakeVolumes) Create(_ context.Context, spec volume.Spec) (volume.Volume, error) {
	v := volume.Volume{Name: spec.Name, Driver: "local", Labels: spec.Labels, Anonymous: spec.Anonymous, CreatedAt: epoch}
	f.list = append(f.list, v)
	return v, nil
}

type fakeBuilder struct{ Builder }

func (fakeBuilder) Usage(context.Context) ([]build.CacheRecord, error) { return nil, nil }

// harness is a server over fakes, reached through a unix socket as the real one is.
type harness struct {
	t          *testing.T
	containers *fakeContainers
	images     *fakeImages
	networks   *fakeNetworks
	volumes    *fakeVolumes
	events     *event.Bus
	server     *Server
	socket     string
	client     http.Client
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{
		t: t, containers: &fakeContainers{}, images: &fakeImages{}, networks: &fakeNetworks{}, volumes: &fakeVolumes{},
		events: event.NewBus(100), socket: filepath.Join(t.TempDir(), "docker.sock"),
	}
	server := New(Options{
		Containers: h.containers, Images: h.images, Networks: h.networks, Volumes: h.volumes, Builder: fakeBuilder{},
		Events: h.events, Host: Host{ID: "host", Version: "0.1.0", DataDir: "/data"}, Log: slog.New(slog.DiscardHandler),
	})
	h.server = server
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(server)
	ts.Listener.Close()
	ts.Listener = l
	ts.Start()
	t.Cleanup(ts.Close)
	h.client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
	}}
	t.Cleanup(h.client.CloseIdleConnections)
	return h
}

// do makes a request; a body that is not empty is JSON.
func (h *harness) do(method, path, body string) (int, string) {
	h.t.Helper()
	resp := h.open(method, path, body)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, string(raw)
}

func (h *harness) open(method, path, body string) *http.Response {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://docker"+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// json makes a request that must succeed and decodes its answer.
func (h *harness) json(method, path, body string) map[string]any {
	h.t.Helper()
	status, raw := h.do(method, path, body)
	if status >= 300 {
		h.t.Fatalf("%s %s = %d %s", method, path, status, raw)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(raw), &m); err != nil {
		h.t.Fatalf("%s %s = %s: %v", method, path, raw, err)
	}
	return m
}

func (h *harness) running(name string) {
	h.t.Helper()
	h.do("POST", "/containers/create?name="+name, `{"Image":"app","Cmd":["sleep","1"],"OpenStdin":true}`)
	if status, raw := h.do("POST", "/containers/"+name+"/start", ""); status != 204 {
		h.t.Fatalf("start = %d %s", status, raw)
	}
}
