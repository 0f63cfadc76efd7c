package server

import (
	"log/slog"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
)

// starved is a listener that finds no descriptor for the connections that come, until it is closed.
type starved struct{ left int }

func (l *starved) AcceptUnix() (*net.UnixConn, error) {
	if l.left == 0 {
		return nil, net.ErrClosed
	}
	l.left--
	return nil, syscall.EMFILE
}

// A warden without a free descriptor goes on: its end would take the daemon's hold on every container with it.
func TestStarvedWardenKeepsListening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{log: slog.New(slog.DiscardHandler), stop: make(chan struct{})}
		l := &starved{left: 20}
		s.accept(l)
		if l.left != 0 {
			t.Errorf("the warden stopped listening with %d connections to come; want it to wait for descriptors", l.left)
		}
	})
}
