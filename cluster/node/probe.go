package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"slipway.dev/slipway/engine/container"
)

// The three kinds of probes.
const (
	startupProbe   = "Startup"
	readinessProbe = "Readiness"
	livenessProbe  = "Liveness"
)

// execer runs one command in a container.
type execer interface {
	ExecRun(ctx context.Context, ref string, spec container.ExecSpec, limit int) (container.ExecResult, error)
}

// probeOutput is how much of a probe's output is kept for its event.
const probeOutput = 10 << 10

// prober runs the probes of one attempt of one container, from its start to its end. The worker
// reads the verdicts; changed tells it that one differs from before.
type prober struct {
	pod       *corev1.Pod
	container *corev1.Container
	id        string // engine container
	addr      string // the pod's address
	exec      execer
	changed   func()
	unhealthy func(kind, message string) // an attempt failed: worth an event

	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	started bool   // guarded by mu
	ready   bool   // guarded by mu
	failing string // guarded by mu: why the container has to be killed
}

// resume takes over verdicts that an agent before this one has reported of the same attempt: a restart
// of the agent must not take traffic away from pods that were ready.
func (p *prober) resume(st *corev1.ContainerStatus) {
	if st != nil && st.ContainerID == containerScheme+p.id && st.Started != nil && *st.Started {
		p.started, p.ready = true, st.Ready
	}
}

// run starts the probes; startedAt is when the container did.
func (p *prober) run(ctx context.Context, startedAt time.Time) {
	ctx, p.cancel = context.WithCancel(ctx)
	p.started = p.started || p.container.StartupProbe == nil
	p.ready = p.started && (p.ready || p.container.ReadinessProbe == nil)
	started, ready := p.started, p.ready
	p.done.Go(func() {
		if probe := p.container.StartupProbe; !started && !p.startup(ctx, probe, startedAt) {
			return
		}
		if probe := p.container.ReadinessProbe; probe != nil {
			p.done.Go(func() { p.readiness(ctx, probe, startedAt, ready) })
		}
		if probe := p.container.LivenessProbe; probe != nil {
			p.done.Go(func() { p.liveness(ctx, probe, startedAt) })
		}
	})
}

// stop ends the probes and waits for them.
func (p *prober) stop() {
	p.cancel()
	p.done.Wait()
}

func (p *prober) verdict() (started, ready bool, failing string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started, p.ready, p.failing
}

func (p *prober) set(change func()) {
	p.mu.Lock()
	change()
	p.mu.Unlock()
	p.changed()
}

// startup reports whether the container is up; a false means that it has to be killed or ctx ended.
func (p *prober) startup(ctx context.Context, probe *corev1.Probe, startedAt time.Time) bool {
	ok := false
	p.watch(ctx, startupProbe, probe, startedAt, false, func(success bool, message string) bool {
		ok = success
		p.set(func() {
			if success {
				p.started = true
				p.ready = p.container.ReadinessProbe == nil
			} else {
				p.failing = fmt.Sprintf("Container %s failed startup probe, will be restarted", p.container.Name)
			}
		})
		return false
	})
	return ok
}

func (p *prober) readiness(ctx context.Context, probe *corev1.Probe, startedAt time.Time, ready bool) {
	p.watch(ctx, readinessProbe, probe, startedAt, ready, func(success bool, _ string) bool {
		p.set(func() { p.ready = success })
		return true
	})
}

func (p *prober) liveness(ctx context.Context, probe *corev1.Probe, startedAt time.Time) {
	p.watch(ctx, livenessProbe, probe, startedAt, true, func(success bool, message string) bool {
		if success {
			return true
		}
		p.set(func() {
			p.failing = fmt.Sprintf("Container %s failed liveness probe, will be restarted", p.container.Name)
		})
		return false
	})
}

