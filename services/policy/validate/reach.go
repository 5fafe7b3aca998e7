package validate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/services/policy/api"
)

// What is looked for in egress rules.
var (
	// dns is what asks a name server.
	dns = box{
		{dimension{aspect: protocol}, only(uint64(api.ProtocolTCP)).or(only(uint64(api.ProtocolUDP)))},
		{dimension{aspect: port}, only(53)},
	}
	// metadata is what asks a cloud for the credentials of the machine.
	metadata = box{
		{dimension{aspect: peerKind}, only(kindOther)},
		{dimension{aspect: peerAddress}, addresses(netip.MustParsePrefix("169.254.169.254/32")).or(addresses(netip.MustParsePrefix("fd00:ec2::254/128")))},
		{dimension{aspect: peerService}, oneOf(absent)},
		{dimension{aspect: protocol}, only(uint64(api.ProtocolTCP))},
		{dimension{aspect: port}, only(80)},
	}
)

// within is the part of a region in a box.
func (r region) within(b box) region { return r.times(region{b}) }

// everythingOf reports whether a rule is about all traffic of its subject.
func everythingOf(r *api.OrderedRule) bool { return r.AnyPeer() && len(r.Traffic) == 0 }

func denies(a api.Action) bool { return a == api.ActionDrop || a == api.ActionReject }

// meetsAny reports whether one of the egress rules of a step that counts meets
// a region, or that the budget is spent. A policy of a Namespace can only where the region's subjects may be
// there.
func (x *Index) meetsAny(r region, late bool, counts func(*rule) bool) bool {
	in := func(namespace string) bool {
		for c := range x.byNamespace[namespace] {
			for _, e := range c.rules {
				if setOf(e) != (setIndex{true, late}) {
					continue
				}
				if !x.budget.spend() || overlap(e.region, r) && counts(e) {
					return true
				}
			}
		}
		return false
	}
	if in("") {
		return true
	}
	names, all := r.subjectNamespaces()
	if all {
		names = slices.Collect(maps.Keys(x.byNamespace))
	}
	return slices.ContainsFunc(names, in)
}

// subjectNamespaces are those in which subjects may be. All: they are not numbered.
func (r region) subjectNamespaces() (names []string, all bool) {
	for _, b := range r {
		v := b.values(subjectNamespace, "")
		if v.except {
			return nil, true
		}
		names = append(names, v.list...)
	}
	return names, false
}

// warnDNS tells of a rule that denies all egress where nothing before it lets
// its Pods ask a name server.
func (x *Index) warnDNS(f *findings, r *rule) {
	if !denies(r.spec().Action) || !everythingOf(r.spec()) {
		return
	}
	asked := r.region.within(append(box{{dimension{aspect: subjectKind}, only(kindPod)}}, dns...))
	if len(asked) == 0 {
		return
	}
	opens := func(e *rule) bool { return !denies(e.spec().Action) && x.precedes(e, r) }
	if x.meetsAny(asked, late(r.policy), opens) {
		return
	}
	if late(r.policy) && (x.meetsAny(asked, false, opens) || x.networkAllows(asked)) {
		return
	}
	f.warn(r.policy.Ref(), r.field(), "the rule%s denies all egress, and no rule before it lets the Pods ask for names; write one that allows UDP and TCP port 53 to the cluster's DNS, unless none of them needs it", quoted(r))
}

// warnMetadata tells of a rule that lets Pods reach a cloud's metadata where
// a later rule would not.
func (x *Index) warnMetadata(f *findings, r *rule) {
	if r.spec().Action != api.ActionAllow || everythingOf(r.spec()) {
		return
	}
	reached := r.region.within(metadata)
	// An address that may have a name is not what the rule is about.
	reached = slices.DeleteFunc(reached, func(b box) bool {
		return slices.ContainsFunc(b, func(c constraint) bool { return c.aspect == peerName })
	})
	if len(reached) == 0 {
		return
	}
	denied := func(e *rule) bool {
		_, ranked := x.rank(e.policy)
		return ranked && denies(e.spec().Action) && x.compare(r, e) < 0 && (r.policy.Staged || !e.policy.Staged)
	}
	if !x.meetsAny(reached, late(r.policy), denied) && (late(r.policy) || !x.meetsAny(reached, true, denied)) {
		return
	}
	before := coverage{budget: &x.budget, rules: x.rules[setOf(r)], order: x.compare, may: func(e *rule) bool { return denies(e.spec().Action) && x.precedes(e, r) }}
	if before.covers(reached) || x.budget.spent() {
		return
	}
	f.warn(r.policy.Ref(), r.field(), "the rule%s lets Pods reach the metadata of a cloud's machine (%s), and with it often its credentials, while other egress is denied; put 169.254.169.254/32 or fd00:ec2::254/128 under except, or drop it in a rule before", quoted(r), metadataAddresses(reached))
}

