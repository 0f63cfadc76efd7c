package server

/*
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

// The init of a shared pid namespace: it reaps, and ends on SIGTERM. It runs before the Go runtime would start, so it
// costs the few hundred kilobytes of a C program.
__attribute__((constructor)) static void slipway_reaper(void) {
	if (getenv("_SLIPWAY_REAPER") == NULL)
		return;
	prctl(PR_SET_NAME, "slipway-init", 0, 0, 0);
	// Only standard streams may have come along, and they lead to the warden's log: let go of them.
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (;;) {
		int sig = 0;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (sigwait(&set, &sig) == 0 && sig == SIGTERM)
			_exit(0);
	}
}
*/
import "C"

import (
	// Device rules for both versions of cgroups.
	_ "github.com/opencontainers/cgroups/devices"
	// The C constructor that turns a container's first process into what libcontainer needs, before Go starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

// reaperEnv makes this executable the init of a pid namespace.
const reaperEnv = "_SLIPWAY_REAPER"
