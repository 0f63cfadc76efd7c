package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"slipway.dev/slipway/compose"
	"slipway.dev/slipway/compose/apply"
)

// upFlags are those of up.
type upFlags struct {
	build, noBuild, noWait, noDeps, dryRun, quiet bool
	recreate, removeOrphans                       bool
	pull, output, waitTimeout                     string
	scale                                         []string
	timeout                                       time.Duration // of waitTimeout; 0: none
}

// settle and patience are how long a service without a health check has to go on running until it counts as up, and how
// long what holds one up may last when nothing else moves any more. The first is short, because people wait for it: most
// programs that lack a setting or a file notice within it. A health check is what tells of slower ones.
const (
	settle   = 150 * time.Millisecond
	patience = 2 * time.Second
)

func (a *app) upCommand() *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "up [SERVICE...]", Short: "Build and start the project, or bring it to what the file says now",
		Long: `Build and start the project, or bring it to what the file says now.

Services with build: are built each time (an unchanged build takes milliseconds); other images are pulled as
pull_policy says. What is already as the file says is left alone, a changed image or configuration is a rolling
update, and services that are no longer in the file are removed. With SERVICE only those and what they depend on.`,
		Example: `  slipway up
  slipway up --scale web=5 web
  slipway up --force-recreate api    replace its replicas although nothing has changed
  slipway up --dry-run -o yaml       the Kubernetes objects, without making them
  slipway up --context production    the same project on another cluster`,
		ValidArgsFunction: a.completeServices(0, ""),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd.Flags()); err != nil {
				return err
			}
			return a.up(cmd.Context(), &f, args)
		},
	}
	s := cmd.Flags()
	s.BoolVar(&f.build, "build", false, "build images even where pull_policy says otherwise")
	s.BoolVar(&f.noBuild, "no-build", false, "build nothing, even if an image is missing")
	s.BoolVar(&f.noWait, "no-wait", false, "return when the objects are there, before they run")
	s.BoolVar(&f.noDeps, "no-deps", false, "leave out what the services depend on")
	s.BoolVar(&f.recreate, "force-recreate", false, "replace what runs even where nothing has changed; what ran to completion runs again")
	s.BoolVar(&f.removeOrphans, "remove-orphans", false, "also remove services that came from other files under the same project name")
	s.StringVar(&f.waitTimeout, "wait-timeout", "", "how long to wait until everything runs: `TIME` such as 2m, or seconds (default: as long as it may still get there)")
	s.StringVar(&f.pull, "pull", "", "always, missing or never: overrides pull_policy")
	s.StringArrayVar(&f.scale, "scale", nil, "`SERVICE=N`: that many replicas")
	s.BoolVar(&f.dryRun, "dry-run", false, "print the Kubernetes objects and change nothing")
	s.StringVarP(&f.output, "output", "o", "", "yaml or json, with --dry-run")
	s.BoolVar(&f.quiet, "quiet", false, "show no progress")
	dockerFlags(s)
	_ = cmd.RegisterFlagCompletionFunc("pull", cobra.FixedCompletions([]string{"always", "missing", "never"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"yaml", "json"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("scale", a.completeServices(0, "="))
	return cmd
}

// asAlways are flags of docker compose up that ask for what up does anyway.
var asAlways = map[string]string{"detach": "d", "wait": "", "quiet-pull": "", "no-color": "", "yes": "y", "renew-anon-volumes": "V", "no-log-prefix": "", "timestamps": ""}

// instead says what to type for those that mean something else.
var instead = map[string]string{
	"attach": follow, "no-attach": follow, "attach-dependencies": follow, "abort-on-container-exit": follow, "abort-on-container-failure": follow,
	"exit-code-from":       "`slipway up` fails when a service does; `slipway wait SERVICE` prints an exit code",
	"watch":                "run `slipway up` again after a change: only what has changed is replaced",
	"no-recreate":          "services that have not changed are left alone; name those that are to be brought up",
	"always-recreate-deps": "use --force-recreate",
	"no-start":             "use `slipway build`, or --dry-run",
	"timeout":              "set stop_grace_period in the file",
}

const follow = "up returns when everything runs: `slipway logs -f` follows the output"

// dockerFlags knows docker compose's other flags, so that nobody has to guess.
func dockerFlags(s *pflag.FlagSet) {
	for name, short := range asAlways {
		s.BoolP(name, short, false, "as always")
		_ = s.MarkHidden(name)
	}
	for name := range instead {
		short := map[string]string{"watch": "w", "timeout": "t"}[name]
		s.StringP(name, short, "", "see what it says")
		s.Lookup(name).NoOptDefVal = "true"
		_ = s.MarkHidden(name)
	}
}

func (f *upFlags) check(s *pflag.FlagSet) error {
	for _, name := range sortedKeys(instead) {
		if s.Changed(name) {
			return usageError{fmt.Errorf("--%s: %s", name, instead[name])}
		}
	}
	var err error
	if f.timeout, err = seconds(f.waitTimeout); err != nil {
		return usageError{fmt.Errorf("--wait-timeout %q: want a duration such as 90s or 2m, or a number of seconds", f.waitTimeout)}
	}
	switch {
	case f.build && f.noBuild:
		return usageError{errors.New("--build and --no-build exclude each other")}
	case f.pull != "" && f.pull != "always" && f.pull != "missing" && f.pull != "never":
		return usageError{fmt.Errorf("--pull %q: use always, missing or never", f.pull)}
	case f.output != "" && f.output != "yaml" && f.output != "json":
		return usageError{fmt.Errorf("--output %q: use yaml or json", f.output)}
	case f.output != "" && !f.dryRun:
		return usageError{errors.New("--output is for --dry-run")}
	}
	return nil
}

// seconds reads a duration, or docker compose's bare number of seconds.
func seconds(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second, nil
	}
	d, err := time.ParseDuration(text)
	if err == nil && d < 0 {
		err = errors.New("negative")
	}
	return d, err
}

func (a *app) up(ctx context.Context, f *upFlags, names []string) error {
	p, err := a.upProject(ctx, f, names)
	if err != nil {
		return err
	}
	b := newBoard(a.err, f.quiet)
	if f.dryRun {
		return a.dryRun(ctx, a.out, f.output, p, b)
	}
	began := time.Now()
	if err := a.startDaemon(ctx); err != nil { // also for another cluster: images come from here
		return err
	}
	c, err := a.cluster(ctx)
	if err == nil && a.kubeContext != "" {
		err = errors.Join(pullable(p), c.Reach(ctx)) // before minutes go into images for nothing
	}
	if err != nil {
		return err
	}
	images, err := a.images(ctx, p, imageOptions{noBuild: f.noBuild, pull: f.pull, push: a.kubeContext != ""}, b)
	if err != nil {
		return err
	}
	plan, err := a.plan(ctx, c, p, images)
	if err != nil {
		return err
	}
	for _, note := range plan.Notes {
		b.Say("", "note: "+note)
	}
	if f.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, f.timeout, fmt.Errorf("not everything runs after %s: see `slipway ps` and `slipway logs`", f.timeout))
		defer cancel()
	}
	a.started = ": what has been started stays: `slipway up` goes on, `slipway down` removes it"
	out, err := c.Up(ctx, plan, apply.UpOptions{
		Project: p.Name, Files: p.ComposeFiles, Wait: !f.noWait, Orphan: orphans(p, len(names) > 0), RemoveOrphans: f.removeOrphans,
		Recreate: f.recreate, Settle: settle, Patience: patience, Progress: b,
	})
	if err != nil {
		return b.failure(err)
	}
	b.End(summary(p.Name, out, time.Since(began)))
	return a.tellPorts(ctx, c, plan.Namespace)
}

