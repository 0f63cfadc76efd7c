package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// policyPlan is a network policy made ready for matching.
type policyPlan struct {
	namespace string
	selector  labels.Selector
	ingress   *direction // nil: the policy does not speak of it
	egress    *direction
}

// direction lists what is allowed; nothing allowed is a default deny.
type direction struct{ allow []allowance }

// allowance lets packets pass that match one of the peers and one of the ports.
type allowance struct {
	everyone bool
	peers    []peer
	blocks   []block
	ports    []portRange // empty: every port
}

// peer is a group of pods. Equal groups of different policies share one set, by key.
type peer struct {
	key        string
	namespace  string          // when namespaces is nil
	namespaces labels.Selector // by label
	pods       labels.Selector
}

func (p peer) matches(namespace string, nsLabels, podLabels labels.Set) bool {
	if p.namespaces == nil && p.namespace != namespace || p.namespaces != nil && !p.namespaces.Matches(nsLabels) {
		return false
	}
	return p.pods.Matches(podLabels)
}

type block struct {
	in     netip.Prefix
	except []netip.Prefix
}

// portRange is first to last, or a named port; all zero is every port of the protocol.
type portRange struct {
	proto       corev1.Protocol
	first, last uint16
	name        string
}

// compilePolicy prepares a policy. The API has validated it, so that an error here means
// a selector from a newer API.
func compilePolicy(np *networkingv1.NetworkPolicy) (policyPlan, error) {
	plan := policyPlan{namespace: np.Namespace}
	var err error
	if plan.selector, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		return plan, fmt.Errorf("network policy %s/%s: spec.podSelector: %w", np.Namespace, np.Name, err)
	}
	types := np.Spec.PolicyTypes
	if len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeIngress) {
		plan.ingress = &direction{}
		for i, r := range np.Spec.Ingress {
			a, err := compileRule(np.Namespace, r.From, r.Ports)
			if err != nil {
				return plan, fmt.Errorf("network policy %s/%s: spec.ingress[%d]: %w", np.Namespace, np.Name, i, err)
			}
			plan.ingress.allow = append(plan.ingress.allow, a)
		}
	}
	if slices.Contains(types, networkingv1.PolicyTypeEgress) || len(types) == 0 && len(np.Spec.Egress) > 0 {
		plan.egress = &direction{}
		for i, r := range np.Spec.Egress {
			a, err := compileRule(np.Namespace, r.To, r.Ports)
			if err != nil {
				return plan, fmt.Errorf("network policy %s/%s: spec.egress[%d]: %w", np.Namespace, np.Name, i, err)
			}
			plan.egress.allow = append(plan.egress.allow, a)
		}
	}
	return plan, nil
}

func compileRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (allowance, error) {
	a := allowance{everyone: len(peers) == 0}
	for i := range peers {
		if peers[i].IPBlock != nil {
			b, ok, err := compileBlock(peers[i].IPBlock)
			if err != nil {
				return a, err
			}
			if ok {
				a.blocks = append(a.blocks, b)
			}
			continue
		}
		p, err := compilePeer(namespace, &peers[i])
		if err != nil {
			return a, err
		}
		a.peers = append(a.peers, p)
	}
	for i := range ports {
		a.ports = append(a.ports, compilePort(&ports[i]))
	}
	return a, nil
}

// compileBlock reports false for IPv6, which pods do not have.
func compileBlock(b *networkingv1.IPBlock) (block, bool, error) {
	in, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return block{}, false, fmt.Errorf("ipBlock: %w", err)
	}
	out := block{in: in.Masked()}
	for _, s := range b.Except {
		e, err := netip.ParsePrefix(s)
		if err != nil {
			return out, false, fmt.Errorf("ipBlock: except: %w", err)
		}
		out.except = append(out.except, e.Masked())
	}
	return out, in.Addr().Is4(), nil
}

func compilePeer(namespace string, np *networkingv1.NetworkPolicyPeer) (peer, error) {
	p := peer{namespace: namespace, pods: labels.Everything()}
	var err error
	if np.PodSelector != nil {
		if p.pods, err = metav1.LabelSelectorAsSelector(np.PodSelector); err != nil {
			return p, fmt.Errorf("podSelector: %w", err)
		}
	}
	if np.NamespaceSelector != nil {
		if p.namespaces, err = metav1.LabelSelectorAsSelector(np.NamespaceSelector); err != nil {
			return p, fmt.Errorf("namespaceSelector: %w", err)
		}
		p.namespace = ""
		p.key = "in " + p.namespaces.String() + ": " + p.pods.String()
		return p, nil
	}
	p.key = namespace + ": " + p.pods.String()
	return p, nil
}

func compilePort(p *networkingv1.NetworkPolicyPort) portRange {
	r := portRange{proto: corev1.ProtocolTCP}
	if p.Protocol != nil {
		r.proto = *p.Protocol
	}
	switch {
	case p.Port == nil:
	case p.Port.Type == intstr.String:
		r.name = p.Port.StrVal
	default:
		r.first = uint16(p.Port.IntVal)
		r.last = uint16(cmp.Or(deref(p.EndPort), p.Port.IntVal))
	}
	return r
}
