package machine

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// engine serves canned answers on a socket, and remembers what was asked.
func engine(t *testing.T, answers map[string]string) (*Client, *[]string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		io.Copy(io.Discard, r.Body)
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"message": "no such thing: %s"}`, r.URL.Path)
			return
		}
		io.WriteString(w, answer)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return Dial(socket), &asked
}

func TestInspect(t *testing.T) {
	c, _ := engine(t, map[string]string{"GET /images/repo/web:1/json": `{"Id": "sha256:12", "Config": {"User": "www", "ExposedPorts": {"80/tcp": {}}, "Healthcheck": {"Test": ["CMD", "x"], "Interval": 2000000000}}}`})
	img, err := c.Inspect(context.Background(), "repo/web:1")
	if err != nil || img.ID != "sha256:12" || img.Config.Healthcheck.Interval != 2e9 || len(img.Config.ExposedPorts) != 1 {
		t.Errorf("image %+v, %v", img, err)
	}
	_, err = c.Inspect(context.Background(), "other")
	if !IsNotFound(err) || err.Error() != "no such thing: /images/other/json" {
		t.Errorf("error %v; want that it is absent, in the engine's words", err)
	}
}

func TestBuildFollowsTheStream(t *testing.T) {
	for _, tt := range []struct {
		name, stream, id, err string
		lines                 []string
	}{
		{"good", `{"stream":"Step 1/1 : FROM scratch\n"}{"stream":"\n"}{"aux":{"ID":"sha256:12"}}{"stream":"Successfully built 12\n"}`, "sha256:12", "", []string{"Step 1/1 : FROM scratch", "Successfully built 12"}},
		{"bad", `{"stream":"Step 1/1 : RUN false\n"}{"errorDetail":{"message":"it failed"},"error":"Dockerfile:2: it failed"}`, "", "Dockerfile:2: it failed", []string{"Step 1/1 : RUN false"}},
		{"cut off", `{"stream":"Step`, "", "read progress: unexpected EOF", nil},
		{"no image", `{"stream":"odd\n"}`, "", "the build ended without an image", []string{"odd"}},
		{"pull inside", `{"id":"abc","status":"Downloading"}{"status":"done"}{"aux":{"ID":"sha256:1"}}`, "sha256:1", "", []string{"abc: Downloading", "done"}},
	} {
		c, _ := engine(t, map[string]string{"POST /build": tt.stream})
		var lines []string
		id, err := c.Build(context.Background(), Build{Context: strings.NewReader("")}, func(l string) { lines = append(lines, l) })
		if id != tt.id && tt.err == "" || errorText(err) != tt.err || !slices.Equal(lines, tt.lines) {
			t.Errorf("%s: id %q, error %v, lines %q; want %q, %q, %q", tt.name, id, err, lines, tt.id, tt.err, tt.lines)
		}
	}
}

func TestPushNamesTheTag(t *testing.T) {
	c, asked := engine(t, map[string]string{"POST /images/reg.example:5000/web/push": `{"status":"pushed"}`})
	if err := c.Push(context.Background(), "reg.example:5000/web:2", nil, func(string) {}); err != nil {
		t.Errorf("%v, asked %v", err, *asked)
	}
}

func TestReadFile(t *testing.T) {
	var archive strings.Builder
	w := tar.NewWriter(&archive)
	text := "root:x:0:0::/root:/bin/sh\n"
	if err := w.WriteHeader(&tar.Header{Name: "passwd", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, text)
	w.Close()
	c, asked := engine(t, map[string]string{
		"POST /containers/create": `{"Id": "c1"}`, "GET /containers/c1/archive": archive.String(), "DELETE /containers/c1": "",
	})
	raw, err := c.ReadFile(context.Background(), "web", "/etc/passwd")
	if err != nil || string(raw) != text {
		t.Errorf("read %q, %v", raw, err)
	}
	if last := (*asked)[len(*asked)-1]; last != "DELETE /containers/c1" {
		t.Errorf("the container was left behind: %v", *asked)
	}
}

func TestNoDaemon(t *testing.T) {
	_, err := Dial(filepath.Join(t.TempDir(), "docker.sock")).Inspect(context.Background(), "web")
	if err == nil || !strings.Contains(err.Error(), "is the daemon running? start it with `slipway serve --detach`") {
		t.Errorf("error %v; want one that says what to do", err)
	}
}
