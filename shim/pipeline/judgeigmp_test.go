package pipeline

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/evaluate"
	"github.com/weirnet/weir/shim/igmp"
)

var reportTypes = []uint8{igmp.ReportV1, igmp.ReportV2, igmp.ReportV3}

// randomIGMP is a policy of which some rules name IGMP, some any traffic.
func randomIGMP(rng *rand.Rand, name string) *api.OrderedPolicy {
	egress := rng.IntN(2) == 0
	actions := []api.Action{api.ActionAllow, api.ActionDrop}
	var rules []api.OrderedRule
	for i := range 1 + rng.IntN(3) {
		r := api.OrderedRule{Name: fmt.Sprint("r", i), Action: actions[rng.IntN(2)], Log: rng.IntN(2) == 0}
		if rng.IntN(4) > 0 {
			for range 1 + rng.IntN(2) {
				t := api.Traffic{Protocol: api.ProtocolIGMP}
				if typ := reportTypes[rng.IntN(3)]; rng.IntN(2) == 0 {
					if !egress {
						typ = igmp.Query
					}
					t.IGMPType = &typ
				}
				if rng.IntN(2) == 0 {
					t.Multicast = [...]netip.Addr{someGroup, otherGroup}[rng.IntN(2)]
					if !egress {
						t.Multicast = igmp.AllHosts
					}
				}
				r.Traffic = append(r.Traffic, t)
			}
		} else if rng.IntN(2) == 0 {
			r.Action = api.ActionReject
		}
		rules = append(rules, r)
	}
	p := ruled(name, string(rune('a'+rng.IntN(2))), float64(1+rng.IntN(2)), egress, rules...)
	p.Tier = [...]string{"securityops", "securityops", "application", "baseline"}[rng.IntN(4)]
	p.Staged, p.Created = rng.IntN(4) == 0, int64(rng.IntN(3))
	return p
}

// What becomes of messages, and by which rule, is what the evaluator says, as
// policies come and go.
func TestIGMPIsJudgedAsEvaluated(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	seen := make(map[string]int)
	for range 40 {
		state := evaluate.New()
		w := newCastWorld(t)
		for _, o := range []api.Object{&api.Namespace{Name: "x"}, pod("a", "node-1", "a", "10.0.0.1"), pod("b", "node-1", "b", "10.0.0.2"), pod("c", "node-1", "c", "10.0.0.3")} {
			state.Set(o)
			w.apply(o)
		}
		for range 15 {
			p := randomIGMP(rng, fmt.Sprint("p", rng.IntN(10)))
			if rng.IntN(4) == 0 {
				state.Remove(p.Ref())
				w.engine.Apply(api.Event{Ref: p.Ref()})
			} else {
				state.Set(p)
				w.apply(p)
			}
			w.bring()
			if problems := w.c.Problems(); len(problems) > 0 {
				t.Fatal(problems)
			}
			for port, name := range []string{"", "a", "b", "c"} {
				if name == "" {
					continue
				}
				at := evaluate.Endpoint{Namespace: "x", Pod: name}
				for _, group := range []netip.Addr{someGroup, otherGroup} {
					for _, typ := range reportTypes {
						agrees(t, w.c, state, egress, uint32(port), group, evaluate.Connection{From: at, To: evaluate.Endpoint{Addr: group}, Protocol: api.ProtocolIGMP, ICMPType: &typ}, seen)
					}
				}
				typ := uint8(igmp.Query)
				agrees(t, w.c, state, ingress, uint32(port), igmp.AllHosts, evaluate.Connection{From: evaluate.Endpoint{Addr: netip.MustParseAddr("192.0.2.9")}, To: at, Protocol: api.ProtocolIGMP, ICMPType: &typ}, seen)
			}
		}
	}
	if len(seen) != 8 {
		t.Errorf("only %v was met", seen)
	}
}

func agrees(t *testing.T, c *Compiler, state *evaluate.State, dir policyv1.Direction, port uint32, group netip.Addr, conn evaluate.Connection, seen map[string]int) {
	t.Helper()
	say := func(r *evaluate.Result) string {
		d := r.Egress
		if dir == ingress {
			d = r.Ingress
		}
		text := d.Action.String()
		if d.Policy != nil {
			text += " by " + d.Policy.Name + " " + d.Rule
		}
		return text
	}
	result, err := state.Evaluate(conn)
	if err != nil {
		t.Fatal(err)
	}
	want := say(&result)
	if result.Staged != nil {
		want += ", staged " + say(result.Staged)
	}
	allowed, a, _ := c.JudgeIGMP(dir, port, *conn.ICMPType, group)
	got := "drop"
	if allowed {
		got = "allow"
	}
	seen[fmt.Sprint(dir, allowed, a.Staged != nil)]++
	if len(a.Policies) > 0 {
		got += " by " + a.Policies[0].GetName() + " " + a.Rule
	}
	if s := a.Staged; s != nil {
		got += ", staged " + map[policyv1.Action]string{allow: "allow", drop: "drop"}[s.GetAction()]
		if s.GetPolicy() != nil {
			got += " by " + s.GetPolicy().GetName() + " " + s.GetRule()
		}
	}
	if got != want {
		t.Fatalf("port %d, type %#x, group %s: the shim says %s, the evaluator %s", port, *conn.ICMPType, group, got, want)
	}
}
