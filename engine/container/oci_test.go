package container

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

var update = flag.Bool("update", false, "rewrite golden files")

func ptr[T any](v T) *T { return &v }

// TestGenerate pins the whole specification for typical containers: what changes in
// isolation must be seen in review.
func TestGenerate(t *testing.T) {
	host := hostFacts{Swap: true, MaxNoFile: 1 << 20, Recursive: true, NumCPU: 2, Capabilities: allCapabilities}
	base := bundle{
		ID: "0123456789ab", Args: []string{"sh", "-c", "true"}, Rootfs: "/d/rootfs", Cgroup: "/slipway-abcdef/0123456789ab", Host: host,
		Net: warden.SandboxPath, CgroupNS: hostNamespace, Hostname: "0123456789ab",
	}
	tests := map[string]func(b *bundle){
		"default": func(b *bundle) { b.Spec = &Spec{} },
		"limits": func(b *bundle) {
			b.Spec = &Spec{Tty: true, ReadOnly: true, User: "app", CapDrop: []string{"all"}, CapAdd: []string{"chown"}, NoNewPrivs: true, Resources: Resources{
				Memory: 64 << 20, NanoCPUs: 1.5e9, PidsLimit: ptr(int64(10)), OomScoreAdj: ptr(500), Ulimits: []Ulimit{{"core", 0, -1}}, CPUShares: 512, CpusetCpus: "0",
			}}
			b.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1001, 50}}
			b.ConsoleRows, b.ConsoleCols = 24, 80
		},
		"privileged-host": func(b *bundle) {
			b.Spec = &Spec{Privileged: true}
			b.Net, b.PID, b.IPC, b.UTS = hostNamespace, hostNamespace, hostNamespace, hostNamespace
			b.Host.AllDevices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
		},
		"pod": func(b *bundle) {
			b.Spec = &Spec{Sandbox: "pod", Sysctls: map[string]string{"kernel.shm_rmid_forced": "1"}, Env: []string{"A=b"}, AmbientCaps: []string{"CAP_NET_BIND_SERVICE"}}
			b.IPC, b.UTS, b.Hostname = warden.SandboxPath, warden.SandboxPath, "web-0"
			b.User.UID = 65532
			b.Mounts = []specs.Mount{
				{Destination: "/data/deep/er", Type: "bind", Source: "/x", Options: []string{"rbind", "rslave", "ro"}},
				{Destination: "/data", Type: "bind", Source: "/y", Options: []string{"rbind", "rprivate"}},
				{Destination: "/dev/shm", Type: "bind", Source: "/shm", Options: []string{"rbind"}},
			}
		},
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			b := base
			edit(&b)
			s, err := generate(&b)
			if err != nil {
				t.Fatal(err)
			}
			if s.Linux.Seccomp != nil { // upstream's, and long: pin that it is there
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.Linux.Seccomp.DefaultAction, Architectures: s.Linux.Seccomp.Architectures}
			}
			got, err := json.MarshalIndent(s, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.TrimSpace(string(want)), string(got)); d != "" {
				t.Errorf("specification differs from %s (go test -update rewrites it):\n%s", file, d)
			}
		})
	}
}

func TestMergeEnv(t *testing.T) {
	got := mergeEnv([]string{"A=1", "B=2", "C=3"}, []string{"B=x", "C", "D=4", "D=5", "E"})
	if want := "A=1 B=x D=5"; strings.Join(got, " ") != want {
		t.Errorf("mergeEnv = %q; want %q", got, want)
	}
}

