package server

import (
	"maps"
	"slices"
	"sync"
	"time"

	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/engine"
	"github.com/weirnet/weir/storage"
)

// session is what is known of one node, over its streams.
type session struct {
	node string

	mu      sync.Mutex // Guards what follows.
	stream  *stream    // Nil: not connected.
	began   time.Time  // When the last stream did.
	ended   time.Time  // When it did, if it has.
	version string
	sent    uint64    // Newest revision sent; zero for none in this epoch.
	acked   uint64    // Newest revision acknowledged; zero for none in this epoch.
	ackedAt time.Time // When the last acknowledgement came.
	digest  storage.Digest
	lastErr string
	failed  map[engine.ItemPlace]string           // Items that the node says it does not enforce, with its reasons, as of its last answer.
	apply   uint64                                // Microseconds of the last ack.
	behind  time.Time                             // Since when the node lacks something; zero: it has all that it was sent.
	ports   []*policyv1.PortState                 // As they were last reported.
	named   *policyv1.NodeStats                   // The report that said last what names stand for.
	calls   int                                   // Subscribe calls that have not returned.
	probing map[uint64]chan *policyv1.ProbeResult // Probes that the stream's node has not answered for.
}

// stream is one Subscribe call. Its outstanding cuts are guarded by the
// session's mutex.
type stream struct {
	replaced    chan struct{} // Closed when a newer stream of the node begins.
	outstanding []sentCut
	acks        chan struct{} // One slot: mayCut or takeReleased has another answer.
	differs     bool          // The node's state is not what it was sent.
	inventories chan *policyv1.Inventory
	released    []string                 // Endpoints that the node is to be told of, guarded by the session's mutex.
	report      []*policyv1.NodeStats    // Of counters, as far as it has come; guarded by the session's mutex.
	probes      bool                     // The node carries them out.
	unsent      []*policyv1.ProbeRequest // Guarded by the session's mutex.
}

type sentCut struct {
	revision uint64
	digest   storage.Digest
	since    time.Time // When the oldest change that it brings was committed; where that is not known, when it was sent.
	changes  bool      // It is known.
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
		se = &session{node: node, behind: time.Now()}
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

// all are the sessions there are, in no order.
func (s *sessions) all() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.byNode))
}

// maxReport is of how many messages a report may be; a longer one is taken as several.
const maxReport = 100

// maxCalls is how many Subscribe calls of one node may be there at a time: the
// one that is served, and some that were replaced and have not ended yet.
const maxCalls = 4

// enter counts a call in; false where the node has too many.
func (se *session) enter() bool {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.calls >= maxCalls {
		return false
	}
	se.calls++
	return true
}

func (se *session) leave() {
	se.mu.Lock()
	defer se.mu.Unlock()
	se.calls--
}

// begin makes st the node's stream and ends the former; replaced says whether
// there was one.
func (se *session) begin(st *stream, hello *policyv1.Hello) (replaced bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream != nil {
		close(se.stream.replaced)
		replaced = true
	}
	se.stream, se.version, se.sent, se.acked, se.lastErr, se.failed = st, hello.GetVersion(), 0, 0, "", nil
	st.probes, se.began = hello.GetProbes(), time.Now()
	se.endProbesLocked()
	se.late(time.Now()) // Until it says otherwise.
	return replaced
}

// late says that the node lacks something since a time, if it did not before.
func (se *session) late(since time.Time) {
	if se.behind.IsZero() {
		se.behind = since
	}
}

// end says that a stream has ended; gone that the node has no other.
func (se *session) end(st *stream, ports func(string, []*policyv1.PortState)) (gone bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream == st {
		se.stream, se.ended = nil, time.Now()
		se.endProbesLocked()
		se.late(time.Now())
		if ports != nil {
			ports(se.node, nil)
		}
	}
	return se.stream == nil
}

// mayCut says whether the window has room, and whether the node's state was
// found to differ since the last call. What is outstanding then counts no more.
func (se *session) mayCut(st *stream) (room, differs bool) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if st.differs {
		st.differs, st.outstanding = false, st.outstanding[:0]
		return true, true
	}
	return len(st.outstanding) < window, false
}

