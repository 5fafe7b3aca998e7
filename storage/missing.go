package storage

// Missing is what a node that has acknowledged a revision lacks of one scope.
type Missing struct {
	Scope ScopeID
	Kind  ScopeKind
	Whole bool // The node joined later, or it is no longer known what it lacks.
	// Where not Whole: keys and bodies of the items that came or changed later. What
	// is gone since counts too, and is not named.
	Keys, Bodies []string
}

// Missing tells what a node lacks, scope by scope; nothing where it has all. Items
// of address groups, routes and Services are not named: there are many, and that
// one differs is all there is to know.
func (s *Store) Missing(name string, acked uint64) (out []Missing) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n := s.nodes[name]
	if n == nil {
		return nil
	}
	for _, sc := range n.scopes {
		joined := sc.span.joined(n)
		if sc.revision <= acked && joined <= acked {
			continue
		}
		m := Missing{Scope: sc.id, Kind: sc.kind, Whole: joined > acked}
		if !m.Whole && (sc.kind == ScopeNode || sc.kind == ScopePolicies) {
			sc.entries.after(&sc.entries.live, acked, func(e *entry) {
				m.Keys, m.Bodies = append(m.Keys, e.key), append(m.Bodies, e.body)
			})
		}
		out = append(out, m)
	}
	return out
}

// InSpan says whether a node is in the span of a scope.
func (s *Store) InSpan(id ScopeID, name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sc, n := s.scopes[id], s.nodes[name]
	return sc != nil && n != nil && sc.span.find(n) >= 0
}

// Content is the digest of some of a scope's items, or, without keys, of the whole
// scope. The zero digest stands for what is not there.
func (s *Store) Content(id ScopeID, keys ...string) (d Digest) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sc := s.scopes[id]
	switch {
	case sc == nil:
		return d
	case len(keys) == 0:
		return sc.digest
	}
	for _, key := range keys {
		if e := sc.entries.item(key); e != nil {
			d = d.Plus(e.hash)
		}
	}
	return d
}

// SpanSize is how many nodes are in the span of a scope.
func (s *Store) SpanSize(id ScopeID) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sc := s.scopes[id]; sc != nil {
		return len(sc.span.nodes)
	}
	return 0
}
