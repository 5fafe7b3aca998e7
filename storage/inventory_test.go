package storage

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// One item that differs among 20,000 costs some buckets, and not the group.
func TestRepairSendsWhatDiffers(t *testing.T) {
	id, other := NewScopeID(ScopeAddressGroup, "g"), NewScopeID(ScopeAddressGroup, "other")
	s := New("e")
	changes := []Change{
		{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: "n"},
		{Op: OpJoin, Scope: other, Kind: ScopeAddressGroup, Node: "n"},
		{Op: OpUpsert, Scope: other, Kind: ScopeAddressGroup, Item: Encode(member("x", 1))},
	}
	for i := range 20_000 {
		changes = append(changes, Change{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member(fmt.Sprint(i), i))})
	}
	s.Commit(changes, Position{"p": 1})
	f := &follower{t: t, node: "n", at: &service{store: s}, sub: s.Subscribe("n"), replica: &Replica{}}
	f.take(&choices{}, f.sub.Next())
	forged := &policyv1.Cut{Revision: 1, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{
		{Id: id[:], Kind: ScopeAddressGroup, Upserts: []*policyv1.Item{member("77", 5)}, Removals: []string{PodKey("ns", "78")}}}}
	if _, _, err := f.replica.Apply(forged); err != nil {
		t.Fatal(err)
	}

	inv, asked, sent := Inventory{}, &policyv1.InventoryRequest{}, 0
	for rounds := 1; asked != nil; rounds++ {
		m, err := f.replica.Inventory(asked)
		if err != nil {
			t.Fatal(err)
		}
		sent += proto.Size(m)
		if err := inv.Add(m, asked); err != nil {
			t.Fatal(err)
		}
		if asked = f.sub.Compare(inv); asked != nil && rounds == 2 {
			t.Fatalf("asked for buckets a second time: %v", asked)
		}
	}
	cut := f.sub.Repair(inv)
	if len(cut.Scopes) != 1 || len(cut.Scopes[0].Upserts) > 60 {
		t.Errorf("the cut has %d scopes, the first %d items of 20,000", len(cut.Scopes), len(cut.Scopes[0].Upserts))
	}
	if sent > 40_000 {
		t.Errorf("the inventory has %d bytes", sent)
	}
	if !f.take(&choices{}, cut) {
		t.Error("the digest did not come out")
	}
	if s.Commit([]Change{{Op: OpRemove, Scope: id, Item: Encoded{Key: PodKey("ns", "5")}}}, Position{"p": 2}); !f.take(&choices{}, f.sub.Next()) {
		t.Error("the cut after the repair does not fit")
	}
}

func TestMalformedInventories(t *testing.T) {
	a, b := NewScopeID(ScopeAddressGroup, "a"), NewScopeID(ScopeAddressGroup, "b")
	scope := func(id ScopeID, buckets ...uint64) *policyv1.ScopeInventory {
		return &policyv1.ScopeInventory{Id: id[:], Buckets: buckets}
	}
	every, one := &policyv1.InventoryRequest{}, &policyv1.InventoryRequest{Scopes: []*policyv1.ScopeBuckets{{Id: a[:], Buckets: 2}}}
	for name, tc := range map[string]struct {
		asked  *policyv1.InventoryRequest
		scopes []*policyv1.ScopeInventory
	}{
		"short id":      {every, []*policyv1.ScopeInventory{{Id: []byte{1}}}},
		"twice":         {every, []*policyv1.ScopeInventory{scope(a), scope(a)}},
		"buckets":       {every, []*policyv1.ScopeInventory{scope(a, 1)}},
		"other scope":   {one, []*policyv1.ScopeInventory{scope(b, 1, 2)}},
		"few buckets":   {one, []*policyv1.ScopeInventory{scope(a, 1)}},
		"twice, of one": {one, []*policyv1.ScopeInventory{scope(a, 1, 2), scope(a, 1, 2)}},
		"missing":       {one, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if err := (Inventory{}).Add(&policyv1.Inventory{Scopes: tc.scopes}, tc.asked); err == nil {
				t.Error("no error")
			}
		})
	}
	for name, req := range map[string]*policyv1.ScopeBuckets{"not held": {Id: a[:], Buckets: 2}, "short id": {Id: a[:3], Buckets: 2}, "no power of two": {Id: b[:], Buckets: 3}} {
		r := &Replica{}
		cut := &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{{Id: b[:], Kind: ScopeAddressGroup}}}
		if _, _, err := r.Apply(cut); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Inventory(&policyv1.InventoryRequest{Scopes: []*policyv1.ScopeBuckets{req}}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
