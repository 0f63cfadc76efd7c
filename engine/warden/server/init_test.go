package server

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"slipway.dev/slipway/engine/warden"
)

// withInit runs the command below the init that --init means: this executable under another name. It may need the
// machine's libraries, which the warden proper does not.
func withInit(t *testing.T, h *house) option {
	t.Helper()
	exe := h.opts.Executable
	if exe == "/proc/self/exe" {
		var err error
		if exe, err = os.Executable(); err != nil {
			t.Fatal(err)
		}
	}
	path := h.dir + "/init"
	if err := warden.InstallInit(exe, path); err != nil {
		t.Fatal(err)
	}
	return func(s *warden.ContainerSpec) {
		s.Bundle.Process.Args = append([]string{"/sbin/docker-init", "--"}, s.Bundle.Process.Args...)
		ro := []string{"rbind", "ro"}
		s.Bundle.Mounts = append(s.Bundle.Mounts, specs.Mount{Destination: "/sbin/docker-init", Type: "bind", Source: path, Options: ro})
		for _, dir := range []string{"/lib", "/lib64"} {
			if real, err := os.Stat(dir); err == nil && real.IsDir() {
				s.Bundle.Mounts = append(s.Bundle.Mounts, specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: ro})
			}
		}
	}
}

func TestInitReapsAndForwards(t *testing.T) {
	h := newHouse(t)
	init := withInit(t, h)
	// The orphan becomes process 1's child, and when it ends a zombie, unless process 1 reaps it.
	script := `trap 'echo term; exit 5' TERM
		sh -c 'sleep 0.01 & echo $!' > /tmp/orphan
		while test -e /proc/$(cat /tmp/orphan); do sleep 0.01; done
		readlink /proc/1/exe; echo reaped by 1, I am not 1: $(test $$ != 1 && echo yes)
		while :; do sleep 0.01; done`
	st, a := h.run(script, attached, init)
	got := read(t, a, "yes")
	if !strings.Contains(got, "/sbin/docker-init\n") {
		t.Errorf("process 1 is %q; want /sbin/docker-init", got)
	}
	if err := h.client.Signal(h.ctx, st.ContainerID, "", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := read(t, a, "term"); !strings.Contains(got, "term") {
		t.Errorf("after SIGTERM: %q", got)
	}
	if st := h.wait(st.ContainerID, ""); st.ExitCode != 5 {
		t.Errorf("ended with %+v; want the command's 5", st)
	}
}

func TestInitEndsAsTheCommand(t *testing.T) {
	h := newHouse(t)
	init := withInit(t, h)
	for _, tt := range []struct {
		command []string
		code    int
		says    string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"nonesuch"}, 127, "exec nonesuch: No such file or directory"},
		{[]string{"/etc/plain"}, 126, "exec /etc/plain: Permission denied"},
	} {
		st, a := h.run("", attached, func(s *warden.ContainerSpec) { s.Bundle.Process.Args = tt.command }, init)
		if _, stderr := output(t, a); !strings.Contains(stderr, tt.says) {
			t.Errorf("%v said %q; want %q", tt.command, stderr, tt.says)
		}
		if st := h.wait(st.ContainerID, ""); st.ExitCode != tt.code {
			t.Errorf("%v ended with %d; want %d", tt.command, st.ExitCode, tt.code)
		}
	}
}

func TestInitWithTerminal(t *testing.T) {
	h := newHouse(t)
	_, a := h.run("read x; echo got $x", attached, withStdin, terminal, withInit(t, h))
	a.Write([]byte("input\n")) // only the group that has the terminal may read it
	if got, _ := output(t, a); !strings.Contains(got, "got input") {
		t.Errorf("a command on a terminal said %q; want what it read", got)
	}
}