// told says that the node is told of a revision, whose digest it is to acknowledge.
func (se *session) told(st *stream, cut sentCut) {
	se.mu.Lock()
	defer se.mu.Unlock()
	se.sent = cut.revision
	se.late(cut.since)
	st.outstanding = append(st.outstanding, cut)
}

// caughtUp says that the node has all that it was sent, but for what is
// outstanding.
func (se *session) caughtUp(st *stream) {
	se.behind = time.Time{}
	if len(st.outstanding) > 0 {
		se.behind = st.outstanding[0].since
	}
}

// lacksSince is since when the node lacks something; zero where it has all that it
// was sent, but for items that it refuses by themselves. The caller holds mu.
func (se *session) lacksSince() time.Time {
	switch {
	case se.stream != nil && len(se.stream.outstanding) > 0:
		return se.stream.outstanding[0].since
	case se.acked > 0 && se.acked == se.sent:
		return time.Time{}
	}
	return se.behind
}

// nodeAnswer is an ack (err empty) or a nack.
type nodeAnswer struct {
	revision uint64
	held     *storage.Digest // Nil: the cut's.
	err      string
	micros   uint64
	failed   map[engine.ItemPlace]string
	inForce  bool // But for what failed.
}

// answered takes an answer. Known is false for a revision that is not outstanding;
// differs says that the node's digest is not the cut's. Committed is when the
// oldest change was that is now in force; zero for none, and where it is not known.
func (se *session) answered(st *stream, a nodeAnswer) (known, differs bool, committed time.Time) {
	se.mu.Lock()
	defer se.mu.Unlock()
	i := slices.IndexFunc(st.outstanding, func(c sentCut) bool { return c.revision == a.revision })
	if i < 0 {
		// A cut from before a repair, which took it off the books, or one
		// that was refused and is in force at last.
		if known = a.revision <= se.sent; known && a.err == "" && a.revision >= se.acked {
			se.acked, se.ackedAt, se.apply, se.lastErr, se.failed = a.revision, time.Now(), a.micros, "", nil
			if a.held != nil {
				se.digest = *a.held
			}
			se.caughtUp(st)
		}
		return known, false, time.Time{}
	}
	want, full := st.outstanding[i].digest, len(st.outstanding) >= window
	if oldest := st.outstanding[0]; a.inForce && oldest.changes {
		committed = oldest.since
	}
	st.outstanding = slices.Delete(st.outstanding, 0, i+1)
	if a.held == nil {
		a.held = &want
	}
	se.digest = *a.held
	se.lastErr, se.failed = a.err, a.failed
	if a.inForce {
		se.acked, se.ackedAt, se.apply = a.revision, time.Now(), a.micros
	}
	if differs = want != *a.held; differs {
		st.differs = true
	} else if a.err == "" {
		se.caughtUp(st)
	}
	if full || differs { // Otherwise the sender need not be woken.
		select {
		case st.acks <- struct{}{}:
		default:
		}
	}
	return true, differs, committed
}

// release has the node's stream say that an endpoint is held no more.
func (se *session) release(endpoint string) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream == nil {
		return
	}
	se.stream.released = append(se.stream.released, endpoint)
	select {
	case se.stream.acks <- struct{}{}:
	default:
	}
}

// takeReleased are the endpoints of which the stream has not told yet.
func (se *session) takeReleased(st *stream) []string {
	se.mu.Lock()
	defer se.mu.Unlock()
	released := st.released
	st.released = nil
	return released
}

// report takes what a stream's node reports, and passes on what it says of its
// ports, unless another stream has taken the stream's place. Once a report of
// counters is whole, it is returned.
func (se *session) report(st *stream, s *policyv1.NodeStats, ports func(string, []*policyv1.PortState)) []*policyv1.NodeStats {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.stream != st {
		return nil
	}
	se.ports, se.named = s.GetPorts(), s
	if ports != nil {
		ports(se.node, append([]*policyv1.PortState{}, s.GetPorts()...)) // Not nil, which says that the node is gone.
	}
	if s.GetReading() == 0 {
		return nil
	}
	st.report = append(st.report, s)
	if s.GetMore() && len(st.report) < maxReport {
		return nil
	}
	whole := st.report
	st.report = nil
	return whole
}
