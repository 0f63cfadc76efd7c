package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Top lists a container's processes as the host's ps shows them. psArgs are ps's own;
// empty means -ef. A PID column must be among the result, and picks the container's rows.
func (m *Manager) Top(ctx context.Context, ref, psArgs string) (ProcessTable, error) {
	c, err := m.find(ref)
	if err != nil {
		return ProcessTable{}, err
	}
	st := c.saved().State
	if !st.Running {
		return ProcessTable{}, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	if st.Restarting {
		return ProcessTable{}, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", c.id))
	}
	if psArgs == "" {
		psArgs = "-ef"
	}
	pids, err := m.Warden.Processes(ctx, c.id)
	if err != nil {
		return ProcessTable{}, fmt.Errorf("processes of container %s: %w", c.spec().Name, err)
	}
	table, err := hostProcesses(ctx, strings.Fields(psArgs), pids)
	if err != nil {
		return ProcessTable{}, err
	}
	m.publish(c, "top", nil)
	return table, nil
}

// hostProcesses runs ps for just these processes if its options allow, else for all, and
// keeps their rows.
func hostProcesses(ctx context.Context, args []string, pids []int) (ProcessTable, error) {
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	out, err := exec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q", strings.Join(list, ","))...).Output()
	if err != nil {
		out, err = exec.CommandContext(ctx, "ps", args...).Output()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return ProcessTable{}, errdefs.ErrNotImplemented.WithMessage("ps is not installed on this machine: install procps")
	}
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return ProcessTable{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("ps: %s", bytes.TrimSpace(failed.Stderr)))
	}
	if err != nil {
		return ProcessTable{}, fmt.Errorf("ps: %w", err)
	}
	return parseProcesses(string(out), list)
}

// parseProcesses splits ps's output; the last column keeps its blanks.
func parseProcesses(out string, pids []string) (ProcessTable, error) {
	head, rows, _ := strings.Cut(out, "\n")
	t := ProcessTable{Titles: strings.Fields(head)}
	column := slices.Index(t.Titles, "PID")
	if column < 0 {
		return t, errdefs.ErrInvalidArgument.WithMessage("Couldn't find PID field in ps output")
	}
	for row := range strings.Lines(rows) {
		f := splitColumns(strings.TrimSpace(row), len(t.Titles))
		if len(f) == len(t.Titles) && slices.Contains(pids, f[column]) {
			t.Processes = append(t.Processes, f)
		}
	}
	return t, nil
}

func splitColumns(row string, n int) []string {
	var out []string
	for len(out) < n-1 && row != "" {
		field, rest, _ := strings.Cut(row, " ")
		out, row = append(out, field), strings.TrimLeft(rest, " ")
	}
	if row != "" || len(out) == n-1 {
		out = append(out, row)
	}
	return out
}
