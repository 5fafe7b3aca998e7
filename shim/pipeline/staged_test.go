package pipeline

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/order"
	"github.com/weirnet/weir/shim/packetlog"
	"github.com/weirnet/weir/storage"
)

// reported is what a packet's log events mean, in order.
func reported(c *Compiler, w bridge.Walk) (out []Attribution, err error) {
	for _, in := range w.PacketIns {
		if in.ControllerID != LogController {
			continue
		}
		pkt, err := packetlog.Parse(in.Packet)
		if err != nil {
			return nil, err
		}
		a, ok := c.Attribute(Hit{Table: in.Table, Cookie: in.Cookie, InPort: in.Metadata.InPort(), OutPort: in.Metadata.Reg(regOutput), Src: pkt.Src, Dst: pkt.Dst,
			Proto: pkt.Proto, SrcPort: pkt.SrcPort, DstPort: pkt.DstPort, ICMPType: pkt.ICMPType, ICMPCode: pkt.ICMPCode,
			Decision: DecisionOf(in.Cookie, in.Metadata.Reg), Revision: RevisionOf(in.Metadata.Reg), Mark: MarkOf(in.Table, in.Metadata.Reg), Reported: Reported(in.UserData)})
		if !ok {
			return nil, fmt.Errorf("a log event means nothing: %+v", in)
		}
		out = append(out, a)
	}
	return out, nil
}

// checkAnswers holds what a packet's flows ask answers for to the interpreter: a
// packet that is rejected, once, with all that its answer may quote, and no other.
// What the staged world decides asks for none.
func (n *node) checkAnswers(w bridge.Walk, judged []traffic) error {
	var asked []uint8
	for _, in := range w.PacketIns {
		if in.ControllerID == RejectController {
			asked = append(asked, in.Table)
		}
	}
	var want []uint8
	for _, t := range judged {
		if d := n.judge(t, enforced); d.action() == reject {
			want = append(want, stepsOf[enforced][t.dir].of(d.policy.GetRank()))
		}
	}
	if !slices.Equal(asked, want) {
		return fmt.Errorf("answers are asked for in tables %v, want %v", asked, want)
	}
	return nil
}

// checkRecord holds what a packet's flows report, and what that means, to the
// interpreter: what policies log, and where the worlds differ, each once and
// with both verdicts.
func (n *node) checkRecord(c *Compiler, w bridge.Walk, judged []traffic) error {
	reports, err := reported(c, w)
	if err != nil {
		return err
	}
	next := func() (a Attribution) {
		if len(reports) > 0 {
			a, reports = reports[0], reports[1:]
		}
		return a
	}
	for _, t := range judged {
		is, would := n.judge(t, enforced), n.judge(t, staged)
		if is.passed.rule.GetLog() {
			if a := next(); a.Action != pass || a.Direction != t.dir || a.Rule != is.passed.rule.GetName() || a.Staged != nil || a.Unlogged {
				return fmt.Errorf("the rule that passes is recorded as %+v; want %+v", a, is.passed)
			}
		}
		differs := is.action() != would.action()
		if !differs && !is.logs() {
			continue
		}
		a := next()
		switch {
		case a.Direction != t.dir || a.Action != is.action() || !is.decides(a.Policies) || a.Unlogged == is.logs() || a.AppliedTo != "x/"+t.pod.name || a.Table == "":
			return fmt.Errorf("recorded as %+v instead of %+v; with the staged policies %+v", a, is, would)
		case differs != (a.Staged != nil):
			return fmt.Errorf("recorded with %v; the policies decide %+v, with the staged ones %+v", a.Staged, is, would)
		case !differs:
			continue
		}
		policy, rule := would.cause()
		if s := a.Staged; s.GetAction() != would.action() || !would.decides(s.GetPolicies()) || s.GetPolicy().GetName() != policy.GetRef().GetName() || s.GetRule() != rule.GetName() {
			return fmt.Errorf("recorded with %v instead of %+v by %s", s, would, policy.GetRef().GetName())
		}
	}
	if len(reports) > 0 {
		return fmt.Errorf("recorded too much: %+v", reports)
	}
	return nil
}

