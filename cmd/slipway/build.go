package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
	"github.com/spf13/cobra"
)

// buildFlags are those of build, as they were given.
type buildFlags struct {
	file, target, platform, network, iidFile, progress, memory, memorySwap, shmSize, cgroupParent, cpusetCPUs, cpusetMems string
	tags, args, labels, addHosts, ulimits, cacheFrom                                                                      []string
	noCache, pull, quiet                                                                                                  bool
	cpuShares, cpuPeriod, cpuQuota                                                                                        int64
}

func (c *cli) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use: "build [flags] DIR|-", Short: "Build an image from a Dockerfile (in a Compose project without DIR: its services)", GroupID: groupImages,
		Long: `Build an image from a Dockerfile.

DIR is the build context: what COPY and ADD can read, except what .dockerignore names. With - the context is a tar
on standard input, or just a Dockerfile.`,
		Example: `  slipway build -t web .
  slipway build -f deploy/Dockerfile --target test --build-arg VERSION=2 .
  slipway build -t tools - < Dockerfile`,
		Args: exactly(1, "a directory, the build context"),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) error { return c.build(cmd.Context(), &f, args[0]) },
	}
	s := cmd.Flags()
	s.StringVarP(&f.file, "file", "f", "", "the Dockerfile (default DIR/Dockerfile)")
	s.StringArrayVarP(&f.tags, "tag", "t", nil, "`NAME[:TAG]` of the image")
	s.StringVar(&f.target, "target", "", "stage to build")
	s.StringArrayVar(&f.args, "build-arg", nil, "`NAME=VALUE`, or NAME to pass it on")
	s.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE`")
	s.BoolVar(&f.noCache, "no-cache", false, "do every step again")
	s.BoolVar(&f.pull, "pull", false, "look for newer base images")
	s.BoolVarP(&f.quiet, "quiet", "q", false, "print only the image's id")
	s.StringVar(&f.iidFile, "iidfile", "", "write the image's id to this file")
	s.StringVar(&f.platform, "platform", "", "OS/ARCH[/VARIANT]")
	s.StringVar(&f.network, "network", "default", "network of RUN: default, none or host")
	s.StringArrayVar(&f.addHosts, "add-host", nil, "`NAME:IP` for RUN")
	s.StringVarP(&f.memory, "memory", "m", "", "memory limit of RUN")
	s.StringVar(&f.memorySwap, "memory-swap", "", "limit of memory and swap together")
	s.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in RUN")
	s.StringArrayVar(&f.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]` of RUN")
	s.StringVar(&f.cgroupParent, "cgroup-parent", "", "parent cgroup of RUN")
	s.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "CPUs that RUN may use")
	s.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes that RUN may use")
	s.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight of RUN")
	s.Int64Var(&f.cpuPeriod, "cpu-period", 0, "scheduler period of RUN in µs")
	s.Int64Var(&f.cpuQuota, "cpu-quota", 0, "scheduler quota of RUN in µs")
	s.StringArrayVar(&f.cacheFrom, "cache-from", nil, "images to take cache from")
	s.StringVar(&f.progress, "progress", "auto", "")
	_ = s.MarkHidden("progress")
	return cmd
}

