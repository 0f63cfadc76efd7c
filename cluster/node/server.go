package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"slipway.dev/slipway/cluster/store"
	"slipway.dev/slipway/cluster/store/kinds"
	"slipway.dev/slipway/engine/container"
)

// Streams that say nothing for this long are closed; their setup may take this long.
const (
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
)

// Handler serves the part of the kubelet API that cluster/api uses: containerLogs, exec, attach and
// portForward; and what it shows of the node: pods and figures. It trusts its callers: only an in-memory connection may lead here.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", a.serveLogs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", a.serveExec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", a.serveAttach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", a.servePortForward)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	mux.HandleFunc("GET /pods", a.servePods)
	mux.HandleFunc("GET /stats/summary", a.serveSummary)
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("GET /metrics/resource", a.serveMetrics)
	return mux
}

// find is the newest attempt of a pod's container, or the one before it.
func (a *Agent) find(namespace, podName, name string, previous bool) (*container.Info, error) {
	pod, ok := store.Get[*corev1.Pod](a.Reader, kinds.Pods, namespace, podName)
	if !ok {
		return nil, fmt.Errorf("pod %q not found", podName)
	}
	infos, err := a.Containers.List(container.Filter{
		Owner: container.OwnerNode, All: true, Label: []string{labelPodUID + "=" + string(pod.UID)}})
	if err != nil {
		return nil, err
	}
	o := newView(infos, "")[name]
	switch {
	case previous && o.previous != nil:
		return o.previous, nil
	case previous && o.current != nil && !o.current.State.Running && !o.current.State.FinishedAt.IsZero() && o.restarts >= 0 && waitsToRestart(pod, name):
		return o.current, nil // it has exited and its successor is not made yet
	case previous:
		return nil, fmt.Errorf("previous terminated container %q in pod %q not found", name, podName)
	case o.current == nil:
		return nil, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, podName, waitingReason(pod, name))
	}
	return o.current, nil
}

func waitsToRestart(pod *corev1.Pod, name string) bool {
	return waitingReason(pod, name) == "CrashLoopBackOff"
}

func waitingReason(pod *corev1.Pod, name string) string {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			if c.Name == name && c.State.Waiting != nil {
				return c.State.Waiting.Reason
			}
		}
	}
	return "ContainerCreating"
}

