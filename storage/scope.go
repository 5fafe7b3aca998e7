package storage

// scope is a set of items and the set of nodes that hold them.
//
// Its list runs over all entries, tombstones too, in ascending order of the
// revision of their last change.
type scope struct {
	id       ScopeID
	kind     ScopeKind
	revision uint64 // Of its last change.
	digest   Digest
	items    map[string]*entry // Live ones, by key.
	dead     map[string]*entry // Tombstones, by key.
	nodes    map[string]uint64 // The revision by which each joined.

	oldest, newest *entry // Ends of the list.
	forgotten      uint64 // Revision of the newest tombstone that was dropped.
}

type entry struct {
	item       Encoded // Of a tombstone, the key alone.
	hash       Digest
	revision   uint64
	prev, next *entry // Older, newer.
}

// tombstones that a scope keeps before it begins to drop the oldest.
const minTombstones = 64

func newScope(id ScopeID, kind ScopeKind) *scope {
	if kind == 0 {
		panic("storage: scope without a kind")
	}
	return &scope{
		id:     id,
		kind:   kind,
		digest: scopeHash(id),
		items:  make(map[string]*entry),
		dead:   make(map[string]*entry),
		nodes:  make(map[string]uint64),
	}
}

func (s *scope) upsert(item Encoded, rev uint64) bool {
	hash := itemHash(s.id, item.hash)
	e := s.items[item.Key]
	switch {
	case e != nil && e.hash == hash:
		return false
	case e != nil:
		s.digest = s.digest.Minus(e.hash)
		s.unlink(e)
	default:
		if e = s.dead[item.Key]; e != nil {
			delete(s.dead, item.Key)
			s.unlink(e)
		} else {
			e = new(entry)
		}
		s.items[item.Key] = e
	}
	e.item, e.hash = item, hash
	s.digest = s.digest.Plus(hash)
	s.push(e, rev)
	return true
}

func (s *scope) remove(key string, rev uint64) bool {
	e := s.items[key]
	if e == nil {
		return false
	}
	delete(s.items, key)
	s.digest = s.digest.Minus(e.hash)
	s.unlink(e)
	e.item = Encoded{Key: e.item.Key}
	s.dead[key] = e
	s.push(e, rev)
	s.dropTombstones()
	return true
}

// dropTombstones forgets the oldest tombstones once they outnumber the items.
// It looks at entries that it passes at most once per removal on average.
func (s *scope) dropTombstones() {
	if len(s.dead) <= max(minTombstones, 2*len(s.items)) {
		return
	}
	for e := s.oldest; e != nil && len(s.dead) > max(minTombstones, len(s.items))/2; {
		next := e.next
		if e.item.Body == "" {
			delete(s.dead, e.item.Key)
			s.unlink(e)
			s.forgotten = e.revision
		}
		e = next
	}
}

func (s *scope) push(e *entry, rev uint64) {
	e.revision = rev
	e.prev, e.next = s.newest, nil
	if s.newest != nil {
		s.newest.next = e
	} else {
		s.oldest = e
	}
	s.newest = e
}

func (s *scope) unlink(e *entry) {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		s.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		s.newest = e.prev
	}
	e.prev, e.next = nil, nil
}

// whole is the scope from nothing.
func (s *scope) whole() ScopeChange {
	c := ScopeChange{ID: s.id, Kind: s.kind, Reset: true, Upserts: make([]string, 0, len(s.items))}
	for e := s.oldest; e != nil; e = e.next {
		if e.item.Body != "" {
			c.Upserts = append(c.Upserts, e.item.Body)
		}
	}
	return c
}

// since is what changed after a revision.
func (s *scope) since(rev uint64) ScopeChange {
	if s.forgotten > rev {
		return s.whole()
	}
	c := ScopeChange{ID: s.id, Kind: s.kind}
	for e := s.newest; e != nil && e.revision > rev; e = e.prev {
		if e.item.Body != "" {
			c.Upserts = append(c.Upserts, e.item.Body)
		} else {
			c.Removals = append(c.Removals, e.item.Key)
		}
	}
	return c
}
