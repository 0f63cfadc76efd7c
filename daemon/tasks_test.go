package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestAStopThatHangsIsGivenUp(t *testing.T) {
	var log bytes.Buffer
	d := &daemon{Options: Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Dump: &log}}
	release := make(chan struct{})
	hang := func() { <-release }
	d.tasks.Go("a task that hangs", hang)
	d.tasks.Go("a task that ends", func() {})
	d.closers.add("a room that hangs", func(context.Context) error { hang(); return nil })
	ended := make(chan error, 1)
	go func() {
		d.closers.close(t.Context(), d.Log, &d.tasks)
		d.tasks.Wait()
		ended <- nil
	}()
	for len(d.tasks.Running()) != 2 || !strings.Contains(strings.Join(d.tasks.Running(), ","), "closing") { // the short task has ended, and closing has begun
		time.Sleep(time.Millisecond)
	}

	passed := make(chan time.Time)
	close(passed)
	err := d.awaitEnd(ended, passed)

	const want = "a task that hangs, closing a room that hangs"
	if err == nil || !strings.Contains(err.Error(), "still running after 30s: "+want+":") {
		t.Errorf("a stop that hangs ends with %v; want an error that names %q", err, want)
	}
	for _, said := range []string{want, "TestAStopThatHangsIsGivenUp"} {
		if !strings.Contains(log.String(), said) {
			t.Errorf("the log does not have %q:\n%s", said, log.String())
		}
	}
	close(release)
	if err := <-ended; err != nil || len(d.tasks.Running()) > 0 {
		t.Errorf("after the end: %v, and still %q", err, d.tasks.Running())
	}
}

func TestAStopIsAsItsDaemonEnded(t *testing.T) {
	d := &daemon{}
	want := errors.New("a part has failed")
	ended := make(chan error, 1)
	ended <- want
	if err := d.awaitEnd(ended, nil); err != want {
		t.Errorf("the daemon ended with %v; want %v", err, want)
	}
}
