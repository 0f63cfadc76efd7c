// Package house holds the test that keeps the arrows between rooms pointing one way.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "slipway.dev/slipway/"

// rule forbids packages below from to import, directly, packages below one of not.
type rule struct {
	from   string
	not    []string
	except []string // rooms below from that may
	allow  []string // packages below not that are free to use
	why    string
}

var rules = []rule{
	{from: "engine/", not: []string{"cluster/", "compose", "dockerapi", "registry", "dashboard", "daemon", "cmd/"}, why: "the engine knows nothing of clusters, front doors or the daemon"},
	{from: "engine/", not: []string{"k8s.io/"}, why: "the engine speaks of containers, not of Kubernetes objects"},
	{from: "cluster/", not: []string{"engine/"}, except: []string{"cluster/node"}, allow: []string{"engine/network/nft", "engine/tree"}, why: "the cluster touches containers in exactly one room, cluster/node; nft and tree have no state"},
	{from: "cluster/", not: []string{"dockerapi", "registry", "compose", "daemon", "cmd/"}, why: "imports run downwards"},
	{from: "dockerapi", not: []string{"cluster/", "compose", "registry", "daemon", "cmd/"}, why: "a front door opens on its own wing"},
	{from: "registry", not: []string{"cluster/", "compose", "dockerapi", "daemon", "cmd/"}, why: "a front door opens on its own wing"},
	{from: "compose", not: []string{"cluster/", "engine/", "dockerapi", "registry", "cmd/"}, why: "Compose is a client: it reaches the daemon through its APIs"},
	{from: "daemon", not: []string{"cmd/", "compose"}, why: "the daemon is below its command, and Compose is a client of it"},
	{from: "examples/", not: []string{module}, why: "an example is an application of its own"},
}

// closures are what a program must never link, however far down. "=" before a package means it alone and
// not what is below it.
var closures = []struct {
	program string
	not     []string
	why     string
}{
	{"cmd/slipway", []string{"k8s.io/", "github.com/compose-spec/", "github.com/moby/buildkit", "github.com/containerd/containerd", module + "engine/", module + "cluster/"}, "the command starts in milliseconds"},
	{"cmd/slipway-warden", []string{"net/http", "google.golang.org/protobuf/proto", "github.com/spf13/cobra", "k8s.io/"}, "everything the warden imports runs its init in every container start"},
	// Upstream's storages link client-go's informers and parts below pkg/server; nothing of ours runs them.
	{"cmd/slipwayd", []string{"=k8s.io/apiserver/pkg/server", "k8s.io/kubernetes/pkg/controller/deployment", "k8s.io/kubernetes/pkg/scheduler", "k8s.io/kubernetes/pkg/kubelet/cm", "k8s.io/kubectl/pkg/cmd", "github.com/compose-spec/compose-go", "github.com/opencontainers/runc/libcontainer"}, "the daemon's memory: every package is weighed before it is linked"},
}

type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports"}, args...)...)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), stderr(err))
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func stderr(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(exit.Stderr)
	}
	return err.Error()
}

// below says whether a package is a room or inside it.
func below(pkg, room string) bool {
	return pkg == strings.TrimSuffix(room, "/") || strings.HasPrefix(pkg, strings.TrimSuffix(room, "/")+"/")
}

func TestImportsRunDownwards(t *testing.T) {
	for _, p := range list(t, "./...") {
		room := strings.TrimPrefix(p.ImportPath, module)
		for _, r := range rules {
			if !below(room, r.from) || excepted(room, r.except) {
				continue
			}
			for _, imp := range p.Imports {
				for _, not := range r.not {
					if excepted(strings.TrimPrefix(imp, module), r.allow) {
						continue
					}
					if below(strings.TrimPrefix(imp, module), not) || (not == module && strings.HasPrefix(imp, module) && !below(strings.TrimPrefix(imp, module), r.from)) {
						t.Errorf("%s imports %s: %s", room, imp, r.why)
					}
				}
			}
		}
	}
}

func excepted(room string, rooms []string) bool {
	for _, r := range rooms {
		if below(room, r) {
			return true
		}
	}
	return false
}

func TestProgramsStaySmall(t *testing.T) {
	for _, c := range closures {
		for _, p := range list(t, "-deps", "-tags", "seccomp,netgo,osusergo,runc_nocriu", "./"+c.program) {
			for _, not := range c.not {
				exactly, isExact := strings.CutPrefix(not, "=")
				if p.ImportPath == exactly || (!isExact && below(p.ImportPath, not)) {
					t.Errorf("%s links %s: %s", c.program, p.ImportPath, c.why)
				}
			}
		}
	}
}
