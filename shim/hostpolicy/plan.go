package hostpolicy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/zeebo/xxh3"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/order"
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

// Plan is what the host's firewall is to do. It does not change.
type Plan struct {
	// NodePorts are the rules for ports of the node's addresses, in order.
	NodePorts []Rule
	// ID stands for the content: plans of one ID are the same.
	ID uint64
}

// Rule is one rule of a policy.
type Rule struct {
	Policy   *policyv1.PolicyRef
	Name     string
	LogLabel string
	Action   policyv1.Action
	Log      bool
	Staged   bool
	Baseline bool // It is asked after a Pass, too.

	Ports []Ports // One must match; never empty.
	// AnyPeer says that the source does not matter; otherwise it must be in one of
	// Peers, which are disjoint, ascending and not empty.
	AnyPeer bool
	Peers   []netip.Prefix
}

// Ports are ports of a transport protocol.
type Ports struct {
	Protocol                uint8 // IANA number.
	First, Last             uint16
	SourceFirst, SourceLast uint16 // Zero: any.
}

// The transport protocols.
const (
	TCP, UDP, SCTP = 6, 17, 132
)

// IsEmpty says whether nothing is to be done.
func (p *Plan) IsEmpty() bool { return len(p.NodePorts) == 0 }

// Logs says whether anything of it is for the record.
func (p *Plan) Logs() bool {
	return slices.ContainsFunc(p.NodePorts, func(r Rule) bool { return r.Log || r.Staged })
}

// Concerns says whether a policy has rules for this package.
func Concerns(p *policyv1.Policy) bool {
	return slices.ContainsFunc(p.GetRules(), (*policyv1.Rule).GetNodePorts)
}

// New works out the plan of a node that is in some applied-to groups.
func New(items []Item, groups [][]byte) (*Plan, []Problem) {
	in := make(map[string]bool, len(groups))
	for _, id := range groups {
		in[string(id)] = true
	}
	var found []candidate
	var problems []Problem
	for _, it := range items {
		for n, r := range it.Policy.GetRules() {
			to := r.GetAppliedTo()
			if len(to) == 0 {
				to = it.Policy.GetAppliedTo()
			}
			if !r.GetNodePorts() || !slices.ContainsFunc(to, func(id []byte) bool { return in[string(id)] }) {
				continue
			}
			c := candidate{policy: it.Policy, wire: r, at: n}
			errs := c.read()
			for _, err := range errs {
				problems = append(problems, Problem{it.Scope, it.Key, fmt.Errorf("rule %d: %w", r.GetIndex(), err)})
			}
			if c.matches() {
				found = append(found, c)
			}
		}
	}
	slices.SortFunc(found, candidate.compare)
	p := &Plan{}
	for _, c := range found {
		p.NodePorts = append(p.NodePorts, c.rule)
	}
	p.ID = p.sum()
	return p, problems
}

// sum is the hash of all that a plan says.
func (p *Plan) sum() uint64 {
	h := xxh3.New()
	for _, r := range p.NodePorts {
		fmt.Fprintf(h, "%d %q %q %q %q %d %t %t %t %t %v %v\n", r.Policy.GetKind(), r.Policy.GetNamespace(), r.Policy.GetName(), r.Name, r.LogLabel,
			r.Action, r.Log, r.Staged, r.Baseline, r.AnyPeer, r.Ports, r.Peers)
	}
	return h.Sum64()
}

// read makes the rule of a candidate, and says what of it cannot be put.
func (c *candidate) read() (errs []error) {
	w := c.wire
	if err := c.check(); err != nil {
		return []error{err}
	}
	c.rule = Rule{Policy: c.policy.GetRef(), Name: w.GetName(), LogLabel: w.GetLogLabel(), Action: w.GetAction(), Log: w.GetLog(), Staged: c.policy.GetStaged(),
		Baseline: c.policy.GetRank() > order.RankK8s, AnyPeer: w.GetPeers() == nil}
	if w.GetServices() == nil {
		errs = append(errs, fmt.Errorf("it names no port"))
	}
	for _, s := range w.GetServices().GetServices() {
		ports, err := portsOf(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.rule.Ports = append(c.rule.Ports, ports)
	}
	c.rule.Ports = tidy(c.rule.Ports)
	if len(w.GetPeers().GetGroups())+len(w.GetPeers().GetServices()) > 0 {
		errs = append(errs, fmt.Errorf("clients of node ports are known by address alone"))
	}
	for _, b := range w.GetPeers().GetBlocks() {
		list, err := blockOf(b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.rule.Peers = append(c.rule.Peers, list...)
	}
	c.rule.Peers = disjoint(c.rule.Peers)
	return errs
}

// matches says whether there is anything that the rule is about.
func (c *candidate) matches() bool {
	return len(c.rule.Ports) > 0 && (c.rule.AnyPeer || len(c.rule.Peers) > 0)
}

// portsOf reads what a service says of ports.
func portsOf(s *policyv1.Service) (Ports, error) {
	p := Ports{}
	switch s.GetProtocol() {
	case policyv1.Protocol_PROTOCOL_TCP:
		p.Protocol = TCP
	case policyv1.Protocol_PROTOCOL_UDP:
		p.Protocol = UDP
	case policyv1.Protocol_PROTOCOL_SCTP:
		p.Protocol = SCTP
	default:
		return p, fmt.Errorf("protocol %v has no node ports", s.GetProtocol())
	}
	if s.GetPort() == 0 || s.GetPortName() != "" {
		return p, fmt.Errorf("port %q is no number", s.GetPortName())
	}
	for _, r := range []struct {
		from, to    uint32
		first, last *uint16
	}{{s.GetPort(), s.GetEndPort(), &p.First, &p.Last}, {s.GetSourcePort(), s.GetSourceEndPort(), &p.SourceFirst, &p.SourceLast}} {
		to := max(r.from, r.to)
		if to > math.MaxUint16 {
			return p, fmt.Errorf("port %d", to)
		}
		*r.first, *r.last = uint16(r.from), uint16(to)
	}
	return p, nil
}
