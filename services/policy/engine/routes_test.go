package engine

import (
	"net/netip"
	"slices"
	"testing"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/storage"
)

// Every Node is told where the Pods of all are, one that has none included, and
// nobody else is.
func TestRoutesReachEveryNode(t *testing.T) {
	e, store := New(), storage.New("e")
	flush := func() { store.Commit(e.Flush(), nil) }
	routes := func(node string) (names []string) {
		heldBy(t, store, node).Items(storage.ScopeRoutes, func(_ storage.ScopeID, item *policyv1.Item) {
			names = append(names, item.GetRoute().GetName())
		})
		slices.Sort(names)
		return names
	}
	expect := func(node string, want ...string) {
		t.Helper()
		if got := routes(node); !slices.Equal(got, want) {
			t.Errorf("%s has routes to %v, want %v", node, got, want)
		}
	}
	e.Apply(upsert(&api.Node{Name: "bare", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.9")}}))
	e.Apply(upsert(newPod("x", "web", "unknown", "10.9.0.2"))) // On a node without an object.
	flush()
	expect("bare")
	e.Apply(upsert(routed("a", "10.0.1.0/24")))
	e.Apply(upsert(routed("b", "10.0.2.0/24")))
	flush()
	for _, node := range []string{"a", "b", "bare"} {
		expect(node, "a", "b")
	}
	expect("unknown")
	e.Apply(api.Event{Ref: api.Ref{Kind: api.KindNode, Name: "a"}})
	flush()
	expect("b", "b")
	expect("a")
	e.Apply(api.Event{Ref: api.Ref{Kind: api.KindNode, Name: "b"}})
	flush()
	expect("bare")
	e.Apply(upsert(routed("a", "10.0.1.0/24")))
	flush()
	expect("bare", "a")
}
