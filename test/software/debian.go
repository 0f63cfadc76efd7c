// Package software runs real software on a real daemon: a base image made by debootstrap, Debian's nginx and redis
// installed by apt-get inside a build, and both of them behind a Compose file.
//
// It needs a Debian or Ubuntu machine with debootstrap, root, and that machine's package mirror; what is missing
// is the reason of a skip.
package software

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// distribution is where this machine gets its packages from.
type distribution struct {
	Suite      string   // bookworm, noble
	Mirror     string   // http://deb.debian.org/debian/
	Components []string // main; universe where redis is kept apart
	Apt        []string // settings of apt that say how mirrors are reached, as lines of apt.conf
	Proxy      string   // for plain HTTP; empty: none
}

// thisMachine reads apt's own configuration; the test is skipped when there is none or its mirror does not answer.
func thisMachine(t *testing.T) distribution {
	t.Helper()
	for _, program := range []string{"apt-get", "apt-config", "debootstrap"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("a base image is made by debootstrap from this machine's mirror: %v", err)
		}
	}
	release := osRelease(t)
	d := distribution{Suite: release["VERSION_CODENAME"], Components: []string{"main"}}
	if release["ID"] == "ubuntu" {
		d.Components = append(d.Components, "universe")
	}
	for line := range strings.Lines(output(t, "apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == d.Suite && f[1] == "main" {
			d.Mirror = f[2]
		}
	}
	if d.Mirror == "" {
		t.Skipf("apt on this machine has no mirror of %q: run apt-get update", d.Suite)
	}
	for line := range strings.Lines(output(t, "apt-config", "dump", "Acquire")) {
		if line = strings.TrimSpace(line); saysHowToFetch(line) {
			d.Apt = append(d.Apt, line)
		}
		if value, ok := strings.CutPrefix(line, `Acquire::http::Proxy "`); ok {
			d.Proxy = strings.TrimSuffix(value, `";`)
		}
	}
	if err := d.reachable(t.Context()); err != nil {
		t.Skipf("the package mirror of this machine does not answer: %v", err)
	}
	return d
}

// saysHowToFetch picks the settings that an administrator makes: proxies, retries, and how old an index may be.
func saysHowToFetch(line string) bool {
	for _, prefix := range []string{"Acquire::http::", "Acquire::https::", "Acquire::Retries ", "Acquire::Check-Valid-Until ", "Acquire::Check-Date "} {
		if strings.HasPrefix(line, prefix) && !strings.HasSuffix(line, ` "";`) {
			return true
		}
	}
	return false
}

func (d distribution) reachable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, strings.TrimSuffix(d.Mirror, "/")+"/dists/"+d.Suite+"/Release", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return http.ProxyFromEnvironment(req) }}
	if d.Proxy != "" {
		proxy, err := url.Parse(d.Proxy)
		if err != nil {
			return fmt.Errorf("apt's proxy: %w", err)
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", req.URL, resp.Status)
	}
	return nil
}

// sources is the image's sources.list.
func (d distribution) sources() string {
	return fmt.Sprintf("deb %s %s %s\n", d.Mirror, d.Suite, strings.Join(d.Components, " "))
}

// base makes the smallest Debian that has apt, as a tar archive. It is kept in .cache, because making it takes a minute.
func (d distribution) base(t *testing.T) string {
	t.Helper()
	cache, err := filepath.Abs("../../.cache/software")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(cache, d.Suite+"-minbase.tar")
	if _, err := os.Stat(archive); err == nil {
		return archive
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	debootstrap := exec.CommandContext(t.Context(), "debootstrap", "--variant=minbase", "--components="+strings.Join(d.Components, ","), d.Suite, root, d.Mirror)
	if d.Proxy != "" {
		debootstrap.Env = append(os.Environ(), "http_proxy="+d.Proxy)
	}
	if out, err := debootstrap.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, out)
	}
	// Written beside and renamed: an interrupted run leaves no half archive.
	part, err := os.CreateTemp(cache, "part")
	if err != nil {
		t.Fatal(err)
	}
	part.Close()
	defer os.Remove(part.Name())
	output(t, "tar", "-C", root, "--numeric-owner", "--exclude=./dev/*", "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "-cf", part.Name(), ".")
	if err := os.Rename(part.Name(), archive); err != nil {
		t.Fatal(err)
	}
	return archive
}

func osRelease(t *testing.T) map[string]string {
	t.Helper()
	raw, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Skipf("which distribution is this: %v", err)
	}
	values := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			values[key] = strings.Trim(value, `"`)
		}
	}
	return values
}

// output runs a program of this machine, which must succeed.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}
