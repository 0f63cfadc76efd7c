package harness

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
)

// Base is the image that BaseImage makes: busybox, with its commands installed.
const Base = "base:1"

const baseDockerfile = `FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /tmp /etc /root && chmod 1777 /tmp && echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd && echo 'root:x:0:' >/etc/group
ENV PATH=/bin
CMD ["sh"]
`

// DockerHTTP is a client of the daemon's Docker API. Requests go to http://docker/PATH.
func (d *Daemon) DockerHTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", d.DockerSocket())
		},
	}}
}

// BaseImage builds Base, from this machine's busybox.
func (d *Daemon) BaseImage(t testing.TB) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("the base image is made from busybox: %v: install busybox-static", err)
	}
	if _, err := d.Build(t.Context(), Base, map[string]string{"Dockerfile": baseDockerfile, "busybox": string(busybox)}); err != nil {
		t.Fatalf("build the base image: %v", err)
	}
}

// Build builds an image from files; all of them may be executed. It returns what the builder said.
func (d *Daemon) Build(ctx context.Context, tag string, files map[string]string) (string, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, content); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/build?t="+url.QueryEscape(tag), &archive)
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	resp, err := d.DockerHTTP().Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(resp.Body)
		return "", fmt.Errorf("%s: %s", resp.Status, said)
	}
	return buildOutput(resp.Body)
}

// buildOutput reads the builder's stream to its end.
func buildOutput(r io.Reader) (string, error) {
	var said strings.Builder
	for dec := json.NewDecoder(r); ; {
		var m struct{ Stream, Error string }
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return said.String(), nil
		} else if err != nil {
			return said.String(), err
		}
		said.WriteString(m.Stream)
		if m.Error != "" {
			return said.String(), errors.New(m.Error)
		}
	}
}
