package crash

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"slipway.dev/slipway/engine/network/networktest"
	"slipway.dev/slipway/test/harness"
)

// TestVerbsTypedAtOnceStartOneDaemon: whoever comes second waits for the daemon that the first one starts.
func TestVerbsTypedAtOnceStartOneDaemon(t *testing.T) {
	networktest.NewMachine(t)
	d := harness.Start(t)
	d.BaseImage(t)
	port := d.Record.APIPort
	dir := newProject(t)
	d.Kill()
	var verbs sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		verbs.Go(func() {
			switch i % 3 {
			case 0:
				errs[i] = slipway(t.Context(), t, d, harness.Binaries(t), "images")
			case 1:
				errs[i] = slipway(t.Context(), t, d, harness.Binaries(t), "-f", filepath.Join(dir, "compose.yaml"), "ps")
			case 2:
				cmd := d.Command(t.Context(), t, "slipway", "serve", "--detach", "--data-dir", d.Data, "--api-port", fmt.Sprint(port), "--registry-port", "0")
				if out, err := cmd.CombinedOutput(); err != nil {
					errs[i] = fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
				}
			}
		})
	}
	verbs.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if server := d.Kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"); !strings.HasSuffix(server, fmt.Sprintf(":%d", port)) {
		t.Errorf("the daemon came back on %s; before, its port was %d", server, port)
	}
}
