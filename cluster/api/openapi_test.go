package api

import (
	"flag"
	"os"
	"sort"
	"strings"
	"testing"

	"slipway.dev/slipway/cluster/api/openapi"
)

var update = flag.Bool("update", false, "rewrite openapi/served.txt")

// The documents describe what is served: no more, no less but for metrics.k8s.io, which upstream's leave to an add-on. Nobody
// writes its objects, so no client needs its schemas.
func TestOpenAPIDescribesWhatIsServed(t *testing.T) {
	i := start(t)
	var lines []string
	for gv, list := range i.discovery.resources {
		if gv == usageVersion {
			continue
		}
		prefix := "apis/" + gv.String()
		if gv.Group == "" {
			prefix = "api/" + gv.Version
		}
		for _, r := range list.APIResources {
			lines = append(lines, prefix+" "+r.Name+"\n")
		}
	}
	sort.Strings(lines)
	got := strings.Join(lines, "")
	if *update {
		if err := os.WriteFile("openapi/served.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Log("now run go generate ./cluster/api/openapi")
		return
	}
	if got != openapi.Served {
		t.Errorf("openapi/served.txt is not what is served; run go test ./cluster/api -run Describes -update, then go generate ./cluster/api/openapi\nserved:\n%s", got)
	}
}
