package pipeline

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// fewWorld is a tierWorld with so many peers in b.
func fewWorld(t testing.TB, peers int) *tierWorld {
	w := newTierWorld(t)
	for i := peers; i < 100; i++ {
		delete(w.pods, fmt.Sprint("peer-", i))
	}
	return w
}

// onPort has the rules of a policy hold for TCP and these ports only.
func onPort(p *policyv1.Policy, first, last uint32) *policyv1.Policy {
	for _, r := range p.Rules {
		r.Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: first, EndPort: last}}}
	}
	return p
}

// acting are the flows of rules in a table: those that act at once, and those of
// conjunctions with their clauses.
func acting(c *Compiler, table uint8) (direct, conjunctive int) {
	for _, f := range c.Desired() {
		switch kind, _, _ := ParseCookie(f.Cookie); {
		case f.Table != table || kind != KindRule && kind != KindStaged && kind != KindClause:
		case directly(f):
			direct++
		case f.Priority != prioGate:
			conjunctive++
		}
	}
	return direct, conjunctive
}

func held(t *testing.T, when string, c *Compiler, direct, conjunctive int) {
	t.Helper()
	if d, j := acting(c, TableAntreaPolicyIngressRule); d != direct || j != conjunctive {
		t.Errorf("%s: %d direct flows and %d conjunctive, want %d and %d", when, d, j, direct, conjunctive)
	}
}

// A rule of one target, one service and few peers has a flow for each. One peer
// more than that, and it has the other form, and back again: by few flows, of
// which all go or come in one change.
func TestRuleOfFewPeersIsDirect(t *testing.T) {
	w, c := fewWorld(t, 0), New(config, Assignment{})
	w.add(onPort(tier("few", 1, drop), 80, 80))
	for n := range 2*directMax + 1 {
		switch ch := w.bring(c); {
		case n == 0: // The rule matches nothing yet.
		case n == directMax+1:
			if len(ch.Upsert) != n+1+1+1 || len(ch.Delete) != directMax {
				t.Errorf("the switch puts %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
			}
		case len(ch.Upsert) != 1 || len(ch.Delete) != 0:
			t.Errorf("peer %d puts %d flows and removes %d", n, len(ch.Upsert), len(ch.Delete))
		}
		if n <= directMax {
			held(t, fmt.Sprint(n, " peers"), c, n, 0)
		} else {
			held(t, fmt.Sprint(n, " peers"), c, 0, n+1+1+1)
		}
		w.addPeer(n)
	}
	w.bring(c)
	for n := 2 * directMax; n >= 0; n-- {
		delete(w.pods, fmt.Sprint("peer-", n))
		switch ch := w.bring(c); {
		case n == directMax:
			if len(ch.Upsert) != directMax || len(ch.Delete) != directMax+1+1+1+1 {
				t.Errorf("the switch back puts %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
			}
			held(t, "back", c, directMax, 0)
		case len(ch.Upsert) != 0 || len(ch.Delete) != 1:
			t.Errorf("without peer %d: puts %d flows and removes %d", n, len(ch.Upsert), len(ch.Delete))
		}
	}
	held(t, "without peers", c, 0, 0)
}

// A clause counts as many as it has matches in a family, and an absent one as one.
func TestFormFollowsTheMatches(t *testing.T) {
	block := func(cidr string, except ...string) *policyv1.Peers {
		b := &policyv1.IPBlock{Cidr: storage.PrefixToWire(netip.MustParsePrefix(cidr))}
		for _, x := range except {
			b.Except = append(b.Except, storage.PrefixToWire(netip.MustParsePrefix(x)))
		}
		return &policyv1.Peers{Blocks: []*policyv1.IPBlock{b}}
	}
	from := func(p *policyv1.Policy, peers *policyv1.Peers) *policyv1.Policy {
		p.Rules[0].Peers = peers
		return p
	}
	port := func(name string) *policyv1.Policy {
		p := tier("few", 1, drop)
		p.Rules[0].Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, PortName: name}}}
		return p
	}
	six := func(w *tierWorld) {
		for _, p := range w.pods {
			p.ips = append(p.ips, netip.MustParseAddr("fd00::"+p.ips[0].String()))
		}
	}
	targets := func(n int) func(w *tierWorld) {
		return func(w *tierWorld) {
			for i := 2; i <= n; i++ {
				name := fmt.Sprint("web-", i)
				w.pods[name] = &testPod{name: name, port: uint32(i), ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})}, groups: map[string]bool{"a": true}}
			}
		}
	}
	for name, tc := range map[string]struct {
		policy              *policyv1.Policy
		peers               int
		but                 func(w *tierWorld)
		direct, conjunctive int
	}{
		"any peer, any service":        {from(tier("few", 1, drop), nil), 5, nil, 1, 0},
		"the same, of both families":   {from(tier("few", 1, drop), nil), 5, six, 2, 0},
		"any peer, a port":             {from(onPort(tier("few", 1, drop), 80, 80), nil), 5, nil, 1, 0},
		"a block with an exception":    {from(tier("few", 1, drop), block("10.0.0.0/8", "10.3.4.0/22")), 5, nil, 14, 0},
		"with too small an exception":  {from(tier("few", 1, drop), block("10.0.0.0/8", "10.3.4.5/32")), 5, nil, 0, 24 + 1 + 1},
		"peers of both families":       {onPort(tier("few", 1, drop), 80, 80), 5, six, 5 + 5, 0},
		"more of them":                 {onPort(tier("few", 1, drop), 80, 80), 9, six, 0, 18 + 2 + 1 + 1},
		"a range of ports":             {onPort(tier("few", 1, drop), 1000, 1009), 3, nil, 6, 0}, // 1000 and seven, then two.
		"a range that costs less so":   {onPort(tier("few", 1, drop), 1001, 1006), 4, nil, 0, 4 + 4 + 1 + 1},
		"two targets":                  {onPort(tier("few", 1, drop), 80, 80), 4, targets(2), 8, 0},
		"many targets":                 {onPort(tier("few", 1, drop), 80, 80), 1, targets(16), 16, 0},
		"too many":                     {onPort(tier("few", 1, drop), 80, 80), 1, targets(17), 0, 17 + 1 + 1 + 1},
		"too many, and no peer yet":    {onPort(tier("few", 1, drop), 80, 80), 0, targets(17), 0, 17 + 1 + 1},
		"targets with less as clauses": {onPort(tier("few", 1, drop), 80, 80), 4, targets(4), 0, 4 + 4 + 1 + 1},
		"a name that nobody has":       {port("http"), 5, nil, 0, 0},
		"a name that the target has": {port("http"), 5, func(w *tierWorld) {
			w.pods["web"].ports = []*policyv1.NamedPort{{Name: "http", Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 8080}}
		}, 5, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, c := fewWorld(t, tc.peers), New(config, Assignment{})
			if tc.but != nil {
				tc.but(w)
			}
			w.add(tc.policy)
			w.bring(c)
			held(t, "compiled", c, tc.direct, tc.conjunctive)
		})
	}
}

