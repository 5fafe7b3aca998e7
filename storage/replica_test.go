package storage

import (
	"maps"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

func TestReplicaRefusesMalformedFrames(t *testing.T) {
	good := func() *policyv1.Cut {
		id := NewScopeID(ScopeAddressGroup, "g")
		return &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{
			{Id: id[:], Kind: ScopeAddressGroup, Upserts: []*policyv1.Item{member("a", 1)}}}}
	}
	for name, breakIt := range map[string]func(*policyv1.Cut){
		"odd buckets": func(c *policyv1.Cut) {
			c.Scopes[0].Buckets, c.Scopes[0].ResetBuckets = 3, []uint32{1}
		},
		"no revision":    func(c *policyv1.Cut) { c.Revision = 0 },
		"short digest":   func(c *policyv1.Cut) { c.Digest = []byte{1} },
		"short scope id": func(c *policyv1.Cut) { c.Scopes[0].Id = []byte{1} },
		"no scope kind":  func(c *policyv1.Cut) { c.Scopes[0].Kind = 0 },
		"no item body":   func(c *policyv1.Cut) { c.Scopes[0].Upserts[0].Body = nil },
		"bad prefix": func(c *policyv1.Cut) {
			c.Scopes[0].Upserts[0] = &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{Subject: &policyv1.Member_Block{
				Block: &policyv1.IPBlock{Cidr: &policyv1.Prefix{Address: []byte{1, 2, 3, 4}, Length: 33}}}}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Replica{}
			if _, _, err := r.Apply(good()); err != nil {
				t.Fatalf("the good frame: %v", err)
			}
			before := r.Digest()
			bad := good()
			breakIt(bad)
			if _, _, err := r.Apply(bad); err == nil {
				t.Error("no error")
			}
			if r.Digest() != before {
				t.Error("a refused frame changed the state")
			}
		})
	}
}

func TestReplicaWantsAnEpochFirst(t *testing.T) {
	r := &Replica{}
	cut := func(epoch string, whole Position, moved ...uint64) *policyv1.Cut {
		c := &policyv1.Cut{Epoch: epoch, Revision: 1, Digest: make([]byte, 16), Moved: moved}
		if whole != nil {
			c.Position = &policyv1.Position{Sources: whole}
		}
		return c
	}
	if _, _, err := r.Apply(cut("", nil)); err == nil {
		t.Error("a first cut without an epoch is taken")
	}
	for _, step := range []struct {
		cut  *policyv1.Cut
		want Position
	}{
		{cut("e", Position{"pods": 1, "nodes": 1}), Position{"pods": 1, "nodes": 1}},
		{cut("", nil, 1, 2), Position{"pods": 2, "nodes": 1}},
		{cut("", nil), Position{"pods": 2, "nodes": 1}},
		{cut("", nil, 0, 7, 1, 1), Position{"pods": 1, "nodes": 7}},
		{cut("", Position{"pods": 3}), Position{"pods": 3}},
		{cut("", nil, 0, 4), Position{"pods": 4}},
	} {
		if _, _, err := r.Apply(step.cut); err != nil {
			t.Fatal(err)
		}
		if got := Position(r.Position().GetSources()); r.Epoch() != "e" || !maps.Equal(got, step.want) {
			t.Errorf("epoch %q, position %v, want %v", r.Epoch(), got, step.want)
		}
	}
	for _, bad := range []*policyv1.Cut{cut("", nil, 1, 1), cut("", nil, 0), cut("e", nil, 0, 1)} {
		if _, _, err := r.Apply(bad); err == nil {
			t.Errorf("moves %v of epoch %q are taken", bad.Moved, bad.Epoch)
		}
	}
}

// What is told of a position brings who knows the former to it.
func TestPositionsAreToldInShort(t *testing.T) {
	for _, tc := range []struct {
		former, now Position
		short       bool
	}{
		{nil, Position{"a": 1}, false},
		{Position{"a": 1}, Position{"a": 1}, true},
		{Position{"a": 1, "b": 2, "c": 3}, Position{"a": 1, "b": 5, "c": 4}, true},
		{Position{"a": 9}, Position{"a": 2}, true},
		{Position{"a": 1}, Position{"b": 1}, false},
		{Position{"a": 1}, Position{"a": 1, "b": 0}, false},
		{Position{"a": 1, "b": 0}, Position{"a": 1}, false},
	} {
		whole, moved := tc.now.since(tc.former)
		if (whole == nil) != tc.short {
			t.Errorf("%v after %v: whole is %v", tc.now, tc.former, whole)
		}
		got := whole
		if whole == nil {
			var err error
			if got, err = tc.former.move(moved); err != nil {
				t.Fatal(err)
			}
		}
		if !maps.Equal(got, tc.now) {
			t.Errorf("%v after %v comes out as %v", tc.now, tc.former, got)
		}
	}
}