func metadataAddresses(r region) string {
	four := overlap(r, region{{{dimension{aspect: peerAddress}, addresses(netip.MustParsePrefix("0.0.0.0/0"))}}})
	six := overlap(r, region{{{dimension{aspect: peerAddress}, addresses(netip.MustParsePrefix("::/0"))}}})
	switch {
	case four && six:
		return "169.254.169.254 and fd00:ec2::254"
	case six:
		return "fd00:ec2::254"
	}
	return "169.254.169.254"
}

// warnNetworkPolicy tells of selectors of a NetworkPolicy, and of what its
// egress leaves open and closed.
func (x *Index) warnNetworkPolicy(f *findings, p *api.NetworkPolicy) {
	ref := p.Ref()
	x.warnPods(f, ref, "spec.podSelector", selected{p.Namespace, nil, &p.PodSelector})
	for i, list := range [][]api.NetworkPolicyRule{p.Ingress, p.Egress} {
		for j := range list {
			for k, e := range list[j].Peers {
				field := fmt.Sprintf("spec.%s[%d].%s[%d]", [...]string{"ingress", "egress"}[i], j, [...]string{"from", "to"}[i], k)
				switch {
				case e.IPBlock != nil:
				case e.NamespaceSelector == nil:
					x.warnPods(f, ref, field, selected{p.Namespace, nil, e.PodSelector})
				default:
					x.warnPods(f, ref, field, selected{"", e.NamespaceSelector, e.PodSelector})
				}
			}
		}
	}
	x.warnNetworkEgress(f, p)
}

func (x *Index) warnNetworkEgress(f *findings, p *api.NetworkPolicy) {
	if !isolatesEgress(p) {
		return
	}
	if len(p.Egress) == 0 {
		asked := subjectSide.pods(p.Namespace, nil, &p.PodSelector).within(dns)
		opens := func(e *rule) bool { return e.spec().Action == api.ActionAllow && (p.Staged || !e.policy.Staged) }
		if len(asked) > 0 && !x.networkAllows(asked) && !x.meetsAny(asked, false, opens) {
			f.warn(p.Ref(), "spec.egress", "the policy denies all egress, and no other lets the Pods ask for names; allow UDP and TCP port 53 to the cluster's DNS, unless none of them needs it")
		}
	}
	for i := range p.Egress {
		r := &p.Egress[i]
		if len(r.Peers) == 0 && len(r.Ports) == 0 {
			continue
		}
		reached := x.networkRegion(p, r).within(metadata)
		if len(reached) == 0 {
			continue
		}
		before := coverage{budget: &x.budget, rules: x.rules[setIndex{egress: true}], order: x.compare, may: func(e *rule) bool { return denies(e.spec().Action) && (p.Staged || !e.policy.Staged) }}
		if !before.covers(reached) && !x.budget.spent() {
			f.warn(p.Ref(), fmt.Sprintf("spec.egress[%d]", i), "the rule lets Pods reach the metadata of a cloud's machine (%s), and with it often its credentials, while other egress is denied; put 169.254.169.254/32 or fd00:ec2::254/128 under except", metadataAddresses(reached))
		}
	}
}

// isolatesEgress: where policyTypes is absent, egress rules say so.
func isolatesEgress(p *api.NetworkPolicy) bool {
	return len(p.PolicyTypes) == 0 && len(p.Egress) > 0 || slices.Contains(p.PolicyTypes, api.PolicyTypeEgress)
}

// networkAllows reports whether an enforced NetworkPolicy lets out some of a region.
func (x *Index) networkAllows(r region) bool {
	names, all := r.subjectNamespaces()
	if all {
		names = slices.Collect(maps.Keys(x.isolating))
	}
	for _, name := range names {
		for _, p := range x.isolating[name] {
			if p.Staged {
				continue
			}
			for i := range p.Egress {
				if overlap(x.networkRegion(p, &p.Egress[i]), r) {
					return true
				}
			}
		}
	}
	return false
}

// networkRegion is what an egress rule of a NetworkPolicy matches.
func (x *Index) networkRegion(p *api.NetworkPolicy, r *api.NetworkPolicyRule) region {
	peers := everything
	if len(r.Peers) > 0 {
		peers = nil
		var list []*api.IPBlock
		for i := range r.Peers {
			switch e := &r.Peers[i]; {
			case e.IPBlock != nil:
				list = append(list, e.IPBlock)
			case e.NamespaceSelector == nil:
				peers = append(peers, peerSide.pods(p.Namespace, nil, e.PodSelector)...)
			default:
				peers = append(peers, peerSide.pods("", e.NamespaceSelector, e.PodSelector)...)
			}
		}
		peers = append(peers, blocks(list)...)
	}
	var ports []api.Traffic
	for _, t := range r.Ports {
		ports = append(ports, api.Traffic{Protocol: t.Protocol, Port: t.Port, EndPort: t.EndPort, PortName: t.PortName})
	}
	return subjectSide.pods(p.Namespace, nil, &p.PodSelector).times(peers).times(traffic(ports, true))
}
