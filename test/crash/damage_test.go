package crash

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

func half(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, info.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func empty(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
}

// garbled overwrites some kilobytes from the third page on.
func garbled(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte("garbled."), 4<<10), 2<<12); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedFiles: a damaged file is named. What cannot be done without stops the start, before anything is changed;
// what can is set aside or reported, and the rest goes on.
func TestDamagedFiles(t *testing.T) {
	networktest.NewMachine(t)
	d := harness.Start(t)
	d.BaseImage(t)
	d.Namespace(t, ns)
	d.Docker(t, "network", "create", "lan")
	d.Docker(t, "volume", "create", "store")
	d.Docker(t, "run", "-d", "--name", "counter", "--network", "lan", "-v", "store:/data", harness.Base, "sh", "-c", count)
	d.Docker(t, "run", "--name", "resting", harness.Base, "true")
	d.Kubectl(t, "create", "configmap", "-n", ns, "kept", "--from-literal=a=b")
	id := strings.TrimSpace(d.Docker(t, "inspect", "-f", "{{.Id}}", "resting"))
	counter := strings.TrimSpace(d.Docker(t, "inspect", "-f", "{{.Id}}", "counter"))
	process := d.Docker(t, "inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "counter")
	network := strings.TrimSpace(d.Docker(t, "network", "inspect", "-f", "{{.Id}}", "lan"))

	for _, tt := range []struct {
		file    string // below the data directory
		damage  func(t *testing.T, path string)
		refused string // what the daemon that does not start says about the file
		logged  string // what the one that starts logs about it
	}{
		{file: "engine.db", damage: half, refused: "is damaged: it is cut off: "},
		{file: "engine.db", damage: garbled, refused: "is damaged: "},
		{file: "engine.db", damage: empty, refused: "is missing or empty, and there are images in "},
		{file: "etcd/member/wal/*.wal", damage: garbled, refused: "crc mismatch"},
		{file: "etcd/member/wal/*.wal", damage: empty, refused: "its files are damaged: "},
		{file: "network/networks/" + network + ".json", damage: half, refused: "is damaged: unexpected end of JSON input; restore it from a backup or remove the file"},
		{file: "network/networks/" + network + ".json", damage: empty, refused: "is empty: unexpected EOF; restore it from a backup or remove the file"},
		{file: "network/node.json", damage: half, refused: "is damaged: unexpected end of JSON input; restore it from a backup or remove the file"},
		{file: "pki/ca.key", damage: half, refused: "is damaged: it holds no PEM block"},
		{file: "pki/sa.key", damage: empty, refused: "is damaged: it holds no PEM block"},
		{file: "build/results.db", damage: half, logged: "set aside, and begun anew"},
		{file: "build/keys.db", damage: half, logged: "set aside, and begun anew"},
		{file: "containers/" + id + "/state.json", damage: half, logged: "state file is unreadable: unless the warden knows better, the container counts as exited"},
		{file: "containers/" + counter + "/state.json", damage: half, logged: "state file is unreadable: unless the warden knows better, the container counts as exited"},
		{file: "containers/" + counter + "/state.json", damage: empty, logged: "state file is unreadable: unless the warden knows better, the container counts as exited"},
		{file: "volumes/store/volume.json", damage: half, logged: "volume is unreadable: restore or remove its directory"},
	} {
		found, err := filepath.Glob(filepath.Join(d.Data, tt.file))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s is %v (%v)", tt.file, found, err)
		}
		path := found[0]
		d.Kill()
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		tt.damage(t, path)
		if tt.refused != "" {
			r := d.Try(t, "", "slipway", "serve", "--data-dir", d.Data, "--api-port", fmt.Sprint(d.Record.APIPort), "--registry-port", fmt.Sprint(d.Record.RegistryPort))
			if r.Code != 1 || !strings.Contains(r.Stderr, tt.refused) || !strings.Contains(r.Stderr, filepath.Base(path)) && !strings.Contains(r.Stderr, filepath.Join(d.Data, "etcd")) {
				t.Errorf("with a damaged %s: %v\nwant exit code 1, the file's name and %q", tt.file, r, tt.refused)
			}
		} else {
			before := len(d.Log())
			d.Launch()
			if said := d.Log()[before:]; !strings.Contains(said, tt.logged) {
				t.Errorf("with a damaged %s, the log says\n%s\nwant %q", tt.file, said, tt.logged)
			}
			if names := d.Docker(t, "ps", "-a", "--format", "{{.Names}}"); !strings.Contains(names, "counter") || !strings.Contains(names, "resting") {
				t.Errorf("with a damaged %s, the containers are %q", tt.file, names)
			}
			if now := d.Docker(t, "inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "counter"); now != process {
				t.Errorf("with a damaged %s, the container that ran as %q is %q", tt.file, process, now)
			}
			d.Kill()
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		d.Launch()
	}

	d.Kubectl(t, "get", "configmap", "-n", ns, "kept")
	if got := strings.TrimSpace(d.Docker(t, "run", "--rm", "--network", "lan", "-v", "store:/data", harness.Base, "nslookup", "counter")); !strings.Contains(got, "Address") {
		t.Errorf("a neighbour by its name: %s", got)
	}
	d.Try(t, "", "docker", "exec", "counter", "touch", "/end") // dies with the container, or ends before
	if code := strings.TrimSpace(d.Docker(t, "wait", "counter")); code != "7" {
		t.Errorf("the exit code of a container that ran through all of it is %s; want 7", code)
	}
	countedOn(t, d.Docker(t, "logs", "counter"))
}
