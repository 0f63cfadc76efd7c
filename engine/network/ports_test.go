package network

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/network/networktest"
)

// TestReservedPortTakesNoConnection: who connects before the rule is there must try again, not wait for an answer from a
// socket that nobody accepts from; and nobody else may have the port.
func TestReservedPortTakesNoConnection(t *testing.T) {
	networktest.NeedRoot(t)
	sock, port, err := bindPort(hostPort{proto: "tcp", addr: netip.MustParseAddr("127.0.0.1")})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	to := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String()
	conn, err := net.DialTimeout("tcp", to, 300*time.Millisecond)
	if err == nil {
		conn.Close()
		t.Error("a reserved port takes a connection that nobody will answer")
	} else if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() {
		t.Errorf("connect to a reserved port: %v; want to be left trying", err)
	}
	if l, err := net.Listen("tcp", to); !errors.Is(err, unix.EADDRINUSE) {
		if err == nil {
			l.Close()
		}
		t.Errorf("listen on a reserved port: %v; want EADDRINUSE", err)
	}
}
