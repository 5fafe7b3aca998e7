package api

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	anpv1alpha1 "sigs.k8s.io/network-policy-api/apis/v1alpha1"

	"github.com/weirnet/weir/services/policy/api/adminv1alpha2"
)

func (f *findings) adminNetworkPolicy(o *anpv1alpha1.AdminNetworkPolicy) {
	f.adminPriority(&o.Spec.Priority)
	f.adminPolicy(adminPolicyOf(o), "Allow", 100)
}

func (f *findings) baselineAdminNetworkPolicy(o *anpv1alpha1.BaselineAdminNetworkPolicy) {
	if o.Name != "default" {
		f.refuse("metadata.name", "%q; a cluster has one baseline, write default", o.Name)
	}
	f.adminPolicy(baselineOf(o), "Allow", 100)
}

func (f *findings) clusterNetworkPolicy(o *adminv1alpha2.ClusterNetworkPolicy) {
	if t := o.Spec.Tier; t != "Admin" && t != "Baseline" {
		f.refuse("spec.tier", "%q is unknown; write Admin or Baseline", t)
	}
	f.adminPriority(o.Spec.Priority)
	for i, r := range o.Spec.Ingress {
		for j, p := range r.From {
			if p.Nodes != nil || p.Networks != nil || p.DomainNames != nil {
				f.refuse(fmt.Sprintf("spec.ingress[%d].from[%d]", i, j), "an ingress peer is one of namespaces and pods; remove the rest")
			}
		}
	}
	f.adminPolicy(clusterPolicyOf(o), "Accept", 25)
}

func (f *findings) adminPriority(p *int32) {
	switch {
	case p == nil:
		f.refuse("spec.priority", "missing; write a number from 0 to 1000")
	case *p < 0 || *p > 1000:
		f.refuse("spec.priority", "%d is no priority; write a number from 0 to 1000", *p)
	}
}

// adminPolicy checks what the upstream kinds have in common: they differ in
// what they call to let through, and in how long their lists may be.
func (f *findings) adminPolicy(p adminPolicy, allow string, most int) {
	f.enforcement(p.meta.GetAnnotations())
	s := p.subject
	f.exactlyOne("spec.subject", map[string]bool{"namespaces": s.Namespaces != nil, "pods": s.Pods != nil})
	if s.Namespaces != nil {
		f.selector("spec.subject.namespaces", s.Namespaces)
	}
	f.namespacedPod("spec.subject.pods", s.Pods)
	for d, rules := range [][]adminRule{p.ingress, p.egress} {
		list := directions[d]
		f.atMost("spec."+list, len(rules), 100)
		for i, r := range rules {
			f.adminRule(fmt.Sprintf("spec.%s[%d]", list, i), list, r, allow, most)
		}
	}
}

// enforcement checks the annotation that stages a policy.
func (f *findings) enforcement(annotations map[string]string) {
	if v, ok := annotations[AnnotationEnforcement]; ok && v != "staged" && v != "enforced" {
		f.refuse("metadata.annotations."+AnnotationEnforcement, "%q is unknown; write staged or enforced", v)
	}
}

