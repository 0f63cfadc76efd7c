package container

import (
	"testing"
	"testing/synctest"
)

type closable struct {
	Stream
	closed chan struct{}
}

func (c closable) Close() error {
	close(c.closed)
	return nil
}

// A client that goes away while its container starts may be served all the same: its stream is closed, not forgotten.
func TestLeaveClosesALateStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &joiner{ch: make(chan joined, 1)}
		c := &instance{} // joinPending has taken it from the list
		left := make(chan struct{})
		go func() {
			c.leave(j)
			close(left)
		}()
		synctest.Wait()
		s := closable{closed: make(chan struct{})}
		j.ch <- joined{stream: s}
		<-left
		select {
		case <-s.closed:
		default:
			t.Error("the stream that came late is still open")
		}
		waiting := &joiner{ch: make(chan joined, 1)}
		c.pending = []*joiner{waiting}
		if c.leave(waiting); len(c.pending) != 0 {
			t.Error("who left before the start is still waited for")
		}
	})
}
