package storage

// scope is a set of items and the set of nodes that hold them.
type scope struct {
	id     ScopeID
	kind   ScopeKind
	marked bool // It is in Store.pending.

	revision uint64 // Of the last change of its items, or zero.
	digest   Digest
	// What digest and revision were before the last change, so that a
	// subscriber who missed that change alone need not sum its scopes anew.
	formerRevision uint64
	formerDigest   Digest

	entries   entries
	span      span
	forgotten uint64 // Revision of the newest tombstone that was dropped.
}

// tombstones that a scope keeps before it begins to drop the oldest.
const minTombstones = 8

func newScope(id ScopeID, kind ScopeKind) *scope {
	if kind == 0 {
		panic("storage: scope without a kind")
	}
	return &scope{id: id, kind: kind, digest: scopeHash(id), entries: newEntries()}
}

func (s *scope) upsert(item Encoded, rev uint64) bool {
	if item.Body == "" {
		panic("storage: item " + item.Key + " without a body")
	}
	hash := itemHash(s.id, item.Body)
	es := &s.entries
	i := es.find(item.Key)
	switch {
	case i == none:
		i = es.take(item.Key)
	case es.at(i).body == "":
		es.unlink(&es.dead, i)
	case es.at(i).hash == hash:
		return false
	default:
		es.unlink(&es.live, i)
	}
	e := es.at(i)
	s.change(rev, s.digest.Minus(e.hash).Plus(hash))
	e.body, e.hash = item.Body, hash
	es.push(&es.live, i, rev)
	return true
}

func (s *scope) remove(key string, rev uint64) bool {
	es := &s.entries
	i := es.find(key)
	if i == none || es.at(i).body == "" {
		return false
	}
	es.unlink(&es.live, i)
	e := es.at(i)
	s.change(rev, s.digest.Minus(e.hash))
	e.body, e.hash = "", Digest{}
	es.push(&es.dead, i, rev)
	for es.dead.len > max(minTombstones, 2*es.live.len) {
		oldest := es.dead.oldest
		s.forgotten = es.at(oldest).revision
		es.unlink(&es.dead, oldest)
		es.release(oldest)
	}
	es.tighten()
	return true
}

func (s *scope) change(rev uint64, digest Digest) {
	if s.revision != rev {
		s.formerRevision, s.formerDigest = s.revision, s.digest
		s.revision = rev
	}
	s.digest = digest
}

// whole is the scope from nothing.
func (s *scope) whole() ScopeChange {
	c := ScopeChange{ID: s.id, Kind: s.kind, Reset: true, Upserts: make([]string, 0, s.entries.live.len)}
	s.entries.each(func(e *entry) { c.Upserts = append(c.Upserts, e.body) })
	return c
}

// since is what changed after a revision, and the revision of the oldest of it
// that is known.
func (s *scope) since(rev uint64) (c ScopeChange, oldest uint64) {
	oldest = s.revision
	if s.forgotten > rev {
		return s.whole(), oldest
	}
	c = ScopeChange{ID: s.id, Kind: s.kind}
	s.entries.after(&s.entries.live, rev, func(e *entry) {
		c.Upserts = append(c.Upserts, e.body)
		oldest = min(oldest, e.revision)
	})
	s.entries.after(&s.entries.dead, rev, func(e *entry) {
		c.Removals = append(c.Removals, e.key)
		oldest = min(oldest, e.revision)
	})
	return c, oldest
}
