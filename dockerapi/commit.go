package dockerapi

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/common"
	containertypes "github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/container"
	"slipway.dev/slipway/engine/image"
)

// commitContainer makes an image of a container: the layers of its image and one more, with what the container
// changed, and its configuration with the requested changes.
func (s *Server) commitContainer(w *reply, r *request) error {
	var given containertypes.Config
	if err := readOptionalJSON(r, &given); err != nil {
		return err
	}
	info, err := s.containers.Get(r.query.Get("container"))
	if err != nil {
		return err
	}
	config := imageConfigOf(info.Spec)
	overlayConfig(&config, given)
	if err := applyChanges(&config, r.query["changes"]); err != nil {
		return err
	}
	ref := ""
	if repo := r.query.Get("repo"); repo != "" {
		if ref, err = repoAndTag(repo, r.query.Get("tag")); err != nil {
			return err
		}
	}
	// The layer belongs to nobody until the image is written.
	ctx, done, err := s.images.Lease(r.Context())
	if err != nil {
		return err
	}
	defer done()
	chain, err := s.containers.Commit(ctx, info.ID, r.flagOr("pause", true))
	if err != nil {
		return err
	}
	o := image.ImportOptions{Message: r.query.Get("comment"), Created: time.Now().UTC()}
	o.Config.Config, o.Config.Author = config, r.query.Get("author")
	img, err := s.images.Derive(ctx, digest.Digest(info.ImageID), chain, ref, commandLine(info.Path, info.Args), o)
	if err != nil {
		return err
	}
	s.publishContainer(info, "commit", map[string]string{"comment": o.Message, "imageID": img.ID.String(), "imageRef": ref})
	return writeJSON(w, http.StatusCreated, common.IDResponse{ID: img.ID.String()})
}

// imageConfigOf is a container's effective configuration as an image has it.
func imageConfigOf(spec *container.Spec) dockerspec.DockerOCIImageConfig {
	config := dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{
		User: spec.User, Env: slices.Clone(spec.Env), Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, WorkingDir: spec.WorkingDir,
		Labels: maps.Clone(spec.Labels), StopSignal: spec.StopSignal,
		ExposedPorts: map[string]struct{}{}, Volumes: map[string]struct{}{},
	}}
	for _, p := range spec.Exposed {
		config.ExposedPorts[p] = struct{}{}
	}
	for _, v := range spec.Volumes {
		config.Volumes[v] = struct{}{}
	}
	if h := spec.Healthcheck; h != nil {
		config.Healthcheck = &dockerspec.HealthcheckConfig{
			Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries,
		}
	}
	return config
}

// overlayConfig lets what a commit request says about the configuration win.
func overlayConfig(config *dockerspec.DockerOCIImageConfig, given containertypes.Config) {
	for _, f := range []struct {
		to    *string
		value string
	}{{&config.User, given.User}, {&config.WorkingDir, given.WorkingDir}, {&config.StopSignal, given.StopSignal}} {
		if f.value != "" {
			*f.to = f.value
		}
	}
	if given.Cmd != nil {
		config.Cmd = given.Cmd
	}
	if given.Entrypoint != nil {
		config.Entrypoint = given.Entrypoint
	}
	for _, e := range given.Env {
		name, value, _ := strings.Cut(e, "=")
		setEnv(config, name, value)
	}
	for p := range given.ExposedPorts {
		config.ExposedPorts[p.String()] = struct{}{}
	}
	for v := range given.Volumes {
		config.Volumes[v] = struct{}{}
	}
	for key, value := range given.Labels {
		setLabel(config, key, value)
	}
	if given.Healthcheck != nil {
		config.Healthcheck = given.Healthcheck
	}
}

// applyChanges applies Dockerfile instructions, as `docker commit -c` and `docker import -c` take them.
func applyChanges(config *dockerspec.DockerOCIImageConfig, changes []string) error {
	if len(changes) == 0 {
		return nil
	}
	tree, err := parser.Parse(strings.NewReader(strings.Join(changes, "\n")))
	if err != nil {
		return invalid("changes: %v", err)
	}
	for i, node := range tree.AST.Children {
		cmd, err := instructions.ParseCommand(node)
		if err != nil {
			return invalid("changes: line %d: %v", i+1, err)
		}
		// As in a Dockerfile: quotes go, and variables are those of the configuration so far.
		if c, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
			env := shell.EnvsFromSlice(config.Env)
			expand := func(word string) (string, error) {
				word, _, err := shell.NewLex(tree.EscapeToken).ProcessWord(word, env)
				return word, err
			}
			if err := c.Expand(expand); err != nil {
				return invalid("changes: line %d: %v", i+1, err)
			}
		}
		if err := applyChange(config, cmd); err != nil {
			return err
		}
	}
	return nil
}

func applyChange(config *dockerspec.DockerOCIImageConfig, cmd instructions.Command) error {
	switch c := cmd.(type) {
	case *instructions.CmdCommand:
		config.Cmd = shellForm(config, c.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		config.Entrypoint = shellForm(config, c.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		for _, e := range c.Env {
			setEnv(config, e.Key, e.Value)
		}
	case *instructions.LabelCommand:
		for _, l := range c.Labels {
			setLabel(config, l.Key, l.Value)
		}
	case *instructions.ExposeCommand:
		for _, p := range c.Ports {
			if config.ExposedPorts == nil {
				config.ExposedPorts = map[string]struct{}{}
			}
			if !strings.Contains(p, "/") {
				p += "/tcp"
			}
			config.ExposedPorts[p] = struct{}{}
		}
	case *instructions.VolumeCommand:
		for _, v := range c.Volumes {
			if config.Volumes == nil {
				config.Volumes = map[string]struct{}{}
			}
			config.Volumes[v] = struct{}{}
		}
	case *instructions.UserCommand:
		config.User = c.User
	case *instructions.WorkdirCommand:
		config.WorkingDir = c.Path
	case *instructions.StopSignalCommand:
		config.StopSignal = c.Signal
	case *instructions.OnbuildCommand:
		config.OnBuild = append(config.OnBuild, c.Expression)
	case *instructions.HealthCheckCommand:
		config.Healthcheck = c.Health
	default:
		return invalid("%s is not a valid change command", strings.ToLower(cmd.Name()))
	}
	return nil
}

func shellForm(config *dockerspec.DockerOCIImageConfig, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	shell := config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), strings.Join(line.CmdLine, " "))
}

func setEnv(config *dockerspec.DockerOCIImageConfig, name, value string) {
	config.Env = slices.DeleteFunc(config.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	config.Env = append(config.Env, name+"="+value)
}

func setLabel(config *dockerspec.DockerOCIImageConfig, key, value string) {
	if config.Labels == nil {
		config.Labels = map[string]string{}
	}
	config.Labels[key] = value
}
