package storage

import (
	"maps"
	"sync"
)

// Store holds what every node must hold. The zero Store is not usable: see New.
type Store struct {
	epoch string

	// mu guards everything below, and the lists inside scopes. It is taken
	// before Subscriber.mu where both are held.
	mu       sync.RWMutex
	revision uint64
	position Position
	scopes   map[ScopeID]*scope
	nodes    map[string]*node
	subs     map[string]map[*Subscriber]struct{} // By node.
}

type node struct {
	scopes map[ScopeID]*scope
}

// New returns an empty store at revision 1. The epoch names this life of the
// process.
func New(epoch string) *Store {
	return &Store{
		epoch:    epoch,
		revision: 1, // Zero means "none" on the wire.
		scopes:   make(map[ScopeID]*scope),
		nodes:    make(map[string]*node),
		subs:     make(map[string]map[*Subscriber]struct{}),
	}
}

// Epoch is the epoch that New was given.
func (s *Store) Epoch() string { return s.epoch }

// Commit makes one revision of the changes, in their order, and wakes the
// subscribers that they concern. Changes that change nothing make no revision;
// the position is taken over all the same.
func (s *Store) Commit(changes []Change, position Position) (revision uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.position = position
	next := s.revision + 1
	touched := make(map[*scope]struct{})
	left := make(map[string]map[ScopeID]struct{})
	for i := range changes {
		s.applyLocked(&changes[i], next, touched, left)
	}
	if len(touched) == 0 && len(left) == 0 {
		return s.revision
	}
	s.revision = next
	s.wakeLocked(touched, left)
	return next
}

func (s *Store) applyLocked(c *Change, rev uint64, touched map[*scope]struct{}, left map[string]map[ScopeID]struct{}) {
	if c.Op == OpDrop {
		if sc := s.scopes[c.Scope]; sc != nil {
			for name := range sc.nodes {
				s.leaveLocked(sc, name, left)
			}
			delete(s.scopes, c.Scope)
			delete(touched, sc)
		}
		return
	}
	sc := s.scopes[c.Scope]
	if sc == nil {
		sc = newScope(c.Scope, c.Kind)
		s.scopes[c.Scope] = sc
	}
	changed := false
	switch c.Op {
	case OpUpsert:
		changed = sc.upsert(c.Item, rev)
	case OpRemove:
		changed = sc.remove(c.Item.Key, rev)
	case OpJoin:
		if _, in := sc.nodes[c.Node]; !in {
			sc.nodes[c.Node] = rev
			s.nodeLocked(c.Node).scopes[sc.id] = sc
			delete(left[c.Node], sc.id)
			changed = true
		}
	case OpLeave:
		if _, in := sc.nodes[c.Node]; in {
			s.leaveLocked(sc, c.Node, left)
		}
	default:
		panic("storage: change without an operation")
	}
	if changed {
		sc.revision = rev
		touched[sc] = struct{}{}
	}
}

func (s *Store) nodeLocked(name string) *node {
	n := s.nodes[name]
	if n == nil {
		n = &node{scopes: make(map[ScopeID]*scope)}
		s.nodes[name] = n
	}
	return n
}

func (s *Store) leaveLocked(sc *scope, name string, left map[string]map[ScopeID]struct{}) {
	delete(sc.nodes, name)
	if n := s.nodes[name]; n != nil {
		delete(n.scopes, sc.id)
		if len(n.scopes) == 0 {
			delete(s.nodes, name)
		}
	}
	if left[name] == nil {
		left[name] = make(map[ScopeID]struct{})
	}
	left[name][sc.id] = struct{}{}
}

// wakeLocked marks the scopes dirty for the subscribers that they concern.
func (s *Store) wakeLocked(touched map[*scope]struct{}, left map[string]map[ScopeID]struct{}) {
	for sc := range touched {
		if len(sc.nodes) <= len(s.subs) {
			for name := range sc.nodes {
				for sub := range s.subs[name] {
					sub.mark(sc.id)
				}
			}
			continue
		}
		for name, subs := range s.subs {
			if _, in := sc.nodes[name]; in {
				for sub := range subs {
					sub.mark(sc.id)
				}
			}
		}
	}
	for name, ids := range left {
		for sub := range s.subs[name] {
			for id := range ids {
				sub.mark(id)
			}
		}
	}
}

// Revision is the newest revision and position.
func (s *Store) Revision() (uint64, Position) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision, s.position
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
	if n := s.nodes[name]; n != nil {
		for _, sc := range n.scopes {
			st.Digest = st.Digest.Plus(sc.digest)
			st.Revision = max(st.Revision, sc.revision)
			st.Items[sc.kind] += len(sc.items)
			if sc.kind == ScopeNode {
				st.Endpoints += len(sc.items)
				if sc.items["node"] != nil {
					st.Endpoints--
				}
			}
		}
	}
	return st
}

// Nodes are the names of the nodes that are in some scope, in no order.
func (s *Store) Nodes() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	names := make([]string, 0, len(s.nodes))
	for name := range s.nodes {
		names = append(names, name)
	}
	return names
}

// Span is the nodes of a scope, each with the revision by which it joined.
func (s *Store) Span(id ScopeID) map[string]uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sc := s.scopes[id]; sc != nil {
		return maps.Clone(sc.nodes)
	}
	return nil
}

// ItemRevision is the revision of an item's last change; zero where there is none.
func (s *Store) ItemRevision(id ScopeID, key string) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sc := s.scopes[id]; sc != nil {
		if e := sc.items[key]; e != nil {
			return e.revision
		}
	}
	return 0
}
