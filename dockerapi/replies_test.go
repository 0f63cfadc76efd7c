package dockerapi

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/image"
	"slipway.dev/slipway/engine/network"
	"slipway.dev/slipway/engine/volume"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestReplies keeps every field of the replies that clients print and templates reach into: one that
// disappears breaks somebody's script.
func TestReplies(t *testing.T) {
	h := newHarness(t)
	id := digest.FromString("image")
	h.images.list = []image.Image{{
		ID: id, Names: []string{"app:1"}, RepoDigests: []string{"app@" + digest.FromString("pushed").String()}, Size: 12345, Created: epoch, TaggedAt: epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: id, Size: 701},
	}}
	h.images.list[0].Config.OS, h.images.list[0].Config.Architecture = "linux", "amd64"
	h.images.list[0].Config.Config.Cmd, h.images.list[0].Config.Config.Labels = []string{"serve"}, map[string]string{"a": "b"}
	h.images.list[0].Config.RootFS.DiffIDs = []digest.Digest{digest.FromString("layer")}
	h.networks.list = []network.Network{{
		ID: digest.FromString("net").Encoded(), Name: "back", Driver: "bridge", Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1"), Created: epoch,
	}}
	h.volumes.list = []volume.Volume{{Name: "data", Driver: "local", Mountpoint: "/data/volumes/data/_data", CreatedAt: epoch, Users: 1}}
	h.do("POST", "/containers/create?name=web", `{"Image":"app:1","Cmd":["serve","--all things"],"Env":["A=1"],"ExposedPorts":{"80/tcp":{}},
		"Healthcheck":{"Test":["CMD","true"],"Interval":1000000000},"HostConfig":{"Memory":67108864,"PidsLimit":0,"MemorySwappiness":-1,
		"PortBindings":{"80/tcp":[{"HostPort":"8080"}]},"Binds":["data:/data:ro"],"RestartPolicy":{"Name":"always"}}}`)
	if err := h.containers.set("web", func(c *container.Info) {
		c.State = container.State{
			Status: container.StatusRunning, Running: true, Pid: 7, StartedAt: epoch,
			Health: &container.HealthState{Status: "healthy", Log: []container.HealthResult{{Start: epoch, End: epoch.Add(time.Second), Output: "ok"}}},
		}
		c.Mounts = []container.MountPoint{{Type: "volume", Name: "data", Source: "/data/volumes/data/_data", Target: "/data", Driver: "local", Mode: "ro", ReadOnly: true}}
		c.Ports = []container.PortMapping{{Proto: "tcp", ContainerPort: 80, HostPort: 8080}}
		c.Endpoints = map[string]container.Endpoint{"bridge": {
			Network: "bridge", NetworkID: "n1", ID: "e1", Addr: netip.MustParsePrefix("172.17.0.2/16"), Gateway: netip.MustParseAddr("172.17.0.1"), MAC: "02:42:ac:11:00:02",
		}}
	}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, path string }{
		{"container", "/containers/web/json"},
		{"containers", "/containers/json?all=1"},
		{"image", "/images/app:1/json"},
		{"image-1.49", "/v1.49/images/app:1/json"},
		{"images", "/images/json"},
		{"images-1.43", "/v1.43/images/json"},
		{"network", "/networks/back"},
		{"networks", "/networks"},
		{"volumes", "/volumes"},
	} {
		status, raw := h.do("GET", tt.path, "")
		if status != 200 {
			t.Errorf("%s = %d %s", tt.path, status, raw)
			continue
		}
		golden(t, tt.name, raw)
	}
	for path, fields := range map[string][]string{ // differ between machines
		"/version": {"Version", "ApiVersion", "MinAPIVersion", "Os", "Arch", "KernelVersion", "Components", "Platform", "GoVersion"},
		"/info": {"ID", "Containers", "ContainersRunning", "Images", "Driver", "Plugins", "MemoryLimit", "CgroupVersion", "KernelVersion", "OSType", "Architecture",
			"NCPU", "MemTotal", "DockerRootDir", "Name", "ServerVersion", "Runtimes", "DefaultRuntime", "Swarm", "LiveRestoreEnabled", "SecurityOptions", "RegistryConfig",
			"IndexServerAddress", "BridgeNfIptables", "Warnings", "Labels", "LoggingDriver", "CgroupDriver", "OperatingSystem"},
		"/system/df": {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"},
	} {
		if path == "/system/df" {
			path += "?type=image&type=build-cache"
		}
		answer := h.json("GET", path, "")
		for _, f := range fields {
			if _, ok := answer[f]; !ok {
				t.Errorf("%s lacks %s", path, f)
			}
		}
	}
}

func golden(t *testing.T, name, raw string) {
	t.Helper()
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, []byte(strings.TrimSpace(raw)), "", "  "); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	pretty.WriteByte('\n')
	got := hostIndependent(pretty.String())
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run with -update to make it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

// hostIndependent hides what depends on the clock and on this machine's cgroups.
func hostIndependent(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if before, _, ok := strings.Cut(line, `"Status": "Up `); ok {
			lines[i] = before + `"Status": "Up …",`
		}
		if before, _, ok := strings.Cut(line, `"CgroupnsMode": `); ok {
			lines[i] = before + `"CgroupnsMode": "…",`
		}
	}
	return strings.Join(lines, "\n")
}
