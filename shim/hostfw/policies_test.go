package hostfw

import (
	"context"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/knftables"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/hostpolicy"
	"github.com/weirnet/weir/storage"
)

var update = flag.Bool("update", false, "write golden files")

const (
	allow  = policyv1.Action_ACTION_ALLOW
	drop   = policyv1.Action_ACTION_DROP
	reject = policyv1.Action_ACTION_REJECT
	pass   = policyv1.Action_ACTION_PASS

	tcp = policyv1.Protocol_PROTOCOL_TCP
	udp = policyv1.Protocol_PROTOCOL_UDP
)

// rule says what a rule does with what comes from some blocks, of anybody where
// none is named, to a port by TCP and UDP.
func rule(action policyv1.Action, port uint32, blocks ...string) *policyv1.Rule {
	r := &policyv1.Rule{Direction: policyv1.Direction_DIRECTION_INGRESS, Action: action, NodePorts: true,
		Services: &policyv1.Services{Services: []*policyv1.Service{{Protocol: tcp, Port: port}, {Protocol: udp, Port: port}}}}
	for _, b := range blocks {
		if r.Peers == nil {
			r.Peers = &policyv1.Peers{}
		}
		r.Peers.Blocks = append(r.Peers.Blocks, &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix(b))})
	}
	return r
}

func logged(r *policyv1.Rule) *policyv1.Rule {
	r.Log = true
	return r
}

var nodeGroup = []byte("group-0123456789")

// planOf makes a plan of policies by their ranks, in order.
func planOf(t *testing.T, policies ...*policyv1.Policy) *hostpolicy.Plan {
	t.Helper()
	var items []hostpolicy.Item
	for i, p := range policies {
		p.Ref, p.AppliedTo = &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: string(rune('a' + i))}, [][]byte{nodeGroup}
		for n, r := range p.Rules {
			r.Index = uint32(n)
		}
		items = append(items, hostpolicy.Item{Key: storage.PolicyKey(p), Policy: p})
	}
	plan, problems := hostpolicy.New(hostpolicy.State{Items: items, Facts: &policyv1.NodeFacts{Groups: [][]byte{nodeGroup}}})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return plan
}

// dumped is the table that a plan makes, compared with a golden file.
func dumped(t *testing.T, plan *hostpolicy.Plan, golden string) {
	t.Helper()
	fake := knftables.NewFake(knftables.InetFamily, table)
	p := &Policies{nft: fake, read: func() (*standing, error) { return &standing{}, nil }}
	if err := p.Apply(context.Background(), plan); err != nil {
		t.Fatal(err)
	}
	got := fake.Dump()
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", golden), []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(filepath.Join("testdata", golden))
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("run with -update if this is right:\n%s", got)
	}
}

// fullHostPlan has rules of hosts of every kind.
func fullHostPlan(t *testing.T) *hostpolicy.Plan {
	labelled := func(r *policyv1.Rule, label string) *policyv1.Rule {
		r.LogLabel = label
		return logged(r)
	}
	named := hostRule(out, reject, false)
	named.Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: tcp, PortName: "http"}, {Protocol: udp, SourcePort: 5, SourceEndPort: 7}}}
	named.Peers = &policyv1.Peers{Groups: [][]byte{[]byte("members")}}
	lockout := of(60, hostRule(out, drop, false, "10.9.0.0/16"))
	lockout.AllowLockout = true
	state := hostpolicy.State{Tunnel: 4789, Servers: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:9740"), netip.MustParseAddrPort("[2001:db8::9]:9740")},
		Facts: &policyv1.NodeFacts{Addresses: [][]byte{{192, 0, 2, 1}}, Clients: [][]byte{{192, 0, 2, 1}, {192, 0, 2, 2}}, Servers: []*policyv1.ServerAddress{{Ip: []byte{192, 0, 2, 1}, Port: 6443}}},
		Members: func(_ []byte, fn func(*policyv1.Member)) {
			fn(&policyv1.Member{Ips: [][]byte{{10, 1, 0, 1}}, Ports: []*policyv1.NamedPort{{Name: "http", Protocol: tcp, Port: 8080}}})
			fn(&policyv1.Member{Ips: [][]byte{{10, 1, 0, 2}, netip.MustParseAddr("fd00::2").AsSlice()}, Ports: []*policyv1.NamedPort{{Name: "http", Protocol: tcp, Port: 8080}}})
		}}
	return hostPlan(t, state,
		of(50, labelled(hostRule(in, allow, true, "10.1.0.0/16"), "allow-http"), labelled(hostRule(in, drop, true), "default-drop-others"), labelled(hostRule(in, reject, false), "")),
		lockout, of(100, named, labelled(icmpRule(out, pass, 8), "x")), of(253, hostRule(in, drop, true), hostRule(out, allow, false)),
		&policyv1.Policy{Rank: 253, Priority: 1, Staged: true, Rules: []*policyv1.Rule{hostRule(out, drop, true)}})
}

