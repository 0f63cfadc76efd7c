package network

import (
	"io"
	"net"
	"strings"
	"testing"
)

// `localhost` is ::1 first for many clients.
func TestPublishedByIPv6(t *testing.T) {
	m := newMachine(t)
	first := m.open()
	a := m.box(first, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 8081, ContainerPort: 80, HostIP: addr("127.0.0.1")},
		{HostPort: 8082, ContainerPort: 80, HostIP: addr("::1")},
		{HostPort: 8083, ContainerPort: 81},
		{ContainerPort: 80},
	}})
	if n := len(a.ep.Ports); n != 8 || a.ep.Ports[7].HostPort != a.ep.Ports[6].HostPort || !a.ep.Ports[7].HostIP.Is6() {
		t.Errorf("published: %v; want the ports without an address by IPv4 and by IPv6, under one number", a.ep.Ports)
	}
	greet(t, a.ns, "0.0.0.0:80", "a sees")
	answer := "a sees " + a.ep.Gateway.String()
	for _, tt := range []struct{ what, to, want string }{
		{"a port without an address", "[::1]:8080", answer},
		{"the same by IPv4", "127.0.0.1:8080", answer},
		{"a port of ::1", "[::1]:8082", answer},
		{"a port of ::1 by IPv4", "127.0.0.1:8082", ""},
		{"a port of 127.0.0.1 by IPv6", "[::1]:8081", ""},
		{"a port that nothing listens on inside", "[::1]:8083", ""},
	} {
		answered(t, tt.what, nil, "tcp", tt.to, tt.want)
	}
	_, err := first.Attach(t.Context(), newNetNS(t), AttachSpec{Network: "bridge", ContainerID: newID(), Name: "b", Ports: []PortMapping{{HostPort: 8082, ContainerPort: 80}}})
	if err == nil || !strings.HasSuffix(err.Error(), "Bind for [::]:8082 failed: port is already allocated") {
		t.Errorf("publishing a port whose IPv6 half is taken: %v", err)
	}

	// While nobody runs, connections wait for the next daemon.
	check(t, first.Close())
	waiting := make(chan string)
	go func() { waiting <- call(t, nil, "tcp", "[::1]:8080") }()
	second := m.open()
	if got := <-waiting; got != answer {
		t.Errorf("a connection made while no daemon ran: %q, want %q", got, answer)
	}
	check(t, second.Release(t.Context(), a.id))
	if got := knock(t, nil, "tcp", "[::1]:8080"); !unreachable4(got) {
		t.Errorf("after the container was released: %q", got)
	}
	for _, name := range m.FDs.Names() {
		if strings.HasPrefix(name, portPrefix) {
			t.Errorf("a port is still held: %s", name)
		}
	}
}

// A client that has said all it wants to say still gets its answer, and one that the
// container no longer talks to is not left hanging.
func TestRelayedConnectionsEnd(t *testing.T) {
	m := newMachine(t)
	mgr := m.open()
	a := m.box(mgr, AttachSpec{Network: "bridge", Name: "a", Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	var l net.Listener
	in(t, a.ns, func() {
		var err error
		l, err = net.Listen("tcp4", "0.0.0.0:80")
		check(t, err)
	})
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				said, _ := io.ReadAll(c)
				_, _ = c.Write(said)
				c.Close()
			}()
		}
	}()
	dial := func() *net.TCPConn {
		c, err := net.Dial("tcp6", "[::1]:8080")
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c.(*net.TCPConn)
	}
	half := dial()
	_, err := half.Write([]byte("hello"))
	check(t, err)
	check(t, half.CloseWrite())
	if got, err := io.ReadAll(half); string(got) != "hello" || err != nil {
		t.Errorf("after a half-close: %q, %v", got, err)
	}

	open := dial()
	_, err = open.Write([]byte("hello"))
	check(t, err)
	check(t, mgr.Release(t.Context(), a.id))
	if said, _ := io.ReadAll(open); len(said) > 0 { // it returns at all: that is the test
		t.Errorf("a connection of a released container said %q", said)
	}
}