// cause is the staged policy for which the staged world decides otherwise, and
// its rule.
func (d decision) cause() (*policyv1.Policy, *policyv1.Rule) {
	if i := slices.IndexFunc(d.policies, (*policyv1.Policy).GetStaged); i >= 0 {
		if d.isolated || d.policy.GetRank() == order.RankK8s { // Kubernetes rules have no names.
			return d.policies[i], nil
		}
		return d.policies[i], d.rule
	}
	return d.passed.policy, d.passed.rule
}

// isolates is a Kubernetes policy that isolates group a and allows nothing.
func isolates(name string) *policyv1.Policy {
	return &policyv1.Policy{Ref: &policyv1.PolicyRef{Kind: policyv1.PolicyKind_POLICY_KIND_K8S_NETWORK_POLICY, Namespace: "x", Name: name}, Rank: order.RankK8s,
		AppliedTo: groupIDs("a"), IsolatesIngress: true}
}

// allowing is one that allows what comes from b, too.
func allowing(name string) *policyv1.Policy {
	p := isolates(name)
	p.Rules = []*policyv1.Rule{{Direction: ingress, Action: allow, Peers: &policyv1.Peers{Groups: groupIDs("b")}}}
	return p
}

func asStaged(p *policyv1.Policy) *policyv1.Policy {
	p.Staged = true
	return p
}

func logged(p *policyv1.Policy) *policyv1.Policy {
	p.LogIsolation = true
	for _, r := range p.Rules {
		r.Log = true
	}
	return p
}

// recordText is a record in words: what was done and by whom, and what would
// have been done, for which policy, by whom.
func recordText(a Attribution) string {
	names := func(refs []*policyv1.PolicyRef) (out []string) {
		for _, r := range refs {
			out = append(out, r.GetName())
		}
		return out
	}
	word := func(action policyv1.Action) string {
		return strings.ToLower(strings.TrimPrefix(action.String(), "ACTION_"))
	}
	text := fmt.Sprintf("%s in %s by %v", word(a.Action), a.Table, names(a.Policies))
	if a.Unlogged {
		text = "unlogged " + text
	}
	if s := a.Staged; s != nil {
		text += fmt.Sprintf(", staged %s for %s %s by %v", word(s.GetAction()), s.GetPolicy().GetName(), s.GetRule(), names(s.GetPolicies()))
	}
	return text
}