// Of rules of one priority that want one flow the one of the lowest id has it, and
// when that goes the other.
func TestDirectFlowIsShared(t *testing.T) {
	w, c := fewWorld(t, 2), New(config, Assignment{})
	w.pods["peer-0"].groups["c"] = true
	other := tier("other", 1, drop)
	other.Rules[0].Peers.Groups = groupIDs("c")
	w.add(tier("a-first", 1, drop))
	w.bring(c)
	w.add(other)
	if ch := w.bring(c); len(ch.Upsert) != 1 { // What counts.
		t.Errorf("with another for the same peer %d flows are put", len(ch.Upsert))
	}
	held(t, "two rules", c, 2, 0)
	byID := func() map[uint32]int {
		out := make(map[uint32]int)
		for _, f := range c.Desired() {
			if _, id, _ := ParseCookie(f.Cookie); directly(f) {
				out[id]++
			}
		}
		return out
	}
	first, second := idOf(c, "a-first"), idOf(c, "other")
	if got := byID(); got[first] != 2 || got[second] != 0 {
		t.Errorf("the flows are of %v, want all of %d", got, first)
	}
	delete(w.policies, "a-first")
	w.bring(c)
	if got := byID(); len(got) != 1 || got[second] != 1 {
		t.Errorf("the flows are of %v, want one of %d", got, second)
	}
}

// Rules of one priority switch together: a member touches few flows there,
// however many rules name its group.
func TestRulesOfAPrioritySwitchTogether(t *testing.T) {
	w, c := fewWorld(t, 1), New(config, Assignment{})
	for i := range directMax + 1 {
		w.add(onPort(tier(fmt.Sprint("policy-", i), 1, drop), uint32(1000+i), uint32(1000+i)))
	}
	w.bring(c)
	held(t, "too many rules", c, 0, 1+1+2*(directMax+1))
	w.addPeer(1)
	if ch := w.bring(c); len(ch.Upsert) != 1 {
		t.Errorf("a member puts %d flows", len(ch.Upsert))
	}
	delete(w.pods, "peer-1")
	delete(w.policies, "policy-0")
	w.bring(c)
	held(t, "as many as may be", c, directMax, 0)
	fresh := New(config, c.Assignment())
	w.update(fresh, Whole(w.replica), w.localPorts())
	if got, want := text(fresh.Desired()), text(inForce(c)); got != want {
		t.Errorf("a restart changes:\n%s", difference(got, want))
	}
}

