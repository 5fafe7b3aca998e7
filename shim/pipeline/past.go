package pipeline

import (
	"math"
	"net/netip"
	"slices"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/storage"
)

// Reports of packets arrive while the state goes on. Each Update that changes
// what a report may mean is a revision. The Revision table's flow notes its
// number in a register of every packet that is judged, and so a report tells
// which revision judged it, whenever it comes: packets meet a bundle's flows at
// once, but not all at one moment. What was otherwise in recent revisions is kept
// until Forget.

// revisions is how many there are before a register has the same number again;
// zero is none.
const revisions = math.MaxUint16

// RevisionOf reads the revision of a reported packet.
func RevisionOf(register func(n int) uint32) uint16 { return uint16(register(regZone) >> 16) }

// noted is the number of a revision, as packets carry it.
func noted(revision uint64) uint16 {
	return uint16((revision-1)%revisions) + 1
}

// revisionFlow notes the present revision.
func (c *Compiler) revisionFlow() openflow.Flow {
	return openflow.Flow{Table: TableRevision, Priority: prioMiss, Cookie: cookie(KindStatic, 0), Actions: actions(
		openflow.SetReg(regZone, uint32(noted(c.revision))<<16, 0xffff0000), openflow.GotoTable(TableAntreaPolicyEgressRule))}
}

// revisionOf is the revision that judged a hit; the present one where that is not
// known.
func (c *Compiler) revisionOf(h Hit) uint64 {
	if h.Revision == 0 {
		return c.revision
	}
	ago := (uint64(noted(c.revision)) + revisions - uint64(h.Revision)) % revisions
	if ago > c.revision-c.first { // Of before this compiler.
		return c.revision
	}
	return c.revision - ago
}

// Revision is that of the last Update that was one; zero before the first Update.
func (c *Compiler) Revision() uint64 { return c.revision }

// past is what a map held in recent revisions, where that was something else. That it
// held nothing is not noted of what says itself since when it is there.
type past[K comparable, V any] map[K][]former[V]

// former is what was there until a revision, which had something else.
type former[V any] struct {
	until uint64
	value V
}

// note keeps what a key has before it is changed for the first time in a revision.
func (p past[K, V]) note(key K, revision uint64, value V) {
	list := p[key]
	if n := len(list); n == 0 || list[n-1].until < revision {
		p[key] = append(list, former[V]{revision, value})
	}
}

// at is what a key had in a revision, where it has something now.
func (p past[K, V]) at(key K, revision uint64, now V) V {
	for _, f := range p[key] {
		if f.until > revision {
			return f.value
		}
	}
	return now
}

// forget forgets what was before a revision.
// It returns what is left: a map keeps the room of all that it ever held.
func (p past[K, V]) forget(revision uint64) past[K, V] {
	had := len(p)
	for key, list := range p {
		list = slices.DeleteFunc(list, func(f former[V]) bool { return f.until <= revision })
		if p[key] = list; len(list) == 0 {
			delete(p, key)
		}
	}
	if had > 0 && len(p) == 0 {
		return make(past[K, V])
	}
	return p
}

// history is what was otherwise in recent revisions.
type history struct {
	ports    past[uint32, *endpoint]
	members  past[groupMember, *memberFacts]
	names    past[netip.Addr, []nameCount]
	policies map[storage.ScopeID]map[*policy]struct{} // That are not in force any more, by applied-to group.
	changed  bool                                     // Something is otherwise since the last Update.
}

// groupMember is a member of a group, by its item's key.
type groupMember struct {
	group storage.ScopeID
	key   string
}

func newHistory() history {
	return history{ports: make(past[uint32, *endpoint]), members: make(past[groupMember, *memberFacts]), names: make(past[netip.Addr, []nameCount]),
		policies: make(map[storage.ScopeID]map[*policy]struct{})}
}

// remember notes in a part of the history what a key has, ahead of a change. Before
// the first revision nothing is known to have been judged.
func remember[K comparable, V any](c *Compiler, in past[K, V], key K, value V) {
	c.history.changed = true
	if c.revision > c.first {
		in.note(key, c.revision, value)
	}
}

// came and went say of a policy since and until when it is in force.
func (c *Compiler) came(p *policy) {
	c.history.changed, p.since, p.until = true, c.revision, math.MaxUint64
}

func (c *Compiler) went(p *policy) {
	c.history.changed, p.until = true, c.revision
	if c.revision > c.first {
		for _, g := range p.scopes() {
			link(c.history.policies, g, p)
		}
	}
}

// revise ends an Update. One that changes nothing that a report may mean is no
// revision, unless it is the first.
func (c *Compiler) revise() {
	if !c.history.changed && c.revision > c.first {
		c.revision--
		return
	}
	c.history.changed = false
	c.flows.set("", c.revisionFlow())
}

// Forget forgets what was otherwise before a revision: the reports of packets
// that earlier ones judged have come.
func (c *Compiler) Forget(revision uint64) {
	h := &c.history
	h.ports, h.names, h.members = h.ports.forget(revision), h.names.forget(revision), h.members.forget(revision)
	for g, keys := range c.blocks {
		for key := range keys {
			if _, was := c.history.members[groupMember{g, key}]; !was && c.groups[g][key] == nil {
				unlink(c.blocks, g, key)
			}
		}
	}
	for g, policies := range c.history.policies {
		for p := range policies {
			if p.until <= revision {
				unlink(c.history.policies, g, p)
			}
		}
	}
}

// portAt is the endpoint that a port had in a revision; nil where it had none.
func (c *Compiler) portAt(ofport uint32, revision uint64) *endpoint {
	return c.history.ports.at(ofport, revision, c.ports[ofport])
}

// guardingAt are the policies that had a group of the endpoint among those that
// they apply to, in a revision.
func (c *Compiler) guardingAt(ep *endpoint, revision uint64) map[*policy]struct{} {
	out := make(map[*policy]struct{})
	if ep == nil {
		return out
	}
	for g := range ep.groups {
		for _, policies := range []map[*policy]struct{}{c.guards[g], c.history.policies[g]} {
			for p := range policies {
				if p.since <= revision && revision < p.until {
					out[p] = struct{}{}
				}
			}
		}
	}
	return out
}

// memberAt is a member of a group in a revision; nil where it was none.
func (c *Compiler) memberAt(m groupMember, revision uint64) *memberFacts {
	was := c.history.members.at(m, revision, c.groups[m.group][m.key])
	if was != nil && was.since > revision {
		return nil
	}
	return was
}

// namesAt are whose an address was in a revision.
func (c *Compiler) namesAt(a netip.Addr, revision uint64) []nameCount {
	list := c.history.names.at(a, revision, c.names[a])
	later := func(n nameCount) bool { return n.since > revision }
	if slices.ContainsFunc(list, later) {
		list = slices.DeleteFunc(slices.Clone(list), later)
	}
	return list
}
