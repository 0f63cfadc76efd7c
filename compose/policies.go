package compose

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// policies keep the project's networks apart: a pod hears those that share a network with it, and
// anyone on its published ports. Pods that are on internal networks only reach nothing else. Names
// still resolve across networks, as DNS knows no networks.
func (t *translation) policies() {
	t.service = nil
	for _, name := range sortedNames(t.Project.Networks) {
		t.networkPolicy(name)
	}
	for _, name := range sortedNames(t.Project.Services) {
		s := t.Project.Services[name]
		if s.NetworkMode == "none" {
			// The pod has an address like every other, but nobody hears it and it hears nobody.
			t.add(t.policy(LegalName(name+"-none"), networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: t.selector(name)},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			}))
		}
		if len(s.Ports) == 0 {
			continue
		}
		var ports []networkingv1.NetworkPolicyPort
		for _, p := range s.Ports {
			target, proto := intstr.FromInt32(int32(p.Target)), protocol(p.Protocol)
			ports = append(ports, networkingv1.NetworkPolicyPort{Protocol: &proto, Port: &target})
		}
		t.add(t.policy(LegalName(name+"-published"), networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: t.selector(name)},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: ports}},
		}))
	}
}

func (t *translation) networkPolicy(name string) {
	n := t.Project.Networks[name]
	if bool(n.External) {
		t.note("network %s: external networks have no counterpart: its services reach each other within the project", name)
	}
	if len(n.Ipam.Config) > 0 {
		t.note("network %s: ipam has no counterpart: addresses are the cluster's", name)
	}
	if n.Name != "" && n.Name != t.Project.Name+"_"+name && !bool(n.External) {
		t.note("network %s: name %s is not shared: other projects cannot join it", name, n.Name)
	}
	for _, opt := range sortedNames(n.DriverOpts) {
		t.note("network %s: driver_opts.%s has no counterpart", name, opt)
	}
	if n.Driver != "" && n.Driver != "bridge" && n.Driver != "overlay" && !bool(n.External) {
		t.note("network %s: driver %s has no counterpart: it is a network of the cluster", name, n.Driver)
	}
	if n.EnableIPv6 != nil && *n.EnableIPv6 {
		t.note("network %s: enable_ipv6 has no effect: addresses are the cluster's", name)
	}
	onNetwork := map[string]string{labelNetwork + LegalName(name): "true"}
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: onNetwork}}}
	t.add(t.policy("network-"+LegalName(name), networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: onNetwork},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: peers}},
	}))
	if !n.Internal {
		return
	}
	inside := map[string]string{labelNetwork + LegalName(name): "true", labelInternal: "true"}
	egress := []networkingv1.NetworkPolicyEgressRule{{To: peers}}
	if !t.Slipway {
		egress = append(egress, clusterDNS()) // Slipway's is on the node itself, which policies never shut out
	}
	t.add(t.policy("internal-"+LegalName(name), networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: inside},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		Egress:      egress,
	}))
}

// clusterDNS lets names be asked where clusters have their DNS server; port 53 of anybody would be a way out.
func clusterDNS() networkingv1.NetworkPolicyEgressRule {
	port, udp, tcp := intstr.FromInt32(53), corev1.ProtocolUDP, corev1.ProtocolTCP
	return networkingv1.NetworkPolicyEgressRule{
		To: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{
			MatchLabels: map[string]string{corev1.LabelMetadataName: "kube-system"}}}},
		Ports: []networkingv1.NetworkPolicyPort{{Protocol: &udp, Port: &port}, {Protocol: &tcp, Port: &port}},
	}
}

func (t *translation) policy(name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: t.meta(name, ""), Spec: spec,
	}
}
