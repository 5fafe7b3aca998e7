package engine

import (
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// policyEvents are, for each kind, two states of an object between which it
// goes to and fro, and what else has to be there. Each policy guards the Pods
// of one app in one Namespace, 10 on 10 nodes or fewer, but for the related
// one, which guards every Namespace.
func policyEvents(w *world) []struct {
	name   string
	beside []api.Object
	states [2]api.Object
} {
	ns := w.spaces[0].Name
	app, peer := matching("app-1", "scale-1"), matching("app-2", "scale-2")
	here := matching(api.LabelNamespaceName, ns)
	ordered := func(kind api.Kind, namespace, tier string, action api.Action, peers ...api.Peer) *api.OrderedPolicy {
		p := &api.OrderedPolicy{Kind: kind, Namespace: namespace, Name: "bench", Tier: tier, Priority: 5, AppliedTo: []api.Target{{NamespaceSelector: here, PodSelector: app}},
			Ingress: []api.OrderedRule{{Name: "r", Action: action, Peers: peers}}}
		if namespace != "" {
			p.AppliedTo[0].NamespaceSelector = nil
		}
		return p
	}
	both := func(make func(api.Action) api.Object) [2]api.Object {
		return [2]api.Object{make(api.ActionAllow), make(api.ActionDrop)}
	}
	pods := api.Peer{NamespaceSelector: here, PodSelector: peer}
	related := func(a api.Action) api.Object {
		p := ordered(api.KindAntreaClusterNetworkPolicy, "", "application", a, api.Peer{SameLabels: []string{api.LabelNamespaceName}})
		p.AppliedTo = []api.Target{{NamespaceSelector: &api.Selector{}}}
		return p
	}
	grouped := ordered(api.KindAntreaClusterNetworkPolicy, "", "mine", api.ActionDrop, api.Peer{Group: "g"}, api.Peer{Group: "served"})
	group := func(s *api.Selector) api.Object {
		return &api.Group{Kind: api.KindClusterGroup, Name: "g", NamespaceSelector: here, PodSelector: s}
	}
	served := &api.Group{Kind: api.KindClusterGroup, Name: "served", Service: &api.NamespacedName{Namespace: ns, Name: "s"}}
	service := func(s *api.Selector) api.Object {
		return &api.Service{Namespace: ns, Name: "s", Selector: s.MatchLabels}
	}
	tier := &api.Tier{Name: "mine", Priority: 7}
	return []struct {
		name   string
		beside []api.Object
		states [2]api.Object
	}{
		{"NetworkPolicy", nil, [2]api.Object{ingressFrom(ns, "bench", app, api.NetworkPolicyPeer{PodSelector: peer}), ingressFrom(ns, "bench", app, api.NetworkPolicyPeer{PodSelector: app})}},
		{"AntreaClusterNetworkPolicy", nil, both(func(a api.Action) api.Object {
			return ordered(api.KindAntreaClusterNetworkPolicy, "", "application", a, pods)
		})},
		{"AntreaNetworkPolicy", nil, both(func(a api.Action) api.Object {
			return ordered(api.KindAntreaNetworkPolicy, ns, "application", a, api.Peer{PodSelector: peer})
		})},
		{"AdminNetworkPolicy", nil, both(func(a api.Action) api.Object { return ordered(api.KindAdminNetworkPolicy, "", "", a, pods) })},
		{"BaselineAdminNetworkPolicy", nil, both(func(a api.Action) api.Object {
			p := ordered(api.KindBaselineAdminNetworkPolicy, "", "", a, pods)
			p.Baseline = true
			return p
		})},
		{"ClusterNetworkPolicy", nil, both(func(a api.Action) api.Object {
			return ordered(api.KindClusterNetworkPolicy, "", "", a, pods, api.Peer{NodeSelector: &api.Selector{}})
		})},
		{"Tier", []api.Object{grouped, served, group(peer), service(peer)}, [2]api.Object{tier, &api.Tier{Name: "mine", Priority: 8}}},
		{"ClusterGroup", []api.Object{grouped, served, tier, service(peer)}, [2]api.Object{group(app), group(peer)}},
		{"Service", []api.Object{grouped, served, tier, group(peer)}, [2]api.Object{service(app), service(peer)}},
		{"SelfIn100Namespaces", nil, both(related)},
	}
}

// BenchmarkPolicyEvent is one change of a policy of each kind, or of what one
// names, in a cluster of 100,000 Pods in 100 Namespaces.
func BenchmarkPolicyEvent(b *testing.B) {
	w := newWorld(largeNamespaces)
	for _, tc := range policyEvents(w) {
		b.Run(tc.name, func(b *testing.B) {
			take := func(o api.Object) []storage.Change {
				w.engine.Apply(upsert(o))
				changes := w.engine.Flush()
				w.store.Commit(changes, nil)
				return changes
			}
			for _, o := range tc.beside {
				take(o)
			}
			take(tc.states[1])
			n := max(b.N, 200)
			took := make([]time.Duration, 0, n)
			b.ResetTimer()
			for i := range n {
				start := time.Now()
				changes := take(tc.states[i%2])
				took = append(took, time.Since(start))
				if !slices.ContainsFunc(changes, func(c storage.Change) bool { return c.Kind == storage.ScopePolicies && c.Op == storage.OpUpsert }) {
					b.Fatal("no policy item has changed")
				}
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[n/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(took[n*99/100].Nanoseconds()), "p99-ns")
			for _, o := range append(tc.beside, tc.states[0]) {
				w.engine.Apply(api.Event{Ref: o.Ref()})
			}
			w.store.Commit(w.engine.Flush(), nil)
		})
	}
}
