package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// elsewhere are the settings of a service that a translation rightly does not look at.
var elsewhere = map[string]string{
	"Name":             "it is the service's own",
	"Profiles":         "they decided already whether it is here",
	"Extends":          "the loader has merged it",
	"LabelFiles":       "the loader has read them into labels",
	"EnvFiles":         "the loader has read them into environment",
	"CustomLabels":     "docker compose's own, never in a file",
	"Build":            "the command builds before it translates",
	"Dockerfile":       "of Compose's first version; the loader refuses it",
	"Attach":           "whether docker compose shows its log in the foreground",
	"PullPolicy":       "the command pulls before it translates",
	"PullRefreshAfter": "the command pulls before it translates",
	"Extensions":       "x- fields are for others",
	"Networks":         "in every plan; TestTranslate has them",
	"DependsOn":        "TestTranslate has it",
}

// TestNothingIsDropped sets every field that compose-go knows of a service, one at a time, and wants to see it in the
// plan, in a note or in an error. A new version of compose-go with a new field fails here until somebody decides.
func TestNothingIsDropped(t *testing.T) {
	base := planWith(t, func(*types.ServiceConfig) {})
	var visit func(path string, index []int, typ reflect.Type)
	visit = func(path string, index []int, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := append(append([]int{}, index...), i)
			if f.Anonymous {
				visit(path, at, f.Type)
				continue
			}
			if _, ok := elsewhere[f.Name]; ok {
				continue
			}
			t.Run(path+f.Name, func(t *testing.T) {
				got := planWith(t, func(s *types.ServiceConfig) {
					field := reflect.ValueOf(s).Elem().FieldByIndex(at)
					field.Set(example(t, f.Name, f.Type))
				})
				if got == base {
					t.Errorf("%s is dropped: the plan is the same without it, and no note tells of it", f.Name)
				}
			})
		}
	}
	visit("", nil, reflect.TypeFor[types.ServiceConfig]())
}

// planWith translates a project of one service and prints what comes out, or the error.
func planWith(t *testing.T, change func(*types.ServiceConfig)) string {
	t.Helper()
	s := types.ServiceConfig{Name: "web"}
	s.Image = "web"
	s.Networks = map[string]*types.ServiceNetworkConfig{"default": nil}
	change(&s)
	project := &types.Project{
		Name: "p", Services: types.Services{"web": s}, Networks: types.Networks{"default": {}}, Volumes: types.Volumes{"data": {}},
		Configs: types.Configs{"c": {Content: "c"}}, Secrets: types.Secrets{"s": {Content: "s"}},
	}
	plan, err := Translate(Input{Project: project, Node: "node-1", Slipway: true})
	if err != nil {
		return "error: " + err.Error()
	}
	return render(t, plan)
}

// example is a value of a setting: from the table where not any will do.
func example(t *testing.T, name string, typ reflect.Type) reflect.Value {
	t.Helper()
	yes, three := true, 3
	special := map[string]any{
		"Configs":     []types.ServiceConfigObjConfig{{Source: "c"}},
		"Secrets":     []types.ServiceSecretConfig{{Source: "s"}},
		"Expose":      types.StringOrNumberList{"80"},
		"ExtraHosts":  types.HostsList{"db": {"10.0.0.1"}},
		"GroupAdd":    []string{"100"},
		"HealthCheck": &types.HealthCheckConfig{Test: types.HealthCheckTest{"CMD", "/check"}},
		"Init":        &yes,
		"Links":       []string{"web:other"},
		"NetworkMode": "host",
		"Ports":       []types.ServicePortConfig{{Target: 80, Published: "8080"}},
		"Restart":     "no",
		"Scale":       &three,
		"SecurityOpt": []string{"no-new-privileges"},
		"Ulimits":     map[string]*types.UlimitsConfig{"nofile": {Single: 10}},
		"User":        "33",
		"Volumes":     []types.ServiceVolumeConfig{{Type: "volume", Source: "data", Target: "/data"}},
		"Deploy":      &types.DeployConfig{Replicas: &three},
		"Ipc":         "host",
		"Pid":         "host",
		"Tmpfs":       types.StringList{"/run"},
	}
	if v, ok := special[name]; ok {
		return reflect.ValueOf(v)
	}
	v := reflect.New(typ).Elem()
	fill(v, 0)
	return v
}

// fill makes a value that is not the zero one.
func fill(v reflect.Value, depth int) {
	if depth > 4 {
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("a")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1000)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && v.Type().Field(i).Name != "Extensions" {
				fill(v.Field(i), depth+1)
			}
		}
	}
}

// TestWrongFiles gives files with mistakes and wants errors that name the place and the remedy.
func TestWrongFiles(t *testing.T) {
	for _, tt := range wrongFiles {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "project")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if tt.file != "" {
				if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(tt.file), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			plan, err := translateIn(t, dir, tt.name)
			if err == nil {
				t.Fatalf("no error, but a plan:\n%s", render(t, plan))
			}
			got := strings.ReplaceAll(err.Error(), dir, "DIR")
			if got != tt.want {
				t.Errorf("error:\n  %s\nwant:\n  %s", got, tt.want)
			}
		})
	}
	if len(wrongFiles) < 25 {
		t.Errorf("only %d wrong files are tried", len(wrongFiles))
	}
}

func TestLoadTakesNamedFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.yaml": "services: {web: {image: a}}", "b.yaml": "services: {web: {image: b}, db: {image: db}}"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p, err := Load(context.Background(), Source{WorkingDir: dir, Name: "Mine", Files: []string{filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")}})
	if err == nil {
		t.Fatalf("project name %q was taken, but upper case is not allowed", p.Name)
	}
	p, err = Load(context.Background(), Source{WorkingDir: dir, Name: "mine", Files: []string{filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")}})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintln(p.Name, p.ServiceNames(), p.Services["web"].Image); got != "mine [db web] b\n" {
		t.Errorf("loaded %s; want mine [db web] b", got)
	}
}
