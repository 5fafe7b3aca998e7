package hostpolicy

import (
	"fmt"
	"net/netip"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// hostRule is a rule of the host about anything, of blocks or anybody.
func hostRule(d policyv1.Direction, action policyv1.Action, blocks ...string) *policyv1.Rule {
	r := rule(action, 0, blocks...)
	r.Direction, r.NodePorts, r.Host, r.Services = d, false, true, nil
	return r
}

func hostState(policies ...*policyv1.Policy) State {
	s := State{Facts: &policyv1.NodeFacts{Groups: [][]byte{group}}}
	for _, p := range policies {
		s.Items = append(s.Items, Item{Key: storage.PolicyKey(p), Policy: p})
	}
	return s
}

const in, out = policyv1.Direction_DIRECTION_INGRESS, policyv1.Direction_DIRECTION_EGRESS

func TestWhatAHostRuleMatches(t *testing.T) {
	tcp, udp := policyv1.Protocol_PROTOCOL_TCP, policyv1.Protocol_PROTOCOL_UDP
	member := func(port uint32, ips ...string) *policyv1.Member {
		m := &policyv1.Member{}
		for _, ip := range ips {
			m.Ips = append(m.Ips, netip.MustParseAddr(ip).AsSlice())
		}
		if port != 0 {
			m.Ports = []*policyv1.NamedPort{{Name: "http", Protocol: tcp, Port: port}, {Name: "dns", Protocol: udp, Port: 53}}
		}
		return m
	}
	members := map[string][]*policyv1.Member{"pods": {member(80, "10.0.0.1", "fd00::1"), member(81, "10.0.0.2")}, "nodes": {member(0, "192.0.2.1"), member(0, "10.0.0.0")}}
	eight := uint32(8)
	for name, c := range map[string]struct {
		d       policyv1.Direction
		edit    func(r *policyv1.Rule)
		want    string // Traffic, peers and named ports. Empty: there is no rule.
		problem string
	}{
		"anything":      {in, func(*policyv1.Rule) {}, "true [] [] / true [] / []", ""},
		"of groups":     {in, func(r *policyv1.Rule) { r.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("pods"), []byte("nodes")}} }, "true [] [] / false [10.0.0.0/32 10.0.0.1/32 10.0.0.2/32 192.0.2.1/32 fd00::1/128] / []", ""},
		"of nobody":     {in, func(r *policyv1.Rule) { r.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("none")}} }, "", ""},
		"of no kind":    {in, func(r *policyv1.Rule) { r.Services = &policyv1.Services{} }, "", ""},
		"any port":      {in, services(&policyv1.Service{Protocol: tcp}), "false [{6 0 65535 0 0}] [] / true [] / []", ""},
		"any protocol":  {in, services(&policyv1.Service{Port: 53}), "false [{6 53 53 0 0} {17 53 53 0 0} {132 53 53 0 0}] [] / true [] / []", ""},
		"ICMP":          {out, services(&policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_ICMP, IcmpType: &eight}, &policyv1.Service{Protocol: policyv1.Protocol_PROTOCOL_ICMP}), "false [] [{8 -1} {-1 -1}] / true [] / []", ""},
		"a source port": {out, services(&policyv1.Service{Protocol: udp, SourcePort: 7, SourceEndPort: 9}), "false [{17 0 65535 7 9}] [] / true [] / []", ""},
		"a name, of peers": {out, func(r *policyv1.Rule) {
			services(&policyv1.Service{Protocol: tcp, PortName: "http"})(r)
			r.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("pods")}}
		}, "false [] [] / false [10.0.0.1/32 10.0.0.2/32 fd00::1/128] / [{{6 80 80 0 0} [10.0.0.1/32 fd00::1/128]} {{6 81 81 0 0} [10.0.0.2/32]}]", ""},
		"a name, of a block": {out, func(r *policyv1.Rule) {
			services(&policyv1.Service{Protocol: tcp, PortName: "http"})(r)
			r.Peers = &policyv1.Peers{Blocks: []*policyv1.IPBlock{{Cidr: storage.PrefixToWire(netip.MustParsePrefix("10.0.0.2/31"))}}}
			r.PortNameGroups = [][]byte{[]byte("pods")}
		}, "false [] [] / false [10.0.0.2/31] / [{{6 81 81 0 0} [10.0.0.2/32]}]", ""},
		"a name, of anybody": {out, func(r *policyv1.Rule) {
			services(&policyv1.Service{PortName: "dns"})(r)
			r.PortNameGroups = [][]byte{[]byte("pods")}
		}, "false [] [] / true [] / [{{17 53 53 0 0} [10.0.0.1/32 10.0.0.2/32 fd00::1/128]}]", ""},
		"a name of its own": {in, services(&policyv1.Service{Protocol: tcp, PortName: "http"}), "", `rule 0: port "http" is no number`},
		"Services":          {out, func(r *policyv1.Rule) { r.Peers = &policyv1.Peers{Services: []*policyv1.ServiceRef{{Name: "s"}}} }, "", "rule 0: a host's peers are no Services"},
		"no direction":      {0, func(*policyv1.Rule) {}, "", "rule 0: direction DIRECTION_UNSPECIFIED"},
	} {
		t.Run(name, func(t *testing.T) {
			r := hostRule(c.d, drop)
			c.edit(r)
			s := hostState(policy("p", 100, 1, r))
			s.Members = func(group []byte, fn func(*policyv1.Member)) {
				for _, m := range members[string(group)] {
					fn(m)
				}
			}
			p, problems := New(s)
			list := p.Ingress
			if c.d == out {
				list = p.Egress
			}
			var got, problem string
			for _, r := range list {
				got = fmt.Sprint(r.AnyTraffic, " ", r.Ports, " ", r.ICMP, " / ", r.AnyPeer, " ", r.Peers, " / ", r.Named)
			}
			if len(problems) > 0 {
				problem = problems[0].Err.Error()
			}
			if p.Count() > 1 || len(problems) > 1 || got != c.want || problem != c.problem {
				t.Errorf("%d rules: %s\n%d problems: %s", p.Count(), got, len(problems), problem)
			}
			if s.WithoutHost = true; p.Count() > 0 {
				if p, _ := New(s); !p.IsEmpty() {
					t.Error("it is there without policies of hosts")
				}
			}
		})
	}
}