func TestTableOfHosts(t *testing.T) { dumped(t, fullHostPlan(t), "hosts.nft") }

// The kernel takes what is written for hosts, and says it back as it was put; a
// chain that others change is seen.
func TestATableOfHostsIsIntact(t *testing.T) {
	isolate(t)
	ctx := context.Background()
	p, plan := NewPolicies(), fullHostPlan(t)
	intact := func(want bool) {
		t.Helper()
		if got, err := p.Intact(ctx); err != nil || got != want {
			t.Fatalf("intact: %v, %v", got, err)
		}
	}
	if err := p.Apply(ctx, plan); err != nil {
		t.Fatal(err)
	}
	intact(true)
	intact(true)
	for _, chain := range hostChains {
		run(t, "nft", "add", "rule", "inet", "weir", chain, "accept")
		intact(false)
		if err := p.Apply(ctx, plan); err != nil {
			t.Fatal(err)
		}
		intact(true)
	}
	if err := p.Apply(ctx, planOf(t, of(50, rule(allow, 30080)))); err != nil {
		t.Fatal(err)
	}
	if text := ruleset(t); strings.Contains(text, "host-") || !strings.Contains(text, "node-ports-rules") {
		t.Errorf("without rules of hosts, and with one of a node port:\n%s", text)
	}
	intact(true)
}

// refusing is nftables of a kernel without a logger of its own.
type refusing struct{ knftables.Interface }

func (r refusing) Run(ctx context.Context, tx *knftables.Transaction) error {
	if strings.Contains(tx.String(), "log prefix \"Antrea:") {
		return errors.New("no such file or directory")
	}
	return r.Interface.Run(ctx, tx)
}

func TestAKernelWithoutALogger(t *testing.T) {
	fake := knftables.NewFake(knftables.InetFamily, table)
	p := &Policies{nft: refusing{fake}, read: func() (*standing, error) { return &standing{}, nil }}
	if err := p.Apply(context.Background(), fullHostPlan(t)); err != nil || p.LogsItself() {
		t.Fatalf("%v, logs itself: %v", err, p.LogsItself())
	}
	if text := fake.Dump(); strings.Contains(text, "Antrea:") || !strings.Contains(text, "log prefix \"weir:") {
		t.Errorf("put:\n%s", text)
	}
}

func TestTableOfPolicies(t *testing.T) {
	sourced := rule(drop, 31000)
	sourced.Services.Services = []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_SCTP, Port: 31000, EndPort: 31009, SourcePort: 1024, SourceEndPort: 2048}, {Protocol: tcp, Port: 1}, {Protocol: tcp, Port: 5, EndPort: 7}}
	plan := planOf(t,
		&policyv1.Policy{Rank: 50, Rules: []*policyv1.Rule{rule(allow, 30080, "10.1.0.0/16"), rule(pass, 30080, "10.2.0.0/16", "10.4.0.0/16", "fd02::/16")}},
		&policyv1.Policy{Rank: 60, Staged: true, Rules: []*policyv1.Rule{rule(reject, 30080, "10.3.0.0/16"), rule(pass, 30080)}},
		&policyv1.Policy{Rank: 100, Rules: []*policyv1.Rule{logged(rule(reject, 30080)), logged(rule(drop, 30081, "0.0.0.0/0")), sourced}},
		&policyv1.Policy{Rank: 253, Rules: []*policyv1.Rule{rule(drop, 30080, "10.2.0.0/16", "10.4.0.0/16"), rule(allow, 30080)}},
		&policyv1.Policy{Rank: 253, Priority: 1, Staged: true, Rules: []*policyv1.Rule{rule(allow, 30080)}},
	)
	fake := knftables.NewFake(knftables.InetFamily, table)
	read := func() (*standing, error) {
		all, _ := fake.ListAll(context.Background()) // An error: there is no table.
		slices.Sort(all["set"])
		return &standing{sets: all["set"], chains: all["chain"]}, nil
	}
	p := &Policies{nft: fake, read: read}
	ctx := context.Background()
	if err := p.Apply(ctx, plan); err != nil {
		t.Fatal(err)
	}
	got, golden := fake.Dump(), filepath.Join("testdata", "policies.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("run with -update if this is right:\n%s", got)
	}
	if err := (&Policies{nft: fake, read: read}).Apply(ctx, plan); err != nil { // A former shim's.
		t.Fatal(err)
	}
	if again := fake.Dump(); again != got {
		t.Errorf("once more:\n%s", again)
	}
	if err := p.Apply(ctx, &hostpolicy.Plan{}); err != nil {
		t.Fatal(err)
	}
	left, _ := fake.ListAll(ctx)
	delete(left, "counter") // They go once they were read.
	if len(left) != 0 {
		t.Errorf("of no policies is left: %v", left)
	}
}

