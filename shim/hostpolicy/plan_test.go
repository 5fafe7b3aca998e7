package hostpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

var group = []byte("group-0123456789")

// block is a block by its text: "10.0.0.0/8 but 10.1.0.0/16".
func block(text string) *policyv1.IPBlock {
	cidr, rest, _ := strings.Cut(text, " but ")
	b := &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix(cidr))}
	for _, except := range strings.Fields(rest) {
		b.Except = append(b.Except, storage.PrefixToWire(netip.MustParsePrefix(except)))
	}
	return b
}

// rule is one for TCP port 30080, of any source where no blocks are named.
func rule(action policyv1.Action, index uint32, blocks ...string) *policyv1.Rule {
	r := &policyv1.Rule{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: action, Index: index, Name: fmt.Sprint(action, index), NodePorts: true,
		Services: &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 30080}}}}
	for _, b := range blocks {
		if r.Peers == nil {
			r.Peers = &policyv1.Peers{}
		}
		r.Peers.Blocks = append(r.Peers.Blocks, block(b))
	}
	return r
}

func policy(name string, rank uint32, priority float64, rules ...*policyv1.Rule) *policyv1.Policy {
	return &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: name},
		Rank: rank, Priority: priority, Rules: rules, AppliedTo: [][]byte{group}}
}

func plan(policies ...*policyv1.Policy) (*Plan, []Problem) {
	var items []Item
	for _, p := range policies {
		items = append(items, Item{Key: storage.PolicyKey(p), Policy: p})
	}
	return New(State{Items: items, Facts: &policyv1.NodeFacts{Groups: [][]byte{group}}})
}

const (
	allow  = policyv1.Action_ACTION_ALLOW
	drop   = policyv1.Action_ACTION_DROP
	reject = policyv1.Action_ACTION_REJECT
	pass   = policyv1.Action_ACTION_PASS
)

func TestOrder(t *testing.T) {
	logged := rule(drop, 0)
	logged.Log = true
	older := policy("older", 100, 5, rule(drop, 0))
	older.Created = 7
	younger := policy("a-younger", 100, 5, rule(drop, 0))
	younger.Created = 8
	inOrder := []*policyv1.Policy{
		policy("first-tier", 50, 9, rule(allow, 0)),
		policy("first-priority", 100, 1, rule(allow, 0)),
		policy("logged", 100, 5, logged),
		older, younger,
		policy("of-unknown-age", 100, 5, rule(drop, 0)),
		policy("reject", 100, 5, rule(reject, 0)),
		policy("pass", 100, 5, rule(pass, 0)),
		policy("allow", 100, 5, rule(allow, 0)),
		policy("second-rule", 100, 5, rule(drop, 1)),
		policy("baseline", 253, 1, rule(drop, 0)),
	}
	want, problems := plan(inOrder...)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for i, r := range want.NodePorts {
		if r.Policy != inOrder[i].GetRef() || r.Baseline != (i == len(inOrder)-1) {
			t.Errorf("at %d is %v, baseline %v", i, r.Policy, r.Baseline)
		}
	}
	slices.Reverse(inOrder)
	if got, _ := plan(inOrder...); got.ID != want.ID {
		t.Error("the plan depends on the order of its items")
	}
	if got, _ := plan(inOrder[1:]...); got.ID == want.ID {
		t.Error("another plan has the same id")
	}
}

