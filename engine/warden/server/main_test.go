package server

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

func init() {
	runtime.LockOSThread()
	Init()
}

// TestMain lets the test binary be the warden, too, as cmd/slipway-warden is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "--socket=") {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}
