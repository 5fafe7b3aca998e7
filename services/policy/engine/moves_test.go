package engine

import (
	"net/netip"
	"reflect"
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
		before, after []api.Event
		want          func(clients storage.ScopeID) Moves
	}{
		{"a new Pod", nil, []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves {
			return Moves{Arrivals: []Arrival{arrival("n1", "c", "10.0.0.1")}}
		}},
		{"a Pod without an address", nil, []api.Event{upsert(newPod("x", "c", "n1", "", "app", "client"))}, func(storage.ScopeID) Moves {
			return Moves{}
		}},
		{"new labels", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "other"))}, func(storage.ScopeID) Moves { return Moves{} }},
		{"the same again", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))}, func(storage.ScopeID) Moves { return Moves{} }},
		{"a Pod that goes", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{{Ref: newPod("x", "c", "", "").Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"an address that changes hands", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "d", "n2", "10.0.0.1", "app", "other")), {Ref: newPod("x", "c", "", "").Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n2", "d", "10.0.0.1")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"another address", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{upsert(newPod("x", "c", "n1", "10.0.0.2", "app", "client"))}, func(clients storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n1", "c", "10.0.0.2")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
		{"another node", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "idle"))},
			[]api.Event{upsert(newPod("x", "c", "n2", "10.0.0.1", "app", "idle"))}, func(storage.ScopeID) Moves {
				return Moves{Arrivals: []Arrival{arrival("n2", "c", "10.0.0.1")},
					Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{nodeScope("n1")}}}}
			}},
		{"the group goes with its member", []api.Event{upsert(newPod("x", "c", "n1", "10.0.0.1", "app", "client"))},
			[]api.Event{{Ref: newPod("x", "c", "", "").Ref()}, {Ref: peer.Ref()}}, func(clients storage.ScopeID) Moves {
				return Moves{Departures: []Departure{{address("10.0.0.1"), []storage.ScopeID{clients, nodeScope("n1")}}}}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := New()
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
			if want := tc.want(clients); !reflect.DeepEqual(got, want) {
				t.Errorf("moves\n%+v, want\n%+v", got, want)
			}
			if _, again := e.FlushMoves(); !reflect.DeepEqual(again, Moves{}) {
				t.Errorf("the next Flush says %+v again", again)
			}
		})
	}
}
