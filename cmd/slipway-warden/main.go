// Command slipway-warden keeps containers running while the daemon comes and goes (see engine/warden). slipwayd starts it;
// people do not.
package main

import (
	"os"
	"runtime"

	"slipway.dev/slipway/engine/warden/server"
)

func init() {
	runtime.LockOSThread() // main stays on the startup thread: see server.Main
	server.Init()
}

func main() {
	os.Exit(server.Main(os.Args[1:]))
}
