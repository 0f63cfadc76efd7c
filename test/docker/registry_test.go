package docker

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"slipway.dev/slipway/test/harness"
)

// The registry is judged by the suite of those who wrote the specification.
func TestRegistryConformance(t *testing.T) {
	suite := conformanceSuite(t)
	d := harness.Start(t)
	results := t.TempDir()
	cmd := exec.CommandContext(t.Context(), suite)
	cmd.Dir = results
	cmd.Env = append(os.Environ(),
		"OCI_REGISTRY=localhost:"+strconv.Itoa(d.Record.RegistryPort), "OCI_TLS=disabled", "OCI_VERSION=dev", "OCI_RESULTS_DIR="+results)
	out, err := cmd.CombinedOutput()
	failed := regexp.MustCompile(`(?m)^.*: (FAIL|Error)$`).FindAllString(string(out), -1)
	if err != nil || len(failed) > 0 {
		t.Errorf("%v; failed:\n%s\n\n%s", err, strings.Join(failed, "\n"), out)
	}
	if !regexp.MustCompile(`(?m)^.*: Pass$`).Match(out) {
		t.Errorf("nothing passed: the suite did not run:\n%s", out)
	}
	t.Logf("%s", out)
}

func conformanceSuite(t *testing.T) string {
	t.Helper()
	harness.Binaries(t)
	clients := os.Getenv("SLIPWAY_TEST_CLIENTS")
	suite := filepath.Join(clients, "oci-conformance")
	if _, err := os.Stat(suite); err != nil || clients == "" {
		t.Skip("no conformance suite: run scripts/clients and set SLIPWAY_TEST_CLIENTS to .cache/clients, as `make test` does")
	}
	return suite
}
