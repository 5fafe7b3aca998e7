package storage

import (
	"fmt"
	"maps"
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
	for _, kind := range []ScopeKind{ScopeNode, ScopePolicies, ScopeAddressGroup, ScopeRoutes} {
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

// choices feeds a test: from a seed, or from a fuzzer's bytes, after whose end
// every choice is the first.
type choices struct {
	rng   *rand.Rand
	bytes []byte
}

func (c *choices) of(n int) int {
	if c.rng != nil {
		return c.rng.IntN(n)
	}
	if len(c.bytes) == 0 {
		return 0
	}
	b := c.bytes[0]
	c.bytes = c.bytes[1:]
	return int(b) % n
}

func (c *choices) change() Change {
	ch := Change{
		Op:    Op(1 + c.of(4)),
		Scope: NewScopeID(ScopeAddressGroup, fmt.Sprint(c.of(6))),
		Kind:  ScopeAddressGroup,
		Node:  fmt.Sprint("node-", c.of(3)),
	}
	if c.of(20) == 1 {
		ch.Op = OpDrop
	}
	name := fmt.Sprint("pod-", c.of(60))
	ch.Item.Key = PodKey("ns", name)
	if ch.Op == OpUpsert {
		ch.Item = Encode(member(name, c.of(3)))
	}
	return ch
}

// service is one replica of the policy service: it reads the same changes as
// the other, but later, and in other portions.
type service struct {
	store  *Store
	behind []Change
}

func (s *service) catchUp(n int) {
	n = min(n, len(s.behind))
	s.store.Commit(s.behind[:n], nil)
	s.behind = s.behind[n:]
}

type follower struct {
	t       *testing.T
	node    string
	at      *service
	sub     *Subscriber
	replica *Replica
}

// connect subscribes with what the follower holds.
func (f *follower) connect(c *choices, at *service) {
	if f.sub != nil {
		f.sub.Close()
	}
	f.at, f.sub = at, at.store.Subscribe(f.node)
	f.replica.Begin()
	if f.replica.Epoch() == "" {
		return
	}
	if rev, _, ok := f.sub.Resume(f.replica.Digest()); ok {
		f.replica.InSync(&policyv1.InSync{Epoch: at.store.Epoch(), Revision: rev})
	} else if c.of(4) > 0 {
		f.repair(c)
	}
}

func (f *follower) repair(c *choices) {
	inv, asked := Inventory{}, &policyv1.InventoryRequest{}
	for asked != nil {
		m, err := f.replica.Inventory(asked)
		if err != nil {
			f.t.Fatal(err)
		}
		if err := inv.Add(m, asked); err != nil {
			f.t.Fatal(err)
		}
		if c.of(3) == 0 { // The store goes on meanwhile.
			f.at.catchUp(c.of(5))
		}
		asked = nil
		if c.of(4) > 0 {
			asked = f.sub.Compare(inv)
		}
		if asked != nil && len(asked.Scopes) == 0 {
			f.t.Fatal("an empty request asks for everything")
		}
		for _, s := range asked.GetScopes() {
			id, _ := ScopeIDFromBytes(s.GetId())
			if inv[id].buckets != nil {
				f.t.Fatalf("scope %s is asked for a second time", id)
			}
		}
	}
	if !f.take(c, f.sub.Repair(inv)) {
		f.t.Fatalf("%s: wrong after a repair", f.node)
	}
}

// take applies a cut and reports whether the digest came out.
func (f *follower) take(c *choices, cut *Cut) bool {
	for _, b := range cut.Frames(1 + c.of(300)) {
		frame := &policyv1.Cut{}
		if err := proto.Unmarshal(b, frame); err != nil {
			f.t.Fatal(err)
		}
		if _, _, err := f.replica.Apply(frame); err != nil {
			f.t.Fatal(err)
		}
	}
	return f.replica.Digest() == cut.Digest
}

func (f *follower) read(c *choices, spoilt bool) {
	cut := f.sub.Next()
	if cut == nil {
		return
	}
	if want := f.at.store.Node(f.node).Digest; cut.Digest != want {
		f.t.Fatalf("%s: the cut's digest is %s, the store's %s", f.node, cut.Digest, want)
	}
	if f.take(c, cut) {
		return
	}
	if !spoilt {
		f.t.Fatalf("%s: replica's digest %s, cut's %s", f.node, f.replica.Digest(), cut.Digest)
	}
	f.repair(c)
}

// spoil has the replica hold something else than it was sent.
func (f *follower) spoil(c *choices) {
	if f.replica.Epoch() == "" {
		return
	}
	id := NewScopeID(ScopeAddressGroup, fmt.Sprint(c.of(7)))
	sd := &policyv1.ScopeDelta{Id: id[:], Kind: ScopeAddressGroup}
	name := fmt.Sprint("pod-", c.of(60))
	switch c.of(4) {
	case 0:
		sd.Gone = true
	case 1:
		sd.Removals = []string{PodKey("ns", name)}
	default:
		sd.Upserts = []*policyv1.Item{member(name, 9)}
	}
	f.replica.Apply(&policyv1.Cut{Revision: f.replica.Revision(), Digest: make([]byte, 16), Scopes: []*policyv1.ScopeDelta{sd}})
}

// Whatever a subscriber reads, at whatever speed, through whatever reconnects,
// changes of the service's replica and faults of its own, it comes to hold what
// the model says, and the digests agree all the way.
func runModel(t *testing.T, c *choices) {
	m := &model{items: map[ScopeID]map[string]string{}, nodes: map[ScopeID]map[string]bool{}}
	services := []*service{{store: New("a")}, {store: New("b")}}
	var followers []*follower
	spoilt := map[*follower]bool{}
	for i := range 3 {
		f := &follower{t: t, node: fmt.Sprint("node-", i), replica: &Replica{}}
		f.connect(c, services[c.of(2)])
		followers = append(followers, f)
	}
	for range 120 {
		for range c.of(8) {
			ch := c.change()
			m.apply(ch)
			for _, s := range services {
				s.behind = append(s.behind, ch)
			}
		}
		s := services[c.of(2)]
		s.catchUp(c.of(12))
		if c.of(2) == 0 {
			s.store.Dispatch(c.of(4))
		}
		f := followers[c.of(len(followers))]
		switch c.of(8) {
		case 0:
			f.connect(c, services[c.of(2)])
		case 1:
			f.spoil(c)
			spoilt[f] = true
		case 2, 3: // Is slow.
		default:
			f.read(c, spoilt[f])
		}
	}
	for _, s := range services {
		s.catchUp(len(s.behind))
		s.store.Dispatch(1 << 30)
	}
	for _, f := range followers {
		if spoilt[f] { // A fault shows with the next cut; here there may be none.
			f.connect(c, f.at)
		}
		if !f.sub.begun { // A server sends the snapshot at once.
			f.read(c, true)
		}
		for woken := true; woken; { // Nobody who has something to read sleeps.
			select {
			case <-f.sub.Wake():
				f.read(c, spoilt[f])
			default:
				woken = false
			}
		}
		want, got := m.state(f.node), replicaState(f.replica)
		if f.replica.Digest() != services[0].store.Node(f.node).Digest && spoilt[f] {
			f.repair(c)
			got = replicaState(f.replica)
		}
		if !maps.Equal(want, got) {
			t.Fatalf("%s holds\n%v\nwant\n%v", f.node, got, want)
		}
		for _, s := range services {
			if d := s.store.Node(f.node).Digest; d != f.replica.Digest() {
				t.Fatalf("%s: digest %s, of service %s %s", f.node, f.replica.Digest(), s.store.Epoch(), d)
			}
		}
	}
}

func TestReplicasHoldWhatTheModelSays(t *testing.T) {
	for seed := range uint64(600) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, &choices{rng: rand.New(rand.NewPCG(seed, 1))}) })
	}
}

func FuzzReplicasHoldWhatTheModelSays(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 8 {
		b := make([]byte, 4000)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { runModel(t, &choices{bytes: b}) })
}
