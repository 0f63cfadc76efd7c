package warden

import (
	"context"
	"errors"
	"os/exec"
	"testing"
)

func TestProcessEnd(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	end, err := watchEnd(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := end.wait(ctx); !errors.Is(err, why) {
		t.Errorf("wait for a process that runs, with an ended context: %v; want its cause", err)
	}
	again, err := watchEnd(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	stdin.Close()
	if err := again.wait(t.Context()); err != nil {
		t.Errorf("wait for a process that ends: %v", err)
	}
	cmd.Wait()
	gone, err := watchEnd(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.wait(t.Context()); err != nil {
		t.Errorf("wait for a process that is gone: %v", err)
	}
}
