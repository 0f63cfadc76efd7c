package software

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"slipway.dev/slipway/test/harness"
)

// upLimit is how long a verb may take that installs packages: the mirror and the machine may both be slow.
const upLimit = 4 * time.Minute

// TestNginxAndRedis is the life of a small site of real software, from a bare Debian to nothing.
func TestNginxAndRedis(t *testing.T) {
	harness.Binaries(t)
	debian := thisMachine(t)
	archive := debian.base(t)
	d := harness.Start(t)
	d.Docker(t, "import", "-c", `CMD ["bash"]`, archive, "debian-base")
	s := &site{t: t, d: d, dir: project(t, debian), port: harness.Port(t)}

	before := objects(t, d)

	s.slipway("up", "--wait-timeout", "2m")
	s.want("/own", "front")
	replicas := map[string]bool{}
	harness.Eventually(t, "answers of both replicas through the proxy", func() error {
		said, err := s.get("/pages/some/thing")
		if err != nil {
			return err
		}
		if !strings.HasPrefix(said, "page /some/thing by ") {
			return fmt.Errorf("it says %q", said)
		}
		if replicas[said] = true; len(replicas) < 2 {
			return fmt.Errorf("only %q so far", said)
		}
		return nil
	})

	s.redis("OK", "set", "greeting", "hello")
	d.Kubectl(t, "-n", "software", "delete", "pod", "--selector", "app.kubernetes.io/name=store")
	d.Kubectl(t, "-n", "software", "rollout", "status", "deployment/store", "--timeout=50s")
	s.redis("hello", "get", "greeting")
	s.redis("OK", "set", "farewell", "bye")
	d.Kubectl(t, "-n", "software", "rollout", "restart", "deployment/store", "deployment/front")
	d.Kubectl(t, "-n", "software", "rollout", "status", "deployment/store", "--timeout=50s")
	d.Kubectl(t, "-n", "software", "rollout", "status", "deployment/front", "--timeout=50s")
	s.redis("hello", "get", "greeting")
	s.redis("bye", "get", "farewell")
	s.want("/own", "front")
	if log := s.slipway("logs", "store"); !strings.Contains(log, "Ready to accept connections") {
		t.Errorf("the log of redis does not say that it is ready:\n%s", log)
	}

	s.slipway("down", "-v")
	d.CheckNoPods(t)
	if after := objects(t, d); after != before {
		t.Errorf("objects after down -v:\n%s\nbefore up:\n%s", after, before)
	}
	if left, _ := filepath.Glob(filepath.Join(d.Data, "volumes", "*")); len(left) > 0 {
		t.Errorf("volumes left after down -v: %v", left)
	}
}

// objects names all that a project may leave in the cluster.
func objects(t *testing.T, d *harness.Daemon) string {
	t.Helper()
	return d.Kubectl(t, "get", "namespaces,pods,services,deployments,configmaps,networkpolicies,persistentvolumeclaims,persistentvolumes", "-A", "-o", "name")
}

// project lays out the Compose project, with this machine's way to its mirror.
func project(t *testing.T, debian distribution) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"Dockerfile", "compose.yaml"} {
		content, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, name, string(content))
	}
	write(t, dir, "sources.list", debian.sources())
	write(t, dir, "apt.conf", strings.Join(debian.Apt, "\n")+"\n")
	return dir
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// site is the Compose project as its owner handles it.
type site struct {
	t    *testing.T
	d    *harness.Daemon
	dir  string
	port int
}

// slipway runs a verb in the project's folder and returns what it printed.
func (s *site) slipway(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("slipway %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *site) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), upLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.Binaries(s.t), "slipway"), args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "SLIPWAY_RUN_DIR="+s.d.Run, "HOME="+s.d.Run, "SOFTWARE_PORT="+strconv.Itoa(s.port))
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// redis asks the store from another service, by its name.
func (s *site) redis(want string, command ...string) {
	s.t.Helper()
	harness.Eventually(s.t, "redis-cli "+strings.Join(command, " "), func() error {
		out, err := s.try(append([]string{"exec", "-T", "pages", "redis-cli", "-h", "store"}, command...)...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if got := strings.TrimSpace(out); got != want {
			return fmt.Errorf("redis says %q; want %q", got, want)
		}
		return nil
	})
}

func (s *site) want(path, want string) {
	s.t.Helper()
	harness.Eventually(s.t, "GET "+path, func() error {
		got, err := s.get(path)
		if err != nil {
			return err
		}
		if strings.TrimSpace(got) != want {
			return fmt.Errorf("it says %q; want %q", got, want)
		}
		return nil
	})
}

// get asks the published port over a connection of its own, so that requests are spread.
func (s *site) get(path string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", s.port, path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return string(body), err
}
