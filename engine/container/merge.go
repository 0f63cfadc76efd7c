package container

import (
	"cmp"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

var validName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// merge completes spec by what the image says and checks what can be checked without
// looking at the machine. It changes only its own copy.
func merge(spec Spec, img *dockerspec.DockerOCIImageConfig) (Spec, error) {
	spec.Owner = cmp.Or(spec.Owner, OwnerDocker)
	if spec.Entrypoint == nil {
		if spec.Cmd == nil {
			spec.Cmd = slices.Clone(img.Cmd)
		}
		spec.Entrypoint = slices.Clone(img.Entrypoint)
	} else if len(spec.Entrypoint) == 1 && spec.Entrypoint[0] == "" {
		spec.Entrypoint = []string{} // --entrypoint "" drops the image's
	}
	spec.Env = append(mergeEnv(img.Env, spec.Env), unset(spec.Env)...)
	spec.User = cmp.Or(spec.User, img.User)
	spec.WorkingDir = cmp.Or(spec.WorkingDir, img.WorkingDir)
	spec.StopSignal = cmp.Or(spec.StopSignal, img.StopSignal)
	labels := maps.Clone(img.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, spec.Labels)
	spec.Labels = labels
	spec.Exposed = union(spec.Exposed, slices.Sorted(maps.Keys(img.ExposedPorts)))
	if spec.Owner == OwnerDocker { // pods have their volumes spelled out
		spec.Volumes = union(spec.Volumes, slices.Sorted(maps.Keys(img.Volumes)))
	}
	if spec.Owner == OwnerDocker {
		spec.Healthcheck = mergeHealth(spec.Healthcheck, img.Healthcheck)
	}
	return spec, check(&spec)
}

// unset are the names without a value, which stay: they take away what Docker would add at the start, too.
func unset(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.Contains(e, "=") })
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func mergeHealth(h *Health, img *dockerspec.HealthcheckConfig) *Health {
	if img == nil {
		return h
	}
	out := Health{}
	if h != nil {
		out = *h
	}
	if len(out.Test) == 0 {
		out.Test = slices.Clone(img.Test)
	}
	out.Interval = cmp.Or(out.Interval, img.Interval)
	out.Timeout = cmp.Or(out.Timeout, img.Timeout)
	out.StartPeriod = cmp.Or(out.StartPeriod, img.StartPeriod)
	out.StartInterval = cmp.Or(out.StartInterval, img.StartInterval)
	out.Retries = cmp.Or(out.Retries, img.Retries)
	return &out
}

func check(s *Spec) error {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	if s.Name != "" && !validName.MatchString(s.Name) {
		return bad("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", s.Name)
	}
	if len(s.Entrypoint)+len(s.Cmd) == 0 {
		return bad("no command specified")
	}
	if s.WorkingDir != "" && !filepath.IsAbs(s.WorkingDir) {
		return bad("the working directory '%s' is invalid, it needs to be an absolute path", s.WorkingDir)
	}
	if s.StopSignal != "" {
		if _, err := signal.ParseSignal(s.StopSignal); err != nil {
			return bad("stop signal: %v", err)
		}
	}
	if len(s.Hostname) > 63 {
		return bad("invalid hostname: %s is longer than 63 characters", s.Hostname)
	}
	for _, e := range s.Env {
		if strings.HasPrefix(e, "=") {
			return bad("invalid environment variable: %s", e)
		}
	}
	checks := []func(*Spec) error{checkRestart, checkHealth, checkMounts, checkModes, checkLog, checkHosts}
	for _, c := range checks {
		if err := c(s); err != nil {
			return err
		}
	}
	if _, err := capabilities(s, allCapabilities); err != nil {
		return err
	}
	if _, err := rlimits(s.Resources.Ulimits, wantedNoFile); err != nil {
		return err
	}
	if err := checkResources(&s.Resources); err != nil {
		return err
	}
	for _, r := range s.DeviceRules {
		if _, err := parseDeviceRule(r); err != nil {
			return err
		}
	}
	return checkSecurityOpts(s.SecurityOpt)
}

func checkRestart(s *Spec) error { return checkRestartPolicy(s.Restart, s.AutoRemove) }

func checkRestartPolicy(r RestartPolicy, autoRemove bool) error {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	switch r.Policy {
	case "", RestartNo:
	case RestartAlways, RestartUnlessStopped, RestartOnFailure:
		if autoRemove {
			return bad("can't create 'AutoRemove' container with restart policy")
		}
	default:
		return bad("invalid restart policy: unknown policy '%s'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", r.Policy)
	}
	if r.MaxRetries != 0 && r.Policy != RestartOnFailure {
		return bad("invalid restart policy: maximum retry count can only be used with 'on-failure'")
	}
	if r.MaxRetries < 0 {
		return bad("invalid restart policy: maximum retry count cannot be negative")
	}
	return nil
}

