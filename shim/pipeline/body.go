package pipeline

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/zeebo/xxh3"
	"google.golang.org/protobuf/proto"

	"github.com/weirnet/weir/storage"
)

// body is the flows of a rule, or of all rules that are alike: in one world,
// table and level, of one action, with the same targets, peers and services.
// So a thousand policies that say the same cost what one does. It contributes
// flows as long as it guards an endpoint with a port, for the address families
// of those that it guards.
type body struct {
	content
	key     bodyKey
	world   world
	own     bool // In the staged world: of staged policies, and no twin of enforced rules.
	table   uint8
	level   *level // Nil for Kubernetes rules.
	members map[*rule]struct{}
	// owner is the member by whose name the assignment knows the places of the
	// parts, and for which packets count. It stays the owner until it leaves.
	owner     *rule
	parts     []*part
	guarded   map[*endpoint]struct{}
	in        [2]int            // Guarded endpoints by family.
	asked     map[*endpoint]int // In the staged world: members that are to guard it.
	reporting int               // Members that have a twin in the staged world.
	weight    weight            // Its part of its level's.
}

type bodyKey [16]byte

// bodyKey says which rules are alike.
func (r *rule) bodyKey() bodyKey {
	b := []byte{byte(r.world), byte(r.policy.world()), byte(r.direction), bit(r.log), bit(r.anyPeer), bit(r.anyService)}
	if r.ordered() {
		b = append(b, r.at.String()...)
	}
	ids := func(list []storage.ScopeID) {
		list = slices.Clone(list)
		slices.SortFunc(list, func(a, b storage.ScopeID) int { return slices.Compare(a[:], b[:]) })
		list = slices.Compact(list)
		b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
		for _, id := range list {
			b = append(b, id[:]...)
		}
	}
	ids(r.applied)
	ids(r.peers)
	ids(r.named)
	var texts []string
	for _, p := range r.blocks {
		texts = append(texts, p.String())
	}
	for _, s := range r.services {
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(s)
		if err != nil {
			panic("pipeline: marshal service: " + err.Error())
		}
		texts = append(texts, "\x00"+string(text))
	}
	slices.Sort(texts)
	for _, text := range slices.Compact(texts) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
		b = append(b, text...)
	}
	return xxh3.Hash128(b).Bytes()
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (b *body) steps() steps { return stepsOf[b.world][b.direction] }

// admit brings a rule to its body. It guards nothing new by itself.
func (c *Compiler) admit(r *rule) {
	key := r.bodyKey()
	b := c.bodies[key]
	if b == nil {
		b = &body{content: r.content, key: key, world: r.world, own: r.policy.world() == staged, table: r.table(), members: make(map[*rule]struct{}),
			guarded: make(map[*endpoint]struct{}), asked: make(map[*endpoint]int)}
		b.parts = newParts(b)
		c.bodies[key] = b
		for _, g := range slices.Concat(b.peers, b.named) {
			link(c.peerOf, g, b)
		}
	}
	b.level, r.body = r.level, b
	b.members[r] = struct{}{}
	if b.owner != nil && b.owner.key == r.key {
		b.owner = r
		c.counts.recount(b)
	}
}

// dismiss undoes admit. With the last member go the flows.
func (c *Compiler) dismiss(r *rule) {
	b := r.body
	r.body = nil
	delete(b.members, r)
	if len(b.members) > 0 {
		if b.owner == r {
			c.orphaned[b] = struct{}{}
		}
		return
	}
	for ep := range b.guarded {
		c.unguard(b, ep)
	}
	for _, g := range slices.Concat(b.peers, b.named) {
		unlink(c.peerOf, g, b)
	}
	delete(c.bodies, b.key)
	delete(c.orphaned, b)
}

// adopt makes a member the owner: one that has a place from before, or else the
// first of the policies.
func (c *Compiler) adopt(b *body) {
	held := func(r *rule) bool {
		return slices.ContainsFunc(b.parts, func(pt *part) bool {
			place, had := c.assignment.Rules[r.partKey(pt)]
			return had && c.byConj[place.Conj] == nil
		})
	}
	b.owner = nil
	for r := range b.members {
		if b.owner == nil || cmp.Or(-cmp.Compare(bit(held(r)), bit(held(b.owner))), compareTied(r.policy, b.owner.policy), cmp.Compare(r.key, b.owner.key)) < 0 {
			b.owner = r
		}
	}
}

// partKey is the key of a part's place, if the rule is the owner.
func (r *rule) partKey(pt *part) string {
	if pt.named {
		return r.key + "/named"
	}
	return r.key
}

// passOn gives the places of bodies whose owner has left to another member. In
// between, the owner may have come back, as a policy that was written anew.
func (c *Compiler) passOn() {
	for b := range c.orphaned {
		if _, is := b.members[b.owner]; is || len(b.guarded) == 0 {
			continue
		}
		c.adopt(b)
		for _, pt := range b.parts {
			if c.assignment.Rules[pt.key] == pt.place {
				delete(c.assignment.Rules, pt.key)
			}
			pt.key = b.owner.partKey(pt)
			c.assignment.Rules[pt.key] = pt.place
		}
		c.counts.recount(b)
	}
	clear(c.orphaned)
}

// guard makes an endpoint a target of a body. The first brings the decisions
// in; the first of an address family, its peers and services. Rules that are
// past their table's limit guard nothing.
func (c *Compiler) guard(b *body, ep *endpoint) {
	if _, guarded := b.guarded[ep]; guarded || (b.level != nil && b.level.beyond) {
		return
	}
	if len(b.guarded) == 0 {
		if _, is := b.members[b.owner]; !is {
			c.adopt(b)
		}
		for _, pt := range b.parts {
			c.place(pt, ep)
		}
		if b.level != nil {
			b.level.bodies[b] = struct{}{}
		}
	}
	b.guarded[ep] = struct{}{}
	if len(b.guarded) == 1 {
		c.decisions(b)
	}
	for f, has := range ep.families {
		if has {
			if b.in[f]++; b.in[f] == 1 {
				c.familyClauses(b, f, c.come)
			}
		}
	}
	c.targetClauses(b, ep, c.come)
	c.weigh(b)
}

func (c *Compiler) unguard(b *body, ep *endpoint) {
	if _, guarded := b.guarded[ep]; !guarded {
		return
	}
	c.targetClauses(b, ep, c.goes)
	for f, has := range ep.families {
		if has {
			if b.in[f]--; b.in[f] == 0 {
				c.familyClauses(b, f, c.goes)
			}
		}
	}
	delete(b.guarded, ep)
	if len(b.guarded) == 0 {
		c.undecide(b)
		for _, pt := range b.parts {
			c.unplace(pt)
		}
		if b.level != nil {
			delete(b.level.bodies, b)
		}
	}
	c.weigh(b)
}
