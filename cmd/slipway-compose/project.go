package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"

	"slipway.dev/slipway/compose"
	"slipway.dev/slipway/compose/apply"
)

// sourceFlags say which project is meant.
type sourceFlags struct {
	files, profiles, envFiles []string
	name, dir                 string
}

func (a *app) load(ctx context.Context) (*types.Project, error) { return a.read(ctx, false) }

func (a *app) read(ctx context.Context, whole bool) (*types.Project, error) {
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	s := a.source
	return compose.Load(ctx, compose.Source{Files: s.files, Dir: s.dir, Name: s.name, Profiles: s.profiles, EnvFiles: s.envFiles, WorkingDir: wd, Whole: whole})
}

// projectName is the project's; services, if any are named, must be the file's. A project that is named by -p alone needs
// no file.
func (a *app) projectName(ctx context.Context, services ...string) (string, error) {
	if a.source.name != "" && len(a.source.files) == 0 {
		return a.source.name, nil
	}
	p, err := a.read(ctx, true)
	if err != nil {
		return "", err
	}
	for _, name := range services {
		if _, ok := p.AllServices()[name]; !ok {
			return "", fmt.Errorf("no such service: %s", name)
		}
	}
	return p.Name, nil
}

// project finds the project's namespace and the API that has it. Two names may become one namespace: what is meant for one
// project must not be done to another.
func (a *app) project(ctx context.Context, services ...string) (string, *apply.Cluster, error) {
	name, err := a.projectName(ctx, services...)
	if err != nil {
		return "", nil, err
	}
	namespace, err := compose.Namespace(name)
	if err != nil {
		return "", nil, err
	}
	c, err := a.cluster(ctx)
	if err != nil {
		return "", nil, err
	}
	return namespace, c, c.Refuse(ctx, namespace, name)
}

// selected narrows the project to some services and what they depend on; none means all.
func selected(p *types.Project, names []string, withDependencies bool) (*types.Project, error) {
	for _, name := range names {
		if _, ok := p.AllServices()[name]; !ok {
			return nil, fmt.Errorf("no such service: %s", name)
		}
	}
	p, err := p.WithServicesEnabled(names...)
	if err != nil {
		return nil, err
	}
	if withDependencies {
		return p.WithSelectedServices(names)
	}
	return p.WithSelectedServices(names, types.IgnoreDependencies)
}

// scales reads SERVICE=N words.
func scales(words []string) (map[string]int, error) {
	out := map[string]int{}
	for _, w := range words {
		service, count, found := strings.Cut(w, "=")
		n, err := strconv.ParseUint(count, 10, 16)
		if !found || service == "" || err != nil {
			return nil, usageError{fmt.Errorf("%q: want SERVICE=N, such as web=3", w)}
		}
		out[service] = int(n)
	}
	return out, nil
}

func scaled(p *types.Project, counts map[string]int) (*types.Project, error) {
	for name, n := range counts {
		s, ok := p.Services[name]
		if !ok {
			return nil, fmt.Errorf("no such service: %s", name)
		}
		s.SetScale(n)
		p.Services[name] = s
	}
	return p, nil
}

// completeServices offers the file's services.
func (a *app) completeServices(max int, suffix string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if max > 0 && len(args) >= max {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx := cmd.Context()
		if ctx == nil {
			ctx = context.Background()
		}
		p, err := a.load(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, name := range p.ServiceNames() {
			if !slices.Contains(args, name) {
				names = append(names, name+suffix)
			}
		}
		directive := cobra.ShellCompDirectiveNoFileComp
		if suffix != "" {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return names, directive
	}
}
