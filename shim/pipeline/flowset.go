package pipeline

import (
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
	fixed   []owned      // By owner; the first counts. Empty: a clause flow, or none.
	clauses []membership // Sorted by conjunction.
	dirty   bool         // It is in the set's dirty.
	met     uint32       // The last round in which a flow met it.
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
	conj            uint32
	clause, clauses uint8
	count           uint32
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

// owned is a fixed flow and who put it in. Two may want flows of one key, as
// two Pods do that are said to have one address: then the owner whose name
// comes first has it, whichever came first.
type owned struct {
	owner string
	flow  openflow.Flow
}

func byOwner(o owned, owner string) int { return strings.Compare(o.owner, owner) }

// set puts an owner's fixed flow in, in place of the one that it had there.
func (s *flowSet) set(owner string, f openflow.Flow) {
	d := s.at(f.Key())
	i, found := slices.BinarySearchFunc(d.fixed, owner, byOwner)
	if found {
		d.fixed[i].flow = f
		return
	}
	d.fixed = slices.Insert(d.fixed, i, owned{owner, f})
}

// unset takes an owner's fixed flow out.
func (s *flowSet) unset(owner string, key openflow.FlowKey) {
	d := s.at(key)
	if i, found := slices.BinarySearchFunc(d.fixed, owner, byOwner); found {
		d.fixed = slices.Delete(d.fixed, i, i+1)
	}
}

// join counts a match into a clause; leave undoes it.
func (s *flowSet) join(key openflow.FlowKey, m membership) {
	d := s.at(key)
	i, found := find(d.clauses, m)
	if found {
		d.clauses[i].count++
		return
	}
	m.count = 1
	d.clauses = slices.Insert(d.clauses, i, m)
}

func (s *flowSet) leave(key openflow.FlowKey, m membership) {
	d := s.at(key)
	i, found := find(d.clauses, m)
	if !found {
		panic("pipeline: a clause is left that was never joined: " + key.String())
	}
	if d.clauses[i].count--; d.clauses[i].count == 0 {
		d.clauses = slices.Delete(d.clauses, i, i+1)
	}
}

func find(list []membership, m membership) (int, bool) {
	return slices.BinarySearchFunc(list, m, func(a, b membership) int {
		if a.conj != b.conj {
			return int(int64(a.conj) - int64(b.conj))
		}
		return int(a.clause) - int(b.clause)
	})
}

// shared is how many conjunctions a clause flow lists.
func (s *flowSet) shared(key openflow.FlowKey) int {
	if d := s.flows[key]; d != nil {
		return len(d.clauses)
	}
	return 0
}

// take returns what changed since the last take, in the order of table,
// priority and match text.
func (s *flowSet) take() (upsert []openflow.Flow, remove []openflow.FlowKey) {
	slices.SortFunc(s.dirty, func(a, b touched) int { return CompareKeys(a.key, b.key) })
	if n := len(s.dirty); n > 0 && !s.unlisted {
		upsert = make([]openflow.Flow, 0, n)
	}
	for _, d := range s.dirty {
		now, is := d.flow(d.key)
		switch {
		case !is && d.shown != nil:
			remove = append(remove, d.key)
		case is && !s.unlisted && (d.shown == nil || !now.Same(*d.shown)):
			upsert = append(upsert, now)
		}
		s.count(d.key.Table, d.shown != nil, is)
		d.dirty = false
		if !is {
			delete(s.flows, d.key)
		}
	}
	s.dirty = nil
	return upsert, remove
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
	if len(d.fixed) > 0 {
		return d.fixed[0].flow, true
	}
	if len(d.clauses) == 0 {
		return openflow.Flow{}, false
	}
	list := make([]openflow.Action, 0, len(d.clauses))
	for _, m := range d.clauses {
		list = append(list, openflow.Conjunction{ID: m.conj, Clause: m.clause, Clauses: m.clauses})
	}
	return openflow.Flow{Table: key.Table, Priority: key.Priority, Match: key.Match, Cookie: cookie(KindClause, 0), Actions: actions(list...)}, true
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
