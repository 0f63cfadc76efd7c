package build_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"slipway.dev/slipway/engine/build"
)

func archive(t testing.TB, f files) string {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(f.tar()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// TestFiles covers the instructions that copy, without running anything.
func TestFiles(t *testing.T) {
	x := newBench(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", epoch.Format(http.TimeFormat))
		fmt.Fprint(w, "from the web")
	}))
	defer srv.Close()
	tarball := archive(t, files{"in/": "", "in/f": "packed", "in/l -> f": ""})
	for _, tt := range []struct {
		name, dockerfile string
		files            files
		change           func(*build.Request)
		want             string // the listing
	}{
		{name: "a file to a name", dockerfile: "FROM scratch\nCOPY a /b\n", files: files{"a": "1"}, want: "/b -rw-r--r-- 1\n"},
		{name: "a file to a directory", dockerfile: "FROM scratch\nCOPY a /d/\n", files: files{"a": "1"}, want: "/d drwxr-xr-x\n/d/a -rw-r--r-- 1\n"},
		{name: "a directory's content", dockerfile: "FROM scratch\nCOPY d /e\n", files: files{"d/": "", "d/a": "1", "d/s/": "", "d/s/b": "2"}, want: "/e drwxr-xr-x\n/e/a -rw-r--r-- 1\n/e/s drwxr-xr-x\n/e/s/b -rw-r--r-- 2\n"},
		{name: "globs", dockerfile: "FROM scratch\nCOPY *.txt x? /d/\n", files: files{"a.txt": "1", "b.txt": "2", "c.md": "3", "x1": "4", "x22": "5"}, want: "/d drwxr-xr-x\n/d/a.txt -rw-r--r-- 1\n/d/b.txt -rw-r--r-- 2\n/d/x1 -rw-r--r-- 4\n"},
		{name: "symbolic link", dockerfile: "FROM scratch\nCOPY d /d\n", files: files{"d/": "", "d/l -> /etc/passwd": ""}, want: "/d drwxr-xr-x\n/d/l Lrwxrwxrwx -> /etc/passwd\n"},
		{name: "chown and chmod", dockerfile: "FROM scratch\nCOPY --chown=3:4 --chmod=750 a /a\n", files: files{"a": "1"}, want: "/a -rwxr-x--- 3:4 1\n"},
		{name: "symbolic chmod", dockerfile: "# syntax=docker/dockerfile:1\nFROM scratch\nCOPY --chmod=u+x,go-r a /a\n", files: files{"a": "1"}, want: "/a -rwx------ 1\n"},
		{name: "exclude", dockerfile: "FROM scratch\nCOPY --exclude=*.md . /\n", files: files{"a": "1", "b.md": "2", "d/": "", "d/c": "3"}, want: "/Dockerfile -rw-r--r-- FROM scratch\nCOPY --exclude=*.md . /\n/a -rw-r--r-- 1\n/d drwxr-xr-x\n/d/c -rw-r--r-- 3\n"},
		{name: "parents", dockerfile: "FROM scratch\nCOPY --parents d/./s/f /x/\n", files: files{"d/": "", "d/s/": "", "d/s/f": "1"}, want: "/x drwxr-xr-x\n/x/s drwxr-xr-x\n/x/s/f -rw-r--r-- 1\n"},
		{name: "link", dockerfile: "FROM scratch\nCOPY --link a /d/a\n", files: files{"a": "1"}, want: "/d drwxr-xr-x\n/d/a -rw-r--r-- 1\n"},
		{name: "heredoc", dockerfile: "FROM scratch\nARG N=7\nCOPY <<EOF <<'RAW' /d/\nn is $N\nEOF\n$N\nRAW\n", want: "/d drwxr-xr-x\n/d/EOF -rw-r--r-- n is 7\n/d/RAW -rw-r--r-- $N\n"},
		{name: "from a stage", dockerfile: "FROM scratch AS One\nCOPY a /a\nFROM scratch\nCOPY --from=one /a /b\nCOPY --from=0 a /c\n", files: files{"a": "1"}, want: "/b -rw-r--r-- 1\n/c -rw-r--r-- 1\n"},
		{name: "on a stage", dockerfile: "FROM scratch AS one\nCOPY a /a\nFROM one\nCOPY a /b\n", files: files{"a": "1"}, want: "/a -rw-r--r-- 1\n/b -rw-r--r-- 1\n"},
		{name: "later files win", dockerfile: "FROM scratch\nCOPY a /x\nCOPY b /x\n", files: files{"a": "1", "b": "2"}, want: "/x -rw-r--r-- 2\n"},
		{name: "through a link of the base", dockerfile: "FROM scratch AS base\nCOPY d /\nFROM base\nCOPY a /bin/a\n", files: files{"a": "1", "d/": "", "d/bin -> usr/bin": "", "d/usr/": "", "d/usr/bin/": ""}, want: "/bin Lrwxrwxrwx -> usr/bin\n/usr drwxr-xr-x\n/usr/bin drwxr-xr-x\n/usr/bin/a -rw-r--r-- 1\n"},
		{name: "through an absolute link of the base", dockerfile: "FROM scratch AS base\nCOPY d /\nFROM base\nCOPY a /etc/a\n", files: files{"a": "1", "d/": "", "d/etc -> /../../target": "", "d/target/": ""}, want: "/etc Lrwxrwxrwx -> /../../target\n/target drwxr-xr-x\n/target/a -rw-r--r-- 1\n"},
		{name: "add a file", dockerfile: "FROM scratch\nADD a /a\n", files: files{"a": "1"}, want: "/a -rw-r--r-- 1\n"},
		{name: "add unpacks", dockerfile: "FROM scratch\nADD t.tgz /d/\n", files: files{"t.tgz": tarball}, want: "/d drwxr-xr-x\n/d/in drwxr-xr-x\n/d/in/f -rw-r--r-- packed\n/d/in/l Lrwxrwxrwx -> f\n"},
		{name: "copy does not unpack", dockerfile: "FROM scratch\nCOPY t /t\n", files: files{"t": "not looked into"}, want: "/t -rw-r--r-- not looked into\n"},
		{name: "add an url", dockerfile: "FROM scratch\nADD " + srv.URL + "/x/name.txt /d/\n", want: "/d drwxr-xr-x\n/d/name.txt -rw------- from the web\n"},
		{name: "add an url with its checksum", dockerfile: "FROM scratch\nADD --checksum=sha256:6c52b55ecd4e6fc0d3ac8ee6ad6bfc68f7ba84ac2eca9b8b1c2ad9ab3cb8a6e1 " + srv.URL + "/n /\n", want: ""},
		{name: "dockerignore", dockerfile: "FROM scratch\nCOPY . /\n", files: files{".dockerignore": "*\n!keep\n!d/k*\n", "keep": "1", "drop": "2", "d/": "", "d/k1": "3", "d/x": "4"}, want: "/d drwxr-xr-x\n/d/k1 -rw-r--r-- 3\n/keep -rw-r--r-- 1\n"},
		{name: "dockerignore of the Dockerfile", dockerfile: "FROM scratch\nCOPY . /\n", files: files{".dockerignore": "keep\n", "Dockerfile.dockerignore": "*\n!keep\n", "keep": "1"}, want: "/keep -rw-r--r-- 1\n"},
		{name: "dockerfile by name", dockerfile: "FROM nothing", files: files{"d/": "", "d/Other": "FROM scratch\nCOPY a /a\n", "a": "1"}, change: func(r *build.Request) { r.Dockerfile = "d/Other" }, want: "/a -rw-r--r-- 1\n"},
		{name: "dockerfile beside the context", dockerfile: "FROM nothing", files: files{"a": "1"}, change: func(r *build.Request) { r.Inline = []byte("FROM scratch\nCOPY a /z\n") }, want: "/z -rw-r--r-- 1\n"},
		{name: "target", dockerfile: "FROM scratch AS one\nCOPY a /a\nFROM one AS two\nCOPY a /b\nFROM two\nCOPY nothing /\n", files: files{"a": "1"}, change: func(r *build.Request) { r.Target = "two" }, want: "/a -rw-r--r-- 1\n/b -rw-r--r-- 1\n"},
		{name: "expansion", dockerfile: "ARG V=x\nFROM scratch\nARG V\nARG W=${V:-no}${U:-u}${V:+p}\nENV P=/d/$W\nCOPY a $P/${W%p}\n", files: files{"a": "1"}, want: "/d drwxr-xr-x\n/d/xup drwxr-xr-x\n/d/xup/xu -rw-r--r-- 1\n"},
		{name: "workdir", dockerfile: "FROM scratch\nWORKDIR /w/\nWORKDIR v\nCOPY a .\n", files: files{"a": "1"}, want: "/w drwxr-xr-x\n/w/v drwxr-xr-x\n/w/v/a -rw-r--r-- 1\n"},
		{name: "hard links stay links", dockerfile: "FROM scratch\nADD t.tar /\n", files: files{"t.tar": hardlinked(t)}, want: "/a -rw-r--r-- 5:6 both\n/b -rw-r--r-- 5:6 both\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := files{"Dockerfile": tt.dockerfile}
			for k, v := range tt.files {
				f[k] = v
			}
			req := request(f)
			if tt.change != nil {
				tt.change(&req)
			}
			res, _, err := x.build(req)
			if strings.Contains(tt.name, "checksum") {
				if err == nil || !strings.Contains(err.Error(), "the Dockerfile expects sha256:6c52") {
					t.Errorf("build: %v; want a wrong checksum", err)
				}
				if left, _ := filepath.Glob(filepath.Join(x.dir, "build", "tmp", "download-*")); len(left) > 0 {
					t.Errorf("what was refused is left behind: %v", left)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := x.listing(res.Image); got != tt.want {
				t.Errorf("image holds\n%s; want\n%s", got, tt.want)
			}
		})
	}
}

func hardlinked(t testing.TB) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "a", Mode: 0o644, Size: 4, Uid: 5, Gid: 6, Typeflag: tar.TypeReg, ModTime: epoch},
		{Name: "b", Linkname: "a", Typeflag: tar.TypeLink, ModTime: epoch},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("both")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.String()
}