// A cut that forgets and brings again touches only what differs.
func TestResetTouchesWhatDiffers(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	cut := func(items ...*policyv1.Item) *policyv1.Cut {
		return &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16), Snapshot: true, Scopes: []*policyv1.ScopeDelta{
			{Id: id[:], Kind: ScopeAddressGroup, Reset_: true, Upserts: items}}}
	}
	r := &Replica{}
	if _, _, err := r.Apply(cut(member("same", 1), member("changed", 1), member("gone", 1))); err != nil {
		t.Fatal(err)
	}
	touched, _, err := r.Apply(cut(member("same", 1), member("changed", 2), member("new", 1)))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{PodKey("ns", "changed"), PodKey("ns", "gone"), PodKey("ns", "new")}
	if got := slices.Sorted(maps.Keys(touched[id].Keys)); !slices.Equal(got, want) || touched[id].All || len(touched) != 1 {
		t.Errorf("touched %v (all %v), want %v", got, touched[id].All, want)
	}
}

// A snapshot is the whole state: scopes of every kind, and of kinds that are not
// known here.
func TestSnapshotHoldsEveryKind(t *testing.T) {
	r := &Replica{}
	cut := &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16)}
	for kind := range policyv1.ScopeKind_name {
		if kind == 0 {
			continue
		}
		id := NewScopeID(ScopeKind(kind), "x")
		cut.Scopes = append(cut.Scopes, &policyv1.ScopeDelta{Id: id[:], Kind: ScopeKind(kind), Upserts: []*policyv1.Item{member("a", 1)}})
	}
	later := NewScopeID(99, "x")
	cut.Scopes = append(cut.Scopes, &policyv1.ScopeDelta{Id: later[:], Kind: 99, Upserts: []*policyv1.Item{member("b", 2)}})
	if _, _, err := r.Apply(cut); err != nil {
		t.Fatal(err)
	}
	again, encoded := &Replica{}, &Replica{}
	if _, _, err := again.Apply(r.Snapshot()); err != nil {
		t.Fatal(err)
	}
	if _, done, err := encoded.ApplyEncoded(r.EncodedSnapshot()); err != nil || !done {
		t.Fatal(done, err)
	}
	for _, is := range []*Replica{again, encoded} {
		if is.Digest() != r.Digest() || is.Epoch() != "e" || is.Revision() != 1 || !proto.Equal(is.Snapshot(), r.Snapshot()) {
			t.Error("a replica of the snapshot holds something else")
		}
	}
}

// What is encoded is refused as what it decodes to would be, and leaves the state as
// it was.
func TestApplyEncodedRefusesWhatIsMalformed(t *testing.T) {
	id := NewScopeID(ScopeAddressGroup, "g")
	cut := func(change func(*policyv1.Cut)) []byte {
		c := &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16), Snapshot: true, Scopes: []*policyv1.ScopeDelta{
			{Id: id[:], Kind: ScopeAddressGroup, Reset_: true, Upserts: []*policyv1.Item{member("a", 1)}}}}
		change(c)
		b, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := cut(func(*policyv1.Cut) {})
	bad := map[string][]byte{
		"no revision":     cut(func(c *policyv1.Cut) { c.Revision = 0 }),
		"no digest":       cut(func(c *policyv1.Cut) { c.Digest = nil }),
		"no kind":         cut(func(c *policyv1.Cut) { c.Scopes[0].Kind = 0 }),
		"short id":        cut(func(c *policyv1.Cut) { c.Scopes[0].Id = id[1:] }),
		"item of nothing": cut(func(c *policyv1.Cut) { c.Scopes[0].Upserts = append(c.Scopes[0].Upserts, &policyv1.Item{}) }),
		"torn":            good[:len(good)-1],
		"torn item":       cut(func(c *policyv1.Cut) { c.Scopes[0].ProtoReflect().SetUnknown([]byte{0x0a, 0x05, 1}) }),
	}
	r := &Replica{}
	if _, _, err := r.ApplyEncoded(good); err != nil {
		t.Fatal(err)
	}
	before := r.Digest()
	for name, b := range bad {
		if touched, done, err := r.ApplyEncoded(b); err == nil || done || touched != nil || r.Digest() != before {
			t.Errorf("%s: done %v, touched %v, %v", name, done, touched, err)
		}
	}
	if touched, _, err := r.ApplyEncoded(good); err != nil || len(touched) != 0 {
		t.Errorf("the same again touches %v, %v", touched, err)
	}
}
