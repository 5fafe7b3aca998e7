package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"
)

func (f *findings) adminNetworkPolicy(o *anpv1alpha1.AdminNetworkPolicy) {
	if o.Spec.Priority < 0 || o.Spec.Priority > 1000 {
		f.refuse("spec.priority", "%d is no priority; write a number from 0 to 1000", o.Spec.Priority)
	}
	ingress, egress := adminRulesOf(o)
	f.adminPolicy(o.Annotations, o.Spec.Subject, ingress, egress)
}

func (f *findings) baselineAdminNetworkPolicy(o *anpv1alpha1.BaselineAdminNetworkPolicy) {
	if o.Name != "default" {
		f.refuse("metadata.name", "%q; a cluster has one baseline, write default", o.Name)
	}
	ingress, egress := baselineRulesOf(o)
	f.adminPolicy(o.Annotations, o.Spec.Subject, ingress, egress)
}

// adminPolicy checks what both kinds have in common.
func (f *findings) adminPolicy(annotations map[string]string, s anpv1alpha1.AdminNetworkPolicySubject, ingress, egress []adminRule) {
	if v, ok := annotations[AnnotationEnforcement]; ok && v != "staged" && v != "enforced" {
		f.refuse("metadata.annotations."+AnnotationEnforcement, "%q is unknown; write staged or enforced", v)
	}
	f.exactlyOne("spec.subject", map[string]bool{"namespaces": s.Namespaces != nil, "pods": s.Pods != nil})
	if s.Namespaces != nil {
		f.selector("spec.subject.namespaces", s.Namespaces)
	}
	f.namespacedPod("spec.subject.pods", s.Pods)
	for list, rules := range map[string][]adminRule{"ingress": ingress, "egress": egress} {
		f.atMost("spec."+list, len(rules), 100)
		for i, r := range rules {
			f.adminRule(fmt.Sprintf("spec.%s[%d]", list, i), list, r)
		}
	}
}

func (f *findings) adminRule(at, list string, r adminRule) {
	if len(r.name) > 100 {
		f.refuse(at+".name", "%d characters; write at most 100", len(r.name))
	}
	_, known := adminActions[r.action]
	switch {
	case !known:
		f.refuse(at+".action", "%q is unknown; write Allow, Deny or Pass", r.action)
	case r.action == "Pass" && f.object.Kind == KindBaselineAdminNetworkPolicy:
		f.refuse(at+".action", "a baseline has nothing to pass to; write Allow or Deny")
	}
	peers := at + map[string]string{"ingress": ".from", "egress": ".to"}[list]
	if len(r.peers) == 0 {
		f.refuse(peers, "missing; write at least one peer, namespaces: {} for all Pods")
	}
	f.atMost(peers, len(r.peers), 100)
	for i, p := range r.peers {
		f.adminPeer(fmt.Sprintf("%s[%d]", peers, i), p)
	}
	if r.ports == nil {
		return
	}
	f.atMost(at+".ports", len(*r.ports), 100)
	for i, p := range *r.ports {
		f.adminPort(fmt.Sprintf("%s.ports[%d]", at, i), p)
	}
}

func (f *findings) adminPeer(at string, p anpv1alpha1.AdminNetworkPolicyEgressPeer) {
	f.exactlyOne(at, map[string]bool{"namespaces": p.Namespaces != nil, "pods": p.Pods != nil, "nodes": p.Nodes != nil,
		"networks": p.Networks != nil, "domainNames": p.DomainNames != nil})
	if p.Namespaces != nil {
		f.selector(at+".namespaces", p.Namespaces)
	}
	f.namespacedPod(at+".pods", p.Pods)
	if p.Nodes != nil {
		f.refuse(at+".nodes", "is not supported yet; remove the peer until it is")
	}
	if p.DomainNames != nil {
		f.refuse(at+".domainNames", "is not supported yet; remove the peer until it is")
	}
	if p.Networks != nil && len(p.Networks) == 0 {
		f.refuse(at+".networks", "empty; write at least one prefix")
	}
	f.atMost(at+".networks", len(p.Networks), 25)
	for i, n := range p.Networks {
		f.cidr(fmt.Sprintf("%s.networks[%d]", at, i), string(n))
	}
}

func (f *findings) adminPort(at string, p anpv1alpha1.AdminNetworkPolicyPort) {
	f.exactlyOne(at, map[string]bool{"portNumber": p.PortNumber != nil, "portRange": p.PortRange != nil, "namedPort": p.NamedPort != nil})
	named := func(field string, protocol corev1.Protocol) {
		if protocol == "" {
			f.refuse(field, "missing; write TCP, UDP or SCTP")
		}
		f.protocol(field, protocol)
	}
	if n := p.PortNumber; n != nil {
		named(at+".portNumber.protocol", n.Protocol)
		f.port(at+".portNumber.port", n.Port)
	}
	if r := p.PortRange; r != nil {
		f.protocol(at+".portRange.protocol", r.Protocol)
		if f.port(at+".portRange.start", r.Start) && f.port(at+".portRange.end", r.End) && r.End < r.Start {
			f.refuse(at+".portRange.end", "%d is below start %d", r.End, r.Start)
		}
	}
	if p.NamedPort != nil {
		f.portName(at+".namedPort", *p.NamedPort)
	}
}

func (f *findings) namespacedPod(at string, p *anpv1alpha1.NamespacedPod) {
	if p != nil {
		f.selector(at+".namespaceSelector", &p.NamespaceSelector)
		f.selector(at+".podSelector", &p.PodSelector)
	}
}

// exactlyOne refuses an object that has none or several of some fields.
func (f *findings) exactlyOne(at string, set map[string]bool) {
	var has []string
	for _, name := range slices.Sorted(maps.Keys(set)) {
		if set[name] {
			has = append(has, name)
		}
	}
	switch {
	case len(has) == 0:
		f.refuse(at, "empty; write one of %s", strings.Join(slices.Sorted(maps.Keys(set)), ", "))
	case len(has) > 1:
		f.refuse(at, "%s stand together; write them as entries of their own, or remove all but one", strings.Join(has, ", "))
	}
}

func (f *findings) atMost(at string, n, most int) {
	if n > most {
		f.refuse(at, "%d entries; write at most %d", n, most)
	}
}
