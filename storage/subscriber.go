package storage

import (
	"sync"
)

// Subscriber takes the cuts of one node. Next, Resume, Compare and Repair are
// for one goroutine; Wake may be watched by it.
//
// What it keeps is bounded by what the node held at its last cut and what it is
// to hold now, whether or not it is read.
type Subscriber struct {
	store *Store
	node  *node
	wake  chan struct{}

	// Owned by the reader, who changes them under Store.mu for reading; Commit
	// looks at them under Store.mu for writing.
	begun    bool     // Whether a first cut was taken, or a Resume done.
	synced   uint64   // Revision of the last cut taken.
	digest   Digest   // Of the node's state then.
	position Position // That the other end was told last.
	gone     map[ScopeID]struct{}
	scratch  []*scope

	mu    sync.Mutex // Guards dirty; taken after Store.mu.
	dirty map[*scope]struct{}
}

// Subscribe begins to follow a node. Close ends it.
func (s *Store) Subscribe(node string) *Subscriber {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodeLocked(node)
	sub := &Subscriber{store: s, node: n, wake: make(chan struct{}, 1), dirty: make(map[*scope]struct{})}
	n.subs = append(n.subs, sub)
	return sub
}

// Close ends the subscription.
func (sub *Subscriber) Close() {
	s := sub.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, other := range sub.node.subs {
		if other == sub {
			last := len(sub.node.subs) - 1
			sub.node.subs[i] = sub.node.subs[last]
			sub.node.subs[last] = nil
			sub.node.subs = sub.node.subs[:last]
			s.releaseLocked(sub.node)
			return
		}
	}
}

// Wake has a token when there may be something for Next.
func (sub *Subscriber) Wake() <-chan struct{} { return sub.wake }

// mark says that a scope of the node changed.
func (sub *Subscriber) mark(sc *scope) {
	sub.mu.Lock()
	sub.dirty[sc] = struct{}{}
	sub.mu.Unlock()
	sub.signal()
}

func (sub *Subscriber) signal() {
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// left says that the node left a scope that it had joined by a revision. Where
// the last cut was before that, the other end knows nothing of it.
func (sub *Subscriber) left(sc *scope, joined uint64) {
	sub.mu.Lock()
	delete(sub.dirty, sc)
	sub.mu.Unlock()
	if !sub.begun || joined > sub.synced {
		return
	}
	if sub.gone == nil {
		sub.gone = make(map[ScopeID]struct{})
	}
	sub.gone[sc.id] = struct{}{}
	sub.signal()
}

// takeDirtyLocked empties the dirty set into a slice, together with what was
// not dispatched yet.
func (sub *Subscriber) takeDirtyLocked() []*scope {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	for _, sc := range sub.store.pending {
		if sc.span.find(sub.node) >= 0 {
			sub.dirty[sc] = struct{}{}
		}
	}
	out := sub.scratch[:0]
	for sc := range sub.dirty {
		out = append(out, sc)
	}
	clear(sub.dirty)
	sub.scratch = out
	return out
}

// Resume begins from a state that the node holds already: where its digest is
// that of the node's present state, nothing needs to be sent, and Next goes on
// from there. Otherwise it is false, and Next begins with a snapshot unless
// Repair comes before.
func (sub *Subscriber) Resume(held Digest) (revision uint64, position Position, ok bool) {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	digest := sub.node.digestLocked()
	if digest != held {
		return 0, nil, false
	}
	sub.tellLocked(digest)
	return s.revision, s.position, true
}

// tellLocked takes note that the other end is told everything now.
func (sub *Subscriber) tellLocked(digest Digest) {
	sub.takeDirtyLocked()
	clear(sub.scratch)
	clear(sub.gone)
	sub.begun, sub.synced, sub.digest, sub.position = true, sub.store.revision, digest, sub.store.position
}

// Next returns what changed for the node since the last cut, or nil where
// nothing did. The first cut, without a Resume, is a snapshot, even if empty.
func (sub *Subscriber) Next() *Cut {
	s := sub.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !sub.begun {
		cut := sub.cutLocked()
		cut.Snapshot = true
		for _, sc := range sub.node.scopes {
			cut.Scopes = append(cut.Scopes, sc.whole())
		}
		cut.Digest = sub.node.digestLocked()
		sub.tellLocked(cut.Digest)
		return cut
	}
	var scopes []ScopeChange
	digest, exact, oldest := sub.digest, true, s.revision
	for _, sc := range sub.takeDirtyLocked() {
		c, before, known, since := sub.changeLocked(sc)
		if c == nil {
			continue
		}
		oldest = min(oldest, since)
		scopes = append(scopes, *c)
		digest, exact = digest.Minus(before).Plus(sc.digest), exact && known
	}
	clear(sub.scratch)
	for id := range sub.gone {
		scopes = append(scopes, ScopeChange{ID: id, Gone: true})
		exact = false
	}
	if len(scopes) == 0 {
		return nil
	}
	if len(scopes) == len(sub.gone) {
		oldest = 0
	}
	if !exact {
		digest = sub.node.digestLocked()
	}
	cut := sub.cutLocked()
	cut.Scopes, cut.Digest, cut.Oldest = scopes, digest, oldest
	clear(sub.gone)
	sub.synced, sub.digest, sub.position = s.revision, digest, s.position
	return cut
}

// cutLocked is a cut of the present revision without its changes. What the
// other end knows of it from the cut before is left out.
func (sub *Subscriber) cutLocked() *Cut {
	s := sub.store
	if !sub.begun {
		return &Cut{Epoch: s.epoch, Revision: s.revision, Position: s.position}
	}
	cut := &Cut{Revision: s.revision}
	cut.Position, cut.Moved = s.position.since(sub.position)
	return cut
}

// changeLocked is what changed in a dirty scope since the last cut, nil for
// nothing, what the scope added to the node's digest then, where known, and the
// revision of the oldest change.
func (sub *Subscriber) changeLocked(sc *scope) (c *ScopeChange, before Digest, known bool, oldest uint64) {
	i := sc.span.find(sub.node)
	if i < 0 {
		panic("storage: dirty scope of another node")
	}
	if joined := sc.span.nodes[i].revision; joined > sub.synced {
		whole := sc.whole()
		_, held := sub.gone[sc.id]
		delete(sub.gone, sc.id)
		return &whole, Digest{}, !held, joined
	}
	if sc.revision <= sub.synced {
		return nil, Digest{}, true, 0
	}
	change, oldest := sc.since(sub.synced)
	return &change, sc.formerDigest, sc.formerRevision <= sub.synced, oldest
}

func (n *node) digestLocked() Digest {
	var d Digest
	for _, sc := range n.scopes {
		d = d.Plus(sc.digest)
	}
	return d
}
