package pipeline

import (
	"cmp"
	"slices"
	"strings"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// flowSet is the desired flows, and which of them changed since the last take.
// A flow is either fixed, or a clause flow that conjunctions share.
type flowSet struct {
	flows map[openflow.FlowKey]*desired
	dirty []touched
	shown map[uint8]int // Flows as of the last take, by table; none of zero.
	round uint32        // Of the last Comparison.
	// unlisted has the next take list no flows to put in.
	unlisted bool
}

// desired is what a flow is made of. The flow itself is not kept: of most there is
// one membership, and they are by far the most that a compiler has in memory.
type desired struct {
	more  *mixture   // Nil: there is but the one membership.
	sole  membership // Its count is zero where there is more, or no flow.
	met   uint32     // The last round in which a flow met it.
	dirty bool       // It is in the set's dirty.
}

// clause says whether the flow, if there is one, is a clause of conjunctions and no more.
func (d *desired) clause() bool { return d.more == nil || len(d.more.fixed) == 0 }

// mixture is what a flow is made of that has an owner, or several memberships.
type mixture struct {
	fixed   []owned      // By owner; the first counts. Empty: a clause flow.
	clauses []membership // Sorted by conjunction.
}

// touched is a flow that may have changed since the last take.
type touched struct {
	key openflow.FlowKey
	*desired
	shown *openflow.Flow // As of the last take; nil where it was not there.
}

// membership of a flow in one clause of one conjunction, counted: several
// addresses of one peer list may come to the same match.
type membership struct {
	conj, count     uint32
	clause, clauses uint8
}

func newFlowSet() flowSet {
	return flowSet{flows: make(map[openflow.FlowKey]*desired), shown: make(map[uint8]int)}
}

func (s *flowSet) at(key openflow.FlowKey) *desired {
	d := s.flows[key]
	if d == nil {
		d = &desired{}
		s.flows[key] = d
	}
	if !d.dirty {
		t := touched{key: key, desired: d}
		if f, is := d.flow(key); is {
			t.shown = &f
		}
		s.dirty = append(s.dirty, t)
		d.dirty = true
	}
	return d
}

// owned is a fixed flow, but for its key, and who put it in. Two may want flows of
// one key, as two Pods do that are said to have one address: then the owner whose
// name comes first has it, whichever came first.
type owned struct {
	owner       string
	cookie      uint64
	actions     openflow.Actions
	idle, limit uint16 // Timeouts.
}

func ownedBy(owner string, f openflow.Flow) owned {
	return owned{owner, f.Cookie, f.Actions, f.IdleTimeout, f.HardTimeout}
}

func byOwner(o owned, owner string) int { return strings.Compare(o.owner, owner) }

// set puts an owner's fixed flow in, in place of the one that it had there.
func (s *flowSet) set(owner string, f openflow.Flow) {
	m := s.at(f.Key()).mix()
	i, found := slices.BinarySearchFunc(m.fixed, owner, byOwner)
	if found {
		m.fixed[i] = ownedBy(owner, f)
		return
	}
	m.fixed = slices.Insert(m.fixed, i, ownedBy(owner, f))
}

// unset takes an owner's fixed flow out.
func (s *flowSet) unset(owner string, key openflow.FlowKey) {
	d := s.at(key)
	if d.more == nil {
		return
	}
	if i, found := slices.BinarySearchFunc(d.more.fixed, owner, byOwner); found {
		d.more.fixed = slices.Delete(d.more.fixed, i, i+1)
	}
	d.unmix()
}

// join counts a match into a clause; leave undoes it.
func (s *flowSet) join(key openflow.FlowKey, m membership) {
	d := s.at(key)
	switch {
	case d.more == nil && d.sole.count == 0:
		m.count = 1
		d.sole = m
		return
	case d.more == nil && compareMemberships(d.sole, m) == 0:
		d.sole.count++
		return
	}
	all := d.mix()
	i, found := slices.BinarySearchFunc(all.clauses, m, compareMemberships)
	if found {
		all.clauses[i].count++
		return
	}
	m.count = 1
	all.clauses = slices.Insert(all.clauses, i, m)
}

func (s *flowSet) leave(key openflow.FlowKey, m membership) {
	d := s.at(key)
	if d.more == nil && d.sole.count > 1 && compareMemberships(d.sole, m) == 0 {
		d.sole.count--
		return
	}
	all := d.mix()
	i, found := slices.BinarySearchFunc(all.clauses, m, compareMemberships)
	if !found {
		panic("pipeline: a clause is left that was never joined: " + key.String())
	}
	if all.clauses[i].count--; all.clauses[i].count == 0 {
		all.clauses = slices.Delete(all.clauses, i, i+1)
	}
	d.unmix()
}

// mix is what a flow is made of as a mixture, which unmix undoes where it is none.
func (d *desired) mix() *mixture {
	if d.more == nil {
		d.more = &mixture{}
		if d.sole.count > 0 {
			d.more.clauses = []membership{d.sole}
		}
		d.sole = membership{}
	}
	return d.more
}

func (d *desired) unmix() {
	if len(d.more.fixed) > 0 || len(d.more.clauses) > 1 {
		return
	}
	if len(d.more.clauses) == 1 {
		d.sole = d.more.clauses[0]
	}
	d.more = nil
}

func compareMemberships(a, b membership) int {
	return cmp.Or(cmp.Compare(a.conj, b.conj), cmp.Compare(a.clause, b.clause))
}

// shared is how many conjunctions a clause flow lists.
func (s *flowSet) shared(key openflow.FlowKey) int {
	d := s.flows[key]
	switch {
	case d == nil || d.more == nil && d.sole.count == 0:
		return 0
	case d.more == nil:
		return 1
	}
	return len(d.more.clauses)
}

// listed is how many flows are put in as a list at the most. More would take a lot of
// memory at the moment when there is the most.
const listed = 20_000

// take returns what changed since the last take, in the order of table,
// priority and match text.
func (s *flowSet) take() (upsert []openflow.Flow, more *Flows, remove []openflow.FlowKey) {
	slices.SortFunc(s.dirty, func(a, b touched) int { return CompareKeys(a.key, b.key) })
	many := len(s.dirty) > listed
	if n := len(s.dirty); n > 0 && !s.unlisted && !many {
		upsert = make([]openflow.Flow, 0, n)
	}
	put := s.dirty[:0] // Of those that were looked at.
	for _, d := range s.dirty {
		now, is := d.flow(d.key)
		switch {
		case !is && d.shown != nil:
			remove = append(remove, d.key)
		case !is || s.unlisted || d.shown != nil && now.Same(*d.shown):
		case many:
			put = append(put, touched{key: d.key, desired: d.desired})
		default:
			upsert = append(upsert, now)
		}
		s.count(d.key.Table, d.shown != nil, is)
		d.dirty = false
		if !is {
			delete(s.flows, d.key)
		}
	}
	s.dirty = nil
	if len(put) > 0 {
		more = &Flows{put}
	}
	return upsert, more, remove
}

// Flows are flows of Desired as of the last Update, which are made one by one.
type Flows struct{ list []touched }

// Len is how many there are.
func (l *Flows) Len() int { return len(l.list) }

// At makes one, which must not be asked for after the next Update.
func (l *Flows) At(i int) openflow.Flow {
	t := &l.list[i]
	if t.shown != nil {
		return *t.shown
	}
	f, _ := t.flow(t.key)
	return f
}

// count follows a flow that comes or goes.
func (s *flowSet) count(table uint8, before, now bool) {
	if !before && now {
		s.shown[table]++
	}
	if before && !now {
		if s.shown[table]--; s.shown[table] == 0 {
			delete(s.shown, table)
		}
	}
}

// flow is the flow of a key; false where there is none.
func (d *desired) flow(key openflow.FlowKey) (openflow.Flow, bool) {
	f := openflow.Flow{Table: key.Table, Priority: key.Priority, Match: key.Match}
	switch {
	case d.more == nil && d.sole.count == 0:
		return openflow.Flow{}, false
	case d.more == nil:
		f.Cookie, f.Actions = clauseCookie(key.Match), actions(d.sole.conjunction())
	case len(d.more.fixed) > 0:
		o := &d.more.fixed[0]
		f.Cookie, f.Actions, f.IdleTimeout, f.HardTimeout = o.cookie, o.actions, o.idle, o.limit
	default:
		list := make([]openflow.Action, 0, len(d.more.clauses))
		for _, m := range d.more.clauses {
			list = append(list, m.conjunction())
		}
		f.Cookie, f.Actions = clauseCookie(key.Match), actions(list...)
	}
	return f, true
}

func (m membership) conjunction() openflow.Action {
	return openflow.Conjunction{ID: m.conj, Clause: m.clause, Clauses: m.clauses}
}

// all is every desired flow as of the last take.
func (s *flowSet) all(visit func(openflow.Flow)) {
	for key, d := range s.flows {
		if f, is := d.flow(key); is && !d.dirty {
			visit(f)
		}
	}
	for _, d := range s.dirty {
		if d.shown != nil {
			visit(*d.shown)
		}
	}
}

// CompareKeys orders flows by table, the highest priority first, and match.
func CompareKeys(a, b openflow.FlowKey) int {
	if a.Table != b.Table {
		return int(a.Table) - int(b.Table)
	}
	if a.Priority != b.Priority {
		return int(b.Priority) - int(a.Priority)
	}
	return a.Match.Compare(b.Match)
}
