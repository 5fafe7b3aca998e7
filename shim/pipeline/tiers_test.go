package pipeline

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/storage"
)

// tierWorld is a node with one local Pod in group a, and a hundred others in b.
type tierWorld struct {
	*feed
	*node
	held map[storage.ScopeID]map[string]storage.Change
}

func newTierWorld(t testing.TB) *tierWorld {
	n := &node{pods: make(map[string]*testPod), policies: make(map[string]*policyv1.Policy)}
	n.pods["web"] = &testPod{name: "web", port: 1, ips: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, groups: map[string]bool{"a": true}}
	for i := range 100 {
		n.addPeer(i)
	}
	return &tierWorld{feed: newFeed(t, "node-1"), node: n}
}

func (n *node) addPeer(i int) {
	name := fmt.Sprint("peer-", i)
	n.pods[name] = &testPod{name: name, ips: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i / 256), byte(i)})}, groups: map[string]bool{"b": true}}
}

// tier makes a policy of the application tier with one ingress rule for peers
// in b.
func tier(name string, priority float64, action policyv1.Action) *policyv1.Policy {
	return &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_ANTREA_CLUSTER_NETWORK_POLICY, Name: name}, Rank: 250, Priority: priority,
		AppliedTo: groupIDs("a"), Rules: []*policyv1.Rule{{Direction: ingress, Action: action, Name: "rule", Peers: &policyv1.Peers{Groups: groupIDs("b")}}}}
}

func (w *tierWorld) add(policies ...*policyv1.Policy) {
	for _, p := range policies {
		w.policies[p.GetRef().GetName()] = p
	}
}

func (w *tierWorld) touched() storage.Touched {
	now := w.items()
	w.commit(w.held, now)
	w.held = now
	return w.sync()
}

// bring also drops what is retired, as the loop does once it is read.
func (w *tierWorld) bring(c *Compiler) Change {
	ch := w.update(c, w.touched(), w.localPorts())
	ch.Delete = append(ch.Delete, c.Drop(c.Retired()).Delete...)
	return ch
}

// clauses are the flows that a policy's rule of many peers has in its rule table,
// where no other has its priority.
func clauses(peers int) int { return 1 + 1 + peers }

// own are all flows that only a policy's rule has.
func own(peers int, action policyv1.Action) int {
	if action == allow {
		return clauses(peers) + 3 // Packets judged, packets after that, connections.
	}
	return clauses(peers) + 1
}

func TestPolicyTouchesItsOwnFlows(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	for i := range 300 {
		w.add(tier(fmt.Sprint("policy-", i), float64(i+1), drop))
	}
	w.bring(c)
	for name, change := range map[string]func(){
		"one comes in between": func() { w.add(tier("extra", 150.5, pass)) },
		"its priority changes": func() { w.add(tier("extra", 7.5, pass)) },
		"it comes first":       func() { w.add(tier("extra", 0.5, pass)) },
	} {
		delete(w.policies, "extra")
		w.bring(c)
		change()
		ch := w.bring(c)
		if len(ch.Upsert) != own(100, pass) || len(ch.Delete) != 0 {
			t.Errorf("%s: %d flows put, %d removed, want %d and none", name, len(ch.Upsert), len(ch.Delete), own(100, pass))
		}
	}
	w.add(tier("extra", 299.5, pass))
	if ch := w.bring(c); len(ch.Upsert) != own(100, pass) || len(ch.Delete) != own(100, pass) {
		t.Errorf("another priority: %d flows put, %d removed, want %d each", len(ch.Upsert), len(ch.Delete), own(100, pass))
	}
	w.add(tier("policy-5", 6, allow))
	if ch := w.bring(c); len(ch.Upsert) != own(100, allow) || len(ch.Delete) > own(100, drop) {
		t.Errorf("another action: %d flows put, %d removed, want %d and at most as many", len(ch.Upsert), len(ch.Delete), own(100, allow))
	}
}

