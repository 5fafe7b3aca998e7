package hostpolicy

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// Item is a policy item of the node's state.
type Item struct {
	Scope  storage.ScopeID
	Key    string
	Policy *policyv1.Policy
}

// Problem is an item that is not realised as it is written.
type Problem struct {
	Scope storage.ScopeID
	Key   string
	Err   error
}

// State is what a plan is made of.
type State struct {
	Items   []Item
	Facts   *policyv1.NodeFacts                           // Of the node.
	Members func(group []byte, fn func(*policyv1.Member)) // Calls fn for each member of an address group. Nil: there are none.
	// Servers are policy services beside those of Facts, which the node calls.
	Servers []netip.AddrPort
	// Tunnel is the UDP port by which Pods' packets come from other nodes and go
	// there. Zero: there is no tunnel.
	Tunnel uint16
	// WithoutHost leaves out the rules for the node itself.
	WithoutHost bool
}

// List is one of a plan's lists of rules.
type List uint8

// The lists of a plan.
const (
	NodePorts List = iota // What clients send to ports of the node's addresses that are for Services.
	Ingress               // What the host receives itself.
	Egress                // What the host sends itself.
)

// Lists are all of them.
var Lists = []List{NodePorts, Ingress, Egress}

// Direction is that of a list's rules.
func (l List) Direction() policyv1.Direction {
	if l == Egress {
		return policyv1.Direction_DIRECTION_EGRESS
	}
	return policyv1.Direction_DIRECTION_INGRESS
}

// Plan is what the host's firewall is to do. It does not change.
type Plan struct {
	// The rules of each list, in order.
	NodePorts, Ingress, Egress []Rule
	// Control is what the rules of hosts must not deny, unless they may.
	Control Control
	// Tunnel is a UDP port of which Ingress and Egress say nothing. Zero: none.
	Tunnel uint16
	// Lockouts are the rules that would deny what is in Control, and are overruled
	// there. They are in force but for that.
	Lockouts []Problem
	// ID stands for the content: plans of one ID are the same.
	ID uint64
}

// Rule is one rule of a policy.
type Rule struct {
	Policy   *policyv1.PolicyRef
	UID      string // Of the policy. Empty: it has none.
	Index    uint32 // Among the policy's rules of its direction.
	Name     string
	LogLabel string
	Action   policyv1.Action
	Log      bool
	Staged   bool
	Baseline bool // It is asked after a Pass, too.
	Lockout  bool // It may deny what steers the node.

	// AnyTraffic says that neither protocol nor ports matter; otherwise one of
	// Ports and ICMP must match.
	AnyTraffic bool
	Ports      []Ports
	ICMP       []ICMP
	// AnyPeer says that the other end does not matter; otherwise it must be in one
	// of Peers, which are disjoint and ascending.
	AnyPeer bool
	Peers   []netip.Prefix
	// Named are ports that stand for a name at some addresses, and match there,
	// whatever the fields above say.
	Named []Named
}

// Ports are ports of a transport protocol.
type Ports struct {
	Protocol                uint8  // IANA number.
	First, Last             uint16 // From zero on: any.
	SourceFirst, SourceLast uint16 // Zero: any.
}

// ICMP is messages of ICMP and ICMPv6.
type ICMP struct{ Type, Code int } // Below zero: any.

// Named is a port at some addresses.
type Named struct {
	Ports Ports
	At    []netip.Prefix // Disjoint, ascending and not empty.
}

// The transport protocols.
const (
	TCP, UDP, SCTP = 6, 17, 132
)

// And ICMP.
const (
	icmp4, icmp6 = 1, 58
)

// Rules are those of a list.
func (p *Plan) Rules(l List) []Rule {
	switch l {
	case Ingress:
		return p.Ingress
	case Egress:
		return p.Egress
	}
	return p.NodePorts
}

// Count is how many rules there are in all.
func (p *Plan) Count() int { return len(p.NodePorts) + len(p.Ingress) + len(p.Egress) }

// IsEmpty says whether nothing is to be done.
func (p *Plan) IsEmpty() bool { return p.Count() == 0 }

// Logs says whether anything of it is for the record.
func (p *Plan) Logs() bool {
	return slices.ContainsFunc(Lists, func(l List) bool {
		return slices.ContainsFunc(p.Rules(l), func(r Rule) bool { return r.Log || r.Staged })
	})
}

// Concerns says whether a policy has rules for this package.
func Concerns(p *policyv1.Policy) bool { return slices.ContainsFunc(p.GetRules(), concerns) }

func concerns(r *policyv1.Rule) bool { return r.GetNodePorts() || r.GetHost() }

// Groups calls fn for each address group on whose members the rules of a policy
// depend here.
func Groups(p *policyv1.Policy, fn func(id []byte)) {
	for _, r := range p.GetRules() {
		if r.GetHost() {
			for _, id := range slices.Concat(r.GetPeers().GetGroups(), r.GetPortNameGroups()) {
				fn(id)
			}
		}
	}
}

// New works out the plan of a node.
func New(s State) (*Plan, []Problem) {
	in := func(id []byte) bool {
		return slices.ContainsFunc(s.Facts.GetGroups(), func(own []byte) bool { return bytes.Equal(own, id) })
	}
	found := make(map[List][]candidate)
	var problems []Problem
	for _, it := range s.Items {
		for n, r := range it.Policy.GetRules() {
			to := r.GetAppliedTo()
			if len(to) == 0 {
				to = it.Policy.GetAppliedTo()
			}
			if !concerns(r) || !slices.ContainsFunc(to, in) || r.GetHost() && s.WithoutHost {
				continue
			}
			c := candidate{item: it, policy: it.Policy, wire: r, at: n}
			for _, err := range c.read(&s) {
				problems = append(problems, Problem{it.Scope, it.Key, fmt.Errorf("rule %d: %w", r.GetIndex(), err)})
			}
			if c.matches() {
				found[c.list()] = append(found[c.list()], c)
			}
		}
	}
	p := &Plan{Control: controlOf(&s), Tunnel: s.Tunnel}
	for _, list := range Lists {
		slices.SortFunc(found[list], candidate.compare)
	}
	rules := func(l List) (out []Rule) {
		for _, c := range found[l] {
			out = append(out, c.rule)
		}
		return out
	}
	p.NodePorts, p.Ingress, p.Egress = rules(NodePorts), rules(Ingress), rules(Egress)
	for _, l := range []List{Ingress, Egress} {
		p.Lockouts = append(p.Lockouts, p.lockouts(l, found[l])...)
	}
	p.ID = p.sum()
	return p, problems
}

// sum is the hash of all that a plan says.
func (p *Plan) sum() uint64 {
	h := xxh3.New()
	for _, l := range Lists {
		for _, r := range p.Rules(l) {
			fmt.Fprintf(h, "%d %d %q %q %q %d %q %q %d %t %t %t %t %t %v %v %t %v %v\n", l, r.Policy.GetKind(), r.Policy.GetNamespace(), r.Policy.GetName(), r.UID, r.Index, r.Name, r.LogLabel,
				r.Action, r.Log, r.Staged, r.Baseline, r.Lockout, r.AnyTraffic, r.Ports, r.ICMP, r.AnyPeer, r.Peers, r.Named)
		}
	}
	if len(p.Ingress)+len(p.Egress) > 0 {
		fmt.Fprintf(h, "%v %d\n", p.Control, p.Tunnel)
	}
	return h.Sum64()
}
