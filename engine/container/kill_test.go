package container

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/warden/wardentest"
)

const victimEnv = "SLIPWAY_TEST_VICTIM_DIR"

// TestVictim is not a test: it is the daemon that TestKillAtAnyMoment kills. It creates,
// starts and removes containers and says what was acknowledged.
func TestVictim(t *testing.T) {
	dir := os.Getenv(victimEnv)
	if dir == "" {
		return // it runs as a child of TestKillAtAnyMoment only
	}
	m := &machine{t: t, dir: dir}
	m.open()
	ctx := context.Background()
	fmt.Println("ACK ready -")
	for n := 0; ; n++ {
		i, err := m.Create(ctx, Spec{Image: "busybox", Name: fmt.Sprintf("c%d-%d", os.Getpid(), n), Cmd: []string{"sleep", "1000"}})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("ACK created", i.ID)
		if n%3 != 0 {
			if err := m.Start(ctx, i.ID); err != nil {
				t.Fatal(err)
			}
			fmt.Println("ACK started", i.ID)
		}
		if n%3 == 2 {
			fmt.Println("ACK removing", i.ID)
			if err := m.Remove(ctx, i.ID, RemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			fmt.Println("ACK removed", i.ID)
		}
	}
}

// TestKillAtAnyMoment: whatever the daemon had acknowledged when it was killed is true
// afterwards, and nothing is left of what it had not.
func TestKillAtAnyMoment(t *testing.T) {
	m := newMachine(t)
	m.stopDaemon()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	last := map[string]string{} // id to the last acknowledgement
	for range 5 {
		killVictim(t, m.dir, rnd.IntN(12), last)
	}
	m.open()
	for id, ack := range last {
		info, err := m.Get(id)
		switch ack {
		case "created":
			if err != nil {
				t.Errorf("acknowledged container %s is lost: %v", id[:12], err)
			}
		case "started":
			if err != nil || !info.State.Running {
				t.Errorf("acknowledged running container %s: %v, %+v", id[:12], err, info.State)
			}
		case "removed":
			if !errdefs.IsNotFound(err) {
				t.Errorf("removed container %s is back: %v", id[:12], err)
			}
		}
	}
	m.Drain()
	m.checkAgainstWarden()
}

// killVictim runs a daemon, lets it acknowledge a few things, and kills it in the middle
// of the next.
func killVictim(t *testing.T, dir string, acks int, last map[string]string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
	// It must not build one more program, which nobody would remove.
	cmd.Env = append(os.Environ(), victimEnv+"="+dir, "SLIPWAY_BIN="+filepath.Dir(wardentest.Program(t)))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	ready := false
	for n := 0; sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 3 || f[0] != "ACK" {
			if !ready || strings.Contains(sc.Text(), "FAIL") {
				t.Log(sc.Text())
			}
			continue
		}
		ready = true
		if f[2] != "-" {
			last[f[2]] = f[1]
		}
		if n++; n == acks+1 {
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if !ready {
		t.Fatal("the daemon that was to be killed did not start")
	}
}

// checkAgainstWarden: what runs is what the manager says runs, and each has one sandbox.
func (m *machine) checkAgainstWarden() {
	m.t.Helper()
	list, err := m.client.List(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	running := map[string]bool{}
	for _, p := range list {
		running[p.ContainerID] = true
		if i, err := m.Get(p.ContainerID); err != nil || i.State.Pid != p.Pid {
			m.t.Errorf("the warden runs %s as %d; the manager says %+v, %v", p.ContainerID[:12], p.Pid, i.State, err)
		}
	}
	infos, _ := m.List(Filter{})
	for _, i := range infos {
		if !running[i.ID] {
			m.t.Errorf("the manager says that %s runs; the warden does not know it", i.Name)
		}
	}
	sandboxes, err := m.client.Sandboxes(context.Background())
	if err != nil || len(sandboxes) != len(running) {
		m.t.Errorf("%d sandboxes (%v) for %d running containers", len(sandboxes), err, len(running))
	}
}