func services(list ...*policyv1.Service) func(*policyv1.Rule) {
	return func(r *policyv1.Rule) { r.Services = &policyv1.Services{Services: list} }
}

// What steers the node is judged by those rules alone that let it through, or may
// deny it; and the rule that would have denied it is a problem of its policy.
func TestWhatSteersTheNode(t *testing.T) {
	address := func(a string) []byte { return netip.MustParseAddr(a).AsSlice() }
	facts := &policyv1.NodeFacts{Groups: [][]byte{group}, Addresses: [][]byte{address("192.0.2.1")}, Clients: [][]byte{address("192.0.2.1"), address("192.0.2.2")},
		Servers: []*policyv1.ServerAddress{{Ip: address("192.0.2.1"), Port: 6443}, {Ip: address("203.0.113.6"), Port: 6443}}}
	shut := policy("shut", 100, 5, hostRule(in, reject), hostRule(out, drop))
	may := policy("may", 100, 1, hostRule(out, drop, "203.0.113.6/32"))
	may.AllowLockout = true
	passes := policy("passes", 50, 1, hostRule(in, pass, "203.0.113.0/24"))
	staged := policy("staged", 50, 0, hostRule(out, drop))
	staged.Staged = true
	s := hostState(shut, may, passes, staged)
	s.Facts, s.Servers = facts, []netip.AddrPort{netip.MustParseAddrPort("198.51.100.9:9740")}
	p, problems := New(s)
	if len(problems) > 0 {
		t.Error(problems)
	}
	var got []string
	for _, x := range p.Lockouts {
		got = append(got, x.Key+": "+x.Err.Error())
	}
	const advice = ` are let through in spite of it; annotation weir.dev/allow-lockout: "true" denies them`
	want := []string{"policy/2//shut: rule 0 would cut the node off: connections of 192.0.2.1 to its kubelet" + advice, "policy/2//shut: rule 0 would cut the node off: its own connections to 192.0.2.1:6443" + advice}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("lockouts: %q", got)
	}
	for _, c := range []struct {
		l    List
		own  string
		peer string
		port uint16
		want string
	}{
		{Egress, "192.0.2.1", "198.51.100.9", 9740, "ACTION_ALLOW -"},
		{Egress, "192.0.2.1", "198.51.100.9", 9741, "ACTION_DROP shut"},
		{Egress, "192.0.2.1", "203.0.113.6", 6443, "ACTION_DROP may"},
		{Egress, "192.0.2.1", "192.0.2.2", 10250, "ACTION_ALLOW -"},
		{Egress, "192.0.2.7", "192.0.2.2", 10250, "ACTION_DROP shut"},
		{Egress, "192.0.2.1", "192.0.2.3", 10250, "ACTION_DROP shut"},
		{Ingress, "192.0.2.1", "203.0.113.6", 10250, "ACTION_ALLOW -"},
		{Ingress, "192.0.2.1", "198.51.100.9", 10250, "ACTION_ALLOW -"},
		{Ingress, "192.0.2.1", "203.0.113.7", 10250, "ACTION_ALLOW -"}, // It is passed on, and there is no baseline.
		{Ingress, "192.0.2.1", "192.0.2.3", 10250, "ACTION_REJECT shut"},
		{Ingress, "192.0.2.1", "192.0.2.2", 6443, "ACTION_ALLOW -"},
		{Ingress, "192.0.2.1", "192.0.2.3", 6443, "ACTION_REJECT shut"},
	} {
		v := p.Judge(c.l, Connection{Own: netip.MustParseAddr(c.own), Peer: netip.MustParseAddr(c.peer), Protocol: TCP, Port: c.port}, false)
		by := "-"
		if v.Rule >= 0 {
			by = p.Rules(c.l)[v.Rule].Policy.GetName()
		}
		if got := fmt.Sprint(v.Action, " ", by); got != c.want {
			t.Errorf("%d %s %s:%d: %s, not %s", c.l, c.own, c.peer, c.port, got, c.want)
		}
	}
	udp := Connection{Own: netip.MustParseAddr("192.0.2.1"), Peer: netip.MustParseAddr("198.51.100.9"), Protocol: UDP, Port: 9740}
	if v := p.Judge(Egress, udp, false); v.Action != drop {
		t.Errorf("UDP to a server's port: %v", v.Action)
	}
}
