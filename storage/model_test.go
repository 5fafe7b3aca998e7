package storage

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// model is what the store's nodes must hold, kept without any cleverness.
type model struct {
	items map[ScopeID]map[string]string
	nodes map[ScopeID]map[string]bool
}

func (m *model) apply(c Change) {
	if c.Op == OpDrop {
		delete(m.items, c.Scope)
		delete(m.nodes, c.Scope)
		return
	}
	if m.items[c.Scope] == nil {
		m.items[c.Scope] = map[string]string{}
		m.nodes[c.Scope] = map[string]bool{}
	}
	switch c.Op {
	case OpUpsert:
		m.items[c.Scope][c.Item.Key] = c.Item.Body
	case OpRemove:
		delete(m.items[c.Scope], c.Item.Key)
	case OpJoin:
		m.nodes[c.Scope][c.Node] = true
	case OpLeave:
		delete(m.nodes[c.Scope], c.Node)
	}
}

// state is everything that one node must hold, as text.
func (m *model) state(node string) map[string]string {
	out := map[string]string{}
	for id, items := range m.items {
		if !m.nodes[id][node] {
			continue
		}
		out[id.String()] = ""
		for key, body := range items {
			out[id.String()+" "+key] = body
		}
	}
	return out
}

func replicaState(r *Replica) map[string]string {
	out := map[string]string{}
	for _, kind := range []ScopeKind{ScopeNode, ScopePolicies, ScopeAddressGroup} {
		for _, id := range r.ids(kind) {
			out[id.String()] = ""
		}
		r.Items(kind, func(id ScopeID, item *policyv1.Item) {
			e := Encode(item)
			out[id.String()+" "+e.Key] = e.Body
		})
	}
	return out
}

func member(name string, version int) *policyv1.Item {
	return &policyv1.Item{Body: &policyv1.Item_Member{Member: &policyv1.Member{
		Subject: &policyv1.Member_Pod{Pod: &policyv1.PodRef{Namespace: "ns", Name: name}},
		Ips:     [][]byte{{10, 0, byte(version >> 8), byte(version)}},
	}}}
}

func randomChange(rng *rand.Rand) Change {
	c := Change{
		Op:    Op(1 + rng.IntN(4)),
		Scope: NewScopeID(ScopeAddressGroup, fmt.Sprint(rng.IntN(6))),
		Kind:  ScopeAddressGroup,
		Node:  fmt.Sprint("node-", rng.IntN(3)),
	}
	if rng.IntN(20) == 0 {
		c.Op = OpDrop
	}
	name := fmt.Sprint("pod-", rng.IntN(30))
	c.Item.Key = PodMemberKey("ns", name)
	if c.Op == OpUpsert {
		c.Item = Encode(member(name, rng.IntN(3)))
	}
	return c
}

// Whatever a subscriber reads, at whatever speed, through whatever reconnects,
// its replica holds what the model says, and the digests agree.
func TestReplicasHoldWhatTheModelSays(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		store := New("epoch")
		m := &model{items: map[ScopeID]map[string]string{}, nodes: map[ScopeID]map[string]bool{}}
		type follower struct {
			node    string
			sub     *Subscriber
			replica *Replica
		}
		var followers []*follower
		for i := range 3 {
			node := fmt.Sprint("node-", i)
			followers = append(followers, &follower{node: node, sub: store.Subscribe(node), replica: &Replica{}})
		}
		read := func(f *follower) {
			cut := f.sub.Next()
			if cut == nil {
				return
			}
			for _, b := range cut.Frames(1 + rng.IntN(300)) {
				frame := &policyv1.Cut{}
				if err := proto.Unmarshal(b, frame); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if _, _, err := f.replica.Apply(frame); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			if f.replica.Digest() != cut.Digest {
				t.Fatalf("seed %d: %s: replica's digest %s, cut's %s", seed, f.node, f.replica.Digest(), cut.Digest)
			}
		}
		for range 120 {
			var changes []Change
			for range rng.IntN(8) {
				c := randomChange(rng)
				changes = append(changes, c)
				m.apply(c)
			}
			store.Commit(changes, nil)
			f := followers[rng.IntN(len(followers))]
			switch rng.IntN(6) {
			case 0: // Reconnects, with what it holds.
				f.sub.Close()
				f.sub = store.Subscribe(f.node)
				if rev, _, ok := f.sub.Resume(f.replica.Digest()); ok {
					f.replica.InSync(&policyv1.InSync{Epoch: "epoch", Revision: rev})
				}
			case 1, 2: // Is slow.
			default:
				read(f)
			}
		}
		for _, f := range followers {
			read(f)
			want, got := m.state(f.node), replicaState(f.replica)
			if len(want) != len(got) {
				t.Fatalf("seed %d: %s holds %d entries, the model %d", seed, f.node, len(got), len(want))
			}
			for k := range want {
				if got[k] != want[k] {
					t.Fatalf("seed %d: %s: %s differs", seed, f.node, k)
				}
			}
			if store.Node(f.node).Digest != f.replica.Digest() {
				t.Fatalf("seed %d: %s: digests differ at the end", seed, f.node)
			}
		}
	}
}

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
		s.Commit([]Change{{Op: OpRemove, Scope: id, Kind: ScopeAddressGroup, Item: Encoded{Key: PodMemberKey("ns", name)}}}, nil)
	}
	if n := len(s.scopes[id].dead); n > minTombstones {
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

func TestReplicaRefusesMalformedFrames(t *testing.T) {
	good := func() *policyv1.Cut {
		id := NewScopeID(ScopeAddressGroup, "g")
		return &policyv1.Cut{Epoch: "e", Revision: 1, Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{
			{Id: id[:], Kind: ScopeAddressGroup, Upserts: []*policyv1.Item{member("a", 1)}}}}
	}
	for name, breakIt := range map[string]func(*policyv1.Cut){
		"no epoch":       func(c *policyv1.Cut) { c.Epoch = "" },
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
