package compose

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	composeerrors "github.com/compose-spec/compose-go/v2/errdefs"
	"github.com/compose-spec/compose-go/v2/types"
)

// Source says where a project is read from, in the terms of docker compose's global flags.
type Source struct {
	Files      []string // -f; empty: found as docker compose finds them
	Dir        string   // --project-directory; empty: the first file's
	Name       string   // -p; empty: from the file, COMPOSE_PROJECT_NAME or the directory
	Profiles   []string
	EnvFiles   []string
	WorkingDir string // where to start looking
	// Whole is for those who only ask what there is: no service need be enabled.
	Whole bool
}

// Load reads and checks the project: interpolation, .env, overrides, profiles, extends and include.
func Load(ctx context.Context, s Source) (*types.Project, error) {
	dir := s.Dir
	if dir == "" && len(s.Files) == 0 {
		dir = s.WorkingDir
	}
	opts, err := cli.NewProjectOptions(s.Files,
		cli.WithOsEnv,
		cli.WithWorkingDirectory(dir),
		cli.WithEnvFiles(s.EnvFiles...),
		cli.WithDotEnv,
		cli.WithConfigFileEnv,
		cli.WithDefaultConfigPath,
		cli.WithEnvFiles(s.EnvFiles...),
		cli.WithDotEnv,
		cli.WithDefaultProfiles(s.Profiles...),
		cli.WithName(s.Name),
	)
	if err != nil {
		return nil, err
	}
	p, err := opts.LoadProject(ctx)
	switch {
	case errors.Is(err, composeerrors.ErrNotFound) && len(s.Files) == 0:
		return nil, fmt.Errorf("no compose.yaml in %s or above: write one, or name one with -f", orCurrent(dir))
	case err != nil:
		return nil, inFiles(opts.ConfigPaths, legible(err))
	case len(p.Services) == 0 && !s.Whole:
		return nil, fmt.Errorf("%s: no service is selected: check services and --profile", strings.Join(p.ComposeFiles, ", "))
	}
	return p, nil
}

func orCurrent(dir string) string {
	if dir == "" {
		dir = "."
	}
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

// inFiles names the files in an error that names none of them.
func inFiles(files []string, err error) error {
	for _, f := range files {
		if strings.Contains(err.Error(), f) {
			return err
		}
	}
	return fmt.Errorf("%s: %w", strings.Join(files, ", "), err)
}

// misspelt is how the schema's validator speaks of a key that no schema knows.
var misspelt = regexp.MustCompile(`(\S+) false schema$`)

// legible says in words what the validator says in its own.
func legible(err error) error {
	text := err.Error()
	if better := misspelt.ReplaceAllString(text, "$1: there is no such key: is it misspelt?"); better != text {
		return errors.New(better)
	}
	return err
}
