package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what is translated into the golden files")

// TestMain takes away what the person who tests has set: a variable may be one of those that a file asks for.
func TestMain(m *testing.M) {
	os.Clearenv()
	os.Exit(m.Run())
}

// TestTranslate translates each archive of testdata/translate: a project, what is known of its images
// (images.json), and the objects and notes that are wanted (want.yaml). The archive's comment says what it
// shows; "other cluster" in it means a cluster that is not Slipway.
func TestTranslate(t *testing.T) {
	files, err := filepath.Glob("testdata/translate/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := extract(t, archive)
			plan, err := translateIn(t, dir, string(archive.Comment))
			if err != nil {
				t.Fatal(err)
			}
			got := strings.ReplaceAll(render(t, plan), dir, "DIR")
			if *update {
				set(archive, "want.yaml", got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(get(archive, "want.yaml"), got); diff != "" {
				t.Errorf("%s translates differently (-want +got); if that is right, run the test with -update:\n%s", file, diff)
			}
		})
	}
}

// extract writes an archive's files to a directory whose name is the same in every run.
func extract(t *testing.T, archive *txtar.Archive) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "project")
	for _, f := range archive.Files {
		path := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func translateIn(t *testing.T, dir, comment string) (*Plan, error) {
	t.Helper()
	project, err := Load(context.Background(), Source{WorkingDir: dir})
	if err != nil {
		return nil, err
	}
	in := Input{Project: project, Node: "node-1", HostAddress: "192.0.2.1", Slipway: true, Images: map[string]Image{}, VolumePaths: map[string]string{"shared-data": "/var/lib/slipway/volumes/shared-data/_data"}}
	if strings.Contains(comment, "other cluster") {
		in.Node, in.Slipway = "", false
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "images.json")); err == nil {
		if err := json.Unmarshal(raw, &in.Images); err != nil {
			t.Fatal(err)
		}
	}
	return Translate(in)
}

// render prints a plan: the objects in the order in which they are applied, who waits for whom, and the notes.
func render(t *testing.T, plan *Plan) string {
	t.Helper()
	var b bytes.Buffer
	object := func(o Object) {
		m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			t.Fatal(err)
		}
		delete(m, "status")
		prune(m)
		raw, err := yaml.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "---\n%s", raw)
	}
	for _, o := range plan.Shared {
		object(o)
	}
	for _, w := range plan.Workloads {
		object(w.Object)
		for _, n := range w.Needs {
			fmt.Fprintf(&b, "# %s waits for %s: %s (required: %v)\n", w.Service, n.Service, n.Condition, n.Required)
		}
	}
	for _, note := range plan.Notes {
		fmt.Fprintf(&b, "# note: %s\n", note)
	}
	return b.String()
}

// prune drops what is the same in every object: labels that the namespace already says, and empty values.
func prune(m map[string]any) {
	for k, v := range m {
		switch v := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			prune(v)
			if len(v) == 0 && k != "emptyDir" {
				delete(m, k)
			}
		}
	}
}

func get(a *txtar.Archive, name string) string {
	for _, f := range a.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

func set(a *txtar.Archive, name, text string) {
	for i := range a.Files {
		if a.Files[i].Name == name {
			a.Files[i].Data = []byte(text)
			return
		}
	}
	a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(text)})
}

// TestTranslateIsStable translates the largest project many times: equal input must give equal objects, or every
// `up` would be an update.
func TestTranslateIsStable(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/translate/many.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dir := extract(t, archive)
	first := ""
	for range 20 {
		plan, err := translateIn(t, dir, "")
		if err != nil {
			t.Fatal(err)
		}
		text := render(t, plan)
		if first == "" {
			first = text
		}
		if text != first {
			t.Fatalf("two translations of one project differ (-first +later):\n%s", cmp.Diff(first, text))
		}
	}
}

func TestLegalName(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"web", "web"},
		{"my_db", "my-db"},
		{"My.App", "my-app"},
		{"_private_", "private"},
		{"2fast", "s-2fast"},
		{"ünicode", "nicode"},
		{"___", "s-c7efb06a83"},
		{strings.Repeat("long", 20), "longlonglonglonglonglonglonglonglonglonglonglonglong-2ae0e706be"},
	} {
		if got := LegalName(tt.in); got != tt.want {
			t.Errorf("LegalName(%q) = %q; want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzLegalName(f *testing.F) {
	for _, s := range []string{"web", "my_db", "", "-", "9", "Ünï", strings.Repeat("a_", 80)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := LegalName(s)
		if len(got) == 0 || len(got) > 63 {
			t.Fatalf("LegalName(%q) = %q: %d characters", s, got, len(got))
		}
		for i, c := range got {
			letter, digit := c >= 'a' && c <= 'z', c >= '0' && c <= '9'
			edge := i == 0 || i == len(got)-1
			if !letter && !(digit && i > 0) && !(c == '-' && !edge) {
				t.Fatalf("LegalName(%q) = %q: not a name of a Service", s, got)
			}
		}
		if again := LegalName(got); again != got {
			t.Fatalf("LegalName(%q) = %q, and of that %q", s, got, again)
		}
	})
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "$(X)", "$$(X)", "$$$(X)", "a$b", "${X}", "$$$$", "$("} {
		f.Add(s)
	}
	values := expansion.MappingFuncFor(map[string]string{"X": "replaced"})
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			t.Skip("no YAML file holds it")
		}
		if got := expansion.Expand(escape(s), values); got != s {
			t.Fatalf("%q, escaped as %q, arrives as %q", s, escape(s), got)
		}
	})
}
