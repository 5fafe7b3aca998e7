package storage

import (
	"slices"
	"sync"
)

// Store holds what every node must hold. The zero Store is not usable: see New.
type Store struct {
	epoch   string
	changed chan struct{} // One slot: there is something to dispatch.

	// mu guards everything below and what hangs on it, but for what a
	// Subscriber's reader owns. It is taken before Subscriber.mu where both are
	// held.
	mu       sync.RWMutex
	revision uint64
	position Position
	read     Position // How far sources have been read, where that is further; nil otherwise.
	scopes   map[ScopeID]*scope
	nodes    map[string]*node // Those with scopes or subscribers.
	numbered []*node          // By number; nil where it is unused.
	unused   []uint32         // Numbers.
	pending  []*scope         // Changed, and their subscribers not woken yet.
	advanced chan struct{}    // Closed with a Commit or Advance; nil while nobody waits.
}

type node struct {
	name   string
	number uint32   // By which spans know it. Another node may have it later.
	scopes []*scope // The span of each says where it is here.
	subs   []*Subscriber
}

// New returns an empty store at revision 1. The epoch names this life of the
// process.
func New(epoch string) *Store {
	return &Store{
		epoch:    epoch,
		changed:  make(chan struct{}, 1),
		revision: 1, // Zero means "none" on the wire.
		scopes:   make(map[ScopeID]*scope),
		nodes:    make(map[string]*node),
	}
}

// Epoch is the epoch that New was given.
func (s *Store) Epoch() string { return s.epoch }

// Commit makes one revision of the changes, in their order. Changes that change
// nothing make no revision; the position is taken over all the same.
//
// A change of items costs the same whatever the span: its subscribers are woken
// by Dispatch. Nodes that join or leave a scope are marked at once.
func (s *Store) Commit(changes []Change, position Position) (revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position = position
	s.moveOnLocked()
	next, changed := s.revision+1, false
	for len(changes) > 0 {
		n := run(changes)
		if s.applyLocked(changes[:n], next) {
			changed = true
		}
		changes = changes[n:]
	}
	if !changed {
		return s.revision
	}
	s.revision = next
	if len(s.pending) > 0 {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
	return next
}

// run is how many of the changes, from the first, do the same in one scope.
func run(changes []Change) int {
	for i := range changes {
		if changes[i].Op != changes[0].Op || changes[i].Scope != changes[0].Scope {
			return i
		}
	}
	return len(changes)
}

// applyLocked makes changes that do the same in one scope.
func (s *Store) applyLocked(run []Change, rev uint64) (changed bool) {
	first := &run[0]
	sc := s.scopes[first.Scope]
	if sc == nil {
		if first.Op == OpDrop || first.Op == OpRemove || first.Op == OpLeave {
			return false
		}
		sc = newScope(first.Scope, first.Kind)
		s.scopes[first.Scope] = sc
	}
	switch first.Op {
	case OpUpsert:
		sc.entries.reserve(len(run))
		for i := range run {
			changed = sc.upsert(run[i].Item, rev) || changed
		}
	case OpRemove:
		for i := range run {
			changed = sc.remove(run[i].Item.Key, rev) || changed
		}
	case OpJoin:
		if len(sc.span.nodes) == 0 {
			sc.span.nodes = slices.Grow(sc.span.nodes, len(run))
		}
		for i := range run {
			changed = s.joinLocked(sc, run[i].Node, rev) || changed
		}
		return changed
	case OpLeave:
		for i := range run {
			if n := s.nodes[run[i].Node]; n != nil {
				if at := sc.span.find(n); at >= 0 {
					s.leaveLocked(sc, at)
					changed = true
				}
			}
		}
		return changed
	case OpDrop:
		for len(sc.span.nodes) > 0 {
			s.leaveLocked(sc, len(sc.span.nodes)-1)
			changed = true
		}
		delete(s.scopes, first.Scope)
		return changed
	default:
		panic("storage: change without an operation")
	}
	if changed && !sc.marked && len(sc.span.nodes) > 0 {
		sc.marked = true
		s.pending = append(s.pending, sc)
	}
	return changed
}

func (s *Store) nodeLocked(name string) *node {
	n := s.nodes[name]
	if n == nil {
		n = &node{name: name}
		if last := len(s.unused) - 1; last >= 0 {
			n.number = s.unused[last]
			s.unused = s.unused[:last]
			s.numbered[n.number] = n
		} else {
			n.number = uint32(len(s.numbered))
			s.numbered = append(s.numbered, n)
		}
		s.nodes[name] = n
	}
	return n
}

// releaseLocked forgets a node that nothing holds any more.
func (s *Store) releaseLocked(n *node) {
	if len(n.scopes) == 0 && len(n.subs) == 0 {
		delete(s.nodes, n.name)
		s.numbered[n.number] = nil
		s.unused = append(s.unused, n.number)
	}
}

func (s *Store) joinLocked(sc *scope, name string, rev uint64) bool {
	n := s.nodeLocked(name)
	if sc.span.find(n) >= 0 {
		return false
	}
	sc.span.add(n, rev, int32(len(n.scopes)))
	n.scopes = append(n.scopes, sc)
	for _, sub := range n.subs {
		sub.mark(sc)
	}
	return true
}

func (s *Store) leaveLocked(sc *scope, i int) {
	left := sc.span.nodes[i]
	n := s.numbered[left.node]
	sc.span.remove(i)
	last := len(n.scopes) - 1
	if moved := n.scopes[last]; moved != sc {
		n.scopes[left.at] = moved
		moved.span.nodes[moved.span.find(n)].at = left.at
	}
	n.scopes[last] = nil
	n.scopes = n.scopes[:last]
	for _, sub := range n.subs {
		sub.left(sc, left.revision)
	}
	s.releaseLocked(n)
}

// Changed has a token when there is something for Dispatch.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// maxPending bounds the scopes that wait to be dispatched, since every Next
// looks at them.
const maxPending = 1024

// Dispatch wakes the subscribers of the scopes that changed, and returns how
// many marks it made. Scopes that more than widest nodes hold are left for a
// later call, unless too many wait; held says whether any were: so a caller may
// space what concerns everybody. A subscriber's cut is consistent in either
// case: Next looks at what was not dispatched yet too.
func (s *Store) Dispatch(widest int) (marks int, held bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) > maxPending {
		widest = int(^uint(0) >> 1)
	}
	kept := s.pending[:0]
	for _, sc := range s.pending {
		if len(sc.span.nodes) > widest {
			kept = append(kept, sc)
			continue
		}
		sc.marked = false
		for _, j := range sc.span.nodes {
			for _, sub := range s.numbered[j.node].subs {
				sub.mark(sc)
				marks++
			}
		}
	}
	clear(s.pending[len(kept):])
	s.pending = kept
	return marks, len(kept) > 0
}

