package node

import (
	"cmp"
	"context"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"slipway.dev/slipway/engine/container"
)

// maxMessage bounds a termination message (the kubelet's figures).
const (
	maxMessage      = 4096
	maxMessageLines = 80
	maxLogMessage   = 2048
)

// newView sorts a pod's engine containers into attempts.
func newView(infos []container.Info, epoch string) view {
	slices.SortFunc(infos, func(a, b container.Info) int { return cmp.Compare(attempt(&a), attempt(&b)) })
	v := view{}
	for i := range infos {
		info := &infos[i]
		if s := &info.State; s.Error != "" && !s.Running && s.FinishedAt.IsZero() {
			s.FinishedAt = info.Created // it failed to start: an attempt like any other, with back-off after it
		}
		name := info.Spec.Labels[labelContainer]
		o := v[name]
		o.previous, o.current = o.current, info
		o.restarts = attempt(info)
		o.stale = info.Spec.Labels[labelSandbox] != epoch
		v[name] = o
	}
	for name, o := range v {
		before, _ := strconv.Atoi(o.current.Spec.Labels[labelBackOff])
		s, ran := o.current.State, time.Duration(0)
		if !s.StartedAt.IsZero() { // one that never started has not run since the year 1
			ran = s.FinishedAt.Sub(s.StartedAt)
		}
		o.backOff = nextBackOff(o.restarts, time.Duration(before)*time.Second, ran)
		v[name] = o
	}
	return v
}

func attempt(info *container.Info) int {
	n, _ := strconv.Atoi(info.Spec.Labels[labelAttempt])
	return n
}

// readMessage keeps the termination message of a container that has exited.
func (w *worker) readMessage(c *corev1.Container, info *container.Info) {
	if info.State.Running || info.State.FinishedAt.IsZero() {
		return
	}
	if _, known := w.messages[info.ID]; known {
		return
	}
	text := readTail(info.Spec.Labels[labelMessage])
	if text == "" && c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && info.State.ExitCode != 0 {
		text = w.lastLines(info.ID)
	}
	w.messages[info.ID] = text
}

func readTail(path string) string {
	if path == "" {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	raw, _ := io.ReadAll(io.LimitReader(f, maxMessage))
	return strings.ToValidUTF8(string(raw), "")
}

// lastLines is the end of a container's log.
func (w *worker) lastLines(id string) string {
	logs, err := w.agent.Containers.Logs(context.Background(), id, container.LogOptions{Stdout: true, Stderr: true, Tail: maxMessageLines})
	if err != nil {
		return ""
	}
	defer logs.Close()
	var b strings.Builder
	for {
		e, err := logs.Next()
		if err != nil {
			break
		}
		b.Write(e.Line)
	}
	text := b.String()
	if len(text) > maxLogMessage {
		text = text[len(text)-maxLogMessage:]
	}
	return strings.ToValidUTF8(text, "")
}
