package container

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/warden"
	"slipway.dev/slipway/engine/warden/wardentest"
)

func TestNetworksOfContainers(t *testing.T) {
	m := newMachine(t)
	if _, err := m.networks.Create(t.Context(), network.Spec{Name: "front"}); err != nil {
		t.Fatal(err)
	}
	serve := []string{"sh", "-c", "exec nc -ll -p 80 -e echo from $HOSTNAME"}
	web := m.run(Spec{
		Name: "web", Hostname: "webhost", Cmd: serve, NetworkMode: "front", Endpoints: map[string]EndpointSpec{"front": {Aliases: []string{"www"}}},
		Ports: []PortMapping{{Proto: "tcp", ContainerPort: 80}},
	})
	if len(web.Ports) == 0 || web.Ports[0].HostPort == 0 || !web.Endpoints["front"].Addr.IsValid() {
		t.Fatalf("web has ports %+v and endpoints %+v", web.Ports, web.Endpoints)
	}
	published := fmt.Sprintf("127.0.0.1:%d", web.Ports[0].HostPort)
	awaitServer(t, published)
	for _, name := range []string{"web", "www", web.ID[:12]} {
		out, code := m.output(Spec{NetworkMode: "front", Cmd: []string{"nc", "-w", "20", name, "80"}})
		if code != 0 || out != "from webhost\n" {
			t.Errorf("by the name %s: %q, %d", name, out, code)
		}
	}
	conn, err := net.Dial("tcp", published)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(conn); string(b) != "from webhost\n" {
		t.Errorf("through the published port: %q", b)
	}
	conn.Close()

	peer := m.run(Spec{Name: "peer", Cmd: []string{"sleep", "1000"}})
	ask := func() string {
		r, err := m.ExecRun(t.Context(), peer.ID, ExecSpec{Cmd: []string{"nc", "-w", "5", "web", "80"}}, 100)
		if err != nil {
			t.Fatal(err)
		}
		return string(r.Output)
	}
	if got := ask(); strings.Contains(got, "webhost\n") {
		t.Errorf("a container of another network reached web: %q", got)
	}
	if err := m.Connect(t.Context(), "peer", "front", EndpointSpec{}); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != "from webhost\n" {
		t.Errorf("after the connection: %q", got)
	}
	if err := m.Disconnect(t.Context(), "peer", "front", false); err != nil {
		t.Fatal(err)
	}
	if got := m.get("peer").Endpoints; len(got) != 1 {
		t.Errorf("after the disconnection peer is on %v", got)
	}
	out, _ := m.output(Spec{NetworkMode: "container:web", Cmd: []string{"sh", "-c", "hostname; cat /etc/hosts"}})
	if !strings.Contains(out, "webhost\n") || !strings.Contains(out, web.Endpoints["front"].Addr.Addr().String()) {
		t.Errorf("in web's network: %q", out)
	}
	if err := m.Start(t.Context(), m.create(Spec{NetworkMode: "nope"}).ID); !errdefs.IsNotFound(err) {
		t.Errorf("start on a missing network = %v; want not found", err)
	}
	if err := m.Restart(t.Context(), "web", StopOptions{Timeout: new(int)}); err != nil {
		t.Fatal(err)
	}
	if got := m.get("web").Endpoints["front"]; !got.Addr.IsValid() {
		t.Errorf("after a restart web has %+v", got)
	}
	if err := m.Disconnect(t.Context(), "web", "front", false); err != nil {
		t.Fatal(err)
	}
	if got := m.get("web").Ports; len(got) != 0 {
		t.Errorf("off all networks web still publishes %+v", got)
	}
}

// lossyWarden makes sandboxes and loses the answers.
type lossyWarden struct{ Warden }

func (w lossyWarden) CreateSandbox(ctx context.Context, spec warden.SandboxSpec) (*os.File, error) {
	return wardentest.Lose(w.Warden.CreateSandbox(ctx, spec))
}

