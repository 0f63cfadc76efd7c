package machine

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folder writes files and returns their directory.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// contents reads a context: each file's name and text.
func contents(t *testing.T, dir, dockerfile, inline string) (files map[string]string, name string) {
	t.Helper()
	r, name, err := Context(dir, dockerfile, inline)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	files = map[string]string{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, name
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			text, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			files[h.Name] = string(text)
		}
	}
}

func TestContext(t *testing.T) {
	for _, tt := range []struct {
		name, dockerfile, inline string
		files                    map[string]string
		want                     []string
		wantName                 string
	}{
		{"all", "", "", map[string]string{"Dockerfile": "FROM scratch", "a": "1", "sub/b": "2"}, []string{"Dockerfile", "a", "sub/b"}, "Dockerfile"},
		{"ignored", "", "", map[string]string{"Dockerfile": "FROM scratch", ".dockerignore": "*.log\n/sub\n!keep.log\n# note", "x.log": "", "keep.log": "", "sub/b": "", "a": ""},
			[]string{".dockerignore", "Dockerfile", "a", "keep.log"}, "Dockerfile"},
		{"the Dockerfile is sent though ignored", "", "", map[string]string{"Dockerfile": "FROM scratch", ".dockerignore": "*", "a": ""},
			[]string{".dockerignore", "Dockerfile"}, "Dockerfile"},
		{"everything but", "", "", map[string]string{"Dockerfile": "", ".dockerignore": "*\n!src/**", "src/deep/a": "", "b": ""},
			[]string{".dockerignore", "Dockerfile", "src/deep/a"}, "Dockerfile"},
		{"another Dockerfile with rules of its own", "docker/web", "", map[string]string{"docker/web": "", "docker/web.dockerignore": "a", ".dockerignore": "b", "a": "", "b": ""},
			[]string{".dockerignore", "b", "docker/web", "docker/web.dockerignore"}, "docker/web"},
		{"inline", "", "FROM scratch\nCOPY a /", map[string]string{"Dockerfile": "not this one", "a": "1"},
			[]string{".slipway.Dockerfile", "Dockerfile", "a"}, ".slipway.Dockerfile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files, name := contents(t, folder(t, tt.files), tt.dockerfile, tt.inline)
			var got []string
			for f := range files {
				got = append(got, f)
			}
			slices.Sort(got)
			if !slices.Equal(got, tt.want) || name != tt.wantName {
				t.Errorf("the context has %v, its Dockerfile is %s; want %v, %s", got, name, tt.want, tt.wantName)
			}
			if tt.inline != "" && files[name] != tt.inline {
				t.Errorf("the Dockerfile is %q; want %q", files[name], tt.inline)
			}
		})
	}
}

func TestContextWithDockerfileOutside(t *testing.T) {
	dir, other := folder(t, map[string]string{"a": "1"}), folder(t, map[string]string{"Dockerfile.web": "FROM scratch"})
	files, name := contents(t, dir, filepath.Join(other, "Dockerfile.web"), "")
	if files[name] != "FROM scratch" || files["a"] != "1" || len(files) != 2 {
		t.Errorf("the context has %v, its Dockerfile is %s", files, name)
	}
}

func TestContextErrors(t *testing.T) {
	dir := folder(t, map[string]string{"file": "", "bad/.dockerignore": "[", "bad/Dockerfile": "FROM scratch"})
	for _, tt := range []struct{ dir, dockerfile, want string }{
		{"missing", "", "build context: stat DIR/missing: no such file or directory"},
		{"file", "", "build context DIR/file is not a directory"},
		{".", "", "read the Dockerfile: open DIR/Dockerfile: no such file or directory"},
		{".", "other", "read the Dockerfile: open DIR/other: no such file or directory"},
		{"bad", "", "build context: syntax error in pattern"},
	} {
		r, _, err := Context(filepath.Join(dir, tt.dir), tt.dockerfile, "")
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if got := strings.ReplaceAll(errorText(err), dir, "DIR"); got != tt.want {
			t.Errorf("Context(%s, %q): error %q; want %q", tt.dir, tt.dockerfile, got, tt.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
