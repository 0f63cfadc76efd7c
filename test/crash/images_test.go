package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

// freight is an image that is carried about: big enough that a kill meets it on its way.
const freight = 3 << 20

// movers load, pull, push, build and remove images until they are stopped, and keep what was acknowledged.
type movers struct {
	d        *harness.Daemon
	http     *http.Client
	registry string            // the other daemon's
	archives map[string][]byte // of images to load, by name
	sums     map[string]string // what the file in each image is

	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex
	images  map[string]bool // that have to be there, by name
	pushed  map[string]bool // to the other registry
	carried map[string]int  // how often each kind was acknowledged
}

// content is a file that compresses badly, another one for each name.
func content(name string) (file []byte, sum string) {
	seed := sha256.Sum256([]byte(name))
	file = make([]byte, freight)
	rand.NewChaCha8(seed).Read(file)
	return file, fmt.Sprintf("%x", sha256.Sum256(file))
}

// TestDaemonKilledWhileImagesMove kills the daemon while images come and go on every way there is.
func TestDaemonKilledWhileImagesMove(t *testing.T) {
	networktest.NewMachine(t)
	peer, d := harness.Start(t), harness.Start(t)
	peer.BaseImage(t)
	d.BaseImage(t)
	m := newMovers(t, peer, d)
	pick := random(t)
	for round := range rounds(t) {
		m.start(t, round)
		time.Sleep(time.Duration(pick.IntN(1500)) * time.Millisecond) // not to wait for anything: this is the random moment
		d.Kill()
		d.Launch()
		m.stop()
		m.verify(t, round)
		if t.Failed() {
			t.FailNow()
		}
	}
	m.finish(t)
	m.usable(t, peer)
	m.emptied(t)
}

// newMovers fills the other daemon's registry, and saves archives of its images.
func newMovers(t *testing.T, peer, d *harness.Daemon) *movers {
	t.Helper()
	m := &movers{
		d: d, http: d.DockerHTTP(), registry: fmt.Sprintf("localhost:%d", peer.Record.RegistryPort),
		archives: map[string][]byte{}, sums: map[string]string{}, images: map[string]bool{}, pushed: map[string]bool{}, carried: map[string]int{},
	}
	m.http.Timeout = patience
	for i := range 4 {
		for _, kind := range []string{"load", "pull"} {
			name := fmt.Sprintf("%s:%d", kind, i)
			if kind == "pull" {
				name = m.registry + "/" + name
			}
			file, sum := content(name)
			if _, err := peer.Build(t.Context(), name, map[string]string{"Dockerfile": "FROM " + harness.Base + "\nCOPY file /\n", "file": string(file)}); err != nil {
				t.Fatal(err)
			}
			m.sums[name] = sum
			switch kind {
			case "load":
				m.archives[name] = []byte(peer.Docker(t, "save", name))
			case "pull":
				peer.Docker(t, "push", name)
			}
		}
	}
	return m
}

func (m *movers) start(t *testing.T, round int) {
	ctx, cancel := context.WithCancel(t.Context())
	m.cancel = cancel
	every := func(task func(ctx context.Context, i int)) {
		m.tasks.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				task(ctx, round+i)
			}
		})
	}
	every(m.load)
	every(m.pull)
	every(func(ctx context.Context, i int) { m.buildAndPush(ctx, fmt.Sprintf("r%d-%d", round, i)) })
}

func (m *movers) stop() {
	m.cancel()
	m.tasks.Wait()
}

// finish goes every way once more, undisturbed.
func (m *movers) finish(t *testing.T) {
	t.Helper()
	before := maps.Clone(m.carried)
	m.load(t.Context(), 0)
	m.pull(t.Context(), 0)
	m.buildAndPush(t.Context(), "last")
	for _, kind := range []string{"load", "pull", "push", "build"} {
		if m.carried[kind] != before[kind]+1 {
			t.Errorf("after all the rounds, a %s is not acknowledged", kind)
		}
	}
}

func (m *movers) keep(kind, name string, in map[string]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	in[name] = true
	m.carried[kind]++
}

// remove takes an image away first, so that it has to come again. Whether it is there after a removal that was not
// acknowledged is open.
func (m *movers) remove(ctx context.Context, name string) {
	m.mu.Lock()
	delete(m.images, name)
	m.mu.Unlock()
	m.do(ctx, http.MethodDelete, "/images/"+name, nil)
}

