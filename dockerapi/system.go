package dockerapi

import (
	"context"
	"net/http"
	"os"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

func (s *Server) systemRoutes(t *router) {
	t.add("GET", "/_ping", s.ping)
	t.add("HEAD", "/_ping", s.ping)
	t.add("GET", "/version", s.getVersion)
	t.add("GET", "/info", s.getInfo)
	t.add("POST", "/auth", s.postAuth)
	t.add("GET", "/events", s.getEvents)
	t.add("GET", "/system/df", s.getDiskUsage)
}

func (s *Server) ping(w *reply, r *request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1") // 2 sends old clients to /session
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

func (s *Server) getVersion(w *reply, r *request) error {
	m := readMachine()
	details := map[string]string{
		"ApiVersion": maxVersion.String(), "MinAPIVersion": minVersion.String(), "Os": "linux", "Arch": runtime.GOARCH,
		"GoVersion": runtime.Version(), "KernelVersion": m.kernel, "Experimental": "false",
		"GitCommit": s.host.Commit, "BuildTime": s.host.Built,
	}
	return writeJSON(w, http.StatusOK, system.VersionResponse{
		Platform:   system.PlatformInfo{Name: "Slipway"},
		Version:    s.host.Version,
		APIVersion: maxVersion.String(), MinAPIVersion: minVersion.String(),
		Os: "linux", Arch: runtime.GOARCH,
		GitCommit: s.host.Commit, GoVersion: runtime.Version(), KernelVersion: m.kernel, BuildTime: s.host.Built,
		Components: []system.ComponentVersion{{Name: "Engine", Version: s.host.Version, Details: details}},
	})
}

func (s *Server) getInfo(w *reply, r *request) error {
	info, err := s.info(r.Context())
	if err != nil {
		return err
	}
	b, err := withFields(info, map[string]any{ // read by docker 20.10 and docker-py
		"BridgeNfIptables": true, "BridgeNfIp6tables": true, "KernelMemory": false, "KernelMemoryTCP": false,
		"ClusterStore": "", "ClusterAdvertise": "",
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, b)
}

func (s *Server) info(ctx context.Context) (system.Info, error) {
	m := readMachine()
	info := system.Info{
		ID: s.host.ID, Name: m.hostname, ServerVersion: s.host.Version, DockerRootDir: s.host.DataDir,
		Driver:       s.host.driver(),
		DriverStatus: [][2]string{{"driver-type", "overlay layers over containerd's content store"}},
		Plugins: system.PluginsInfo{
			Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "local", "none"},
		},
		MemoryLimit: m.controllers["memory"], SwapLimit: m.memorySwap,
		CPUCfsPeriod: m.controllers["cpu"], CPUCfsQuota: m.controllers["cpu"], CPUShares: m.controllers["cpu"],
		CPUSet: m.controllers["cpuset"], PidsLimit: m.controllers["pids"], OomKillDisable: m.cgroupVersion == "1",
		IPv4Forwarding: m.ipv4Forwarding,
		NFd:            openFiles(), NGoroutines: runtime.NumGoroutine(),
		SystemTime:    time.Now().Format(time.RFC3339Nano),
		LoggingDriver: "json-file", CgroupDriver: "cgroupfs", CgroupVersion: m.cgroupVersion,
		KernelVersion: m.kernel, OperatingSystem: m.system, OSVersion: m.systemVersion, OSType: "linux", Architecture: m.arch,
		NCPU: runtime.NumCPU(), MemTotal: m.memory,
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:     registryServices(),
		HTTPProxy:          os.Getenv("HTTP_PROXY"), HTTPSProxy: os.Getenv("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		Labels:         []string{},
		DefaultRuntime: "runc",
		Runtimes:       map[string]system.RuntimeWithStatus{"runc": {Runtime: system.Runtime{Path: "slipway-warden"}}},
		Swarm:          swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, LiveRestoreEnabled: true,
		Isolation:       container.Isolation(""),
		InitBinary:      "slipway-warden",
		SecurityOptions: []string{"name=seccomp,profile=builtin"},
		CDISpecDirs:     []string{},
		Warnings:        []string{},
	}
	if m.cgroupVersion == "2" {
		info.SecurityOptions = append(info.SecurityOptions, "name=cgroupns")
	}
	if s.host.Warnings != nil {
		info.Warnings = append(info.Warnings, s.host.Warnings()...)
	}
	return info, s.countInto(ctx, &info)
}

// countInto fills in how many containers and images there are.
func (s *Server) countInto(ctx context.Context, info *system.Info) error {
	for _, c := range s.dockerContainers(nil) {
		info.Containers++
		switch {
		case c.State.Paused:
			info.ContainersPaused++
		case c.State.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	images, err := s.images.List(ctx)
	info.Images = len(images)
	return err
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries)
}

func registryServices() *registry.ServiceConfig {
	return &registry.ServiceConfig{
		IndexConfigs: map[string]*registry.IndexInfo{
			"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true},
		},
		Mirrors: []string{},
	}
}
