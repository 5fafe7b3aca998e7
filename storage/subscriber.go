package storage

import "sync"

// Subscriber takes the cuts of one node. Next and Resume are for one
// goroutine; Wake may be watched by it.
type Subscriber struct {
	store *Store
	node  string
	wake  chan struct{}

	synced uint64 // Revision of the last cut taken; owned by the reading goroutine.
	begun  bool   // Whether a first cut was taken, or a Resume done.

	mu    sync.Mutex // Guards dirty; taken after Store.mu.
	dirty map[ScopeID]struct{}
}

// Subscribe begins to follow a node. Close ends it.
func (s *Store) Subscribe(node string) *Subscriber {
	sub := &Subscriber{store: s, node: node, wake: make(chan struct{}, 1), dirty: make(map[ScopeID]struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.subs[node] == nil {
		s.subs[node] = make(map[*Subscriber]struct{})
	}
	s.subs[node][sub] = struct{}{}
	return sub
}

// Close ends the subscription.
func (sub *Subscriber) Close() {
	s := sub.store
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.subs[sub.node], sub)
	if len(s.subs[sub.node]) == 0 {
		delete(s.subs, sub.node)
	}
}

// Wake has a token when there may be something for Next.
func (sub *Subscriber) Wake() <-chan struct{} { return sub.wake }

func (sub *Subscriber) mark(id ScopeID) {
	sub.mu.Lock()
	sub.dirty[id] = struct{}{}
	sub.mu.Unlock()
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

func (sub *Subscriber) takeDirty() map[ScopeID]struct{} {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	dirty := sub.dirty
	if len(dirty) > 0 {
		sub.dirty = make(map[ScopeID]struct{})
	}
	return dirty
}

// Resume begins from a state that the node holds already: where its digest is
// that of the node's present state, nothing needs to be sent, and Next goes on
// from there. Otherwise it is false and Next begins with a snapshot.
func (sub *Subscriber) Resume(held Digest) (revision uint64, position Position, ok bool) {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.digestLocked(sub.node) != held {
		return 0, nil, false
	}
	sub.takeDirty()
	sub.synced, sub.begun = s.revision, true
	return s.revision, s.position, true
}

// Next returns what changed for the node since the last cut, or nil where
// nothing did. The first cut, without a Resume, is a snapshot, even if empty.
func (sub *Subscriber) Next() *Cut {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	dirty := sub.takeDirty()
	cut := &Cut{Epoch: s.epoch, Revision: s.revision, Position: s.position, Snapshot: !sub.begun}
	n := s.nodes[sub.node]
	if !sub.begun {
		if n != nil {
			for _, sc := range n.scopes {
				cut.Scopes = append(cut.Scopes, sc.whole())
			}
		}
	} else {
		for id := range dirty {
			if c, changed := sub.changeLocked(n, id); changed {
				cut.Scopes = append(cut.Scopes, c)
			}
		}
		if len(cut.Scopes) == 0 {
			return nil
		}
	}
	cut.Digest = s.digestLocked(sub.node)
	sub.synced, sub.begun = s.revision, true
	return cut
}

// changeLocked is what changed in a dirty scope since the last cut.
func (sub *Subscriber) changeLocked(n *node, id ScopeID) (ScopeChange, bool) {
	var sc *scope
	if n != nil {
		sc = n.scopes[id]
	}
	if sc == nil {
		return ScopeChange{ID: id, Gone: true}, true
	}
	if sc.nodes[sub.node] > sub.synced {
		return sc.whole(), true
	}
	c := sc.since(sub.synced)
	return c, c.Reset || len(c.Upserts) > 0 || len(c.Removals) > 0
}

func (s *Store) digestLocked(name string) Digest {
	var d Digest
	if n := s.nodes[name]; n != nil {
		for _, sc := range n.scopes {
			d = d.Plus(sc.digest)
		}
	}
	return d
}