func (c *cli) build(ctx context.Context, f *buildFlags, dir string) error {
	q, err := f.query()
	if err != nil {
		return usageError{err}
	}
	stream, dockerfile, err := c.buildContext(dir, f.file)
	if err != nil {
		return err
	}
	defer stream.Close()
	q.Set("dockerfile", dockerfile)
	auth, err := configHeader()
	if err != nil {
		return err
	}
	resp, err := c.client.do(ctx, call{
		method: "POST", path: "/build", query: q, stream: stream, media: "application/x-tar", header: http.Header{"X-Registry-Config": {auth}},
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var result build.Result
	view := progressView{out: c.out, width: c.width(), aux: func(raw json.RawMessage) { _ = json.Unmarshal(raw, &result) }}
	if err := view.show(resp.Body); err != nil {
		return err
	}
	if f.iidFile != "" {
		if err := os.WriteFile(f.iidFile, []byte(result.ID), 0o644); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	return nil
}

func (f *buildFlags) query() (url.Values, error) {
	q := url.Values{"rm": {"1"}, "t": f.tags, "extrahosts": f.addHosts}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("target", f.target)
	set("platform", f.platform)
	set("networkmode", f.network)
	set("cgroupparent", f.cgroupParent)
	set("cpusetcpus", f.cpusetCPUs)
	set("cpusetmems", f.cpusetMems)
	for name, on := range map[string]bool{"nocache": f.noCache, "pull": f.pull, "q": f.quiet} {
		if on {
			q.Set(name, "1")
		}
	}
	for _, size := range []struct{ flag, name, value string }{
		{"--memory", "memory", f.memory}, {"--memory-swap", "memswap", f.memorySwap}, {"--shm-size", "shmsize", f.shmSize},
	} {
		n, err := bytesFlag(size.flag, size.value)
		if err != nil {
			return nil, err
		}
		if n != 0 {
			q.Set(size.name, fmt.Sprint(n))
		}
	}
	for name, n := range map[string]int64{"cpushares": f.cpuShares, "cpuperiod": f.cpuPeriod, "cpuquota": f.cpuQuota} {
		if n != 0 {
			q.Set(name, fmt.Sprint(n))
		}
	}
	args := map[string]string{}
	pairs, err := environment(f.args, nil)
	if err != nil {
		return nil, errors.New(strings.Replace(err.Error(), "--env", "--build-arg", 1))
	}
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		args[name] = value
	}
	labels, err := keyValues("--label", f.labels, nil)
	if err != nil {
		return nil, err
	}
	var ulimits []*units.Ulimit
	for _, u := range f.ulimits {
		limit, err := units.ParseUlimit(u)
		if err != nil {
			return nil, fmt.Errorf("--ulimit %q: %w", u, err)
		}
		ulimits = append(ulimits, limit)
	}
	for name, v := range map[string]any{"buildargs": args, "labels": labels, "ulimits": ulimits, "cachefrom": f.cacheFrom} {
		text, err := toJSON(v)
		if err != nil {
			return nil, err
		}
		q.Set(name, text)
	}
	return q, nil
}

// buildContext opens the context as a tar and says what the Dockerfile is called in it.
func (c *cli) buildContext(dir, file string) (io.ReadCloser, string, error) {
	if dir == "-" {
		return c.stdinContext(file)
	}
	if strings.Contains(dir, "://") || strings.HasPrefix(dir, "git@") {
		return nil, "", usageError{fmt.Errorf("%s: remote build contexts are not supported: clone or download it first", dir)}
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, "", fmt.Errorf("build context: %w", err)
	}
	if !st.IsDir() {
		return nil, "", fmt.Errorf("build context %s is not a directory", dir)
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, "", err
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, "", fmt.Errorf("build context: %w", err)
	}
	return c.directoryContext(root, file)
}

func (c *cli) directoryContext(root, file string) (io.ReadCloser, string, error) {
	name := "Dockerfile"
	var outside []byte
	switch {
	case file == "-":
		raw, err := io.ReadAll(c.in)
		if err != nil {
			return nil, "", fmt.Errorf("read the Dockerfile from standard input: %w", err)
		}
		outside = raw
	case file != "":
		inside, err := placeDockerfile(root, file)
		if err != nil {
			return nil, "", err
		}
		if inside == "" {
			if outside, err = os.ReadFile(file); err != nil {
				return nil, "", fmt.Errorf("read the Dockerfile: %w", err)
			}
		} else {
			name = inside
		}
	default:
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			if _, err := os.Lstat(filepath.Join(root, "dockerfile")); err != nil {
				return nil, "", fmt.Errorf("no Dockerfile in %s: name one with -f", root)
			}
			name = "dockerfile"
		}
	}
	ignore, err := readIgnore(root, name, file)
	if err != nil {
		return nil, "", err
	}
	p := packer{root: root, ignore: ignore, keep: []string{name, ".dockerignore", name + ".dockerignore"}}
	if outside != nil {
		p.keep = nil
		name = outsideName
		p.extra = map[string][]byte{name: outside, ".dockerignore": []byte(strings.Join(append(slices.Clone(ignore), outsideName), "\n") + "\n")}
	}
	return p.open(), name, nil
}

// outsideName is what a Dockerfile from outside the context is called in it. It is ignored there, so no COPY can see it.
const outsideName = ".slipway.Dockerfile"

// placeDockerfile returns the path of a Dockerfile inside the context, or "" when it lies outside.
func placeDockerfile(root, file string) (string, error) {
	abs, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("read the Dockerfile: %w", err)
	}
	if _, err := os.Stat(abs); err != nil {
		if !filepath.IsAbs(file) { // docker also looks for it in the context
			if _, err := os.Stat(filepath.Join(root, file)); err == nil {
				return filepath.ToSlash(filepath.Clean(file)), nil
			}
		}
		return "", fmt.Errorf("read the Dockerfile: %w", err)
	}
	rel, err := filepath.Rel(root, filepath.Join(dir, filepath.Base(abs)))
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", nil
	}
	return filepath.ToSlash(rel), nil
}

// stdinContext is a tar, or a lone Dockerfile.
func (c *cli) stdinContext(file string) (io.ReadCloser, string, error) {
	if file == "-" {
		return nil, "", usageError{errors.New("invalid argument: can't use stdin for both build context and dockerfile")}
	}
	in, isTar, err := sniff(c.in)
	if err != nil {
		return nil, "", fmt.Errorf("read the build context from standard input: %w", err)
	}
	if isTar {
		if file == "" {
			file = "Dockerfile"
		}
		return io.NopCloser(in), file, nil
	}
	raw, err := io.ReadAll(in)
	if err != nil {
		return nil, "", fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	p := packer{extra: map[string][]byte{"Dockerfile": raw}}
	return p.open(), "Dockerfile", nil
}
