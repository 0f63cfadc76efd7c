package main

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/volume"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// testdata is found before a test changes its directory.
var testdata = func() string {
	dir, err := filepath.Abs("testdata")
	if err != nil {
		panic(err)
	}
	return dir
}()

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join(testdata, name+".golden")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run with -update to make it", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func someContainers() []container.Summary {
	web := container.Summary{
		ID: "0123456789abcdef", Names: []string{"/web"}, Image: "web:1", Command: "nginx -g 'daemon off;'", Created: now.Add(-3 * time.Hour).Unix(),
		State: container.StateRunning, Status: "Up 2 hours (healthy)", Labels: map[string]string{"b": "2", "a": "1"},
		Ports: []container.PortSummary{
			{IP: netip.MustParseAddr("0.0.0.0"), PrivatePort: 81, PublicPort: 8081, Type: "tcp"},
			{IP: netip.MustParseAddr("0.0.0.0"), PrivatePort: 80, PublicPort: 8080, Type: "tcp"},
			{IP: netip.MustParseAddr("127.0.0.1"), PrivatePort: 443, PublicPort: 8443, Type: "tcp"},
			{PrivatePort: 9000, Type: "udp"},
		},
	}
	job := container.Summary{
		ID: "fedcba9876543210", Names: []string{"/job"}, Image: "sha256:aaaaaaaaaaaaaaaaaaaa", Command: "a very long command indeed, with arguments",
		Created: now.Add(-40 * time.Second).Unix(), State: container.StateExited, Status: "Exited (3) 5 seconds ago", SizeRw: 1234567, SizeRootFs: 7654321,
	}
	return []container.Summary{web, job}
}

func TestTables(t *testing.T) {
	images := []image.Summary{
		{ID: "sha256:1111111111111111", RepoTags: []string{"web:1", "localhost:5000/team/web:latest"}, RepoDigests: []string{"web@sha256:22"}, Created: now.Add(-48 * time.Hour).Unix(), Size: 123456789, Containers: 1, SharedSize: 1000},
		{ID: "sha256:3333333333333333", Created: 0, Size: 5},
	}
	history := []image.HistoryResponseItem{
		{ID: "sha256:1111111111111111", Created: now.Add(-time.Hour).Unix(), CreatedBy: "CMD [\"sh\"]", Comment: "buildkit.dockerfile.v0"},
		{ID: "<missing>", Created: now.Add(-2 * time.Hour).Unix(), CreatedBy: "RUN /bin/sh -c apt-get update && apt-get install -y something", Size: 4242},
	}
	disk := usage{
		LayersSize: 2000, Images: images, Containers: someContainers(),
		Volumes:    []volume.Volume{{Name: "v", UsageData: &volume.UsageData{Size: 100, RefCount: 0}}},
		BuildCache: []build.CacheRecord{{ID: "c", Size: 10}, {ID: "d", Size: 20, InUse: true}},
	}
	stats := container.StatsResponse{ID: "0123456789abcdef", Name: "/web"}
	stats.PreCPUStats.CPUUsage.TotalUsage, stats.PreCPUStats.SystemUsage = 100, 1000
	stats.CPUStats.CPUUsage.TotalUsage, stats.CPUStats.SystemUsage, stats.CPUStats.OnlineCPUs = 200, 2000, 2
	stats.MemoryStats = container.MemoryStats{Usage: 3 << 20, Limit: 64 << 20, Stats: map[string]uint64{"inactive_file": 1 << 20}}
	stats.Networks = map[string]container.NetworkStats{"eth0": {RxBytes: 1000, TxBytes: 2000}}
	stats.PidsStats.Current = 7

	for _, tt := range []struct {
		name  string
		list  *listing
		flags outputFlags
	}{
		{"ps", containerListing(someContainers(), now, true, false), outputFlags{}},
		{"ps-wide", containerListing(someContainers(), now, false, true), outputFlags{}},
		{"ps-quiet", containerListing(someContainers(), now, true, false), outputFlags{quiet: true}},
		{"ps-json", containerListing(someContainers(), now, true, false), outputFlags{format: "json"}},
		{"ps-template", containerListing(someContainers(), now, true, false), outputFlags{format: `{{.Names}}\t{{upper .State}}`}},
		{"ps-table", containerListing(someContainers(), now, true, false), outputFlags{format: `table {{.Names}}\t{{.Ports}}`}},
		{"images", imageListing(images, now, true, false), outputFlags{}},
		{"images-digests", imageListing(images, now, true, true), outputFlags{}},
		{"history", historyListing(history, now, true), outputFlags{}},
		{"df", usageListing(disk), outputFlags{}},
		{"stats", statsListing([]container.StatsResponse{stats}, true), outputFlags{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := tt.list.print(&out, tt.flags); err != nil {
				t.Fatal(err)
			}
			golden(t, tt.name, normalZone(out.Bytes()))
		})
	}
}

// normalZone makes times independent of where the test runs.
func normalZone(b []byte) []byte {
	_, offset := now.In(time.Local).Zone()
	if offset == 0 {
		return b
	}
	return bytes.ReplaceAll(b, []byte(now.In(time.Local).Format("Z07:00")), []byte("Z"))
}
