package storage

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

func TestDigestDoesNotDependOnOrder(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	build := func(order []int) Digest {
		s := New("e")
		s.Commit([]Change{{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: "n"}}, nil)
		for _, i := range order {
			s.Commit([]Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member(fmt.Sprint(i), i))}}, nil)
		}
		return s.Node("n").Digest
	}
	if a, b := build([]int{1, 2, 3}), build([]int{3, 1, 2, 1}); a != b {
		t.Fatalf("digests %s and %s of the same content", a, b)
	}
}

func TestTombstonesAreBounded(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	s := New("e")
	s.Commit([]Change{{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: "n"}}, nil)
	sub, replica := s.Subscribe("n"), &Replica{}
	apply := func() *Cut {
		cut := sub.Next()
		for _, b := range cut.Frames(1 << 20) {
			frame := &policyv1.Cut{}
			if err := proto.Unmarshal(b, frame); err != nil {
				t.Fatal(err)
			}
			if _, _, err := replica.Apply(frame); err != nil {
				t.Fatal(err)
			}
		}
		return cut
	}
	apply()
	for i := range 10_000 {
		name := fmt.Sprint(i)
		s.Commit([]Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member(name, i))}}, nil)
		s.Commit([]Change{{Op: OpRemove, Scope: id, Kind: ScopeAddressGroup, Item: Encoded{Key: PodKey("ns", name)}}}, nil)
	}
	if n := s.scopes[id].entries.dead.len; n > minTombstones {
		t.Errorf("%d tombstones are kept", n)
	}
	if cut := apply(); !cut.Scopes[0].Reset {
		t.Error("a subscriber from before a dropped tombstone must get the scope afresh")
	}
	if replica.Digest() != s.Node("n").Digest {
		t.Error("digests differ")
	}
}

func TestCoalescedChangesAreSentOnce(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	s := New("e")
	s.Commit([]Change{{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: "n"}}, nil)
	sub := s.Subscribe("n")
	sub.Next()
	for i := range 1000 {
		s.Commit([]Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member("a", i))}}, nil)
	}
	cut := sub.Next()
	if len(cut.Scopes) != 1 || len(cut.Scopes[0].Upserts) != 1 {
		t.Fatalf("got %d scopes, want one item in one", len(cut.Scopes))
	}
	if sub.Next() != nil {
		t.Error("nothing changed, and yet there is a cut")
	}
}

// What a subscriber that never reads costs does not grow with what happens.
func TestASubscriberThatNeverReadsIsBounded(t *testing.T) {
	s := New("e")
	never, once := s.Subscribe("n"), s.Subscribe("n")
	held := NewScopeID(ScopeAddressGroup, "held")
	s.Commit([]Change{{Op: OpJoin, Scope: held, Kind: ScopeAddressGroup, Node: "n"}}, nil)
	once.Next()
	for i := range 5000 {
		id := NewScopeID(ScopeAddressGroup, fmt.Sprint(i))
		s.Commit([]Change{
			{Op: OpJoin, Scope: id, Kind: ScopeAddressGroup, Node: "n"},
			{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member("a", i))},
			{Op: OpUpsert, Scope: held, Kind: ScopeAddressGroup, Item: Encode(member(fmt.Sprint(i), i))},
		}, nil)
		s.Dispatch(1 << 30)
		s.Commit([]Change{{Op: OpDrop, Scope: id}, {Op: OpRemove, Scope: held, Item: Encoded{Key: PodKey("ns", fmt.Sprint(i))}}}, nil)
	}
	for name, sub := range map[string]*Subscriber{"never": never, "once": once} {
		if len(sub.dirty) > 1 || len(sub.gone) > 0 {
			t.Errorf("%s: %d dirty scopes, %d gone", name, len(sub.dirty), len(sub.gone))
		}
	}
	if n := len(s.pending); n > 1 {
		t.Errorf("%d scopes are pending", n)
	}
	if n := s.scopes[held].entries.slots(); n > 2*minTombstones+2 {
		t.Errorf("%d slots for no item", n)
	}
	if cut := once.Next(); len(cut.Scopes) != 1 || !cut.Scopes[0].Reset {
		t.Errorf("got %+v", cut.Scopes)
	}
}

// A large scope that shrinks gives its memory back.
func TestScopesTighten(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	s := New("e")
	const n = 10_000
	for i := range n {
		s.Commit([]Change{{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member(fmt.Sprint(i), i))}}, nil)
	}
	for i := range n - 10 {
		s.Commit([]Change{{Op: OpRemove, Scope: id, Kind: ScopeAddressGroup, Item: Encoded{Key: PodKey("ns", fmt.Sprint(i))}}}, nil)
	}
	if slots := s.scopes[id].entries.slots(); slots > 4*slabSlots {
		t.Errorf("%d slots for 10 items", slots)
	}
	if got := len(s.scopes[id].whole().Upserts); got != 10 {
		t.Errorf("%d items are left", got)
	}
}

// Wide changes may wait; what is sent meanwhile is consistent all the same.
func TestDispatchHoldsBackWideScopes(t *testing.T) {
	wide, narrow := NewScopeID(ScopeAddressGroup, "wide"), NewScopeID(ScopeAddressGroup, "narrow")
	s := New("e")
	subs := make([]*Subscriber, 3)
	changes := []Change{{Op: OpJoin, Scope: narrow, Kind: ScopeAddressGroup, Node: "0"}}
	for i := range subs {
		changes = append(changes, Change{Op: OpJoin, Scope: wide, Kind: ScopeAddressGroup, Node: fmt.Sprint(i)})
		subs[i] = s.Subscribe(fmt.Sprint(i))
	}
	s.Commit(changes, nil)
	for _, sub := range subs {
		<-sub.Wake()
		sub.Next()
	}
	upsert := func(id ScopeID) Change {
		return Change{Op: OpUpsert, Scope: id, Kind: ScopeAddressGroup, Item: Encode(member("a", 1))}
	}
	s.Commit([]Change{upsert(wide)}, nil)
	<-s.Changed()
	if marks, held := s.Dispatch(2); marks != 0 || !held {
		t.Fatalf("%d marks, held %v", marks, held)
	}
	s.Commit([]Change{upsert(narrow)}, nil)
	<-s.Changed()
	if marks, held := s.Dispatch(2); marks != 1 || !held {
		t.Fatalf("%d marks, held %v", marks, held)
	}
	<-subs[0].Wake()
	if cut := subs[0].Next(); len(cut.Scopes) != 2 || cut.Digest != s.Node("0").Digest {
		t.Errorf("node 0 gets %d scopes, want the wide one with the narrow", len(cut.Scopes))
	}
	if marks, held := s.Dispatch(3); marks != 3 || held {
		t.Fatalf("%d marks, held %v", marks, held)
	}
	if cut := subs[0].Next(); cut != nil {
		t.Errorf("node 0 gets %+v twice", cut.Scopes)
	}
	for _, sub := range subs[1:] {
		<-sub.Wake()
		if cut := sub.Next(); cut == nil || len(cut.Scopes) != 1 {
			t.Errorf("got %+v", cut)
		}
	}
}

func TestReached(t *testing.T) {
	s := New("e")
	if s.Reached(Position{"pods": 5}) != nil {
		t.Error("a source that is not read is waited for")
	}
	s.Commit(nil, Position{"pods": 4})
	moved := s.Reached(Position{"pods": 5})
	s.Commit(nil, Position{"pods": 5})
	<-moved
	if s.Reached(Position{"pods": 5}) != nil {
		t.Error("reached, and yet there is something to wait for")
	}
}
