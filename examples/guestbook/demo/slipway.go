package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// command prepares one `slipway` command line in the guestbook's folder.
func (d *demo) command(ctx context.Context, version string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "slipway"), args...)
	cmd.Dir = d.folder
	cmd.Env = append(os.Environ(), "SLIPWAY_RUN_DIR="+d.runDir, "GUESTBOOK_VERSION="+version,
		"GUESTBOOK_PORT="+strconv.Itoa(d.port), "GUESTBOOK_STORE_TOKEN=a-secret-of-the-demo")
	return cmd
}

// show runs a command as a person would see it.
func (d *demo) show(ctx context.Context, version string, args ...string) error {
	fmt.Printf("    $ slipway %s\n", strings.Join(args, " "))
	cmd := d.command(ctx, version, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("slipway %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// ask runs a command for its answer.
func (d *demo) ask(ctx context.Context, args ...string) (string, error) {
	cmd := d.command(ctx, "1", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("slipway %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// replica is a line of `slipway ps -o json`.
type replica struct {
	Name, Service, Status string
	Restarts              int
}

func (d *demo) replicas(ctx context.Context, service string) ([]replica, error) {
	out, err := d.ask(ctx, "ps", "-o", "json", service)
	if err != nil {
		return nil, err
	}
	var list []replica
	return list, json.Unmarshal([]byte(out), &list)
}

// await looks at a service's replicas until they are as wanted. A person would do the same.
func (d *demo) await(ctx context.Context, service, what string, as func([]replica) bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		list, err := d.replicas(ctx, service)
		if err == nil && as(list) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not %s within a minute: %+v %v", service, what, list, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// process finds the process id of a replica's container.
func (d *demo) process(ctx context.Context, name string) (int, error) {
	id, err := d.ask(ctx, "ps", "-a", "-q", "--filter", "label=slipway.owner=node", "--filter", "status=running", "--filter", "label=io.kubernetes.pod.name="+name)
	if err != nil {
		return 0, err
	}
	if id == "" || strings.ContainsAny(id, " \n") {
		return 0, fmt.Errorf("replica %s should have one running container, not %q", name, id)
	}
	pid, err := d.ask(ctx, "inspect", "--format", "{{.State.Pid}}", id)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(pid)
}

// record is what a daemon says of itself in its run directory.
type record struct {
	PID      int    `json:"pid"`
	Instance string `json:"instance"`
	APIPort  int    `json:"apiPort"`
}

func (d *demo) record() (record, error) {
	var r record
	raw, err := os.ReadFile(filepath.Join(d.runDir, "daemon.json"))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(raw, &r)
}
