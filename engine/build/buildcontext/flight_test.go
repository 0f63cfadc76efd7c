package buildcontext

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// Two builds of one context share its unpacking; when the one that does it is cancelled, the other goes on.
func TestCancelledBuildFailsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Store
		impatient, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() {
			first <- s.flight(impatient, "key", func() error { <-impatient.Done(); return impatient.Err() })
		}()
		synctest.Wait()
		done := false
		go func() {
			second <- s.flight(t.Context(), "key", func() error { done = true; return nil })
		}()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the build that was cancelled ends with %v; want %v", err, context.Canceled)
		}
		if err := <-second; err != nil || !done {
			t.Errorf("the other build ends with %v, unpacked: %v; want it to unpack for itself", err, done)
		}
	})
}

// An error of the work itself is everyone's, and is not tried again.
func TestFailedWorkIsNotRepeated(t *testing.T) {
	var s Store
	n, broken := 0, errors.New("broken archive")
	err := s.flight(t.Context(), "key", func() error { n++; return broken })
	if !errors.Is(err, broken) || n != 1 {
		t.Errorf("flight = %v after %d tries; want %v after 1", err, n, broken)
	}
}