// watch runs one probe at its period and calls verdict whenever a threshold is crossed, until
// verdict says to stop. last is the verdict to begin with: alive until it fails; not started, and
// usually not ready, until it succeeds.
func (p *prober) watch(ctx context.Context, kind string, probe *corev1.Probe, startedAt time.Time, last bool, verdict func(success bool, message string) bool) {
	wait := time.NewTimer(time.Until(startedAt.Add(time.Duration(probe.InitialDelaySeconds) * time.Second)))
	defer wait.Stop()
	var successes, failures int32
	eager := eagerFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		began := time.Now()
		message, err := p.once(ctx, probe)
		if ctx.Err() != nil {
			return
		}
		if period := probePeriod(probe); err != nil && !last && eager < period && probe.InitialDelaySeconds == 0 {
			// It has just started: asking again soon costs little, and failures of the first period
			// count for nothing, as if the probe had not run yet.
			wait.Reset(eager)
			eager *= 2
			continue
		}
		eager = probePeriod(probe)
		if err == nil {
			successes, failures = successes+1, 0
		} else {
			successes, failures = 0, failures+1
			if message == "" {
				message = err.Error()
			}
			p.unhealthy(kind, message)
		}
		switch {
		case !last && successes >= max(probe.SuccessThreshold, 1):
			last = true
			if !verdict(true, message) {
				return
			}
		case failures >= max(probe.FailureThreshold, 1) && (last || kind != readinessProbe):
			last = false
			if !verdict(false, message) {
				return
			}
		}
		wait.Reset(probePeriod(probe) - min(time.Since(began), probePeriod(probe)))
	}
}

// eagerFirst is the first wait between the attempts that a container gets before its first period is
// over; each is twice as long as the one before.
const eagerFirst = 20 * time.Millisecond

func probePeriod(probe *corev1.Probe) time.Duration {
	return max(time.Duration(probe.PeriodSeconds)*time.Second, time.Second)
}

// once runs the probe's action one time.
func (p *prober) once(ctx context.Context, probe *corev1.Probe) (message string, err error) {
	ctx, cancel := context.WithTimeout(ctx, max(time.Duration(probe.TimeoutSeconds)*time.Second, time.Second))
	defer cancel()
	switch {
	case probe.Exec != nil:
		// References see what the container's list of variables says literally, as the kubelet's do.
		values := map[string]string{}
		for _, e := range p.container.Env {
			values[e.Name] = e.Value
		}
		res, err := p.exec.ExecRun(ctx, p.id, container.ExecSpec{Cmd: expand(probe.Exec.Command, values)}, probeOutput)
		switch {
		case ctx.Err() != nil:
			return fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(probe.Exec.Command, " "), time.Duration(probe.TimeoutSeconds)*time.Second), ctx.Err()
		case err != nil:
			return "", err
		case res.ExitCode != 0:
			return string(res.Output), fmt.Errorf("command exited with %d", res.ExitCode)
		}
		return string(res.Output), nil
	case probe.HTTPGet != nil:
		return httpGet(ctx, probe.HTTPGet, p.container, p.addr, "kube-probe/1.37")
	case probe.TCPSocket != nil:
		host := probe.TCPSocket.Host
		if host == "" {
			host = p.addr
		}
		port, err := portNumber(probe.TCPSocket.Port, p.container)
		if err != nil {
			return "", err
		}
		return "", dialOnce(ctx, net.JoinHostPort(host, strconv.Itoa(port)))
	case probe.GRPC != nil:
		return grpcHealth(ctx, net.JoinHostPort(p.addr, strconv.Itoa(int(probe.GRPC.Port))), probe.GRPC.Service)
	}
	return "", fmt.Errorf("the probe has no action")
}

func dialOnce(ctx context.Context, addr string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// portNumber resolves a port that may be the name of one of the container's.
func portNumber(p intstr.IntOrString, c *corev1.Container) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, cp := range c.Ports {
		if cp.Name == p.StrVal {
			return int(cp.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("couldn't find port %q of container %q", p.StrVal, c.Name)
}

// httpGet succeeds on 200 to 399. Certificates are not checked and redirects to other hosts are not
// followed: what is asked is whether this container answers.
func httpGet(ctx context.Context, get *corev1.HTTPGetAction, c *corev1.Container, addr, agent string) (string, error) {
	port, err := portNumber(get.Port, c)
	if err != nil {
		return "", err
	}
	host := get.Host
	if host == "" {
		host = addr
	}
	u, err := url.Parse(get.Path)
	if err != nil {
		u = &url.URL{Path: get.Path}
	}
	u.Scheme, u.Host = strings.ToLower(string(get.Scheme)), net.JoinHostPort(host, strconv.Itoa(port))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	for _, h := range get.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Add(h.Name, h.Value)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", agent)
	}
	res, err := probeClient.Do(req)
	if err != nil {
		return fmt.Sprintf("Get %q: %v", u, unwrapURL(err)), err
	}
	res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode >= 400 {
		return fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode), fmt.Errorf("status %d", res.StatusCode)
	}
	return "", nil
}

func unwrapURL(err error) error {
	if u, ok := err.(*url.Error); ok {
		return u.Err
	}
	return err
}
