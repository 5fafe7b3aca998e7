package pipeline

import (
	"cmp"
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// Which policies decide a packet is read from what the rules ask for, as they
// were in the revision that judged it, and not from flows: these are of the
// present alone, and one stands for all rules that are alike.

// scene is a hit as one of an endpoint and a peer.
type scene struct {
	hit      Hit
	dir      policyv1.Direction
	ep       *endpoint // Nil: none is known.
	peer     netip.Addr
	revision uint64
}

// deciders are the rule that decides where a part of a rule was hit, and the
// policies that do: of a Kubernetes allow all that allow.
func (c *Compiler) deciders(pt *part, at scene) (*rule, []*policy) {
	r := pt.body.owner
	if !r.ordered() {
		if policies := c.allowing(pt.body.world, at); len(policies) > 0 {
			return r, policies
		}
	} else if first := c.decider(r, at); first != nil {
		r = first
	}
	return r, []*policy{r.policy}
}

// refs names policies, each once: a policy may have come in several parts.
func refs(policies []*policy) (out []*policyv1.PolicyRef) {
	for i, p := range policies {
		if i == 0 || comparePolicies(policies[i-1], p) != 0 {
			out = append(out, p.wire.GetRef())
		}
	}
	return out
}

// decider is the rule that decides a hit, of those of one rule's world and
// precedence: of all that cover it that of the oldest policy, then the first by
// kind, Namespace and name. A policy whose age is not known counts as the
// youngest.
func (c *Compiler) decider(of *rule, at scene) *rule {
	var first *rule
	for p := range c.guardingAt(at.ep, at.revision) {
		if p.world() > of.world {
			continue
		}
		for _, r := range p.rules {
			if r.direction == of.direction && r.at == of.at && (first == nil || compareTied(p, first.policy) < 0) && c.covers(r, at) {
				first = r
			}
		}
	}
	return first
}

// compareTied orders policies of which nothing else says which comes first.
func compareTied(a, b *policy) int {
	return cmp.Or(cmp.Compare(order.Born(a.wire), order.Born(b.wire)), comparePolicies(a, b))
}

// allowing are the Kubernetes policies of a world that have a rule which allows
// a hit, by name.
func (c *Compiler) allowing(w world, at scene) []*policy {
	var found []*policy
	for p := range c.guardingAt(at.ep, at.revision) {
		if p.world() <= w && slices.ContainsFunc(p.rules, func(r *rule) bool { return !r.ordered() && r.direction == at.dir && c.covers(r, at) }) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, comparePolicies)
	return found
}

// covers says whether a rule holds for a hit on an endpoint. Members of groups are
// looked up by their addresses, not gone through.
func (c *Compiler) covers(r *rule, at scene) bool {
	if !r.appliesTo(at.ep) {
		return false
	}
	f, proto := family(at.peer), at.hit.Proto
	if (r.anyService || slices.ContainsFunc(r.services, func(s *policyv1.Service) bool { return serves(s, f, at.hit) })) && c.coversPeer(r, at) {
		return true
	}
	names := func(ports []*policyv1.NamedPort) bool {
		return slices.Contains(resolve(r.services, ports), resolved{proto, at.hit.DstPort})
	}
	if !r.egress() {
		return names(at.ep.wire.GetPorts()) && c.coversPeer(r, at)
	}
	named := func(m *memberFacts) bool { return names(m.ports()) }
	return c.anyMember(r.peers, at, named) || r.holds(at.peer) && c.anyMember(r.named, at, named)
}

// coversPeer says whether the peers of a rule have that of a hit.
func (c *Compiler) coversPeer(r *rule, at scene) bool {
	return r.holds(at.peer) || r.reaches(c.servicePorts[at.hit.Service]) ||
		c.anyMember(r.peers, at, func(*memberFacts) bool { return true }) || c.anyBlock(r.peers, at)
}

// anyMember says whether a member of groups with the peer's address fits.
func (c *Compiler) anyMember(groups []storage.ScopeID, at scene, fits func(*memberFacts) bool) bool {
	names := c.namesAt(at.peer, at.revision)
	return slices.ContainsFunc(groups, func(g storage.ScopeID) bool {
		return slices.ContainsFunc(names, func(n nameCount) bool {
			m := c.memberAt(groupMember{g, n.key}, at.revision)
			return slices.Contains(m.addrs(), at.peer) && fits(m)
		})
	})
}

// anyBlock says whether a block that is a member of groups has the peer's address.
func (c *Compiler) anyBlock(groups []storage.ScopeID, at scene) bool {
	for _, g := range groups {
		for key := range c.blocks[g] {
			if b := c.memberAt(groupMember{g, key}, at.revision).block(); b != nil {
				prefixes, err := blockPrefixes(b)
				if err == nil && slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(at.peer) }) {
					return true
				}
			}
		}
	}
	return false
}

// reaches says whether a rule names the Service of a port; of nil it does not.
func (r *content) reaches(sp *servicePort) bool {
	return sp != nil && slices.Contains(r.toServices, sp.service.name)
}

// serves says whether a service, by number, is that of a hit.
func serves(s *policyv1.Service, f int, h Hit) bool {
	proto := protoNumber(s.GetProtocol(), f)
	within := func(port uint16, first, last uint32) bool {
		return first == 0 || (uint32(port) >= first && uint32(port) <= max(first, last))
	}
	switch {
	case s.GetPortName() != "":
		return false
	case proto == 0:
		return true
	case proto != h.Proto:
		return false
	case s.IcmpType != nil && *s.IcmpType != uint32(h.ICMPType), s.IcmpCode != nil && *s.IcmpCode != uint32(h.ICMPCode):
		return false
	}
	return within(h.DstPort, s.GetPort(), s.GetEndPort()) && within(h.SrcPort, s.GetSourcePort(), s.GetSourceEndPort())
}
