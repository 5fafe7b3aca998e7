package server

import (
	"maps"
	"slices"
	"sync"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/storage"
)

// session is what is known of one node, over its streams.
type session struct {
	node string

	mu      sync.Mutex // Guards what follows.
	stream  *stream    // Nil: not connected.
	version string
	sent    uint64 // Newest revision sent; zero for none in this epoch.
	acked   uint64 // Newest revision acknowledged; zero for none in this epoch.
	digest  storage.Digest
	lastErr string
	apply   uint64 // Microseconds of the last ack.
	stats   *policyv1.NodeStats
}

// stream is one Subscribe call. Its outstanding cuts are guarded by the
// session's mutex.
type stream struct {
	replaced    chan struct{} // Closed when a newer stream of the node begins.
	outstanding []sentCut
	acks        chan struct{} // One slot: something was acknowledged.
	resync      bool          // The node's state differs: send a snapshot.
}

type sentCut struct {
	revision uint64
	digest   storage.Digest
}

// window is how many cuts may be unacknowledged on a stream.
const window = 2

// sessions are the nodes that have ever connected to this process.
type sessions struct {
	mu     sync.Mutex // Guards byNode; taken before no other.
	byNode map[string]*session
}

func (s *sessions) get(node string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	se := s.byNode[node]
	if se == nil {
		se = &session{node: node}
		s.byNode[node] = se
	}
	return se
}

// find is get without beginning a session.
func (s *sessions) find(node string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byNode[node]
}

func (s *sessions) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.byNode))
}

// begin makes st the node's stream and ends the former; replaced says whether
// there was one.
func (se *session) begin(st *stream, version string) (replaced bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream != nil {
		close(se.stream.replaced)
		replaced = true
	}
	se.stream, se.version, se.sent, se.acked, se.lastErr = st, version, 0, 0, ""
	return replaced
}

func (se *session) end(st *stream) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream == st {
		se.stream = nil
	}
}

// mayCut says whether the window has room, and whether the next cut must be a
// snapshot.
func (se *session) mayCut(st *stream) (room, resync bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	resync = st.resync
	st.resync = false
	return len(st.outstanding) < window || resync, resync
}

func (se *session) cutSent(st *stream, c *storage.Cut) {
	se.mu.Lock()
	defer se.mu.Unlock()
	se.sent = c.Revision
	if c.Snapshot {
		st.outstanding = nil
	}
	st.outstanding = append(st.outstanding, sentCut{c.Revision, c.Digest})
}

// inSync takes the state that the node holds as acknowledged.
func (se *session) inSync(revision uint64, digest storage.Digest) {
	se.mu.Lock()
	defer se.mu.Unlock()
	se.sent, se.acked, se.digest = revision, revision, digest
}

// answered takes an ack (err empty) or a nack. Known is false for a revision
// that is not outstanding; differs says that the node's digest is not the cut's.
func (se *session) answered(st *stream, revision uint64, digest storage.Digest, err string, micros uint64) (known, differs bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	i := slices.IndexFunc(st.outstanding, func(c sentCut) bool { return c.revision == revision })
	if i < 0 {
		// A cut from before a snapshot, which took it off the books, or one
		// that was refused and is in force at last.
		if known = revision <= se.sent; known && err == "" && revision >= se.acked {
			se.acked, se.apply, se.digest, se.lastErr = revision, micros, digest, ""
		}
		return known, false
	}
	want := st.outstanding[i].digest
	st.outstanding = st.outstanding[i+1:]
	se.digest = digest
	se.lastErr = err
	if err == "" {
		se.acked, se.apply = revision, micros
	}
	if differs = want != digest; differs {
		st.resync = true
	}
	select {
	case st.acks <- struct{}{}:
	default:
	}
	return true, differs
}

func (se *session) setStats(s *policyv1.NodeStats) {
	se.mu.Lock()
	defer se.mu.Unlock()
	se.stats = s
}
