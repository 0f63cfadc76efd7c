package server

import (
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/cgroups"
)

// hasten has the kernel make itself ready for a process to change its cgroup, which the caller is about to ask for.
//
// The first such change after a while waits for every processor to pass through the scheduler, about 8 ms on an idle machine:
// a third of a container's start. Those that follow soon do not. So the warden moves itself to where it is already, while the
// namespaces and the root file system are made.
func (s *Server) hasten() {
	if s.ownProcs == "" || !s.hastening.CompareAndSwap(false, true) {
		return
	}
	s.tasks.Go(func() {
		defer s.hastening.Store(false)
		os.WriteFile(s.ownProcs, []byte(strconv.Itoa(os.Getpid())), 0) // a wish
	})
}

// procsFile finds the file that lists the processes of a cgroup, in any of its hierarchies; empty when there is none.
func procsFile(cgroup string) string {
	if cgroup == "" {
		return ""
	}
	paths, err := cgroupAt(cgroup)
	if err != nil {
		return ""
	}
	for _, dir := range paths {
		if path := filepath.Join(dir, "cgroup.procs"); cgroups.PathExists(path) {
			return path
		}
	}
	return ""
}