// A member touches one flow for each priority at which rules name its group.
func TestMemberTouchesOneFlowAPriority(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	for i := range 10 { // Two policies to a priority.
		w.add(tier(fmt.Sprint("policy-", i), float64(i/2), drop))
	}
	w.bring(c)
	w.addPeer(100)
	if ch := w.bring(c); len(ch.Upsert) != 5 || len(ch.Delete) != 0 {
		t.Errorf("a new member changes %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
	delete(w.pods, "peer-100")
	if ch := w.bring(c); len(ch.Upsert) != 0 || len(ch.Delete) != 5 {
		t.Errorf("a member's end changes %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
}

// Rules that tie share clause flows up to the cap, and what spills stands before
// the next priority.
func TestTiesShareClausesUpToTheCap(t *testing.T) {
	cfg := config
	cfg.ClauseCap = 3
	w, c := newTierWorld(t), New(cfg, Assignment{})
	w.add(tier("after", 2, allow))
	for i := range 10 {
		p := tier(fmt.Sprint("policy-", i), 1, drop)
		p.Rules[0].Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: uint32(i + 1)}}}
		w.add(p)
	}
	w.bring(c)
	priorities := make(map[uint16]int)
	for _, f := range c.Desired() {
		if list := f.Actions.List(); f.Table == TableAntreaPolicyIngressRule && len(list) > 0 {
			if _, clause := list[0].(openflow.Conjunction); clause {
				priorities[f.Priority] = max(priorities[f.Priority], len(list))
			}
		}
	}
	var most []int
	last := uint16(0)
	for _, p := range slices.Backward(slices.Sorted(func(yield func(uint16) bool) {
		for p := range priorities {
			if !yield(p) {
				return
			}
		}
	})) {
		most, last = append(most, priorities[p]), p
	}
	if !slices.Equal(most, []int{3, 3, 3, 1, 1}) {
		t.Errorf("conjunctions a clause flow, by priority: %v", most)
	}
	for _, pt := range c.byConj {
		if name := pt.body.owner.policy.wire.GetRef().GetName(); (name == "after") != (pt.priority == last) {
			t.Errorf("%s has priority %d; the last is %d", name, pt.priority, last)
		}
	}
}

func baseline(i int, action policyv1.Action) *policyv1.Policy {
	p := tier(fmt.Sprint("baseline-", i), float64(i), action)
	p.Rank = order.RankBaseline
	return p
}

// Past the limit an Allow is a problem, and comes back when there is room; with
// a Drop the whole state is refused, and the node keeps what it has.
func TestLimitOfBaseline(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	for i := range limitBaseline {
		w.add(baseline(i, drop))
	}
	w.bring(c)
	full := text(c.Desired())

	w.add(baseline(1000, allow))
	w.bring(c)
	if p := c.Problems(); len(p) != 1 || p[0].Key != storage.PolicyKey(w.policies["baseline-1000"]) || !strings.Contains(p[0].Err.Error(), "room for 150") {
		t.Fatalf("problems %v", p)
	}
	if got := text(c.Desired()); got != full {
		t.Errorf("what is past the limit changes flows:\n%s", difference(got, full))
	}
	freed := w.policies["baseline-7"]
	delete(w.policies, "baseline-7")
	if ch := w.bring(c); len(ch.Upsert) != own(100, allow) || len(ch.Delete) != own(100, drop) || len(c.Problems()) != 0 {
		t.Errorf("with room again %d flows are put and %d removed; problems %v", len(ch.Upsert), len(ch.Delete), c.Problems())
	}
	w.add(freed)
	if ch := w.bring(c); len(ch.Upsert) != own(100, drop) || len(ch.Delete) != own(100, allow) || len(c.Problems()) != 1 {
		t.Errorf("with none again %d flows are put and %d removed; problems %v", len(ch.Upsert), len(ch.Delete), c.Problems())
	}

	// A deny past the limit, and one that would push another past it.
	before := text(c.Desired())
	for name, p := range map[string]*policyv1.Policy{"last": baseline(2000, reject), "first": baseline(-1, drop)} {
		w.add(p)
		touched := w.touched()
		var refused *Refused
		if ch, err := c.Update(w.replica, touched, nil); !errors.As(err, &refused) || len(ch.Upsert)+len(ch.Delete) > 0 || len(refused.Problems) != 1 {
			t.Fatalf("%s: %v, %v", name, ch, err)
		}
		if got := text(c.Desired()); got != before || len(c.ports) != 1 {
			t.Errorf("%s: a state that is refused changes flows:\n%s", name, difference(got, before))
		}
		fresh := New(config, c.Assignment())
		if _, err := fresh.Update(w.replica, Whole(w.replica), nil); !errors.As(err, &refused) {
			t.Errorf("%s: a new compiler takes it: %v", name, err)
		}
		delete(w.policies, p.GetRef().GetName())
		again := w.touched()
		for id, ts := range touched { // What was refused is to be told again.
			for key := range ts.Keys {
				again[id].Keys[key] = struct{}{}
			}
		}
		if ch := w.update(c, again, w.localPorts()); len(ch.Upsert)+len(ch.Delete) > 0 {
			t.Errorf("%s: taken back, it changes %v", name, ch)
		}
	}
}

// What cannot be matched is left out of a rule, and the rest of it stands.
func TestRuleStandsWithoutWhatCannotBeMatched(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	p := tier("mixed", 1, allow)
	p.Rules[0].Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_IGMP, GroupAddress: []byte{1}}, {Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 80}}}
	twice := tier("twice", 2, allow)
	twice.Rules = append(twice.Rules, twice.Rules[0])
	w.add(p, twice)
	if ch := w.bring(c); len(ch.Upsert) == 0 {
		t.Fatal("nothing is put")
	}
	rules := 0
	for _, f := range c.Desired() {
		if kind, _, _ := ParseCookie(f.Cookie); kind == KindRule {
			rules++
		}
	}
	if problems := c.Problems(); len(problems) != 2 || rules != 2 {
		t.Errorf("%d rules, problems %v", rules, problems)
	}
}