// upProject is the part of the project that the command line asks for.
func (a *app) upProject(ctx context.Context, f *upFlags, names []string) (*types.Project, error) {
	counts, err := scales(f.scale)
	if err != nil {
		return nil, err
	}
	p, err := a.load(ctx)
	if err != nil {
		return nil, err
	}
	// Who shares a pod with a service cannot be left out.
	whole := []string{}
	for _, name := range names {
		whole = append(whole, compose.Group(p, name)...)
		if !slices.Contains(whole, name) {
			whole = append(whole, name)
		}
	}
	if p, err = selected(p, whole, !f.noDeps); err != nil {
		return nil, err
	}
	if f.build {
		for name, s := range p.Services {
			if s.Build != nil {
				s.PullPolicy = types.PullPolicyBuild
				p.Services[name] = s
			}
		}
	}
	return scaled(p, counts)
}

// orphans tells what is removed because the file no longer names it. A partial up removes nothing; a service whose
// profile is not enabled now is not gone, and what belongs to no service may be its.
func orphans(p *types.Project, partial bool) func(service string) bool {
	all := map[string]bool{}
	for name := range p.AllServices() {
		all[name] = true
	}
	return func(service string) bool {
		switch {
		case partial:
			return false
		case len(p.DisabledServices) == 0:
			return true
		}
		return service != "" && !all[service]
	}
}