// What the staged world judges has twins, which go by a conjunction's id; the
// staged world itself has none. A flow of either form is named by its rule.
func TestTwinsKeepTheConjunction(t *testing.T) {
	w, c := fewWorld(t, 2), New(config, Assignment{})
	w.add(tier("shut", 1, drop), logged(tier("open", 2, allow)))
	w.bring(c)
	held(t, "nothing staged", c, 4, 0)
	before := text(c.Desired())
	w.add(asStaged(tier("staged", 3, reject)))
	ch := w.bring(c)
	held(t, "staged", c, 2, 2+1+1+1) // What logs has no twin; the last is the twin.
	if d, j := acting(c, TableStagedAntreaPolicyIngressRule); d != 3*2 || j != 0 {
		t.Errorf("the staged world has %d direct flows and %d conjunctive", d, j)
	}
	names := make(map[string]int)
	for _, f := range ch.Upsert {
		if m := c.Describe(f); directly(f) {
			if len(m.Rules) != 1 || m.Kind != "staged" {
				t.Errorf("%v is described as %v", f, m)
				continue
			}
			names[m.Rules[0].GetPolicy().GetName()]++
		}
	}
	if len(names) != 3 || names["shut"] != 2 || names["open"] != 2 || names["staged"] != 2 {
		t.Errorf("flows are described as of %v", names)
	}
	delete(w.policies, "staged")
	w.bring(c)
	if got := text(c.Desired()); got != before {
		t.Errorf("with nothing staged any more:\n%s", difference(got, before))
	}
}

// Of rules of a priority each, every one is a flow, and one more touches no other.
func TestRuleOfItsOwnPriorityIsOneFlow(t *testing.T) {
	w, c := manyTiers(t, 1000), New(config, Assignment{})
	w.bring(c)
	held(t, "compiled", c, 1000, 0)
	w.add(tier("extra", 500.5, drop))
	if ch := w.bring(c); len(ch.Upsert) != 2 || len(ch.Delete) != 0 { // It acts, and it counts.
		t.Errorf("one more puts %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
	held(t, "one more", c, 1001, 0)
	for _, table := range c.ladders { // Whatever moves, moves as it is.
		for _, s := range table.slots.list {
			c.move(s, s.priority-1)
			s.priority--
		}
	}
	c.flows.take()
	held(t, "moved", c, 1001, 0)
}

// A probe's decision is named by a direct flow as by a conjunction's.
func TestDecisionOfADirectFlow(t *testing.T) {
	for name, peers := range map[string]int{"direct": 2, "conjunctive": 100} {
		w, c := fewWorld(t, peers), New(config, Assignment{})
		w.add(tier("pass", 1, pass), tier("shut", 2, drop), baseline(1, reject))
		ch := w.bring(c)
		fake := bridge.NewFake(bridge.Config{Name: "br0", Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}})
		if err := fake.Apply(context.Background(), bridge.Change{Upsert: ch.Upsert}); err != nil {
			t.Fatal(err)
		}
		if d, _ := acting(c, TableAntreaPolicyIngressRule); (d > 0) != (name == "direct") {
			t.Fatalf("%s: %d direct flows", name, d)
		}
		p := bridge.Packet{EthType: openflow.EtherIPv4, InPort: openflow.PortLocal, EthSrc: config.LocalMAC, TTL: 64, IPProto: openflow.ProtoTCP, TCPFlags: bridge.TCPSyn,
			SrcPort: 1234, DstPort: 80, IPSrc: netip.MustParseAddr("10.1.0.1"), IPDst: netip.MustParseAddr("10.0.0.1")}
		var trail []Step
		for _, h := range fake.Walk(p, bridge.WalkOptions{CtNext: []uint32{}}).Trail {
			trail = append(trail, Step{h.Table, h.Flow.Cookie})
		}
		got := c.Decisions(trail, Hit{InPort: p.InPort, OutPort: 1, Src: p.IPSrc, Dst: p.IPDst, Proto: p.IPProto, SrcPort: p.SrcPort, DstPort: p.DstPort}, false)
		if len(got) != 1 || got[0].Policies[0].GetName() != "baseline-1" || got[0].Action != reject || got[0].TableNumber != TableIngressDefaultRule {
			t.Errorf("%s: decided by %v", name, got)
		}
	}
}

// Flows are read in parts, by the lowest bits of their cookies: those that may be many
// are in all of them.
func TestFlowsAreInAllParts(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(tier("many", 1, drop))
	w.bring(c)
	parts, all := make([]int, bridge.Parts), 0
	for _, f := range c.Desired() {
		if kind, _, _ := ParseCookie(f.Cookie); kind == KindClause {
			parts[f.Cookie%bridge.Parts]++
			all++
		}
	}
	for part, n := range parts {
		if all < 100 || n < all/bridge.Parts/2 || n > all/bridge.Parts*2 {
			t.Errorf("part %d has %d of %d flows", part, n, all)
		}
	}
}
