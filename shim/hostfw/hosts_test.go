package hostfw

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostfw/fwtest"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/storage"
)

const (
	in  = policyv1.Direction_DIRECTION_INGRESS
	out = policyv1.Direction_DIRECTION_EGRESS
)

// hostRule says what a rule of the host does: with what goes to TCP and UDP port
// 8080 where ports is set, and with anything else. Peers are blocks.
func hostRule(d policyv1.Direction, action policyv1.Action, ports bool, blocks ...string) *policyv1.Rule {
	r := rule(action, 8080, blocks...)
	r.Direction, r.NodePorts, r.Host = d, false, true
	if !ports {
		r.Services = nil
	}
	return r
}

// of is a policy of some rank.
func of(rank uint32, rules ...*policyv1.Rule) *policyv1.Policy {
	return &policyv1.Policy{Rank: rank, Rules: rules}
}

func hostPlan(t *testing.T, s hostpolicy.State, policies ...*policyv1.Policy) *hostpolicy.Plan {
	t.Helper()
	for i, p := range policies {
		p.Ref, p.AppliedTo = &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: string(rune('a' + i))}, [][]byte{nodeGroup}
		for n, r := range p.Rules {
			r.Index = uint32(n)
		}
		s.Items = append(s.Items, hostpolicy.Item{Key: storage.PolicyKey(p), Policy: p})
	}
	if s.Facts == nil {
		s.Facts = &policyv1.NodeFacts{}
	}
	s.Facts.Groups = [][]byte{nodeGroup}
	plan, _ := hostpolicy.New(s)
	return plan
}