func checkHealth(s *Spec) error {
	h := s.Healthcheck
	if h == nil {
		return nil
	}
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	for _, d := range []struct {
		name string
		got  int64
	}{{"Interval", int64(h.Interval)}, {"Timeout", int64(h.Timeout)}, {"StartPeriod", int64(h.StartPeriod)}, {"StartInterval", int64(h.StartInterval)}} {
		if d.got != 0 && d.got < 1_000_000 {
			return bad("%s in Healthcheck cannot be less than 1ms", d.name)
		}
	}
	if h.Retries < 0 {
		return bad("Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "NONE", "CMD", "CMD-SHELL":
		default:
			return bad("unknown healthcheck type %q (expected 'CMD')", h.Test[0])
		}
		if h.Test[0] == "CMD-SHELL" && len(h.Test) != 2 {
			return bad("healthcheck type CMD-SHELL takes one string, got %d", len(h.Test)-1)
		}
	}
	return nil
}

func checkMounts(s *Spec) error {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	seen := map[string]bool{}
	for _, m := range s.Mounts {
		target := filepath.Clean(m.Target)
		switch {
		case !filepath.IsAbs(m.Target):
			return bad("invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
		case target == "/":
			return bad("invalid mount config for type %q: invalid specification: destination can't be '/'", m.Type)
		case seen[target]:
			return bad("Duplicate mount point: %s", m.Target)
		}
		seen[target] = true
		switch m.Type {
		case MountBind:
			if !filepath.IsAbs(m.Source) {
				return bad("invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
			}
			if !slices.Contains([]string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}, m.Propagation) {
				return bad("invalid mount config for type \"bind\": invalid propagation mode: %s", m.Propagation)
			}
		case MountVolume, MountTmpfs:
		case MountImage:
			if m.Source == "" {
				return bad("invalid mount config for type \"image\": field Source must not be empty")
			}
		default:
			return bad("mount type unknown: %q", m.Type)
		}
		if m.Subpath != "" && !filepath.IsLocal(m.Subpath) {
			return bad("invalid mount config for type %q: subpath %q must be a relative path within the volume", m.Type, m.Subpath)
		}
	}
	return nil
}

func checkModes(s *Spec) error {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	if !oneOf(s.PidMode, "", "private", "host") && !strings.HasPrefix(s.PidMode, "container:") {
		return bad("Invalid PID mode: %q", s.PidMode)
	}
	if !oneOf(s.IpcMode, "", "private", "shareable", "none", "host") && !strings.HasPrefix(s.IpcMode, "container:") {
		return bad("Invalid IPC mode: %q", s.IpcMode)
	}
	if !oneOf(s.UTSMode, "", "private", "host") {
		return bad("Invalid UTS mode: %q", s.UTSMode)
	}
	if !oneOf(s.CgroupnsMode, "", "private", "host") {
		return bad("invalid cgroup namespace mode: %q", s.CgroupnsMode)
	}
	shared := strings.HasPrefix(s.NetworkMode, "container:")
	switch {
	case s.UTSMode == "host" && s.Hostname != "":
		return bad("conflicting options: hostname and the UTS mode")
	case shared && s.Hostname != "":
		return bad("conflicting options: hostname and the network mode")
	case shared && len(s.Ports) > 0, shared && s.PublishAll:
		return bad("conflicting options: port publishing and the container type network mode")
	case shared && len(s.DNS) > 0:
		return bad("conflicting options: dns and the network mode")
	case shared && len(s.ExtraHosts) > 0:
		return bad("conflicting options: custom host-to-IP mapping and the network mode")
	case shared && len(s.Links) > 0:
		return bad("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case s.NetworkMode == "host" && len(s.Links) > 0:
		return bad("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

func oneOf(s string, options ...string) bool { return slices.Contains(options, s) }

func checkLog(s *Spec) error {
	if oneOf(s.Log.Driver, "", "json-file", "local", "none") {
		return nil
	}
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("logger: no log driver named '%s' is registered: use json-file, local or none", s.Log.Driver))
}

func checkHosts(s *Spec) error {
	for _, h := range s.ExtraHosts {
		if _, _, ok := splitHost(h); !ok {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("bad format for add-host: %q (want NAME:ADDRESS)", h))
		}
	}
	return nil
}

// splitHost splits "name:address" or "name=address".
func splitHost(h string) (name, addr string, ok bool) {
	i := strings.IndexAny(h, ":=")
	if i <= 0 || i == len(h)-1 {
		return "", "", false
	}
	return h[:i], strings.Trim(h[i+1:], "[]"), true
}