// A deny of which something cannot be read refuses the state: without it, or
// narrower, it would let through what it is there to stop. Where it is staged, it
// is a problem alone.
func TestAnUnreadableDenyRefusesTheState(t *testing.T) {
	for name, spoil := range map[string]func(p *policyv1.Policy){
		"action":    func(p *policyv1.Policy) { p.Rules[0].Action = 99 },
		"direction": func(p *policyv1.Policy) { p.Rules[0].Direction = 99 },
		"priority":  func(p *policyv1.Policy) { p.Priority = math.NaN() },
		"group":     func(p *policyv1.Policy) { p.Rules[0].Peers.Groups = append(p.Rules[0].Peers.Groups, []byte{1}) },
		"target":    func(p *policyv1.Policy) { p.AppliedTo = append(p.AppliedTo, []byte{1}) },
		"block": func(p *policyv1.Policy) {
			p.Rules[0].Peers.Blocks = []*policyv1.IPBlock{{Cidr: &policyv1.Prefix{Address: []byte{10, 0, 0, 0}, Length: 33}}}
		},
		"service": func(p *policyv1.Policy) {
			p.Rules[0].Services = &policyv1.Services{Services: []*policyv1.Service{{Protocol: policyv1.Protocol_PROTOCOL_TCP, Port: 70000}}}
		},
		"number": func(p *policyv1.Policy) { p.Rules = append(p.Rules, p.Rules[0]) },
	} {
		for _, action := range []policyv1.Action{drop, policyv1.Action_ACTION_REJECT, pass} {
			w, c := newTierWorld(t), New(config, Assignment{})
			w.add(tier("deny", 1, action))
			w.bring(c)
			before := inForce(c)
			bad := tier("deny", 1, action)
			spoil(bad)
			w.add(bad)
			var refused *Refused
			if ch, err := c.Update(w.replica, w.touched(), w.localPorts()); !errors.As(err, &refused) || len(ch.Upsert)+len(ch.Delete) > 0 || len(refused.Problems) != 1 {
				t.Errorf("%s of %v: %v, %d flows changed", name, action, err, len(ch.Upsert)+len(ch.Delete))
			}
			if got := inForce(c); !reflect.DeepEqual(got, before) {
				t.Errorf("%s of %v: what is in force is otherwise", name, action)
			}
			bad.Staged = true
			w.touched()
			if _, err := New(config, Assignment{}).Update(w.replica, Whole(w.replica), w.localPorts()); err != nil {
				t.Errorf("%s of %v, staged: %v", name, action, err)
			}
		}
	}
}

// manyTiers is a node with so many policies of one rule, a priority each.
func manyTiers(t testing.TB, n int) *tierWorld {
	w := newTierWorld(t)
	for i := range 100 {
		if i > 0 {
			delete(w.pods, fmt.Sprint("peer-", i))
		}
	}
	for i := range n {
		w.add(tier(fmt.Sprint("policy-", i), 1+float64(i), drop))
	}
	return w
}

// BenchmarkTiers compiles 10,000 tier rules of a priority each from nothing.
func BenchmarkTiers(b *testing.B) {
	const n = 10000
	w := manyTiers(b, n)
	w.touched()
	flows := 0
	for b.Loop() {
		flows = 0
		c := New(config, Assignment{})
		for _, f := range w.update(c, Whole(w.replica), w.localPorts()).Upsert {
			if f.Table == TableAntreaPolicyIngressRule {
				flows++
			}
		}
	}
	if want := n + 3; flows != want { // Bypass, own host and miss.
		b.Fatalf("%d flows, want %d", flows, want)
	}
	b.ReportMetric(float64(flows), "flows/op")
}

// BenchmarkTierInsert puts one policy into the middle of 10,000 and takes it out
// again.
func BenchmarkTierInsert(b *testing.B) {
	w := manyTiers(b, 10000)
	c := New(config, Assignment{})
	w.bring(c)
	extra := tier("extra", 5000.5, pass)
	item := storage.Encode(&policyv1.Item{Body: &policyv1.Item_Policy{Policy: extra}})
	change := storage.Change{Op: storage.OpUpsert, Scope: storage.NewScopeID(storage.ScopePolicies, extra.GetRef().GetKind().String()), Kind: storage.ScopePolicies, Item: item}
	touch := func(op storage.Op) int {
		change.Op = op
		w.store.Commit([]storage.Change{change}, nil)
		ch := w.update(c, w.sync(), w.localPorts())
		return len(ch.Upsert) + len(ch.Delete) + len(c.Drop(c.Retired()).Delete)
	}
	for b.Loop() {
		if in, out := touch(storage.OpUpsert), touch(storage.OpRemove); in != 2 || out != 2 {
			b.Fatalf("a policy costs %d flows in and %d out, and has one that acts and one that counts", in, out)
		}
	}
	b.ReportMetric(2, "flows/op")
}
