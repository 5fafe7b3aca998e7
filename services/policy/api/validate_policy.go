package api

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// networkPolicy checks the spec of a NetworkPolicy.
func (f *findings) networkPolicy(o *networkingv1.NetworkPolicy) {
	f.enforcement(o.Annotations)
	f.selector("spec.podSelector", &o.Spec.PodSelector)

	ingress, egress := false, false
	for i, t := range o.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ingress = true
		case networkingv1.PolicyTypeEgress:
			egress = true
		default:
			f.refuse(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is unknown; write Ingress or Egress", t)
		}
	}
	if len(o.Spec.PolicyTypes) > 2 {
		f.refuse("spec.policyTypes", "more than two entries; write each of Ingress and Egress at most once")
	}
	if len(o.Spec.PolicyTypes) > 0 {
		if len(o.Spec.Ingress) > 0 && !ingress {
			f.warn("spec.ingress", "has no effect; add Ingress to spec.policyTypes, or remove the rules")
		}
		if len(o.Spec.Egress) > 0 && !egress {
			f.warn("spec.egress", "has no effect; add Egress to spec.policyTypes, or remove the rules")
		}
	}

	for i, r := range o.Spec.Ingress {
		at := fmt.Sprintf("spec.ingress[%d]", i)
		f.rulePorts(at, r.Ports)
		f.rulePeers(at+".from", r.From)
	}
	for i, r := range o.Spec.Egress {
		at := fmt.Sprintf("spec.egress[%d]", i)
		f.rulePorts(at, r.Ports)
		f.rulePeers(at+".to", r.To)
	}
}

func (f *findings) rulePorts(rule string, ports []networkingv1.NetworkPolicyPort) {
	for i, p := range ports {
		at := fmt.Sprintf("%s.ports[%d]", rule, i)
		if p.Protocol != nil {
			if *p.Protocol == "" {
				f.refuse(at+".protocol", "empty; write TCP, UDP or SCTP, or leave it out for TCP")
			}
			f.protocol(at+".protocol", *p.Protocol)
		}
		numeric := false
		if p.Port != nil {
			if p.Port.Type == intstr.Int {
				numeric = f.port(at+".port", p.Port.IntVal)
			} else {
				f.portName(at+".port", p.Port.StrVal)
			}
		}
		if p.EndPort == nil {
			continue
		}
		switch {
		case p.Port == nil:
			f.refuse(at+".endPort", "stands without port; write port, the first of the range, as a number")
		case p.Port.Type == intstr.String:
			f.refuse(at+".endPort", "stands with the named port %q; write port as a number", p.Port.StrVal)
		case !f.port(at+".endPort", *p.EndPort):
		case numeric && *p.EndPort < p.Port.IntVal:
			f.refuse(at+".endPort", "%d is below port %d; write a number from %d to 65535", *p.EndPort, p.Port.IntVal, p.Port.IntVal)
		}
	}
}

func (f *findings) rulePeers(list string, peers []networkingv1.NetworkPolicyPeer) {
	for i, p := range peers {
		at := fmt.Sprintf("%s[%d]", list, i)
		if p.PodSelector != nil {
			f.selector(at+".podSelector", p.PodSelector)
		}
		if p.NamespaceSelector != nil {
			f.selector(at+".namespaceSelector", p.NamespaceSelector)
		}
		switch selects := p.PodSelector != nil || p.NamespaceSelector != nil; {
		case p.IPBlock == nil && !selects:
			f.refuse(at, "names no peer; write podSelector, namespaceSelector or ipBlock, or remove the entry")
		case p.IPBlock != nil && selects:
			f.refuse(at, "ipBlock stands together with a selector; write them as two entries")
		}
		if p.IPBlock != nil {
			f.ipBlock(at+".ipBlock", p.IPBlock)
		}
	}
}

func (f *findings) ipBlock(at string, b *networkingv1.IPBlock) {
	usable := f.cidr(at+".cidr", b.CIDR)
	for i, e := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", at, i)
		if !f.cidr(field, e) || !usable {
			continue
		}
		cidr, _ := parsePrefix(b.CIDR) // Both were parsed above.
		inner, _ := parsePrefix(e)
		if inner.Bits() <= cidr.Bits() || !cidr.Contains(inner.Addr()) {
			f.refuse(field, "%s is not strictly inside %s; write a longer prefix within it, or remove the entry", inner, cidr)
		}
	}
}