func (f *findings) adminRule(at, list string, r adminRule, allow string, most int) {
	if len(r.name) > 100 {
		f.refuse(at+".name", "%d characters; write at most 100", len(r.name))
	}
	switch {
	case r.action != allow && r.action != "Deny" && r.action != "Pass":
		f.refuse(at+".action", "%q is unknown; write %s, Deny or Pass", r.action, allow)
	case r.action == "Pass" && f.object.Kind == KindBaselineAdminNetworkPolicy:
		f.refuse(at+".action", "a baseline has nothing to pass to; write Allow or Deny")
	}
	peers := at + map[string]string{"ingress": ".from", "egress": ".to"}[list]
	if len(r.peers) == 0 {
		f.refuse(peers, "missing; write at least one peer, namespaces: {} for all Pods")
	}
	f.atMost(peers, len(r.peers), most)
	numbered := false // A peer that has no port names.
	for i, p := range r.peers {
		at := fmt.Sprintf("%s[%d]", peers, i)
		f.adminPeer(at, p)
		numbered = numbered || p.Nodes != nil || p.Networks != nil || p.DomainNames != nil
		if p.DomainNames != nil && r.action != allow {
			f.warn(at+".domainNames", "stands in a rule that does not allow: an address that was not yet, or is no longer, known for the name gets past it; write %s rules, and one that denies the rest", allow)
		}
	}
	named := slices.ContainsFunc(r.protocols, func(p adminv1alpha2.Protocol) bool { return p.DestinationNamedPort != "" })
	if r.ports != nil {
		f.atMost(at+".ports", len(*r.ports), 100)
		for i, p := range *r.ports {
			f.adminPort(fmt.Sprintf("%s.ports[%d]", at, i), p)
			named = named || p.NamedPort != nil
		}
	}
	f.atMost(at+".protocols", len(r.protocols), 25)
	for i, p := range r.protocols {
		f.adminProtocol(fmt.Sprintf("%s.protocols[%d]", at, i), p)
	}
	if named && numbered {
		f.refuse(at, "names a port, which nodes, networks and domainNames do not have; write its number, or rules of their own")
	}
}

func (f *findings) adminPeer(at string, p adminPeer) {
	f.exactlyOne(at, map[string]bool{"namespaces": p.Namespaces != nil, "pods": p.Pods != nil, "nodes": p.Nodes != nil,
		"networks": p.Networks != nil, "domainNames": p.DomainNames != nil})
	if p.Namespaces != nil {
		f.selector(at+".namespaces", p.Namespaces)
	}
	f.namespacedPod(at+".pods", p.Pods)
	if p.Nodes != nil {
		f.selector(at+".nodes", p.Nodes)
	}
	for _, list := range []struct {
		name    string
		entries int
		empty   bool
	}{{"networks", len(p.Networks), p.Networks != nil && len(p.Networks) == 0}, {"domainNames", len(p.DomainNames), p.DomainNames != nil && len(p.DomainNames) == 0}} {
		if list.empty {
			f.refuse(at+"."+list.name, "empty; write at least one entry")
		}
		f.atMost(at+"."+list.name, list.entries, 25)
	}
	for i, n := range p.Networks {
		f.cidr(fmt.Sprintf("%s.networks[%d]", at, i), string(n))
	}
	for i, n := range p.DomainNames {
		if !domainName.MatchString(string(n)) {
			f.refuse(fmt.Sprintf("%s.domainNames[%d]", at, i), "%q is no domain name; write one such as kubernetes.io or *.kubernetes.io", n)
		}
	}
}

// domainName is the pattern of DomainName in policy.networking.k8s.io, v1alpha1 and v1alpha2.
var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

func (f *findings) adminProtocol(at string, p adminv1alpha2.Protocol) {
	f.exactlyOne(at, map[string]bool{"tcp": p.TCP != nil, "udp": p.UDP != nil, "sctp": p.SCTP != nil, "destinationNamedPort": p.DestinationNamedPort != ""})
	if p.DestinationNamedPort != "" {
		f.portName(at+".destinationNamedPort", p.DestinationNamedPort)
	}
	for i, t := range []*adminv1alpha2.Transport{p.TCP, p.UDP, p.SCTP} {
		if t == nil || t.DestinationPort == nil {
			continue
		}
		port, at := t.DestinationPort, at+"."+[]string{"tcp", "udp", "sctp"}[i]+".destinationPort"
		f.exactlyOne(at, map[string]bool{"number": port.Number != 0, "range": port.Range != nil})
		if port.Number != 0 {
			f.port(at+".number", port.Number)
		}
		if r := port.Range; r != nil && f.port(at+".range.start", r.Start) && f.port(at+".range.end", r.End) && r.End <= r.Start {
			f.refuse(at+".range.end", "%d is not above start %d", r.End, r.Start)
		}
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
