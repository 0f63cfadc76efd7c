package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
)

const victimDir = "SLIPWAY_TEST_VICTIM_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimDir); dir != "" {
		victim(dir)
	}
	os.Exit(m.Run())
}

// victim is the other process of TestKillLosesNothingAcknowledged: it writes until it is
// killed, and prints what has been acknowledged.
func victim(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{Kinds: kinds.All(), Backend: store.Etcd(store.EtcdOptions{Dir: dir})})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	first := s.Snapshot(kinds.ConfigMaps).Len()
	lines := make(chan string)
	for w := range 8 {
		go func() {
			for i := first + w; ; i += 8 {
				o, err := s.Create(ctx, kinds.ConfigMaps, configMap(1000*(w+1)+i))
				if err != nil {
					continue // the name is taken by an earlier life
				}
				lines <- o.GetName() + " " + o.GetResourceVersion()
			}
		}()
	}
	for line := range lines {
		fmt.Println("ack", line)
	}
}

func TestKillLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	acked := map[string]string{}
	for life := range 4 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), victimDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 40+10*life && lines.Scan(); {
			if name, rv, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "ack "), " "); ok && strings.HasPrefix(lines.Text(), "ack ") {
				acked[name] = rv
				n++
			}
		}
		_ = child.Process.Kill()
		for lines.Scan() { // acknowledged before the signal came
			if name, rv, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "ack "), " "); ok && strings.HasPrefix(name, "cm") {
				acked[name] = rv
			}
		}
		_ = child.Wait()
	}
	s := openEtcd(t, dir, nil)
	defer closeStore(t, s)
	if len(acked) < 100 {
		t.Fatalf("only %d writes were acknowledged", len(acked))
	}
	for name, rv := range acked {
		o, ok := s.Snapshot(kinds.ConfigMaps).Get("ns", name)
		if !ok || o.GetResourceVersion() != rv {
			t.Errorf("%s was acknowledged at revision %s; after kill -9 it is %v", name, rv, o)
		}
	}
}
