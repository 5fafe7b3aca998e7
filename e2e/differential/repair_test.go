package differential

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/weirnet/weir/shim/bridge"
	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// While flows of a table that others changed are put right step by step, each packet
// fares by the flows that were there before or by those that are to be there.
func TestRepairInSteps(t *testing.T) {
	const seeds = 400
	var walked, before, after int
	for seed := *firstSeed; seed < *firstSeed+seeds && !t.Failed(); seed++ {
		c := Generate(seed)
		cl, err := newCluster(&c)
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.Steps {
			if _, err := cl.enter(&c, &c.Steps[i], nil); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		packets := make(map[string][]bridge.Packet)
		for _, probe := range c.Steps[len(c.Steps)-1].Probes {
			from, ok1 := cl.locate(probe.From)
			to, ok2 := cl.locate(probe.To)
			if !ok1 || !ok2 {
				continue
			}
			for _, h := range hops(from, to, first(probe)) {
				packets[h.node] = append(packets[h.node], h.packet)
			}
		}
		for name, n := range cl.nodes {
			r := rand.New(rand.NewPCG(seed, uint64(len(packets[name]))))
			for _, table := range []uint8{pipeline.TableEgressRule, pipeline.TableIngressRule} {
				if seed%4 != 0 && n.priorities(table) < 4 { // Most have no order to keep.
					continue
				}
				spoiled := n.spoil(r, table)
				sw := n.holding(t, spoiled)
				var was, is []bridge.Walk
				right := n.holding(t, n.desired.Flows)
				for _, p := range packets[name] {
					was, is = append(was, walk(sw, p)), append(is, walk(right, p))
				}
				steps := n.repair(spoiled, 1+r.IntN(4))
				for i, step := range steps {
					if err := sw.Apply(context.Background(), bridge.Change{More: step.More, Delete: step.Delete}); err != nil {
						t.Fatalf("seed %d: %v", seed, err)
					}
					for j, p := range packets[name] {
						now := walk(sw, p)
						if len(was[j].Ambiguous)+len(is[j].Ambiguous)+len(now.Ambiguous) > 0 {
							continue // Open vSwitch may take either.
						}
						walked++
						switch asBefore, asAfter := slices.Equal(now.Ports(), was[j].Ports()), slices.Equal(now.Ports(), is[j].Ports()); {
						case !asBefore && !asAfter:
							t.Errorf("seed %d, node %s, table %d, step %d of %d: %+v leaves by %v; before by %v, in the end by %v", seed, name, table, i, len(steps), p, now.Ports(), was[j].Ports(), is[j].Ports())
						case !asBefore:
							after++
						case !asAfter:
							before++
						}
					}
				}
				state, err := sw.Read(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if !maps.EqualFunc(state.Flows, n.desired.Flows, openflow.Flow.Same) || len(state.Foreign) > 0 {
					t.Errorf("seed %d, node %s, table %d: %d flows and %d of others after the repair, want %d", seed, name, table, len(state.Flows), len(state.Foreign), len(n.desired.Flows))
				}
			}
		}
	}
	t.Logf("%d packets: %d as before and %d as after, where these differ", walked, before, after)
	if before < 100 || after < 100 {
		t.Errorf("the repairs test little: of %d packets %d fare as before and %d as after", walked, before, after)
	}
}

func walk(sw *bridge.Fake, p bridge.Packet) bridge.Walk {
	return sw.Walk(p, bridge.WalkOptions{CtNext: []uint32{}})
}

// spoil is what the node's bridge holds after somebody took flows of a table out, one
// by one or all of some priorities, changed some and added others.
func (n *node) spoil(r *rand.Rand, table uint8) map[openflow.FlowKey]openflow.Flow {
	out := maps.Clone(n.desired.Flows)
	keys := slices.SortedFunc(maps.Keys(n.desired.Flows), pipeline.CompareKeys)
	keys = slices.DeleteFunc(keys, func(k openflow.FlowKey) bool { return k.Table != table })
	gone := make(map[uint16]bool) // Priorities.
	if r.IntN(2) == 0 {
		for _, key := range keys {
			if _, ok := gone[key.Priority]; !ok {
				gone[key.Priority] = key.Priority != 0 && r.IntN(2) == 0
			}
		}
	}
	verdicts := []openflow.Actions{openflow.Drop(), n.desired.Flows[keys[len(keys)-1]].Actions} // The latter goes on as if no rule had matched.
	for _, key := range keys {
		f := n.desired.Flows[key]
		_, whole := key.Match.Field(openflow.FieldConjID) // Of which others know nothing.
		switch verdict := verdicts[r.IntN(2)]; {
		case gone[key.Priority] || len(gone) == 0 && r.IntN(3) == 0:
			delete(out, key)
		case len(gone) > 0 && r.IntN(3) > 0:
		case r.IntN(4) == 0:
			f.Actions = verdict
			out[key] = f
		case r.IntN(4) == 0 && !whole:
			f.Actions, f.Cookie, f.Priority = verdict, 0, uint16(r.IntN(1<<10))
			if _, taken := out[f.Key()]; !taken {
				out[f.Key()] = f
			}
		}
	}
	return out
}

// priorities is how many the flows of a table have.
func (n *node) priorities(table uint8) int {
	of := make(map[uint16]bool)
	for key := range n.desired.Flows {
		if key.Table == table {
			of[key.Priority] = true
		}
	}
	return len(of)
}

// holding is a bridge with the node's groups and meters, and these flows.
func (n *node) holding(t *testing.T, flows map[openflow.FlowKey]openflow.Flow) *bridge.Fake {
	sw := bridge.NewFake(bridge.Config{Name: n.name, Mark: bridge.Mark{Value: pipeline.CookieMark, Mask: pipeline.CookieMask}})
	if err := sw.Apply(context.Background(), bridge.Change{Upsert: slices.Collect(maps.Values(flows)), PutGroups: slices.Collect(maps.Values(n.desired.Groups)), PutMeters: slices.Collect(maps.Values(n.desired.Meters))}); err != nil {
		t.Fatal(err)
	}
	return sw
}

// repair is what has a bridge with these flows hold those that it should, in steps.
func (n *node) repair(flows map[openflow.FlowKey]openflow.Flow, each int) []pipeline.Change {
	comparison := n.compiler.Compare()
	var others []openflow.FlowKey
	for key, f := range flows {
		if !comparison.Meets(f) && !comparison.Wants(key) {
			others = append(others, key)
		}
	}
	return comparison.Steps(others, each)
}