func (a *app) plan(ctx context.Context, c *apply.Cluster, p *types.Project, images map[string]compose.Image) (*compose.Plan, error) {
	in := compose.Input{Project: p, Images: images, Slipway: a.kubeContext == "", VolumePaths: map[string]string{}}
	if in.Slipway {
		host, err := os.Hostname()
		if err != nil {
			return nil, err
		}
		in.Node = host
		if c != nil {
			if in.Node, in.HostAddress, err = c.Node(ctx, host); err != nil {
				return nil, err
			}
		}
		for _, v := range p.Volumes {
			if !bool(v.External) {
				continue
			}
			if path, err := a.engine().VolumePath(ctx, v.Name); err == nil {
				in.VolumePaths[v.Name] = path
			}
		}
	}
	return compose.Translate(in)
}

// dryRun prints the objects. It builds and pulls nothing and starts no daemon, so images that are not there yet are
// named by tag, and what they expose is not known.
func (a *app) dryRun(ctx context.Context, out io.Writer, format string, p *types.Project, b *board) error {
	images, err := a.images(ctx, p, imageOptions{look: true}, b)
	if err != nil {
		return err
	}
	plan, err := a.plan(ctx, nil, p, images)
	if err != nil {
		return err
	}
	for _, note := range plan.Notes {
		b.Say("", "note: "+note)
	}
	objects := append([]compose.Object{}, plan.Shared...)
	for _, w := range plan.Workloads {
		objects = append(objects, w.Object)
	}
	return printObjects(out, objects, format)
}

func printObjects(w io.Writer, objects []compose.Object, format string) error {
	items := make([]any, 0, len(objects))
	for _, o := range objects {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return err
		}
		clean(m)
		items = append(items, m)
	}
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"apiVersion": "v1", "kind": "List", "items": items})
	}
	for _, item := range items {
		raw, err := yaml.Marshal(item)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "---\n%s", raw)
	}
	return nil
}

// clean drops what only a server may say, wherever it is.
func clean(m map[string]any) {
	delete(m, "status")
	dropTimes(m)
}

func dropTimes(m map[string]any) {
	if v, ok := m["creationTimestamp"]; ok && v == nil {
		delete(m, "creationTimestamp")
	}
	for _, v := range m {
		if sub, ok := v.(map[string]any); ok {
			dropTimes(sub)
		}
	}
}

func summary(project string, o apply.Outcome, took time.Duration) string {
	if o.Nothing() {
		return fmt.Sprintf("%s: nothing has changed", project)
	}
	var parts []string
	for _, p := range []struct {
		n    int
		verb string
	}{{o.Created, "created"}, {o.Changed, "changed"}, {o.Removed, "removed"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.verb))
		}
	}
	return fmt.Sprintf("%s: up in %.1fs (objects: %s)", project, took.Seconds(), strings.Join(parts, ", "))
}

// tellPorts says where the project can be reached.
func (a *app) tellPorts(ctx context.Context, c *apply.Cluster, namespace string) error {
	ports, err := c.PublishedPorts(ctx, namespace)
	if err != nil {
		return err
	}
	for _, service := range sortedKeys(ports) {
		for _, p := range ports[service] {
			fmt.Fprintf(a.out, "%s: %s\n", service, p)
		}
	}
	return nil
}
