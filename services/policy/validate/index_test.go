package validate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weirnet/weir/services/policy/api"
)

// An index through which objects come, change and go holds what one holds that
// is made of the last of them, and nothing when all have gone.
func TestIndexIsAFunctionOfItsObjects(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 7))
	one := func(list ...string) string { return list[rng.IntN(len(list))] }
	label := func() *api.Selector {
		return &api.Selector{MatchLabels: api.Labels{{Key: "app", Value: one("a", "b")}}}
	}
	group := func() *api.Group {
		g := &api.Group{Kind: api.KindClusterGroup, Name: one("g0", "g1")}
		if rng.IntN(3) == 0 && g.Name == "g0" {
			g.Children = []string{"g1"}
		} else {
			g.PodSelector = label()
		}
		return g
	}
	policy := func() *api.OrderedPolicy {
		p := &api.OrderedPolicy{Kind: api.KindAntreaClusterNetworkPolicy, Name: one("p0", "p1", "p2", "p3"), Tier: one("application", "mine"), Priority: float64(rng.IntN(2)),
			AppliedTo: []api.Target{{PodSelector: label()}, {PodSelector: label()}}}
		for i := range 1 + rng.IntN(2) {
			r := api.OrderedRule{Name: fmt.Sprint("r", i), Action: []api.Action{api.ActionAllow, api.ActionDrop}[rng.IntN(2)]}
			for range rng.IntN(3) {
				r.Peers = append(r.Peers, api.Peer{PodSelector: label()})
			}
			if rng.IntN(3) == 0 {
				r.Peers = append(r.Peers, api.Peer{Group: one("g0", "g1")})
			}
			p.Ingress = append(p.Ingress, r)
		}
		return p
	}
	x := NewIndex()
	held := map[api.Ref]api.Object{}
	conflicts := 0
	for range 4000 {
		var o api.Object = policy()
		switch rng.IntN(6) {
		case 0:
			o = group()
		case 1:
			o = &api.Tier{Name: "mine", Priority: uint8(1 + rng.IntN(40))}
		}
		if rng.IntN(3) == 0 {
			x.Remove(o.Ref())
			delete(held, o.Ref())
		} else {
			x.Set(o)
			held[o.Ref()] = o
		}
		want := NewIndex(slices.Collect(maps.Values(held))...).Conflicts()
		conflicts += len(want)
		if diff := cmp.Diff(want, x.Conflicts()); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
	if conflicts < 1000 {
		t.Errorf("only %d conflicts were there to find", conflicts)
	}
	for ref := range held {
		x.Remove(ref)
	}
	if n := len(x.policies) + len(x.users) + len(x.groups) + len(x.tiers) + len(x.byNamespace) + len(x.equal); n > 0 {
		t.Errorf("%d entries are left", n)
	}
	for _, s := range x.rules {
		if !s.empty() {
			t.Errorf("rules are left: %v", s)
		}
	}
}
