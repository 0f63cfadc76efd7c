package node

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// The limits that resolvers put on resolv.conf (MAXDNSRCH of newer ones, as the kubelet).
const (
	maxNameservers = 3
	maxSearches    = 32
)

// resolvConf is a pod's /etc/resolv.conf. host is the machine's own.
func resolvConf(pod *corev1.Pod, dns netip.Addr, domain, host string) string {
	servers, searches, options := parseResolvConf(host)
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	switch policy {
	case corev1.DNSNone:
		servers, searches, options = nil, nil, nil
	case corev1.DNSDefault:
	default:
		servers = []string{dns.String()}
		searches = append([]string{pod.Namespace + ".svc." + domain, "svc." + domain, domain}, searches...)
		options = []string{"ndots:5"}
	}
	if c := pod.Spec.DNSConfig; c != nil {
		servers = append(servers, c.Nameservers...)
		searches = append(searches, c.Searches...)
		for _, o := range c.Options {
			word := o.Name
			if o.Value != nil {
				word += ":" + *o.Value
			}
			options = slices.DeleteFunc(options, func(have string) bool { name, _, _ := strings.Cut(have, ":"); return name == o.Name })
			options = append(options, word)
		}
	}
	var b strings.Builder
	for _, s := range unique(servers, maxNameservers) {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if searches = unique(searches, maxSearches); len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.String()
}

func unique(words []string, limit int) []string {
	var out []string
	for _, w := range words {
		if !slices.Contains(out, w) && len(out) < limit {
			out = append(out, w)
		}
	}
	return out
}

func parseResolvConf(text string) (servers, searches, options []string) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, fields[1])
		case "search", "domain":
			searches = fields[1:]
		case "options":
			options = append(options, fields[1:]...)
		}
	}
	return servers, searches, options
}

// hostsFile is a pod's /etc/hosts, in the kubelet's words.
func hostsFile(pod *corev1.Pod, addr netip.Addr, hostname, domain string) string {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString("# Kubernetes-managed hosts file (host network).\n")
		if host, err := os.ReadFile("/etc/hosts"); err == nil {
			b.Write(host)
		}
	} else {
		b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		if domain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", addr, hostname, domain, hostname)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", addr, hostname)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return b.String()
}

// hostNames are a pod's host name and its domain, empty without a subdomain.
func hostNames(pod *corev1.Pod, clusterDomain string) (hostname, domain string) {
	hostname = pod.Name
	if pod.Spec.Hostname != "" {
		hostname = pod.Spec.Hostname
	}
	if len(hostname) > 63 { // what sethostname takes in DNS form, as the kubelet truncates
		hostname = strings.TrimRight(hostname[:63], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = fmt.Sprintf("%s.%s.svc.%s", pod.Spec.Subdomain, pod.Namespace, clusterDomain)
	}
	return hostname, domain
}
