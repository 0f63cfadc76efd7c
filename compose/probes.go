package compose

import (
	"errors"
	"fmt"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	corev1 "k8s.io/api/core/v1"
)

// Docker's defaults for what a health check leaves out.
const (
	defaultInterval = 30 * time.Second
	defaultTimeout  = 30 * time.Second
	defaultRetries  = 3
)

// probes maps the service's health check, or else its image's. Until the first success it runs every
// second, so that `up` does not wait for a whole interval; from then on it decides about traffic and
// restarts at the interval that was asked for.
func (t *translation) probes(s *types.ServiceConfig, c *corev1.Container) error {
	h := s.HealthCheck
	if h == nil || (len(h.Test) == 0 && !h.Disable) {
		h = merged(h, t.Images[s.Name].Healthcheck)
	}
	if h == nil || h.Disable || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil
	}
	command, err := healthCommand(h.Test)
	if err != nil {
		return err
	}
	interval, timeout := orDefault(h.Interval, defaultInterval), orDefault(h.Timeout, defaultTimeout)
	retries := int32(defaultRetries)
	if h.Retries != nil && *h.Retries > 0 {
		retries = int32(*h.Retries)
	}
	probe := corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: escapeAll(command)}},
		PeriodSeconds:    t.seconds("healthcheck.interval", interval),
		TimeoutSeconds:   t.seconds("healthcheck.timeout", timeout),
		FailureThreshold: retries,
	}
	start := probe
	start.PeriodSeconds = t.seconds("healthcheck.start_interval", orDefault(h.StartInterval, time.Second))
	// As long as Docker would wait before it calls the container unhealthy.
	patience := orDefault(h.StartPeriod, 0) + time.Duration(retries)*interval
	start.FailureThreshold = max(int32(patience/time.Second)/start.PeriodSeconds, retries, 1)
	ready, live := probe, probe
	c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = &start, &ready, &live
	return nil
}

// merged is the image's check with what the service changes of it.
func merged(own, image *types.HealthCheckConfig) *types.HealthCheckConfig {
	if own == nil || image == nil {
		return image
	}
	h := *image
	if own.Interval != nil {
		h.Interval = own.Interval
	}
	if own.Timeout != nil {
		h.Timeout = own.Timeout
	}
	if own.Retries != nil {
		h.Retries = own.Retries
	}
	if own.StartPeriod != nil {
		h.StartPeriod = own.StartPeriod
	}
	if own.StartInterval != nil {
		h.StartInterval = own.StartInterval
	}
	return &h
}

func healthCommand(test []string) ([]string, error) {
	switch test[0] {
	case "CMD":
		if len(test) < 2 {
			return nil, errors.New("healthcheck.test: CMD needs a command")
		}
		return test[1:], nil
	case "CMD-SHELL":
		if len(test) != 2 {
			return nil, errors.New("healthcheck.test: CMD-SHELL needs exactly one line")
		}
		return []string{"/bin/sh", "-c", test[1]}, nil
	}
	return nil, fmt.Errorf("healthcheck.test begins with %q: use NONE, CMD or CMD-SHELL", test[0])
}

func orDefault(d *types.Duration, def time.Duration) time.Duration {
	if d == nil || *d == 0 {
		return def
	}
	return time.Duration(*d)
}

// seconds rounds up: probes know whole seconds only.
func (t *translation) seconds(what string, d time.Duration) int32 {
	if d%time.Second != 0 {
		t.note("%s %s: Kubernetes counts whole seconds, rounded up", what, d)
	}
	return int32(max((d+time.Second-1)/time.Second, 1))
}