func (m *movers) load(ctx context.Context, i int) {
	names := slices.Sorted(maps.Keys(m.archives))
	name := names[i%len(names)]
	m.remove(ctx, name)
	if m.do(ctx, http.MethodPost, "/images/load", m.archives[name]) {
		m.keep("load", name, m.images)
	}
}

func (m *movers) pull(ctx context.Context, i int) {
	repository, tag := m.registry+"/pull", fmt.Sprint(i%4)
	name := repository + ":" + tag
	m.remove(ctx, name)
	if m.do(ctx, http.MethodPost, "/images/create?fromImage="+url.QueryEscape(repository)+"&tag="+tag, nil) {
		m.keep("pull", name, m.images)
	}
}

func (m *movers) buildAndPush(ctx context.Context, tag string) {
	name := m.registry + "/built:" + tag
	file, sum := content(name)
	_, err := m.d.Build(ctx, name, map[string]string{"Dockerfile": "FROM " + harness.Base + "\nRUN echo " + tag + " >/tag\nCOPY file /\n", "file": string(file)})
	if err != nil {
		return
	}
	m.mu.Lock()
	m.sums[name] = sum
	m.mu.Unlock()
	m.keep("build", name, m.images)
	if m.do(ctx, http.MethodPost, "/images/"+m.registry+"/built/push?tag="+tag, nil) {
		m.keep("push", name, m.pushed)
	}
}

// do makes a request whose answer may be a stream that ends with an error.
func (m *movers) do(ctx context.Context, method, path string, body []byte) bool {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, bytes.NewReader(body))
	if err != nil {
		return false
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	if method == http.MethodDelete || resp.StatusCode != http.StatusOK {
		return resp.StatusCode == http.StatusOK
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var said struct{ Error string }
		if err := dec.Decode(&said); err != nil {
			return errors.Is(err, io.EOF)
		}
		if said.Error != "" {
			return false
		}
	}
}

// verify looks whether all that was acknowledged is listed, and runs one of it: its layers have to be whole, too.
func (m *movers) verify(t *testing.T, round int) {
	t.Helper()
	have := set(m.d.Docker(t, "images", "--format", "{{.Repository}}:{{.Tag}}"))
	want := slices.Sorted(maps.Keys(m.images))
	if err := missing("image", want, have); err != nil {
		t.Errorf("round %d: %v", round, err)
	}
	if len(want) > 0 && !t.Failed() {
		m.check(t, m.d, want[round%len(want)])
	}
	t.Logf("round %d: so far acknowledged %v", round, m.carried)
}

func (m *movers) check(t *testing.T, on *harness.Daemon, name string) {
	t.Helper()
	got, _, _ := strings.Cut(on.Docker(t, "run", "--rm", name, "sha256sum", "/file"), " ")
	if got != m.sums[name] {
		t.Errorf("the file in image %s has the digest %q; want %q", name, got, m.sums[name])
	}
}

// usable runs everything that was acknowledged, here and, if it was pushed, there.
func (m *movers) usable(t *testing.T, peer *harness.Daemon) {
	t.Helper()
	for name := range m.images {
		m.check(t, m.d, name)
	}
	for name := range m.pushed {
		m.check(t, peer, name)
	}
}

// emptied removes all images and looks what of their content stays behind.
func (m *movers) emptied(t *testing.T) {
	t.Helper()
	m.d.Docker(t, "builder", "prune", "-af")
	m.d.Docker(t, "image", "prune", "-af")
	harness.Eventually(t, "the removal of all that belongs to no image", func() error {
		size, biggest := sizeOf(t, m.d.Data)
		if size > freight { // one file of one image would be that much
			return fmt.Errorf("%d MB are left in %s, the biggest of which are %s", size>>20, m.d.Data, strings.Join(biggest, ", "))
		}
		return nil
	})
}

// sizeOf adds up what images can leave below a data directory, and names the biggest files.
func sizeOf(t *testing.T, dir string) (total int64, biggest []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == "etcd" {
			return fs.SkipDir
		}
		if rel == "init" || strings.HasSuffix(rel, ".db") { // the program of --init, and databases, which keep their size
			return nil
		}
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			total += info.Size()
			if info.Size() > freight/2 {
				biggest = append(biggest, fmt.Sprintf("%s (%d MB)", rel, info.Size()>>20))
			}
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	return total, biggest
}