// TestHostVerdicts sends packets to a host, from it, and through it.
func TestHostVerdicts(t *testing.T) {
	isolate(t) // Says what is missing.
	n := fwtest.New(t)
	n.ServeHost(8080)
	n.ServeHost(8081)
	n.ServeClients(8080)
	n.ServeClients(8081)
	n.ServeBackend(8080)
	ctx := context.Background()
	p := NewPolicies()
	const open, refused, silence = fwtest.Open, fwtest.Refused, fwtest.Silence
	// A case says what becomes of TCP, UDP and ICMP: to the host from the client and
	// from a stranger, to port 8080 and, after a slash, to 8081; and from the host to both.
	type want struct{ client, stranger, toClient, toStranger string }
	shut := func(action policyv1.Action) []*policyv1.Rule {
		return []*policyv1.Rule{hostRule(in, action, false), hostRule(out, action, false)}
	}
	strangers := []string{"192.0.2.16/28", "2001:db8:1::20/124"}
	all := func(o string) string { return fmt.Sprintf("tcp %s/%s udp %s/%s icmp %s", o, o, o, o, o) }
	at := func(o string) string { return fmt.Sprintf("tcp %s/open udp %s/open icmp open", o, o) }
	for _, c := range []struct {
		name     string
		policies []*policyv1.Policy
		want     want
	}{
		{"none", nil, want{all(open), all(open), all(open), all(open)}},
		{"strangers are dropped", []*policyv1.Policy{of(100, hostRule(in, drop, true, strangers...))}, want{all(open), at(silence), all(open), all(open)}},
		{"strangers are rejected", []*policyv1.Policy{of(100, hostRule(in, reject, true, strangers...))}, want{all(open), at(refused), all(open), all(open)}},
		{"strangers are not called", []*policyv1.Policy{of(100, hostRule(out, drop, true, strangers...))}, want{all(open), all(open), all(open), at(silence)}},
		{"calls of strangers are rejected, which UDP is not told", []*policyv1.Policy{of(100, hostRule(out, reject, true, strangers...))},
			want{all(open), all(open), all(open), "tcp refused/open udp silence/open icmp open"}},
		{"nothing, which the client may still", []*policyv1.Policy{of(50, hostRule(in, allow, true, "192.0.2.10/32", "2001:db8:1::10/128")), of(100, shut(drop)...)},
			want{"tcp open/silence udp open/silence icmp silence", all(silence), all(silence), all(silence)}},
		{"nothing, with an answer", []*policyv1.Policy{of(100, shut(reject)...)}, want{all(refused), all(refused), "tcp refused/refused udp silence/silence icmp refused", "tcp refused/refused udp silence/silence icmp refused"}},
		{"strangers are left to the baseline", []*policyv1.Policy{of(50, hostRule(in, pass, false, strangers...)), of(100, hostRule(in, reject, false)), of(253, hostRule(in, drop, true))},
			want{all(refused), at(silence), all(open), all(open)}},
		{"staged", []*policyv1.Policy{{Rank: 100, Staged: true, Rules: shut(drop)}}, want{all(open), all(open), all(open), all(open)}},
		{"pings alone", []*policyv1.Policy{of(100, icmpRule(in, drop, 8), icmpRule(in, reject, 128), icmpRule(out, reject, 8), icmpRule(out, drop, 128))},
			want{"tcp open/open udp open/open icmp silence|refused", "tcp open/open udp open/open icmp silence|refused", "tcp open/open udp open/open icmp refused|silence", "tcp open/open udp open/open icmp refused|silence"}},
		{"none any more", nil, want{all(open), all(open), all(open), all(open)}},
	} {
		if err := p.Apply(ctx, hostPlan(t, hostpolicy.State{}, c.policies...)); err != nil {
			t.Fatal(c.name, err)
		}
		var wait sync.WaitGroup
		check := func(what string, want string, try func(expected string) string) {
			wait.Go(func() {
				if got := try(want); got != want {
					t.Errorf("%s: %s: %s, not %s", c.name, what, got, want)
				}
			})
		}
		for family := range 2 {
			host := fwtest.Host[3*family]
			for _, end := range []struct{ address, to, from string }{{fwtest.Client[family], c.want.client, c.want.toClient}, {fwtest.Stranger[family], c.want.stranger, c.want.toStranger}} {
				for i, want := range []string{end.to, end.from} {
					words := strings.Fields(want)
					for w := 0; w < 4; w += 2 {
						for k, want := range strings.Split(words[w+1], "/") {
							port := uint16(8080 + k)
							if i == 0 {
								check(fmt.Sprint(end.address, " to the host, ", words[w], port), want, func(e string) string { return n.Try(words[w], end.address, host, port, e) })
							} else {
								check(fmt.Sprint("the host to ", end.address, ", ", words[w], port), want, func(e string) string { return n.TryFromHost(words[w], end.address, port, e) })
							}
						}
					}
					byFamily := strings.Split(words[5], "|")
					if want := byFamily[family%len(byFamily)]; i == 0 {
						check(fmt.Sprint(end.address, " to the host, icmp"), want, func(e string) string { return n.Ping(end.address, host, e) })
					} else {
						check(fmt.Sprint("the host to ", end.address, ", icmp"), want, func(e string) string { return n.PingFromHost(end.address, e) })
					}
				}
				check(end.address+" through the host", open, func(e string) string { return n.Try("tcp", end.address, fwtest.Backend[family], 8080, e) })
			}
			check("the host to itself", open, func(e string) string { return n.TryFromHost("tcp", host, 8080, e) })
		}
		if wait.Wait(); t.Failed() {
			t.FailNow()
		}
	}
}

func icmpRule(d policyv1.Direction, action policyv1.Action, kind uint32) *policyv1.Rule {
	r := hostRule(d, action, false)
	r.Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_ICMP, IcmpType: &kind}}}
	return r
}

