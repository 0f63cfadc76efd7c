package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestResolvConf(t *testing.T) {
	const host = "nameserver 192.0.2.1\nsearch example.org\noptions timeout:2\n"
	five := "5"
	tests := []struct {
		name string
		spec corev1.PodSpec
		want string
	}{
		{"cluster first", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst},
			"nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:5\n"},
		{"the host's", corev1.PodSpec{DNSPolicy: corev1.DNSDefault}, host},
		{"cluster first on the host network is the host's", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, HostNetwork: true}, host},
		{"cluster first on the host network, asked for", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirstWithHostNet, HostNetwork: true},
			"nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:5\n"},
		{"none", corev1.PodSpec{DNSPolicy: corev1.DNSNone, DNSConfig: &corev1.PodDNSConfig{Nameservers: []string{"198.51.100.1"}}}, "nameserver 198.51.100.1\n"},
		{"an option replaces one of its name", corev1.PodSpec{DNSPolicy: corev1.DNSClusterFirst, DNSConfig: &corev1.PodDNSConfig{
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &five}, {Name: "edns0"}}}},
			"nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local example.org\noptions ndots:5 edns0\n"},
	}
	for _, tt := range tests {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: tt.spec}
		if got := resolvConf(p, netip.MustParseAddr("10.96.0.10"), "cluster.local", host); got != tt.want {
			t.Errorf("%s: resolvConf =\n%swant\n%s", tt.name, got, tt.want)
		}
	}
}

func TestWriteAtomically(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "volume")
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "error: " + err.Error()
		}
		return string(raw)
	}
	if err := writeAtomically(dir, map[string]file{"a": {[]byte("one"), 0o644}, "d/b": {[]byte("two"), 0o600}}, -1); err != nil {
		t.Fatal(err)
	}
	first, _ := os.Readlink(filepath.Join(dir, dataLink))
	if got := read("a") + " " + read("d/b"); got != "one two" {
		t.Errorf("first version reads %q; want %q", got, "one two")
	}
	if err := writeAtomically(dir, map[string]file{"a": {[]byte("one"), 0o644}, "d/b": {[]byte("two"), 0o600}}, -1); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.Readlink(filepath.Join(dir, dataLink)); again != first {
		t.Errorf("unchanged content made a new version: %s after %s", again, first)
	}
	if err := writeAtomically(dir, map[string]file{"a": {[]byte("three"), 0o644}}, -1); err != nil {
		t.Fatal(err)
	}
	if got := read("a"); got != "three" {
		t.Errorf("second version reads %q; want %q", got, "three")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var visible []string
	for _, e := range entries {
		visible = append(visible, e.Name())
	}
	if len(visible) != 3 || !slices.Contains(visible, "a") || !slices.Contains(visible, dataLink) {
		t.Errorf("after the second version the volume has %q; want one version, %q and a", visible, dataLink)
	}
}

func TestWriteAtomicallyStaysInside(t *testing.T) {
	for _, name := range []string{"../x", "/etc/x", "a/../../x", "..data/x"} {
		if err := writeAtomically(t.TempDir(), map[string]file{name: {[]byte("x"), 0o644}}, -1); err == nil {
			t.Errorf("a volume file named %q was written; want an error", name)
		}
	}
}

// A container may make its /etc/hosts a file of a terabyte: looking at it must cost no more than looking at ours.
func TestHoldsTextReadsNoMore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if holdsText(path, "") {
		t.Error("a file that is not there holds nothing, not even the empty text")
	}
	for _, tt := range []struct {
		size int64
		want bool
	}{{4, true}, {3, false}, {5, false}, {1 << 40, false}} {
		if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, tt.size); err != nil {
			t.Skipf("this file system has no sparse file of %d bytes: %v", tt.size, err)
		}
		if got := holdsText(path, "text"); got != tt.want {
			t.Errorf("a file of %d bytes that begins with the text: %v; want %v", tt.size, got, tt.want)
		}
	}
}
