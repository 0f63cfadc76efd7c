package compose

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Labels and annotations that Slipway adds. The compose ones are Docker's, so that tools which look
// for them find Slipway's pods and containers.
const (
	LabelProject   = "com.docker.compose.project"
	LabelService   = "com.docker.compose.service"
	labelName      = "app.kubernetes.io/name"
	labelPartOf    = "app.kubernetes.io/part-of"
	labelManagedBy = "app.kubernetes.io/managed-by"
	labelNetwork   = "network.slipway.dev/" // + network name: the pod is on it
	labelInternal  = "network.slipway.dev.internal"
	labelShared    = "name.slipway.dev/" // + a name that several services share: the pod answers to it

	annotationAllPorts  = "slipway.dev/all-ports"      // a Service forwards every port
	annotationHostIP    = "slipway.dev/host-ip"        // host addresses that a LoadBalancer binds
	annotationAliases   = "slipway.dev/dns-aliases"    // names that no Service may have
	annotationInit      = "slipway.dev/init"           // a tiny init as process 1
	annotationSignal    = "slipway.dev/stop-signal"    //
	annotationUlimits   = "slipway.dev/ulimits"        // name=soft:hard,…
	annotationPids      = "slipway.dev/pids-limit"     //
	annotationPopulate  = "slipway.dev/populate"       // volumes that start with the image's content
	annotationCPUSet    = "slipway.dev/cpuset"         //
	annotationDevices   = "slipway.dev/devices"        // host:container:rwm,…
	annotationRestart   = "slipway.dev/restarted-with" // content of the services that a pod is restarted with
	annotationPublished = "slipway.dev/published"      // on Services for published ports

	managedBy = "slipway"
)

// LegalName is name as a DNS label: lower case, with a dash for every character that none may have.
func LegalName(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || r == '-' {
			b.WriteRune(r)
		} else {
			b.WriteByte('-')
		}
	}
	s := strings.Trim(b.String(), "-")
	switch {
	case s == "":
		s = "s-" + hash([]byte(name))
	case s[0] >= '0' && s[0] <= '9':
		s = "s-" + s // Service names begin with a letter
	}
	if len(s) > 63 {
		s = strings.TrimRight(s[:52], "-") + "-" + hash([]byte(name))
	}
	return s
}

// Namespace is where a project's objects live.
func Namespace(project string) (string, error) {
	ns := LegalName(project)
	if ns == "default" || strings.HasPrefix(ns, "kube-") {
		return "", fmt.Errorf("project name %q: namespace %s is reserved: choose another name with -p or in the file", project, ns)
	}
	return ns, nil
}

// hash is short, and changes with the content: names of configs and secrets carry it, so that changed
// content is a changed pod.
func hash(data ...[]byte) string {
	h := sha256.New()
	for _, d := range data {
		fmt.Fprintf(h, "%d:", len(d))
		h.Write(d)
	}
	return hex.EncodeToString(h.Sum(nil))[:10]
}