// One packet from a Pod in b to one in a.
func TestStagedPoliciesAreRecordedAndDoNotAct(t *testing.T) {
	for name, tc := range map[string]struct {
		policies []*policyv1.Policy
		passes   bool
		records  []string
	}{
		"a staged isolation": {[]*policyv1.Policy{asStaged(isolates("shut"))}, true,
			[]string{"unlogged allow in IngressDefaultRule by [], staged drop for shut  by [shut]"}},
		"a staged isolation beside an enforced allow": {[]*policyv1.Policy{asStaged(isolates("shut")), allowing("open")}, true, nil},
		"a staged isolation beside an enforced one":   {[]*policyv1.Policy{asStaged(isolates("shut")), isolates("closed")}, false, nil},
		"a staged Allow over an isolation": {[]*policyv1.Policy{isolates("closed"), asStaged(tier("open", 1, allow))}, false,
			[]string{"unlogged drop in IngressDefaultRule by [closed], staged allow for open rule by [open]"}},
		"over an isolation that logs": {[]*policyv1.Policy{logged(isolates("closed")), asStaged(tier("open", 1, allow))}, false,
			[]string{"drop in IngressDefaultRule by [closed], staged allow for open rule by [open]"}},
		"an isolation that logs, and a staged Drop": {[]*policyv1.Policy{logged(isolates("closed")), asStaged(logged(tier("shut", 1, drop)))}, false,
			[]string{"drop in IngressDefaultRule by [closed]"}},
		"a staged Pass to a Kubernetes allow": {[]*policyv1.Policy{allowing("a-open"), isolates("closed"), asStaged(tier("pass", 1, pass)), tier("shut", 2, drop)}, false,
			[]string{"unlogged drop in AntreaPolicyIngressRule by [shut], staged allow for pass rule by [a-open]"}},
		"a staged Pass to a baseline": {[]*policyv1.Policy{tier("open", 2, allow), asStaged(tier("pass", 1, pass)), baseline(7, reject)}, true,
			[]string{"unlogged allow in AntreaPolicyIngressRule by [open], staged reject for pass rule by [baseline-7]"}},
		"a staged Pass to an isolation": {[]*policyv1.Policy{tier("open", 2, allow), asStaged(tier("pass", 1, pass)), isolates("closed")}, true,
			[]string{"unlogged allow in AntreaPolicyIngressRule by [open], staged drop for pass rule by [closed]"}},
		"a staged Pass to nothing": {[]*policyv1.Policy{tier("shut", 2, drop), asStaged(tier("pass", 1, pass))}, false,
			[]string{"unlogged drop in AntreaPolicyIngressRule by [shut], staged allow for pass rule by []"}},
		"a staged Reject before a Drop": {[]*policyv1.Policy{tier("shut", 2, drop), asStaged(tier("refuse", 1, reject))}, false,
			[]string{"unlogged drop in AntreaPolicyIngressRule by [shut], staged reject for refuse rule by [refuse]"}},
		"a staged Reject behind a Drop": {[]*policyv1.Policy{tier("shut", 1, drop), asStaged(tier("refuse", 2, reject))}, false, nil},
		"an Allow that logs": {[]*policyv1.Policy{logged(tier("open", 2, allow)), asStaged(tier("shut", 1, drop))}, true,
			[]string{"allow in AntreaPolicyIngressRule by [open], staged drop for shut rule by [shut]"}},
		"a staged isolation of two": {[]*policyv1.Policy{asStaged(isolates("z-shut")), asStaged(isolates("a-shut")), asStaged(tier("pass", 1, pass)), tier("open", 1, allow)}, true,
			[]string{"unlogged allow in AntreaPolicyIngressRule by [open], staged drop for a-shut  by [a-shut z-shut]"}},
		"a staged policy for others": {[]*policyv1.Policy{asStaged(&policyv1.Policy{Ref: isolates("other").Ref, Rank: order.RankK8s, AppliedTo: groupIDs("b"), IsolatesIngress: true})}, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w, c := newTierWorld(t), New(config, Assignment{})
			w.add(tc.policies...)
			fake := bridge.NewFake(bridge.Config{Name: "br0", Mark: bridge.Mark{Value: CookieMark, Mask: CookieMask}})
			ch := w.bring(c)
			if err := fake.Apply(context.Background(), bridge.Change{Upsert: ch.Upsert}); err != nil {
				t.Fatal(err)
			}
			overlaps(t, c.Desired())
			walk := fake.Walk(bridge.Packet{EthType: openflow.EtherIPv4, InPort: openflow.PortLocal, EthSrc: config.LocalMAC, TTL: 64, IPProto: openflow.ProtoTCP, TCPFlags: bridge.TCPSyn,
				SrcPort: 1234, DstPort: 80, IPSrc: netip.MustParseAddr("10.1.0.1"), IPDst: netip.MustParseAddr("10.0.0.1")}, bridge.WalkOptions{CtNext: []uint32{}})
			if passes := len(walk.Ports()) == 1; passes != tc.passes || slices.ContainsFunc(walk.Ambiguous, untied) {
				t.Errorf("leaves by %v; ambiguous: %v", walk.Ports(), walk.Ambiguous)
			}
			events, err := reported(c, walk)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range events {
				got = append(got, recordText(a))
			}
			if !slices.Equal(got, tc.records) {
				t.Errorf("recorded:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(tc.records, "\n"))
			}
		})
	}
}

// flowsBy counts flows by table, without misses.
func flowsBy(c *Compiler) map[string]int {
	out := make(map[string]int)
	for _, f := range c.Desired() {
		if f.Priority != prioMiss {
			out[TableName(f.Table)]++
		}
	}
	return out
}