func TestWhatARuleMatches(t *testing.T) {
	services := func(list ...*policyv1.Service) func(*policyv1.Rule) {
		return func(r *policyv1.Rule) { r.Services = &policyv1.Services{Services: list} }
	}
	tcp := func(first, last uint32) *policyv1.Service {
		return &policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: first, EndPort: last}
	}
	for name, c := range map[string]struct {
		blocks  []string
		edit    func(r *policyv1.Rule)
		want    string // Ports and peers. Empty: there is no rule.
		problem string
	}{
		"any source":            {nil, func(*policyv1.Rule) {}, "[{6 30080 30080 0 0}] []", ""},
		"blocks that overlap":   {[]string{"10.1.0.0/16", "10.0.0.0/8", "fd00::/8"}, func(*policyv1.Rule) {}, "[{6 30080 30080 0 0}] [10.0.0.0/8 fd00::/8]", ""},
		"a block less others":   {[]string{"10.0.0.0/30 but 10.0.0.1/32 10.0.0.1/32"}, func(*policyv1.Rule) {}, "[{6 30080 30080 0 0}] [10.0.0.0/32 10.0.0.2/31]", ""},
		"what one leaves out":   {[]string{"10.0.0.0/30 but 10.0.0.0/31", "10.0.0.0/31"}, func(*policyv1.Rule) {}, "[{6 30080 30080 0 0}] [10.0.0.0/31 10.0.0.2/31]", ""},
		"peers that are nobody": {nil, func(r *policyv1.Rule) { r.Peers = &policyv1.Peers{} }, "", ""},
		"no ports":              {nil, services(), "", ""},
		"ports that touch":      {nil, services(tcp(31001, 0), tcp(31000, 0), tcp(30000, 30999), tcp(40000, 0)), "[{6 30000 31001 0 0} {6 40000 40000 0 0}] []", ""},
		"the highest port":      {nil, services(tcp(65535, 0), tcp(1, 65535)), "[{6 1 65535 0 0}] []", ""},
		"source ports": {nil, services(&policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_UDP, Port: 1, SourcePort: 7, SourceEndPort: 9}, &policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_SCTP, Port: 2}),
			"[{17 1 1 7 9} {132 2 2 0 0}] []", ""},
		"any traffic": {nil, func(r *policyv1.Rule) { r.Services = nil }, "", "rule 0: it names no port"},
		"a name":      {nil, services(tcp(1, 0), &policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_TCP, PortName: "http"}), "[{6 1 1 0 0}] []", `rule 0: port "http" is no number`},
		"ICMP":        {nil, services(&policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_ICMP}), "", "rule 0: protocol PROTOCOL_ICMP has no ports"},
		"groups of addresses": {[]string{"10.0.0.0/8"}, func(r *policyv1.Rule) { r.Peers.Groups = [][]byte{group} }, "[{6 30080 30080 0 0}] [10.0.0.0/8]",
			"rule 0: clients of node ports are known by address alone"},
		"egress":             {nil, func(r *policyv1.Rule) { r.Direction = policyv1.Direction_DIRECTION_EGRESS }, "", "rule 0: direction DIRECTION_EGRESS at node ports"},
		"of no action":       {nil, func(r *policyv1.Rule) { r.Action = 0 }, "", "rule 0: action ACTION_UNSPECIFIED"},
		"for Pods":           {nil, func(r *policyv1.Rule) { r.NodePorts = false }, "", ""},
		"of another group":   {nil, func(r *policyv1.Rule) { r.AppliedTo = [][]byte{[]byte("another")} }, "", ""},
		"of this, by itself": {nil, func(r *policyv1.Rule) { r.AppliedTo = [][]byte{[]byte("another"), group} }, "[{6 30080 30080 0 0}] []", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := rule(drop, 0, c.blocks...)
			c.edit(r)
			p, problems := plan(policy("p", 100, 1, r))
			var got, problem string
			for _, r := range p.NodePorts {
				got = fmt.Sprint(r.Ports, " ", r.Peers)
				if r.AnyPeer != (len(r.Peers) == 0) {
					t.Errorf("any peer: %v, of %v", r.AnyPeer, r.Peers)
				}
			}
			if len(problems) > 0 {
				problem = problems[0].Err.Error()
			}
			if len(p.NodePorts) > 1 || len(problems) > 1 || got != c.want || problem != c.problem {
				t.Errorf("%d rules: %s\n%d problems: %s", len(p.NodePorts), got, len(problems), problem)
			}
		})
	}
	for _, rank := range []uint32{251, 252, 254, 300} {
		if p, problems := plan(policy("p", rank, 1, rule(drop, 0))); !p.IsEmpty() || len(problems) != 1 {
			t.Errorf("rank %d: %v, %v", rank, p.NodePorts, problems)
		}
	}
	if p, problems := plan(policy("p", 253, 1, rule(pass, 0))); !p.IsEmpty() || len(problems) != 1 {
		t.Errorf("a baseline that passes: %v, %v", p.NodePorts, problems)
	}
}

func TestJudge(t *testing.T) {
	staged := policy("staged", 100, 2, rule(pass, 0, "10.3.0.0/16"), rule(drop, 1, "10.4.0.0/16"))
	staged.Staged = true
	p, problems := plan(
		policy("first", 100, 1, rule(pass, 0, "10.1.0.0/16"), rule(allow, 1, "10.2.0.0/16 but 10.2.9.0/24")),
		staged,
		policy("last", 100, 3, rule(reject, 0, "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16")),
		policy("base", 253, 1, rule(drop, 0, "10.3.0.0/24", "10.1.7.0/24", "10.9.0.0/16")))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, c := range []struct {
		source       string
		port         uint16
		want, staged string // Action and policy that decides.
	}{
		{"10.1.0.1", 30080, "ACTION_ALLOW -", "ACTION_ALLOW -"},
		{"10.1.7.1", 30080, "ACTION_DROP base", "ACTION_DROP base"},
		{"10.2.0.1", 30080, "ACTION_ALLOW first", "ACTION_ALLOW first"},
		{"10.2.9.1", 30080, "ACTION_REJECT last", "ACTION_REJECT last"},
		{"10.2.9.1", 30081, "ACTION_ALLOW -", "ACTION_ALLOW -"},
		{"10.3.0.1", 30080, "ACTION_REJECT last", "ACTION_DROP base"},
		{"10.3.1.1", 30080, "ACTION_REJECT last", "ACTION_ALLOW -"},
		{"10.4.0.1", 30080, "ACTION_REJECT last", "ACTION_DROP staged"},
		{"10.9.0.1", 30080, "ACTION_DROP base", "ACTION_DROP base"},
		{"fd00::1", 30080, "ACTION_ALLOW -", "ACTION_ALLOW -"},
	} {
		for world, want := range map[bool]string{false: c.want, true: c.staged} {
			v := p.Judge(NodePorts, Connection{Peer: netip.MustParseAddr(c.source), Protocol: TCP, Port: c.port}, world)
			by := "-"
			if v.Rule >= 0 {
				by = p.NodePorts[v.Rule].Policy.GetName()
			}
			if got := fmt.Sprint(v.Action, " ", by); got != want {
				t.Errorf("%s to %d, staged %v: %s, not %s", c.source, c.port, world, got, want)
			}
		}
	}
}
