package server

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// cgroupPaths are a cgroup's directories: by controller on cgroup v1, under "" on v2. A hybrid machine has both, and then
// "" has no controllers but still cgroup.kill.
type cgroupPaths map[string]string

func pathsOf(cg *cgroups.Cgroup) (cgroupPaths, error) {
	m, err := manager.New(cg)
	if err != nil {
		return nil, err
	}
	return m.GetPaths(), nil
}

// cgroupAt finds the directories of a cgroup by its path.
func cgroupAt(path string) (cgroupPaths, error) {
	return pathsOf(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{}})
}

// kill sends SIGKILL to everything in the cgroup. What is frozen on cgroup v1 dies when it is thawed.
func (c cgroupPaths) kill() {
	if dir := c[""]; dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err == nil {
			return
		}
	}
	for range 5 { // it may fork meanwhile
		pids := c.pids()
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func (c cgroupPaths) pids() []int {
	for _, name := range []string{"pids", "devices", "memory", ""} {
		if dir := c[name]; dir != "" {
			if pids, err := cgroups.GetAllPids(dir); err == nil {
				return pids
			}
		}
	}
	return nil
}

// thaw ends a pause on cgroup v1 and v2.
func (c cgroupPaths) thaw() {
	if dir := c["freezer"]; dir != "" {
		os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
	}
	if dir := c[""]; dir != "" {
		os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("0"), 0)
	}
}

// remove deletes the directories, and those that the container made below them.
func (c cgroupPaths) remove() error { return cgroups.RemovePaths(c) }

// memory is the directory of the memory controller, and its file that counts out-of-memory kills.
func (c cgroupPaths) memory() (dir, file string) {
	if dir := c["memory"]; dir != "" {
		return dir, "memory.oom_control"
	}
	return c[""], "memory.events"
}

func (c cgroupPaths) oomKills() (uint64, error) {
	dir, file := c.memory()
	if dir == "" {
		return 0, nil
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	return keyed(b, "oom_kill")
}

// keyed finds "key value" in a file of such lines.
func keyed(b []byte, key string) (uint64, error) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		if k, v, ok := strings.Cut(sc.Text(), " "); ok && k == key {
			return strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s in %q", key, b)
}

// joinCgroup moves this process to a cgroup of its own. leave moves it to the root and removes the cgroup.
func joinCgroup(path string) (leave func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{}})
	if err != nil {
		return func() {}, err
	}
	leave = func() {
		paths := cgroupPaths(m.GetPaths())
		for _, dir := range paths {
			if root, ok := strings.CutSuffix(dir, path); ok {
				cgroups.WriteCgroupProc(root, os.Getpid())
			}
		}
		paths.remove()
	}
	if err := m.Apply(os.Getpid()); err != nil {
		leave()
		return func() {}, err
	}
	return leave, nil
}

// setCgroup answers MethodSetCgroup: it makes a cgroup without a container, such as a pod's, and gives it limits.
func (s *Server) setCgroup(t warden.Target) error {
	if err := checkCgroup(t.ID); err != nil {
		return err
	}
	res := &cgroups.Resources{SkipDevices: true}
	applyResources(res, t.Resources)
	m, err := manager.New(&cgroups.Cgroup{Path: t.ID, Resources: res})
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", t.ID, err)
	}
	if err := m.Set(res); err != nil {
		return fmt.Errorf("set limits of cgroup %s: %w", t.ID, err)
	}
	return nil
}

// removeCgroup answers MethodRemoveCgroup. A cgroup with containers in it is an error.
func (s *Server) removeCgroup(t warden.Target) error {
	if err := checkCgroup(t.ID); err != nil {
		return err
	}
	paths, err := cgroupAt(t.ID)
	if err != nil {
		return err
	}
	if pids := paths.pids(); len(pids) > 0 {
		return fmt.Errorf("cgroup %s still has processes: %v: %w", t.ID, pids, errdefs.ErrFailedPrecondition)
	}
	return paths.remove()
}

// checkCgroup accepts the path of a cgroup that may be removed: not a root, and nothing outside.
func checkCgroup(path string) error {
	if path == "/" || !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return fmt.Errorf("cgroup path %q: it must be absolute and clean: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH)
}
