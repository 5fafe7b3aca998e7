package pipeline

import (
	"fmt"
	"net/netip"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// The three functions here name every flow that a body's clauses have, each as
// a function of the body and one thing: an endpoint that it guards, an address
// family, a member of a group that it names. What is called with join when the
// thing comes is called with leave when it goes.

// targetClauses are those of one guarded endpoint.
func (c *Compiler) targetClauses(r *body, ep *endpoint, do emit) {
	target := targetField(r.direction, ep.port.OFPort)
	for _, pt := range r.parts {
		if !pt.named || r.egress() {
			do(pt, pt.target, either, openflow.NewMatch(target))
			continue
		}
		for f, has := range ep.families {
			if !has {
				continue
			}
			for _, port := range resolve(r.services, ep.wire.GetPorts()) {
				do(pt, pt.target, f, openflow.NewMatch(target, familyField(f), openflow.L4Dst(port.proto, port.number, 0xffff)))
			}
		}
	}
}

// familyClauses are the peers and services of one address family.
func (c *Compiler) familyClauses(r *body, f int, do emit) {
	for _, g := range r.peers {
		for _, m := range c.groups[g] {
			c.peerClauses(r, f, m, do)
		}
	}
	for _, g := range r.named {
		for _, m := range c.groups[g] {
			c.nameClauses(r, f, m, do)
		}
	}
	for _, name := range r.toServices {
		if s := c.services[name]; s != nil {
			for _, sp := range s.ports {
				c.serviceClause(r, sp, f, do)
			}
		}
	}
	for _, pt := range r.parts {
		if pt.any != none {
			do(pt, pt.any, f, openflow.NewMatch(familyField(f)))
		}
		if pt.peer != none && !(pt.named && r.egress()) {
			for _, p := range r.blocks {
				if family(p.Addr()) == f {
					do(pt, pt.peer, f, openflow.NewMatch(r.peerField(p)))
				}
			}
		}
		if pt.service != none {
			for _, s := range r.services {
				if s.GetPortName() == "" {
					for _, m := range serviceMatches(s, f) {
						do(pt, pt.service, f, m)
					}
				}
			}
		}
	}
}

// memberClauses are those of one member of a group that the rule names.
func (c *Compiler) memberClauses(r *body, g storage.ScopeID, m *memberFacts, do emit) {
	for f, n := range r.in {
		if n == 0 {
			continue
		}
		for _, id := range r.peers {
			if id == g {
				c.peerClauses(r, f, m, do)
			}
		}
		for _, id := range r.named {
			if id == g {
				c.nameClauses(r, f, m, do)
			}
		}
	}
}

// peerClauses are those of one member of a peer group, in one family.
func (c *Compiler) peerClauses(r *body, f int, m *memberFacts, do emit) {
	for _, ip := range m.ips {
		if family(ip) != f {
			continue
		}
		for _, pt := range r.parts {
			if pt.named && r.egress() {
				c.nameClause(r, pt, ip, m, do)
			} else {
				do(pt, pt.peer, f, openflow.NewMatch(r.peerField(host(ip))))
			}
		}
	}
	if b := m.block(); b != nil {
		prefixes, err := blockPrefixes(b)
		if err != nil {
			return // Refused with the frame that brought it.
		}
		for _, p := range prefixes {
			for _, pt := range r.parts {
				if family(p.Addr()) == f && !(pt.named && r.egress()) {
					do(pt, pt.peer, f, openflow.NewMatch(r.peerField(p)))
				}
			}
		}
	}
}

// nameClauses are those of one member on which port names are resolved for
// peers that are absent or blocks.
func (c *Compiler) nameClauses(r *body, f int, m *memberFacts, do emit) {
	for _, ip := range m.ips {
		if family(ip) != f || !r.holds(ip) {
			continue
		}
		for _, pt := range r.parts {
			if pt.named {
				c.nameClause(r, pt, ip, m, do)
			}
		}
	}
}

// holds says whether absent peers or the blocks of the rule hold an address.
func (r *content) holds(ip netip.Addr) bool {
	if r.anyPeer {
		return true
	}
	for _, p := range r.blocks {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// nameClause matches a destination and its port of a name, in one clause.
func (c *Compiler) nameClause(r *body, pt *part, ip netip.Addr, m *memberFacts, do emit) {
	for _, port := range resolve(r.services, m.ports()) {
		do(pt, pt.peer, family(ip), openflow.NewMatch(openflow.IPDst(host(ip)), openflow.L4Dst(port.proto, port.number, 0xffff)))
	}
}

// peerField matches the other end of the rule's traffic.
func (r *content) peerField(p netip.Prefix) openflow.Field {
	if r.egress() {
		return openflow.IPDst(p)
	}
	return openflow.IPSrc(p)
}

func familyField(f int) openflow.Field {
	if f == 0 {
		return openflow.IPv4()
	}
	return openflow.IPv6()
}

type resolved struct {
	proto  uint8
	number uint16
}

// resolve finds the ports of those names and protocols that services ask for.
// A name that a Pod declares twice for one protocol stands for both.
func resolve(services []*policyv1.Service, ports []*policyv1.NamedPort) []resolved {
	var out []resolved
	for _, s := range services {
		if s.GetPortName() == "" {
			continue
		}
		for _, p := range ports {
			if p.GetName() == s.GetPortName() && p.GetProtocol() == s.GetProtocol() {
				out = append(out, resolved{protoNumber(p.GetProtocol(), 0), uint16(p.GetPort())})
			}
		}
	}
	return out
}

func protoNumber(p policyv1.Protocol, f int) uint8 {
	switch p {
	case policyv1.Protocol_PROTOCOL_TCP:
		return openflow.ProtoTCP
	case policyv1.Protocol_PROTOCOL_UDP:
		return openflow.ProtoUDP
	case policyv1.Protocol_PROTOCOL_SCTP:
		return openflow.ProtoSCTP
	case policyv1.Protocol_PROTOCOL_ICMP:
		if f == 1 {
			return openflow.ProtoICMPv6
		}
		return openflow.ProtoICMP
	}
	return 0
}

func checkService(s *policyv1.Service) error {
	proto := s.GetProtocol()
	ported := proto == policyv1.Protocol_PROTOCOL_TCP || proto == policyv1.Protocol_PROTOCOL_UDP || proto == policyv1.Protocol_PROTOCOL_SCTP
	switch {
	case s.GetPort() > 65535 || s.GetEndPort() > 65535 || s.GetSourcePort() > 65535 || s.GetSourceEndPort() > 65535:
		return fmt.Errorf("service with a port above 65535")
	case s.GetEndPort() != 0 && s.GetEndPort() < s.GetPort(), s.GetSourceEndPort() != 0 && s.GetSourceEndPort() < s.GetSourcePort():
		return fmt.Errorf("service with a port range that ends before it begins")
	case !ported && (s.GetPort() != 0 || s.GetSourcePort() != 0 || s.GetPortName() != ""):
		return fmt.Errorf("service of protocol %v with a port", proto)
	case proto == policyv1.Protocol_PROTOCOL_IGMP && (s.GetIgmpType() > 255 || len(s.GetGroupAddress()) != 0 && len(s.GetGroupAddress()) != 4):
		return fmt.Errorf("service of IGMP type %d, for a group of %d bytes", s.GetIgmpType(), len(s.GetGroupAddress()))
	case s.GetIcmpType() > 255 || s.GetIcmpCode() > 255:
		return fmt.Errorf("service with an ICMP type or code above 255")
	}
	return nil
}

// serviceMatches are the matches of one service, by number, in one family.
func serviceMatches(s *policyv1.Service, f int) []openflow.Match {
	proto := protoNumber(s.GetProtocol(), f)
	if proto == 0 {
		return []openflow.Match{openflow.NewMatch(familyField(f))}
	}
	base := []openflow.Field{familyField(f), openflow.IPProto(proto)}
	if s.GetProtocol() == policyv1.Protocol_PROTOCOL_ICMP {
		typ, code := openflow.ICMPType, openflow.ICMPCode
		if f == 1 {
			typ, code = openflow.ICMPv6Type, openflow.ICMPv6Code
		}
		if s.IcmpType != nil {
			base = append(base, typ(uint8(*s.IcmpType)))
		}
		if s.IcmpCode != nil {
			base = append(base, code(uint8(*s.IcmpCode)))
		}
		return []openflow.Match{openflow.NewMatch(base...)}
	}
	var out []openflow.Match
	for _, dst := range rangeMasks(s.GetPort(), s.GetEndPort()) {
		for _, src := range rangeMasks(s.GetSourcePort(), s.GetSourceEndPort()) {
			fields := append([]openflow.Field{}, base...)
			if dst.mask != 0 {
				fields = append(fields, openflow.L4Dst(proto, dst.value, dst.mask))
			}
			if src.mask != 0 {
				fields = append(fields, openflow.L4Src(proto, src.value, src.mask))
			}
			out = append(out, openflow.NewMatch(fields...))
		}
	}
	return out
}

// rangeMasks are the masks of a port range of the wire, where zero means any.
func rangeMasks(first, last uint32) []portMask {
	if first == 0 {
		return []portMask{{}}
	}
	return portMasks(uint16(first), uint16(max(first, last)))
}
