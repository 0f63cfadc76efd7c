package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"
)

// configFlags are those of config.
type configFlags struct {
	services, images, volumes, networks, profiles, environment, quiet bool
	format, output                                                    string
}

func (a *app) configCommand() *cobra.Command {
	var f configFlags
	cmd := &cobra.Command{
		Use: "config [SERVICE...]", Short: "Check the Compose file and print it as it is understood",
		Long: `Check the Compose file and print it as it is understood: with overrides, extends, include and variables resolved.

With --format kubernetes it prints the Kubernetes objects that the project becomes, and what they cannot express.`,
		Example: `  slipway config
  slipway config --services
  slipway config --format kubernetes > shop.yaml
  slipway -f compose.yaml -f prod.yaml config web`,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE:              func(cmd *cobra.Command, args []string) error { return a.config(cmd.Context(), &f, args) },
	}
	s := cmd.Flags()
	s.BoolVar(&f.services, "services", false, "print only the services' names")
	s.BoolVar(&f.images, "images", false, "print only the images' names")
	s.BoolVar(&f.volumes, "volumes", false, "print only the volumes' names")
	s.BoolVar(&f.networks, "networks", false, "print only the networks' names")
	s.BoolVar(&f.profiles, "profiles", false, "print only the profiles' names")
	s.BoolVar(&f.environment, "environment", false, "print the variables that the file is filled in with")
	s.BoolVarP(&f.quiet, "quiet", "q", false, "only check")
	s.StringVar(&f.format, "format", "yaml", "yaml, json or kubernetes")
	s.StringVarP(&f.output, "output", "o", "", "write to `FILE` instead of standard output")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"yaml", "json", "kubernetes"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) config(ctx context.Context, f *configFlags, names []string) error {
	if !slices.Contains([]string{"yaml", "json", "kubernetes"}, f.format) {
		return usageError{fmt.Errorf("--format %q: use yaml, json or kubernetes", f.format)}
	}
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	all := p
	if p, err = selected(p, names, true); err != nil || f.quiet {
		return err
	}
	if f.output == "" {
		return a.printConfig(ctx, a.out, f, p, all)
	}
	var out bytes.Buffer
	if err := a.printConfig(ctx, &out, f, p, all); err != nil {
		return err
	}
	return os.WriteFile(f.output, out.Bytes(), 0o666)
}

func (a *app) printConfig(ctx context.Context, out io.Writer, f *configFlags, p, all *types.Project) error {
	if list := f.list(p, all); list != nil {
		for _, line := range *list {
			fmt.Fprintln(out, line)
		}
		return nil
	}
	if f.format == "kubernetes" {
		return a.dryRun(ctx, out, "yaml", p, newBoard(a.err, false))
	}
	return printProject(out, p, f.format)
}

// list is what the flags select instead of the whole; nil: nothing does.
func (f *configFlags) list(p, all *types.Project) *[]string {
	var lines []string
	switch {
	case f.services:
		lines = p.ServiceNames()
	case f.images:
		for _, name := range p.ServiceNames() {
			s := p.Services[name]
			lines = append(lines, imageName(p, &s))
		}
	case f.volumes:
		lines = p.VolumeNames()
	case f.networks:
		lines = p.NetworkNames()
	case f.profiles:
		for _, s := range all.AllServices() {
			lines = append(lines, s.Profiles...)
		}
		slices.Sort(lines)
		lines = slices.Compact(lines)
	case f.environment:
		for _, name := range sortedKeys(p.Environment) {
			lines = append(lines, name+"="+p.Environment[name])
		}
	default:
		return nil
	}
	return &lines
}

func printProject(w io.Writer, p *types.Project, format string) error {
	raw, err := p.MarshalYAML()
	if format == "json" {
		raw, err = p.MarshalJSON()
	}
	if err != nil {
		return err
	}
	_, err = w.Write(raw)
	return err
}