// A namespace that was made without anybody hearing of it goes like any other.
func TestAnswerOfTheWardenLost(t *testing.T) {
	m := newMachine(t)
	c := m.create(Spec{Cmd: []string{"sleep", "1000"}})
	whole := m.Manager.Warden
	m.Manager.Warden = lossyWarden{whole}
	if err := m.Start(t.Context(), c.ID); !errdefs.IsUnavailable(err) {
		t.Errorf("start without an answer of the warden: %v", err)
	}
	i, err := m.find(c.ID)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	cleaned := i.cleaned
	i.mu.Unlock()
	<-cleaned
	m.Manager.Warden = whole
	if ids, err := m.client.Sandboxes(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("a start that failed left the sandboxes %v (%v)", ids, err)
	}
	m.start(c.ID)
}

func TestContainersOfAPod(t *testing.T) {
	m := newMachine(t)
	netns, err := m.client.CreateSandbox(t.Context(), warden.SandboxSpec{ID: "pod-1", Net: true, IPC: true, UTS: true, Hostname: "web-0"})
	if err != nil {
		t.Fatal(err)
	}
	netns.Close()
	defer m.client.RemoveSandbox(context.Background(), "pod-1")
	hosts := t.TempDir() + "/hosts"
	os.WriteFile(hosts, []byte("1.2.3.4 web-0\n"), 0o644)
	pod := Spec{
		Owner: OwnerNode, Sandbox: "pod-1", HostsFile: hosts, CgroupParent: "/slipway-" + instanceOf(m.dir) + "/pod1",
		Restart: RestartPolicy{Policy: RestartAlways}, LogPath: t.TempDir() + "/0.log",
	}
	first := pod
	first.Cmd = []string{"sh", "-c", "hostname; cat /etc/hosts; nc -l -p 99 >/dev/null; exit 3"}
	one := m.run(first)
	m.awaitLog(one.ID, "1.2.3.4")
	second := pod
	second.Cmd = []string{"sh", "-c", "until nc 127.0.0.1 99; do sleep 0.01; done"} // it need not listen yet
	second.LogPath += ".1"
	if out, code := m.output(second); code != 0 {
		t.Errorf("the second container did not reach the first on localhost: %q, %d", out, code)
	}
	if st := m.await(one.ID, WaitNotRunning); st.Code != 3 {
		t.Errorf("the pod's container ended with %d; want 3, and no restart", st.Code)
	}
	if out := m.logs(one.ID); !strings.HasPrefix(out, "web-0\n") {
		t.Errorf("the pod's container saw %q", out)
	}
	if r, err := m.Prune(t.Context(), Filter{}); err != nil || len(r.Removed) != 0 {
		t.Errorf("Docker's prune removed a pod's container: %v, %v", r, err)
	}
	for _, c := range m.all() {
		if err := m.Remove(t.Context(), c.id, RemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
	if err := m.client.RemoveCgroup(t.Context(), pod.CgroupParent); err != nil { // it is its owner's to remove, and empty
		t.Error(err)
	}
}

// TestManyAtOnce: starts, exits and removals of many containers do not disturb each other.
func TestManyAtOnce(t *testing.T) {
	m := newMachine(t)
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			i, err := m.Create(t.Context(), Spec{Image: "busybox", AutoRemove: true, Cmd: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", n, n)}})
			if err != nil {
				t.Error(err)
				return
			}
			var out bytes.Buffer
			attached, done := make(chan bool), make(chan error)
			go func() {
				done <- m.Attach(t.Context(), i.ID, AttachOptions{Stdout: &out, Stream: true, Attached: func() { close(attached) }})
			}()
			<-attached
			ch, err := m.Wait(t.Context(), i.ID, WaitRemoved)
			if err != nil {
				t.Error(err)
				return
			}
			if err := m.Start(t.Context(), i.ID); err != nil {
				t.Error(err)
				return
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			if st := <-ch; st.Code != n || out.String() != fmt.Sprintf("%d\n", n) {
				t.Errorf("container %d: exit %d, output %q", n, st.Code, out.String())
			}
		})
	}
	wg.Wait()
}

// awaitServer waits until somebody answers: a container that has started need not listen yet.
func awaitServer(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("nobody listens at %s: %v", addr, err)
		}
	}
}
