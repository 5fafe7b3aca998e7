package pipeline

import (
	"net/netip"
	"slices"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
)

// verdicts are what Judge remembers between two Updates.
type verdicts struct {
	judges map[judged]*judge
	known  map[question]bool
}

// judged is whose traffic is judged, and in which direction.
type judged struct {
	ofport uint32
	dir    policyv1.Direction
}

// judge is what decides there: the rules in force, in their order, and whether a
// policy isolates.
type judge struct {
	rules    []*rule
	isolated bool
	sourced  bool // A rule asks for source ports.
}

// question is what verdicts are remembered for.
type question struct {
	judged
	peer               netip.Addr
	proto              uint8
	srcPort, dstPort   uint16 // The former zero where no rule asks for it.
	icmpType, icmpCode uint8
}

// verdictsMost is how many verdicts are remembered.
const verdictsMost = 1 << 16

func newVerdicts() verdicts {
	return verdicts{judges: make(map[judged]*judge), known: make(map[question]bool)}
}

func (v *verdicts) forget() {
	clear(v.judges)
	clear(v.known)
}

// Judge says what the enforced rules decide on a packet that would begin a connection
// of the Pod of a local port in a direction: what a packet would meet on the bridge,
// worked out from what the rules ask for. Nothing leaves or reaches a port that is not
// open. Of the hit the addresses, the protocol, its ports or type, and the Service count.
func (c *Compiler) Judge(dir policyv1.Direction, ofport uint32, h Hit) (allowed bool) {
	at := scene{hit: h, dir: dir, ep: c.ports[ofport], peer: h.Src, revision: c.revision}
	if at.ep == nil {
		return false
	}
	if dir == egressDirection {
		at.peer = h.Dst
	}
	by := c.judgeOf(judged{ofport, dir}, at.ep)
	q := question{judged{ofport, dir}, at.peer, h.Proto, 0, h.DstPort, h.ICMPType, h.ICMPCode}
	if by.sourced {
		q.srcPort = h.SrcPort
	}
	if h.Service != 0 { // Not one of those that are asked again and again.
		return c.decides(by, at)
	}
	allowed, known := c.verdicts.known[q]
	if !known {
		if len(c.verdicts.known) >= verdictsMost {
			clear(c.verdicts.known)
		}
		allowed = c.decides(by, at)
		c.verdicts.known[q] = allowed
	}
	return allowed
}

// judgeOf is what decides on an endpoint's traffic.
func (c *Compiler) judgeOf(of judged, ep *endpoint) *judge {
	by := c.verdicts.judges[of]
	if by != nil {
		return by
	}
	by = &judge{}
	policies := c.guarding(ep)
	for p := range policies {
		for _, r := range p.rules {
			if r.world != enforced || r.direction != of.dir || !r.appliesTo(ep) || r.level != nil && r.level.beyond {
				continue
			}
			by.rules = append(by.rules, r)
			by.sourced = by.sourced || slices.ContainsFunc(r.services, func(s *policyv1.Service) bool { return s.GetSourcePort() != 0 })
		}
	}
	slices.SortFunc(by.rules, func(a, b *rule) int { return a.at.compare(b.at) })
	by.isolated = len(isolating(policies, ep, of.dir, enforced)) > 0
	c.verdicts.judges[of] = by
	return by
}

// decides goes through the rules as a packet does through the tables.
func (c *Compiler) decides(by *judge, at scene) (allowed bool) {
	passed := false
	for _, r := range by.rules {
		switch {
		case passed && r.at.Rank < order.RankK8s:
			continue
		case by.isolated && r.at.Rank > order.RankK8s:
			return false
		case !c.covers(r, at):
			continue
		case r.action == policyv1.Action_ACTION_PASS:
			passed = true
			continue
		}
		return r.action == policyv1.Action_ACTION_ALLOW
	}
	return !by.isolated
}
