package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slipway.dev/slipway/test/harness"
)

// runs of each row; the table shows their median and range.
const runs = 15

// settle is how long the idle platform is left alone before its memory is read.
const settle = 60 * time.Second

// table is printed row by row, so that a long run shows where it is.
type table struct{ t *testing.T }

func (t table) row(what, slipway, peer, budget string) {
	fmt.Printf("%-62s %-28s %-24s %s\n", what, slipway, peer, budget)
}

func (t table) times(what string, samples, peer []time.Duration, budget string) {
	t.row(what, spread(samples), spread(peer), budget)
}

// spread writes the median of samples and their range.
func spread(samples []time.Duration) string {
	if len(samples) == 0 {
		return "-"
	}
	s := slices.Sorted(slices.Values(samples))
	return fmt.Sprintf("%s (%s - %s)", short(s[len(s)/2]), short(s[0]), short(s[len(s)-1]))
}

func short(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.0f ms", float64(d)/1e6)
}

// timed measures n runs of f after one that is not counted.
func timed(n int, f func(i int)) []time.Duration {
	f(-1)
	samples := make([]time.Duration, 0, n)
	for i := range n {
		start := time.Now()
		f(i)
		samples = append(samples, time.Since(start))
	}
	return samples
}

func TestTable(t *testing.T) {
	if os.Getenv("SLIPWAY_BENCH") == "" {
		t.Skip("measures for minutes: run `make bench`")
	}
	out := table{t}
	out.row("what", "slipway: median (range)", "docker, same machine", "budget")
	out.row("4 KiB written and flushed to disk", spread(fsync(t)), "", "(the disk's own time)")
	out.times("daemon start -> Kubernetes API ready, empty data directory", coldStarts(t), nil, "500 ms")

	d := harness.Start(t)
	d.BaseImage(t)
	peer := dockerd(t)
	fresh := memoryOf(t, d)
	containers(t, out, d, peer)
	builds(t, out, d, peer)
	projects(t, out, d)
	pods(t, out, d)
	requests(t, out, d)
	time.Sleep(settle)
	idle := memoryOf(t, d)
	out.row("memory of daemon and warden, just started", fresh.String(), "", "")
	out.row(fmt.Sprintf("memory of the idle platform, %v after all of the above", settle), idle.String(), "", "90 MB, 45 MB anonymous")
	perPod(t, out, d)
}

// coldStarts measures whole daemons from exec to readiness.
func coldStarts(t *testing.T) []time.Duration {
	var samples []time.Duration
	for i := range runs + 1 {
		t.Run("start", func(t *testing.T) {
			d := harness.New(t)
			start := time.Now()
			d.Launch()
			if took := time.Since(start); i > 0 {
				samples = append(samples, took)
			}
		})
	}
	return samples
}

func fsync(t *testing.T) []time.Duration {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	check(t, err)
	defer f.Close()
	block := make([]byte, 4096)
	return timed(50, func(int) {
		_, err := f.Write(block)
		check(t, err)
		check(t, f.Sync())
	})
}

// engine runs the same commands against Slipway or a dockerd.
type engine struct {
	t       *testing.T
	command func(args ...string) *exec.Cmd
}

func (e *engine) run(args ...string) {
	e.t.Helper()
	if out, err := e.command(args...).CombinedOutput(); err != nil {
		e.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func slipway(t *testing.T, d *harness.Daemon) *engine {
	return &engine{t, func(args ...string) *exec.Cmd { return d.Command(t.Context(), t, "slipway", args...) }}
}

// dockerd is the machine's own docker, with the base image; nil when none runs.
func dockerd(t *testing.T) *engine {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return nil
	}
	e := &engine{t, func(args ...string) *exec.Cmd { return exec.CommandContext(t.Context(), docker, args...) }}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if exec.CommandContext(ctx, docker, "version", "-f", "{{.Server.Version}}").Run() != nil {
		return nil
	}
	dir := t.TempDir()
	write(t, dir, "Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n")
	busybox, err := os.ReadFile("/bin/busybox")
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "busybox"), busybox, 0o755))
	e.run("build", "-q", "-t", harness.Base, dir)
	return e
}

// both measures a row on Slipway and, when there is one, on dockerd.
func both(out table, ours, peer *engine, what, budget string, n int, args ...string) {
	var theirs []time.Duration
	if peer != nil {
		theirs = timed(n, func(int) { peer.run(args...) })
	}
	out.times(what, timed(n, func(int) { ours.run(args...) }), theirs, budget)
}

func containers(t *testing.T, out table, d *harness.Daemon, peer *engine) {
	ours := slipway(t, d)
	both(out, ours, peer, "run --rm IMAGE true, image present, bridge network", "50 ms", runs, "run", "--rm", harness.Base, "true")
	d.Docker(t, "run", "-d", "--name", "one", harness.Base, "sleep", "inf")
	both(out, ours, nil, "exec in a running container", "", runs, "exec", "one", "true")
	both(out, ours, peer, "ps", "10 ms", runs, "ps")
	d.Docker(t, "rm", "-f", "one")
}

const threeStages = `FROM base:1 AS left
COPY data /data
RUN wc -c /data > /left
FROM base:1 AS right
COPY small /small
RUN cat /small /small > /right
FROM base:1
COPY --from=left /left /
COPY --from=right /right /
CMD ["cat", "/left", "/right"]
`

func builds(t *testing.T, out table, d *harness.Daemon, peer *engine) {
	dir := t.TempDir()
	write(t, dir, "Dockerfile", threeStages)
	write(t, dir, "small", "small\n")
	noise := make([]byte, 10<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7)
	}
	write(t, dir, "data", string(noise))
	ours := slipway(t, d)
	both(out, ours, peer, "three-stage build, 10 MB context, no cache", "500 ms", 10, "build", "--no-cache", "-t", "three:1", dir)

	dir = t.TempDir()
	write(t, dir, "Dockerfile", "FROM base:1\nCOPY file /\nRUN cat /file > /copy\nCMD [\"cat\", \"/copy\"]\n")
	write(t, dir, "file", "unchanged\n")
	both(out, ours, peer, "rebuild with nothing changed", "25 ms", runs, "build", "-t", "same:1", dir)
}

// projects brings five present images up and down.
func projects(t *testing.T, out table, d *harness.Daemon) {
	if _, err := os.Stat(filepath.Join(harness.Binaries(t), "slipway-compose")); err != nil {
		out.row("up / down of five present images", "no slipway-compose in SLIPWAY_BIN", "", "400 ms / 300 ms")
		return
	}
	dir := t.TempDir()
	file := "name: five\nservices:\n"
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		file += "  " + name + ": {image: \"base:1\", command: [sleep, inf], init: true, stop_grace_period: 0s}\n"
	}
	write(t, dir, "compose.yaml", file)
	ours := &engine{t, func(args ...string) *exec.Cmd {
		cmd := d.Command(t.Context(), t, "slipway", args...)
		cmd.Dir = dir
		return cmd
	}}
	var up, down []time.Duration
	for i := range 11 {
		start := time.Now()
		ours.run("up")
		middle := time.Now()
		ours.run("down")
		if i > 0 {
			up, down = append(up, middle.Sub(start)), append(down, time.Since(middle))
		}
	}
	out.times("up of five present images", up, nil, "400 ms")
	out.times("down of them", down, nil, "300 ms")
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	check(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
