package warden

import (
	"net"
	"path/filepath"
	"testing"
)

// brittleWarden answers only so many requests on each of the first connections before it
// closes them, and all requests on a later one.
func brittleWarden(t *testing.T, socket string, answers ...int) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			sock, err := l.AcceptUnix()
			if err != nil {
				return
			}
			left := -1
			if n < len(answers) {
				left = answers[n]
			}
			wire := NewConn(sock)
			answer(wire, left)
			wire.Close()
		}
	}()
}

func answer(wire *Conn, left int) {
	for ; left != 0; left-- {
		m, err := wire.Receive()
		if err != nil {
			return
		}
		reply := &Message{ID: m.ID, Body: Encode([]ProcessState{})}
		if m.Method == MethodHello {
			reply.Body = Encode(HelloReply{Version: Version, Pid: 1})
		}
		if wire.Send(reply) != nil {
			return
		}
	}
}

// A connection may be lost right behind the last answer that makes it ready.
func TestConnectionLostWhileItIsMade(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "warden.sock")
	brittleWarden(t, socket, 2, 2, 2, 2, 2, 2, 2, 2)
	var c *Client
	for c == nil { // the first one may be lost so, too
		var err error
		if c, err = Connect(t.Context(), Options{Socket: socket}); err != nil {
			t.Log(err)
		}
	}
	defer c.Close()
	if _, err := c.List(t.Context()); err != nil {
		t.Errorf("list over a connection made anew: %v", err)
	}
}
