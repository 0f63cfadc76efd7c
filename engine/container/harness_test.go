package container

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/event"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/engine/volume"
	"slipway.dev/slipway/engine/warden"
	"slipway.dev/slipway/engine/warden/wardentest"
)

// TestMain moves the test binary, and with it the warden that it starts, into a network
// namespace of its own: bridges and rules of these tests are nobody else's business.
func TestMain(m *testing.M) {
	code := networktest.Run(m)
	wardentest.Remove()
	os.Exit(code)
}

// machine is everything under a Manager, all of it real.
type machine struct {
	*Manager
	t        testing.TB
	dir      string
	client   *warden.Client
	images   *image.Store
	networks *network.Manager
	bus      *event.Bus
	down     bool // crashed or stopped, and not opened again
}

const busybox = "/bin/busybox"

func newMachine(t testing.TB) *machine {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: runs real containers")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs a static busybox at " + busybox + " (package busybox-static)")
	}
	m := &machine{t: t, dir: t.TempDir()}
	m.shareSubpaths()
	m.open()
	t.Cleanup(m.teardown)
	m.makeImage("busybox:latest", nil)
	return m
}

// shareSubpaths does what the daemon does before it starts the warden.
func (m *machine) shareSubpaths() {
	m.t.Helper()
	dir := m.dir + "/subpaths"
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = unix.Mount(dir, dir, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("", dir, "", unix.MS_SHARED, "")
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			m.t.Error(err)
		}
	})
}

func (m *machine) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{m.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// open starts everything, as a daemon would; the warden may be there already.
func (m *machine) open() {
	m.t.Helper()
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			m.t.Helper()
			m.t.Fatal(err)
		}
	}
	var err error
	m.down = false
	m.bus = event.NewBus(1000)
	m.client, err = warden.Connect(ctx, warden.Options{
		Socket: m.dir + "/w.sock", Executable: wardentest.Program(m.t), StateDir: m.dir + "/warden", RootDir: m.dir + "/rootfs", Log: m.log(),
	})
	must(err)
	m.images, err = image.Open(ctx, image.Options{Root: m.dir + "/data", Log: m.log(), Events: m.bus})
	must(err)
	m.networks, err = network.Open(ctx, network.Options{Dir: m.dir + "/network", Instance: instanceOf(m.dir), FDs: m.client, Log: m.log(), Events: m.bus})
	must(err)
	volumes, err := volume.Open(volume.Options{Dir: m.dir + "/volumes", Events: m.bus, Log: m.log()})
	must(err)
	m.Manager, err = Open(ctx, Options{
		Dir: m.dir + "/containers", Instance: instanceOf(m.dir), Images: m.images, Networks: m.networks, Volumes: volumes,
		Warden: FromClient(m.client), Events: m.bus, Log: m.log(),
	})
	must(err)
}

func instanceOf(dir string) string {
	h := uint32(2166136261)
	for _, b := range []byte(dir) {
		h = (h ^ uint32(b)) * 16777619
	}
	return fmt.Sprintf("%06x", h&0xffffff)
}

// stopDaemon ends everything but the warden and its containers.
func (m *machine) stopDaemon() {
	m.t.Helper()
	if err := m.Manager.Close(); err != nil {
		m.t.Error("close containers:", err)
	}
	m.closeRest()
}

func (m *machine) closeRest() {
	m.down = true
	if err := m.networks.Close(); err != nil {
		m.t.Error("close networks:", err)
	}
	if err := m.images.Close(); err != nil {
		m.t.Error("close images:", err)
	}
	if err := m.client.Close(); err != nil {
		m.t.Error("close warden client:", err)
	}
}

func (m *machine) teardown() {
	ctx := context.Background()
	if m.down { // a test failed in between: its containers must go all the same
		m.open()
	}
	for _, c := range m.all() {
		if err := m.Remove(ctx, c.id, RemoveOptions{Force: true, Volumes: true}); err != nil {
			m.t.Log("remove:", err)
		}
	}
	m.Drain()
	if err := m.Manager.Close(); err != nil {
		m.t.Error("close containers:", err)
	}
	for _, dir := range []string{m.Dir, m.Rootfs} {
		entries, _ := os.ReadDir(dir)
		if len(entries) > 0 {
			m.t.Errorf("after everything was removed %d directories are left in %s, %s first", len(entries), dir, entries[0].Name())
		}
	}
	if err := m.networks.Teardown(ctx); err != nil {
		m.t.Error("tear networks down:", err)
	}
	m.images.Close()
	if err := m.client.Shutdown(ctx); err != nil {
		m.t.Error("shut the warden down:", err)
	}
	m.client.Close()
	for _, g := range []string{"/sys/fs/cgroup/*/slipway-", "/sys/fs/cgroup/slipway-"} {
		dirs, _ := filepath.Glob(g + instanceOf(m.dir))
		for _, d := range dirs {
			entries, _ := os.ReadDir(d)
			for _, e := range entries {
				if e.IsDir() {
					m.t.Errorf("cgroup %s is left behind in %s", e.Name(), d)
				}
			}
			os.Remove(d)
		}
	}
}