// TestConnectionsBeforeAPolicyOfTheHost has connections that were there before a
// policy that would not let them begin.
func TestConnectionsBeforeAPolicyOfTheHost(t *testing.T) {
	isolate(t)
	n := fwtest.New(t)
	n.ServeHost(8080)
	n.ServeClients(8080)
	p := NewPolicies()
	apply := func(rules ...*policyv1.Rule) {
		t.Helper()
		if err := p.Apply(context.Background(), hostPlan(t, hostpolicy.State{}, of(100, rules...))); err != nil {
			t.Fatal(err)
		}
	}
	apply(hostRule(in, drop, true, "203.0.113.0/24")) // Has connections tracked.
	to, err := n.Dial("tcp", fwtest.Client[0], fwtest.Host[0], 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from, err := n.DialFromHost("tcp", fwtest.Client[1], 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	apply(hostRule(in, drop, false), hostRule(out, drop, false))
	for name, c := range map[string]net.Conn{"to the host": to, "from the host": from} {
		if err := fwtest.Echo(c); err != nil {
			t.Error(name, err)
		}
	}
	if got := n.Try("tcp", fwtest.Client[0], fwtest.Host[0], 8080, fwtest.Silence); got != fwtest.Silence {
		t.Errorf("another: %s", got)
	}
}

// TestWhatSteersTheNode has the client be a server that steers the node.
func TestWhatSteersTheNode(t *testing.T) {
	isolate(t)
	n := fwtest.New(t)
	for _, port := range []uint16{6443, 8080, hostpolicy.Kubelet} {
		n.ServeHost(port)
		n.ServeClients(port)
	}
	ctx := context.Background()
	p := NewPolicies()
	server := func(a string) *policyv1.ServerAddress {
		return &policyv1.ServerAddress{Ip: netip.MustParseAddr(a).AsSlice(), Port: 6443}
	}
	state := hostpolicy.State{Facts: &policyv1.NodeFacts{Servers: []*policyv1.ServerAddress{server(fwtest.Client[0]), server(fwtest.Client[1]), server(fwtest.Host[0])},
		Addresses: [][]byte{netip.MustParseAddr(fwtest.Host[0]).AsSlice()}, Clients: [][]byte{netip.MustParseAddr(fwtest.Stranger[0]).AsSlice()}}}
	for _, lockout := range []bool{false, true} {
		shut := of(100, hostRule(in, drop, false), hostRule(out, drop, false))
		shut.AllowLockout = lockout
		if err := p.Apply(ctx, hostPlan(t, state, shut)); err != nil {
			t.Fatal(err)
		}
		steers := fwtest.Open
		if lockout {
			steers = fwtest.Silence
		}
		for _, c := range []struct {
			from, to string // The host's where from is empty.
			port     uint16
			want     string
		}{
			{"", fwtest.Client[0], 6443, steers}, {"", fwtest.Client[1], 6443, steers}, {"", fwtest.Client[0], 8080, fwtest.Silence}, {"", fwtest.Stranger[0], 6443, fwtest.Silence},
			{fwtest.Client[0], fwtest.Host[1], hostpolicy.Kubelet, steers}, {fwtest.Client[1], fwtest.Host[3], hostpolicy.Kubelet, steers}, {fwtest.Client[0], fwtest.Host[0], 8080, fwtest.Silence},
			{fwtest.Stranger[0], fwtest.Host[0], 6443, steers}, {fwtest.Stranger[0], fwtest.Host[1], 6443, fwtest.Silence}, {fwtest.Client[0], fwtest.Host[0], 6443, fwtest.Silence},
			{fwtest.Stranger[1], fwtest.Host[3], hostpolicy.Kubelet, fwtest.Silence}, {"", fwtest.Stranger[0], hostpolicy.Kubelet, steers},
		} {
			got := ""
			if c.from == "" {
				got = n.TryFromHost("tcp", c.to, c.port, c.want)
			} else {
				got = n.Try("tcp", c.from, c.to, c.port, c.want)
			}
			if got != c.want {
				t.Errorf("lock-out %v: %s to %s:%d: %s, not %s", lockout, c.from, c.to, c.port, got, c.want)
			}
		}
		if t.Failed() {
			t.Fatal(ruleset(t))
		}
	}
}