// What is staged costs its endpoints' rules of its direction once more, and a
// report for each that does not log; what is not staged costs nothing.
func TestStagedCostsWhatIsStaged(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	other := tier("other", 1, drop)
	other.AppliedTo = groupIDs("c")
	out := tier("out", 1, drop)
	out.Rules[0].Direction = egress
	w.pods["quiet"] = &testPod{name: "quiet", port: 2, ips: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, groups: map[string]bool{"c": true}}
	w.add(tier("shut", 1, drop), logged(tier("open", 2, allow)), other, out, isolates("closed"))
	w.bring(c)
	before, assigned := text(c.Desired()), len(c.Assignment().Rules)
	flows := flowsBy(c)
	if flows["StagedAntreaPolicyIngressRule"]+flows["StagedIngressDefaultRule"]+flows["StagedAntreaPolicyEgressRule"] > 0 {
		t.Errorf("flows of nothing staged: %v", flows)
	}
	w.add(asStaged(tier("staged", 3, drop)))
	w.bring(c)
	now := flowsBy(c)
	for table, more := range map[string]int{
		"StagedAntreaPolicyIngressRule": 3 * clauses(100), // shut, open and staged.
		"StagedIngressDefaultRule":      1,                // The isolation.
		"AntreaPolicyIngressRule":       2,                // The gate, and the report of shut.
		"IngressDefaultRule":            1,                // The report of the isolation.
		"StagedAntreaPolicyEgressRule":  0, "AntreaPolicyEgressRule": 0, "StagedIngressRule": 0,
	} {
		if got := now[table] - flows[table]; got != more {
			t.Errorf("%s has %d flows more, want %d", table, got, more)
		}
	}
	w.addPeer(100)
	if ch := w.bring(c); len(ch.Upsert) != 2+1+3 || len(ch.Delete) != 0 { // Levels of the enforced rules, and of the staged world.
		t.Errorf("a new member changes %d flows and removes %d", len(ch.Upsert), len(ch.Delete))
	}
	delete(w.pods, "peer-100")
	delete(w.policies, "staged")
	w.bring(c)
	if got := text(c.Desired()); got != before || len(c.Assignment().Rules) != assigned {
		t.Errorf("with nothing staged any more:\n%s", difference(got, before))
	}
}

// Past the limit of the staged world a rule is a problem, whatever it does; no
// state is refused for it.
func TestLimitOfTheStagedWorld(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	for i := range limitBaseline {
		w.add(baseline(i, drop))
	}
	w.bring(c)
	act := text(c.Desired())
	w.add(asStaged(baseline(1000, reject)))
	w.bring(c)
	if p := c.Problems(); len(p) != 1 || p[0].Key != storage.PolicyKey(w.policies["baseline-1000"]) || !strings.Contains(p[0].Err.Error(), "StagedIngressDefaultRule has room for 150") {
		t.Fatalf("problems %v", p)
	}
	w.add(asStaged(baseline(-1, reject))) // Now an enforced rule is the last there.
	w.bring(c)
	if p := c.Problems(); len(p) != 2 {
		t.Errorf("problems %v", p)
	}
	delete(w.policies, "baseline-1000")
	delete(w.policies, "baseline--1")
	w.bring(c)
	if got := text(c.Desired()); got != act || len(c.Problems()) != 0 {
		t.Errorf("problems %v; flows:\n%s", c.Problems(), difference(got, act))
	}
}

func idOfIsolation(c *Compiler, name string) uint32 {
	for _, set := range c.isolations {
		if slices.ContainsFunc(c.isolatedBy(set.id), func(p *policy) bool { return p.wire.GetRef().GetName() == name }) {
			return set.id
		}
	}
	return 0
}

// A policy that came in parts is named once.
func TestPartsOfAStagedPolicyAreOne(t *testing.T) {
	w, c := newTierWorld(t), New(config, Assignment{})
	w.add(tier("open", 1, allow), asStaged(isolates("shut")), asStaged(tier("pass", 0, pass)))
	part := asStaged(isolates("shut"))
	part.Part = "env=prod"
	w.policies["shut, a part"] = part
	w.bring(c)
	ep := c.ports[1]
	got := c.outcome(allow, scene{ep: ep, dir: ingress, hit: Hit{Mark: Mark{Verdict: uint8(verdictAsked | verdictDrop), Rule: idOfIsolation(c, "shut")}}})
	if len(got.GetPolicies()) != 1 || got.GetPolicies()[0].GetName() != "shut" || len(c.Problems()) > 0 {
		t.Errorf("outcome %v, problems %v", got, c.Problems())
	}
}

// Ids that connections carry are known from flows of an earlier layout too.
func TestCarriedID(t *testing.T) {
	for cookie, want := range map[uint64]uint32{
		cookie(KindRule, 7):                0x7,
		CookieMark | 1<<48 | 4<<40 | 9:     9,
		cookie(KindStaged, 7):              0,
		cookie(KindIsolation, 7):           0,
		0x58<<56 | 1<<48 | 4<<40 | 0xabcde: 0,
	} {
		if got := CarriedID(cookie); got != want {
			t.Errorf("%#x carries %d, want %d", cookie, got, want)
		}
	}
}