func TestBadSpecs(t *testing.T) {
	for _, tt := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "no command specified"},
		{Spec{Name: "-x"}, "Invalid container name (-x)"},
		{Spec{WorkingDir: "rel"}, "the working directory 'rel' is invalid"},
		{Spec{StopSignal: "SIGNOPE"}, "stop signal"},
		{Spec{Restart: RestartPolicy{Policy: "maybe"}}, "unknown policy 'maybe'"},
		{Spec{Restart: RestartPolicy{Policy: "always"}, AutoRemove: true}, "can't create 'AutoRemove' container with restart policy"},
		{Spec{Restart: RestartPolicy{Policy: "always", MaxRetries: 2}}, "maximum retry count can only be used with 'on-failure'"},
		{Spec{Mounts: []Mount{{Type: MountBind, Source: "rel", Target: "/x"}}}, "mount path must be absolute"},
		{Spec{Mounts: []Mount{{Type: MountBind, Source: "/x", Target: "/"}}}, "destination can't be '/'"},
		{Spec{Mounts: []Mount{{Type: MountTmpfs, Target: "/x"}, {Type: MountTmpfs, Target: "/x/"}}}, "Duplicate mount point: /x/"},
		{Spec{Mounts: []Mount{{Type: MountVolume, Target: "/x", Subpath: "../y"}}}, "must be a relative path within the volume"},
		{Spec{CapAdd: []string{"fly"}}, `unknown capability: "CAP_FLY"`},
		{Spec{Resources: Resources{Memory: 1 << 20}}, "Minimum memory limit allowed is 6MB"},
		{Spec{Resources: Resources{Memory: 64 << 20, MemorySwap: 1 << 20}}, "memoryswap limit should be larger"},
		{Spec{Resources: Resources{NanoCPUs: 1e9, CPUQuota: 5000}}, "cannot both be set"},
		{Spec{Resources: Resources{Ulimits: []Ulimit{{"nofile", 9, 3}}}}, "soft limit 9 exceeds hard limit 3"},
		{Spec{Resources: Resources{Ulimits: []Ulimit{{"files", 1, 3}}}}, "invalid ulimit type: files"},
		{Spec{SecurityOpt: []string{"magic=1"}}, `invalid --security-opt: "magic=1"`},
		{Spec{SecurityOpt: []string{"apparmor=mine"}}, "AppArmor profiles are not supported"},
		{Spec{NetworkMode: "container:x", Hostname: "h"}, "conflicting options: hostname and the network mode"},
		{Spec{NetworkMode: "container:x", Ports: []PortMapping{{}}}, "conflicting options: port publishing"},
		{Spec{PidMode: "guest"}, "Invalid PID mode"},
		{Spec{Log: LogConfig{Driver: "smoke"}}, "no log driver named 'smoke'"},
		{Spec{ExtraHosts: []string{"db"}}, `bad format for add-host: "db"`},
		{Spec{Healthcheck: &Health{Test: []string{"RUN"}}}, "unknown healthcheck type"},
		{Spec{Healthcheck: &Health{Interval: 5}}, "cannot be less than 1ms"},
		{Spec{DeviceRules: []string{"c 1 r"}}, "invalid device cgroup rule format: 'c 1 r'"},
	} {
		if tt.want != "no command specified" {
			tt.spec.Cmd = []string{"true"}
		}
		_, err := merge(tt.spec, new(imageConfig))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("merge(%+v) = %v; want an error with %q", tt.spec, err, tt.want)
		}
	}
}

func TestLayersReadTheMergedView(t *testing.T) {
	top, bottom := t.TempDir(), t.TempDir()
	for p, c := range map[string]string{
		bottom + "/usr/etc/passwd": "bottom", bottom + "/usr/etc/gone": "x", bottom + "/opq/hidden": "x", bottom + "/dir/a": "a",
		top + "/usr/etc/new": "top", top + "/opq/shown": "s",
	} {
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, []byte(c), 0o644)
	}
	os.Symlink("usr/etc", bottom+"/etc")
	os.Symlink("../../../../../../usr/etc/passwd", top+"/up")
	os.Symlink("/loop", top+"/loop")
	if err := mkWhiteout(top + "/usr/etc/gone"); err != nil {
		t.Skip("needs root: makes a device node:", err)
	}
	if err := setOpaque(top + "/opq"); err != nil {
		t.Skip("needs trusted extended attributes:", err)
	}
	l := layers{top, bottom}
	for p, want := range map[string]string{
		"/etc/passwd": "bottom", "/etc/new": "top", "/up": "bottom", "/opq/shown": "s", "/dir/a": "a",
		"/etc/gone": "", "/opq/hidden": "", "/loop": "", "/etc": "", "/etc/passwd/x": "",
	} {
		f, err := l.open(p)
		if err != nil {
			if want != "" {
				t.Errorf("open(%s) = %v; want %q", p, err, want)
			}
			continue
		}
		b := make([]byte, 10)
		n, _ := f.Read(b)
		f.Close()
		if string(b[:n]) != want {
			t.Errorf("open(%s) read %q; want %q", p, b[:n], want)
		}
	}
	if got := l.directory("/etc"); len(got) != 2 || got[0] != top+"/usr/etc" {
		t.Errorf("directory(/etc) = %v; want both layers, the upper one first", got)
	}
	if got := l.directory("/opq"); len(got) != 1 {
		t.Errorf("directory(/opq) = %v; want the opaque one only", got)
	}
}