// Revision is the newest revision and position.
func (s *Store) Revision() (uint64, Position) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision, s.position
}

// Advance says how far the sources have been read, where that is further than
// where their last change was: what a node was told of elsewhere is compared
// with it.
func (s *Store) Advance(read Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read = read
	s.moveOnLocked()
}

func (s *Store) moveOnLocked() {
	if s.advanced != nil {
		close(s.advanced)
		s.advanced = nil
	}
}

// Reached returns nil where the sources have been read as far as a position, and
// otherwise a channel that is closed when they have been read further.
func (s *Store) Reached(p Position) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.position.latest(s.read).Reaches(p) {
		return nil
	}
	if s.advanced == nil {
		s.advanced = make(chan struct{})
	}
	return s.advanced
}

// Advanced returns a channel that is closed with the next Commit or Advance.
func (s *Store) Advanced() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.advanced == nil {
		s.advanced = make(chan struct{})
	}
	return s.advanced
}

// NodeState is what a store knows of one node.
type NodeState struct {
	Digest   Digest
	Revision uint64 // Newest that changed an item or scope that the node holds; zero for none.
	Items    map[ScopeKind]int
	// Endpoints counts the items of the node's own scope but its facts.
	Endpoints int
}

// Node says what a node ought to hold. A node in no scope has the zero digest.
func (s *Store) Node(name string) NodeState {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := NodeState{Items: make(map[ScopeKind]int)}
	n := s.nodes[name]
	if n == nil {
		return st
	}
	for _, sc := range n.scopes {
		items := int(sc.entries.live.len)
		st.Digest = st.Digest.Plus(sc.digest)
		st.Revision = max(st.Revision, sc.revision, sc.span.joined(n))
		st.Items[sc.kind] += items
		if sc.kind == ScopeNode {
			st.Endpoints += items
			if sc.entries.item(nodeKey) != nil {
				st.Endpoints--
			}
		}
	}
	return st
}

// NodeCount is how many nodes are in some scope or followed.
func (s *Store) NodeCount() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.nodes)
}

// Nodes are the names of the nodes that are in some scope, in no order.
func (s *Store) Nodes() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]string, 0, len(s.nodes))
	for name, n := range s.nodes {
		if len(n.scopes) > 0 {
			names = append(names, name)
		}
	}
	return names
}

// Span is the nodes of a scope, each with the revision by which it joined.
func (s *Store) Span(id ScopeID) map[string]uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sc := s.scopes[id]
	if sc == nil {
		return nil
	}
	nodes := make(map[string]uint64, len(sc.span.nodes))
	for _, j := range sc.span.nodes {
		nodes[s.numbered[j.node].name] = j.revision
	}
	return nodes
}

// Followed are the nodes of some scopes that have a subscriber, each once, in
// no order.
func (s *Store) Followed(ids []ScopeID) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var names []string
	seen := make(map[uint32]struct{})
	for _, id := range ids {
		sc := s.scopes[id]
		if sc == nil {
			continue
		}
		for _, j := range sc.span.nodes {
			n := s.numbered[j.node]
			if _, again := seen[j.node]; again || len(n.subs) == 0 {
				continue
			}
			seen[j.node] = struct{}{}
			names = append(names, n.name)
		}
	}
	return names
}

// Item is an item's body; false where there is none.
func (s *Store) Item(id ScopeID, key string) (body string, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.itemLocked(id, key); e != nil {
		return e.body, true
	}
	return "", false
}

// ItemRevision is the revision of an item's last change; zero where there is none.
func (s *Store) ItemRevision(id ScopeID, key string) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.itemLocked(id, key); e != nil {
		return e.revision
	}
	return 0
}

func (s *Store) itemLocked(id ScopeID, key string) *entry {
	sc := s.scopes[id]
	if sc == nil {
		return nil
	}
	return sc.entries.item(key)
}