// makeImage builds an image of busybox and extra files; edit changes its configuration.
func (m *machine) makeImage(name string, files map[string]string, edit ...func(*dockerspec.DockerOCIImage)) {
	m.t.Helper()
	ctx, done, err := m.images.Lease(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	defer done()
	chain := m.layer(ctx, "", func(dir string) {
		for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root"} {
			os.MkdirAll(filepath.Join(dir, d), 0o755)
		}
		os.Chmod(filepath.Join(dir, "tmp"), 0o1777)
		b, _ := os.ReadFile(busybox)
		os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755)
		for _, applet := range strings.Fields("sh true false cat echo sleep ls id env mount hostname wget nc stty kill touch mkdir rm ln nslookup dd head test printf tail chmod ip ps pwd grep od") {
			os.Symlink("busybox", filepath.Join(dir, "bin", applet))
		}
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n"), 0o644)
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\nstaff:x:50:app\napp:x:1001:\n"), 0o644)
	})
	if len(files) > 0 {
		chain = m.layer(ctx, chain, func(dir string) {
			for path, content := range files {
				p := filepath.Join(dir, path)
				os.MkdirAll(filepath.Dir(p), 0o755)
				os.WriteFile(p, []byte(content), 0o644)
			}
		})
	}
	var cfg dockerspec.DockerOCIImage
	cfg.Architecture, cfg.OS = runtime.GOARCH, "linux"
	cfg.Config.Cmd = []string{"sh"}
	cfg.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, e := range edit {
		e(&cfg)
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.images.WriteImage(ctx, raw, chain, []string{name}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) layer(ctx context.Context, parent digest.Digest, fill func(dir string)) digest.Digest {
	m.t.Helper()
	d, err := m.images.NewLayer(ctx, parent)
	if err != nil {
		m.t.Fatal(err)
	}
	fill(d.Upper)
	l, err := d.Commit(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	return l.ChainID
}

func (m *machine) create(spec Spec) Info {
	m.t.Helper()
	if spec.Image == "" {
		spec.Image = "busybox"
	}
	i, err := m.Create(context.Background(), spec)
	if err != nil {
		m.t.Fatal(err)
	}
	return i
}

func (m *machine) start(ref string) {
	m.t.Helper()
	if err := m.Start(context.Background(), ref); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) run(spec Spec) Info {
	m.t.Helper()
	i := m.create(spec)
	m.start(i.ID)
	return m.get(i.ID)
}

func (m *machine) get(ref string) Info {
	m.t.Helper()
	i, err := m.Get(ref)
	if err != nil {
		m.t.Fatal(err)
	}
	return i
}

// await waits for cond, with a limit that only a broken machine reaches.
func (m *machine) await(ref string, cond WaitCondition) ExitStatus {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ch, err := m.Wait(ctx, ref, cond)
	if err != nil {
		m.t.Fatal(err)
	}
	st, ok := <-ch
	if !ok {
		m.t.Fatalf("container %s: %s was not reached within a minute", ref, cond)
	}
	return st
}

// output runs a container to its end and returns what it logged.
func (m *machine) output(spec Spec) (string, int) {
	m.t.Helper()
	i := m.create(spec)
	m.start(i.ID)
	st := m.await(i.ID, WaitNotRunning)
	return m.logs(i.ID), st.Code
}

func (m *machine) logs(ref string) string {
	m.t.Helper()
	r, err := m.Logs(context.Background(), ref, LogOptions{Stdout: true, Stderr: true, Tail: -1})
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	var b strings.Builder
	for {
		e, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			m.t.Fatal(err)
		}
		b.Write(e.Line)
	}
}

// until waits for an event.
func (m *machine) until(sub *event.Subscription, action string) event.Event {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			m.t.Fatalf("no event %q within a minute: %v", action, err)
		}
		if e.Type == event.Container && e.Action == action {
			return e
		}
	}
}