// TestConfiguration covers the instructions that only describe.
func TestConfiguration(t *testing.T) {
	x := newBench(t)
	for _, tt := range []struct {
		name, lines string
		change      func(*build.Request)
		want        func(c *dockerspec.DockerOCIImageConfig)
	}{
		{name: "cmd", lines: "CMD [\"a\", \"b\"]", want: func(c *dockerspec.DockerOCIImageConfig) { c.Cmd = []string{"a", "b"}; c.ArgsEscaped = true }},
		{name: "cmd in shell form", lines: "CMD a b", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Cmd = []string{"/bin/sh", "-c", "a b"}
			c.ArgsEscaped = true
		}},
		{name: "entrypoint resets cmd of the base", lines: "ENTRYPOINT [\"e\"]\nCMD [\"c\"]", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Entrypoint = []string{"e"}
			c.Cmd = []string{"c"}
			c.ArgsEscaped = true
		}},
		{name: "env", lines: "ENV A=1 B=\"two words\"\nENV C three words", want: func(c *dockerspec.DockerOCIImageConfig) { c.Env = append(c.Env, "A=1", "B=two words", "C=three words") }},
		{name: "expose", lines: "EXPOSE 80 53/udp 8000-8001", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}
		}},
		{name: "volume", lines: "VOLUME /a [\"/b\"]\nVOLUME [\"/c\", \"/d\"]", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Volumes = map[string]struct{}{"/a": {}, "[/b]": {}, "/c": {}, "/d": {}}
		}},
		{name: "label", lines: "LABEL a=b \"c d\"=\"e f\"", want: func(c *dockerspec.DockerOCIImageConfig) { c.Labels = map[string]string{"a": "b", "c d": "e f"} }},
		{name: "label of the request", lines: "LABEL a=b", change: func(r *build.Request) { r.Labels = map[string]string{"x": "y"} }, want: func(c *dockerspec.DockerOCIImageConfig) { c.Labels = map[string]string{"a": "b", "x": "y"} }},
		{name: "user", lines: "USER 5:6", want: func(c *dockerspec.DockerOCIImageConfig) { c.User = "5:6" }},
		{name: "stop signal", lines: "STOPSIGNAL SIGUSR1", want: func(c *dockerspec.DockerOCIImageConfig) { c.StopSignal = "SIGUSR1" }},
		{name: "shell", lines: "SHELL [\"/s\", \"-c\"]\nCMD x", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Shell = []string{"/s", "-c"}
			c.Cmd = []string{"/s", "-c", "x"}
			c.ArgsEscaped = true
		}},
		{name: "healthcheck", lines: "HEALTHCHECK --interval=5s --timeout=2s --start-period=1s --start-interval=1s --retries=4 CMD check me", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "check me"}, Interval: 5 * time.Second, Timeout: 2 * time.Second, StartPeriod: time.Second, StartInterval: time.Second, Retries: 4}
		}},
		{name: "no healthcheck", lines: "HEALTHCHECK NONE", want: func(c *dockerspec.DockerOCIImageConfig) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
		}},
		{name: "onbuild", lines: "ONBUILD COPY a /a\nONBUILD ENV X=1", want: func(c *dockerspec.DockerOCIImageConfig) { c.OnBuild = []string{"COPY a /a", "ENV X=1"} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := request(files{"Dockerfile": "FROM scratch\n" + tt.lines + "\n"})
			if tt.change != nil {
				tt.change(&req)
			}
			res, _ := x.mustBuild(req)
			var got, want dockerspec.DockerOCIImage
			if err := json.Unmarshal(res.Image.RawConfig, &got); err != nil {
				t.Fatal(err)
			}
			want.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
			want.Config.WorkingDir = "/"
			tt.want(&want.Config)
			if !reflect.DeepEqual(got.Config, want.Config) {
				t.Errorf("configuration is\n%+v\nwant\n%+v", got.Config, want.Config)
			}
		})
	}
}

func TestOnBuildRunsInTheChild(t *testing.T) {
	x := newBench(t)
	req := request(files{"Dockerfile": "FROM scratch\nONBUILD COPY a /a\nONBUILD ENV X=1\n"})
	req.Tags = []string{"parent"}
	x.mustBuild(req)
	res, _ := x.mustBuild(request(files{"Dockerfile": "FROM parent\n", "a": "1"}))
	if got, want := x.listing(res.Image), "/a -rw-r--r-- 1\n"; got != want {
		t.Errorf("child holds %q; want %q", got, want)
	}
	if len(res.Image.Config.Config.OnBuild) != 0 {
		t.Errorf("child still has triggers %q", res.Image.Config.Config.OnBuild)
	}
}
