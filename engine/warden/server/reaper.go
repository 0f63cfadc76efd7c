package server

import "C" // init.c

import (
	// Device rules for both versions of cgroups.
	_ "github.com/opencontainers/cgroups/devices"
	// The C constructor that turns a container's first process into what libcontainer needs, before Go starts.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

// reaperEnv makes this executable the init of a pid namespace, by init.c. Executed as docker-init it is the init of one
// container (--init).
const reaperEnv = "_SLIPWAY_REAPER"
