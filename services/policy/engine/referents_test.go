package engine

import (
	"strings"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
)

// A policy whose tier may not stand beside others says so, and in whose words, in
// whatever order the two are read; and it comes into force with its tier.
func TestAPolicySaysWhatIsWrongWithItsTier(t *testing.T) {
	tier := &api.Tier{Name: "late", Priority: 10}
	refused := api.Event{Ref: tier.Ref(), Fault: "spec.priority: 10 is the priority of Tier early too; write another"}
	policy := upsert(antreaPolicy("p", "late", api.ActionDrop, api.Peer{NamespaceSelector: &api.Selector{}}))
	for name, events := range map[string][]api.Event{
		"the tier first": {refused, policy}, "the policy first": {policy, refused}, "the tier was in force": {upsert(tier), policy, refused},
	} {
		t.Run(name, func(t *testing.T) {
			e := New()
			e.Apply(upsert(&api.Namespace{Name: "x"}))
			e.Apply(upsert(newPod("x", "a", "node-1", "10.0.0.1")))
			for _, ev := range events {
				e.Apply(ev)
				e.Flush()
			}
			p := e.Policies()[0]
			want := Fault{ReasonTierNotFound, "tier late is not in force (spec.priority: 10 is the priority of Tier early too; write another); the policy is held back until it is", true}
			if len(p.Faults) != 1 || p.Faults[0] != want || len(p.Items) > 0 {
				t.Errorf("got %+v with %d items", p.Faults, len(p.Items))
			}
			e.Apply(upsert(tier))
			e.Flush()
			if p = e.Policies()[0]; len(p.Faults) > 0 || len(p.Items) == 0 {
				t.Errorf("with its tier: %+v with %d items", p.Faults, len(p.Items))
			}
			e.Apply(refused)
			e.Apply(api.Event{Ref: tier.Ref()})
			e.Apply(api.Event{Ref: policy.Ref})
			e.Flush()
			if n := len(e.referents); n > 0 {
				t.Errorf("%d referents are left", n)
			}
		})
	}
}

// A group that is in force otherwise than it is written says so.
func TestAGroupSaysWhatIsWrongWithIt(t *testing.T) {
	e := New()
	g := &api.Group{Kind: api.KindClusterGroup, Name: "g", Children: []string{"none"}}
	e.Apply(api.Event{Ref: g.Ref(), Object: g, Fault: "spec.childGroups[0]: ClusterGroup b has children"})
	e.Flush()
	if got := strings.Join(e.Definitions()[0].Warnings, "; "); got != "spec.childGroups[0]: ClusterGroup b has children; ClusterGroup none is not there, and adds nothing" {
		t.Errorf("got %q", got)
	}
	e.Apply(upsert(g))
	if got := strings.Join(e.Definitions()[0].Warnings, "; "); got != "ClusterGroup none is not there, and adds nothing" {
		t.Errorf("mended: %q", got)
	}
}
