package engine

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

func TestMoves(t *testing.T) {
	peer := ingressFrom("x", "web", matching("app", "web"), api.NetworkPolicyPeer{PodSelector: matching("app", "client")})
	address := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	arrival := func(node, name, ip string) Arrival {
		return Arrival{Node: node, Key: storage.PodKey("x", name), Addresses: address(ip)}
	}
	nodeScope := func(name string) storage.ScopeID { return storage.NewScopeID(storage.ScopeNode, name) }
	for _, tc := range []struct {
		name          string
		objects       []api.Object // Beside a policy that allows clients.
		before, after []api.Event
		want          func(clients storage.ScopeID) Moves
	}{
		{"a new Pod", nil, nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves {
			return Moves{Arrivals: []Arrival{arrival("n1", "c", "10.0.0.1")}}
		}},
		{"a new Pod that an admin policy drops", []api.Object{adminPolicy(api.KindAdminNetworkPolicy, "a", api.ActionDrop, matching(), matching("app", "client"))}, nil,
			[]api.Event{upsert(newNamespace("x", "team", "b")), upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves {
				a := arrival("n1", "c", "10.0.0.1")
				for _, s := range []selection{
					{namespaces: matching("team", "b"), pods: matching("app", "client")},
					{namespaces: matching(), pods: matching("app", "client")},
					{namespaces: matching()}, // Where the port name is resolved.
				} {
					a.Awaited = append(a.Awaited, New().group(s).id)
				}
				return Moves{Arrivals: []Arrival{a}}
			}},
		{"a new Pod that an admin policy allows", []api.Object{adminPolicy(api.KindAdminNetworkPolicy, "a", api.ActionAllow, matching(), matching("app", "client"))}, nil,
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n1", "c", "10.0.0.1")}}
			}},
		{"a Pod without an address", nil, nil, []api.Event{upsert(newPod("x", "c", "n1", "", "app", "client"))}, func(storage.ScopeID) Moves {
			return Moves{}
		}},
		{"new labels", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "other"))}, func(storage.ScopeID) Moves { return Moves{} }},
		{"the same again", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves { return Moves{} }},
		{"a Pod that goes", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{{Ref: newPod("x", "c", "", "").Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"an address that changes hands", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "d", "n2", "10.0.0.1", "app", "other")), {Ref: newPod("x", "c", "", "").Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n2", "d", "10.0.0.1")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"another address", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.2", "app", "client"))}, func(clients storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n1", "c", "10.0.0.2")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"another node", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "idle"))},
			[]api.Event{upsert(newPod("x", "c", "n2", "10.0.0.1", "app", "idle"))}, func(storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n2", "c", "10.0.0.1")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{nodeScope("n1")}}}}
			}},
		{"the group goes with its member", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{{Ref: newPod("x", "c", "", "").Ref()}, {Ref: peer.Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New()
			for _, o := range tc.objects {
				e.Apply(upsert(o))
			}
			e.Apply(upsert(newPod("x", "web", "n3", "10.0.0.9", "app", "web")))
			e.Apply(upsert(peer))
			for _, ev := range tc.before {
				e.Apply(ev)
			}
			e.Flush()
			clients := e.findNamespace("x").findGroup(e.selector(matching("app", "client"))).id
			for _, ev := range tc.after {
				e.Apply(ev)
			}
			_, got := e.FlushMoves()
			want := tc.want(clients)
			for _, m := range []Moves{got, want} {
				for _, a := range m.Arrivals {
					slices.SortFunc(a.Awaited, func(a, b storage.ScopeID) int { return slices.Compare(a[:], b[:]) })
				}
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("moves\n%+v, want\n%+v", got, want)
			}
			if _, again := e.FlushMoves(); !reflect.DeepEqual(again, Moves{}) {
				t.Errorf("the next Flush says %+v again", again)
			}
		})
	}
}