func (a *Agent) serveLogs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	info, err := a.find(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"), q.Get("previous") == "true")
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	opts := container.LogOptions{Stdout: true, Stderr: true, Tail: -1, Follow: q.Get("follow") == "true"}
	switch q.Get("stream") {
	case corev1.LogStreamStdout:
		opts.Stderr = false
	case corev1.LogStreamStderr:
		opts.Stdout = false
	}
	if s := q.Get("tailLines"); s != "" {
		if opts.Tail, err = strconv.Atoi(s); err != nil || opts.Tail < 0 {
			http.Error(w, "tailLines must be a non-negative number", http.StatusBadRequest)
			return
		}
	}
	if s := q.Get("sinceSeconds"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 {
			http.Error(w, "sinceSeconds must be a positive number", http.StatusBadRequest)
			return
		}
		opts.Since = time.Now().Add(-time.Duration(n) * time.Second)
	} else if s := q.Get("sinceTime"); s != "" {
		if opts.Since, err = time.Parse(time.RFC3339, s); err != nil {
			http.Error(w, "sinceTime: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	limit := int64(-1)
	if s := q.Get("limitBytes"); s != "" {
		if limit, err = strconv.ParseInt(s, 10, 64); err != nil || limit <= 0 {
			http.Error(w, "limitBytes must be a positive number", http.StatusBadRequest)
			return
		}
	}
	logs, err := a.Containers.Logs(r.Context(), info.ID, opts)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer logs.Close()
	w.Header().Set("Content-Type", "text/plain")
	copyLogs(w, logs, q.Get("timestamps") == "true", limit)
}

// copyLogs writes entries until the log ends or limit bytes (negative: no limit) are out.
func copyLogs(w http.ResponseWriter, logs *container.LogReader, timestamps bool, limit int64) {
	flush := http.NewResponseController(w)
	flush.Flush()
	lineStart := true
	for {
		e, err := logs.Next()
		if err != nil {
			return
		}
		line := e.Line
		if timestamps && lineStart {
			line = append([]byte(e.Time.UTC().Format(time.RFC3339Nano)+" "), line...)
		}
		lineStart = len(line) > 0 && line[len(line)-1] == '\n'
		if limit >= 0 && int64(len(line)) > limit {
			line = line[:limit]
		}
		if _, err := w.Write(line); err != nil {
			return
		}
		if limit >= 0 {
			if limit -= int64(len(line)); limit == 0 {
				return
			}
		}
		flush.Flush()
	}
}

// streamOptions reads which streams are wanted, in the kubelet's parameters.
func streamOptions(r *http.Request) (*remotecommand.Options, error) {
	q := r.URL.Query()
	on := func(name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }
	o := &remotecommand.Options{TTY: on("tty"), Stdin: on("input"), Stdout: on("output"), Stderr: on("error")}
	if o.TTY && o.Stderr {
		o.Stderr = false // a terminal has one output
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return nil, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

// findRunning is the container that exec or attach name. One that has ended will not start again: its successor is another.
func (a *Agent) findRunning(r *http.Request) (*container.Info, error) {
	info, err := a.find(r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container"), false)
	if err == nil && !info.State.Running {
		err = fmt.Errorf("container %q is not running", r.PathValue("container"))
	}
	return info, err
}

func (a *Agent) serveExec(w http.ResponseWriter, r *http.Request) {
	opts, err := streamOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	info, err := a.findRunning(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, streams{a}, "", "", info.ID, r.URL.Query()["command"], opts, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (a *Agent) serveAttach(w http.ResponseWriter, r *http.Request) {
	opts, err := streamOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	info, err := a.findRunning(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, streams{a}, "", "", info.ID, opts, streamIdle, streamCreation, remotecommand.SupportedStreamingProtocols)
}

func (a *Agent) servePortForward(w http.ResponseWriter, r *http.Request) {
	opts, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, ok := store.Get[*corev1.Pod](a.Reader, kinds.Pods, r.PathValue("namespace"), r.PathValue("pod"))
	if !ok || pod.Status.PodIP == "" {
		http.Error(w, fmt.Sprintf("pod %q has no address yet", r.PathValue("pod")), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, streams{a}, pod.Status.PodIP, string(pod.UID), opts, streamIdle, streamCreation, portforward.SupportedProtocols)
}

// streams connects kubectl's streams to the engine. Names are engine container ids, or a pod's
// address for port forwarding.
type streams struct{ a *Agent }

// ExecInContainer runs a command; a non-zero exit is a utilexec.ExitError.
func (s streams) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	spec := container.ExecSpec{Cmd: cmd, Tty: tty, AttachStdin: in != nil, AttachStdout: out != nil, AttachStderr: errOut != nil}
	exec, err := s.a.Containers.ExecCreate(ctx, id, spec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	started := make(chan struct{})
	go func() {
		select {
		case <-started:
			for size := range sizes(ctx, resize) {
				s.a.Containers.ExecResize(ctx, exec, size.Height, size.Width)
			}
		case <-ctx.Done():
		}
	}()
	err = s.a.Containers.ExecStart(ctx, exec, container.ExecIO{
		Stdin: in, Stdout: writer(out), Stderr: writer(errOut), DetachKeys: []byte{}, Started: func() { close(started) }})
	if err != nil {
		return err
	}
	info, err := s.a.Containers.ExecInspect(exec)
	if err != nil {
		return err
	}
	if code := info.ExitCode; code != nil && *code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", *code), Code: *code}
	}
	return nil
}

// AttachContainer connects to the container's first process.
func (s streams) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for size := range sizes(ctx, resize) {
			s.a.Containers.Resize(ctx, id, size.Height, size.Width)
		}
	}()
	return s.a.Containers.Attach(ctx, id, container.AttachOptions{
		Stdin: in, Stdout: writer(out), Stderr: writer(errOut), Stream: true, Running: true, DetachKeys: []byte{}})
}

// writer keeps an absent stream an untyped nil.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

// sizes ends with ctx or with the channel.
func sizes(ctx context.Context, resize <-chan remotecommand.TerminalSize) func(yield func(remotecommand.TerminalSize) bool) {
	return func(yield func(remotecommand.TerminalSize) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-resize:
				if !ok || !yield(size) {
					return
				}
			}
		}
	}
}

// PortForward joins a stream to a port of the pod. The pod's loopback is reached through its address
// only when the program listens there; like other runtimes, the connection is made inside the pod.
func (s streams) PortForward(ctx context.Context, addr, uid string, port int32, stream io.ReadWriteCloser) error {
	conn, err := s.a.dialPod(ctx, uid, addr, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// dialPod connects to localhost inside the pod's network namespace, so that programs that listen on
// loopback only are reached too, as with other runtimes.
func (a *Agent) dialPod(ctx context.Context, uid, addr string, port int32) (net.Conn, error) {
	if parsed, err := netip.ParseAddr(addr); err == nil && parsed == a.NodeAddr {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	}
	netns, err := a.Sandboxes.Sandbox(ctx, sandboxPrefix+uid)
	if err != nil {
		return nil, err
	}
	defer netns.Close()
	return dialIn(ctx, netns, net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}
