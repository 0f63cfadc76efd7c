package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// crashEnv makes the test binary the victim: it names images in this directory, and says
// so on its standard output, until it is killed.
const crashEnv = "SLIPWAY_IMAGE_CRASH_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		os.Exit(victim(dir))
	}
	os.Exit(m.Run())
}

func victim(dir string) int {
	t := &testing.B{} // only for the helpers, which do not fail here
	ctx := context.Background()
	s, err := Open(ctx, Options{Root: dir})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	round := os.Getpid()
	for n := 0; ; n++ {
		name := fmt.Sprintf("app:%d-%d", round, n)
		archive := dockerArchive(t, name, second(t), tarOf(t, file{name: "n", body: name}))
		if _, err := s.Load(ctx, bytes.NewReader(archive), nil); err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println(name)
		if err := s.Tag(ctx, name, "copy-"+name); err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println("copy-" + name)
	}
}

// What was acknowledged is there after kill -9 at any moment, and whole.
func TestKilledAtAnyMoment(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("layers are overlay directories, which only root may make")
	}
	dir := t.TempDir()
	var acknowledged []string
	for round := range 8 {
		acknowledged = append(acknowledged, killAfter(t, dir, 1+3*round)...)
	}
	s := openStore(t, Options{Root: dir})
	noDrafts(t, s)
	if left, err := s.leases.List(s.Context(t.Context())); err != nil || len(left) > 0 {
		t.Errorf("leases of dead operations: %v, %v", left, err)
	}
	if err := s.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Two layers per loaded image, the lower one shared: nothing else may be left.
	if got, most := len(s.layers.all()), len(acknowledged)+8; got > most {
		t.Errorf("%d layers are left; want at most %d", got, most)
	}
	for _, name := range acknowledged {
		img, err := s.Get(t.Context(), name)
		if err != nil {
			t.Errorf("%s was acknowledged: %v", name, err)
			continue
		}
		c, err := s.Rootfs(t.Context(), img)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, l := range c.Layers {
			r, _, err := s.OpenLayer(t.Context(), l.DiffID)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			closeQuietly(r)
		}
	}
}

// killAfter runs the victim until it has acknowledged n names, and kills it in whatever it
// is doing then.
func killAfter(t *testing.T, dir string, n int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var names []string
	lines := bufio.NewScanner(out)
	for len(names) < n && lines.Scan() {
		if strings.HasPrefix(lines.Text(), "error") {
			t.Error(lines.Text())
			break
		}
		names = append(names, lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // what it said before it died counts too
		names = append(names, lines.Text())
	}
	_ = cmd.Wait() // killed, as it should be
	if len(names) < n {
		t.Fatalf("the victim acknowledged %d names; want %d", len(names), n)
	}
	return names
}
