package harness

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// Port is one that nobody has, and that nobody is given until the test ends. The kernel chooses those that it gives to
// whoever asks for any from higher ones, and another test, be it of another process, finds this one's mark: a unix socket
// with a name of no file, of which there can be only one.
func Port(t testing.TB) int {
	t.Helper()
	for port := 20000 + os.Getpid()%5000; port < 30000; port++ {
		mark, err := net.Listen("unix", fmt.Sprintf("@slipway-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			mark.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { mark.Close() })
		return port
	}
	t.Fatal("no port below 30000 is free")
	return 0
}