func TestReportsNameTheirRule(t *testing.T) {
	for _, r := range []Report{{Plan: 1<<63 + 5, List: hostpolicy.Egress, Rule: 12}, {Rule: 0, Staged: true}} {
		if got, err := ParseReport(r.prefix() + "\x00"); err != nil || got != r {
			t.Errorf("%q is %v, %v", r.prefix(), got, err)
		}
	}
	for _, s := range []string{"", "weir", "weir:1:rule:0:", "weir:1:rule:0:-1", "weir:x:rule:0:1", "other:1:rule:0:1", "weir:1:else:0:1", "weir:1:rule:1", "weir:1:rule:3:1", "weir:1:rule:x:1"} {
		if r, err := ParseReport(s); err == nil {
			t.Errorf("%q is %v", s, r)
		}
	}
}

// TestOthersChangesAreSeen has others change what is ours, and what is not.
func TestOthersChangesAreSeen(t *testing.T) {
	isolate(t)
	ctx := context.Background()
	if err := MarkOwn(ctx, "weir-br", [6]byte{2, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	bare := ruleset(t)
	plan := planOf(t, &policyv1.Policy{Rank: 50, Rules: []*policyv1.Rule{rule(allow, 30080, "10.1.0.0/16", "10.3.0.0/16"), rule(reject, 30080), logged(rule(drop, 30081, "0.0.0.0/0", "::/0"))}})
	p := NewPolicies()
	if err := p.Apply(ctx, plan); err != nil {
		t.Fatal(err)
	}
	put := ruleset(t)
	intact := func(want bool) {
		t.Helper()
		if got, err := p.Intact(ctx); err != nil || got != want {
			t.Errorf("intact: %v, %v", got, err)
		}
	}
	intact(true)
	run(t, "nft", "add", "rule", "inet", "weir", "own-output", "accept")
	run(t, "nft", "add", "table", "inet", "others")
	intact(true)
	run(t, "nft", "delete", "table", "inet", "others")
	run(t, "nft", "delete", "rule", "inet", "weir", "own-output", "handle", handleOf(t, "own-output", "accept"))
	for name, args := range map[string]func() []string{
		"a rule more":  func() []string { return []string{"add", "rule", "inet", "weir", chainBaseline, "accept"} },
		"a rule ahead": func() []string { return []string{"insert", "rule", "inet", "weir", chainNodePorts, "accept"} },
		"a rule of other text": func() []string {
			return []string{"replace", "rule", "inet", "weir", chainRules, "handle", handleOf(t, chainRules, "reject"), "accept"}
		},
		"no rules":      func() []string { return []string{"flush", "chain", "inet", "weir", chainRules} },
		"a set without": func() []string { return []string{"flush", "set", "inet", "weir", setOf(t, "np-ip-")} },
		"a set with more": func() []string {
			return []string{"add", "element", "inet", "weir", setOf(t, "np-ip-"), "{ 10.200.0.0/16 }"}
		},
		"no table": func() []string { return []string{"delete", "table", "inet", "weir"} },
	} {
		run(t, "nft", args()...)
		if intact(false); t.Failed() {
			t.Fatal(name)
		}
		if err := MarkOwn(ctx, "weir-br", [6]byte{2, 0, 0, 0, 0, 1}); err != nil { // Which is for whoever has a table removed.
			t.Fatal(err)
		}
		if err := p.Apply(ctx, plan); err != nil {
			t.Fatal(err)
		}
		intact(true)
		if now := ruleset(t); !slices.Equal(lines(now), lines(put)) {
			t.Fatalf("after %s:\n%s\nand not:\n%s", name, now, put)
		}
	}
	if err := p.Apply(ctx, &hostpolicy.Plan{}); err != nil {
		t.Fatal(err)
	}
	intact(true)
	if _, err := p.Count(ctx); err != nil {
		t.Fatal(err)
	}
	if now := ruleset(t); !slices.Equal(lines(now), lines(bare)) {
		t.Errorf("of no policies is left:\n%s\nand not:\n%s", now, bare)
	}
}
