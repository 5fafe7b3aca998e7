package sink

import "fmt"

// Hop is what became of a test event at one place on its way through a sink.
type Hop struct {
	Name   string // "read", "encoded", "connected", "written", "acknowledged"; "failed" or "refused".
	Detail string
	Error  string // Empty: it went well.
	Last   bool   // Nothing comes behind it.
}

// maxHops wait for who follows a test; what comes when they are so many is left
// out, but for the last.
const maxHops = 16

// FollowTest returns the hops of a test event, whose id is in the log's event for
// this sink. Stop gives it back.
func (s *Sink) FollowTest(id string) (hops <-chan Hop, stop func()) {
	c := make(chan Hop, maxHops)
	s.mu.Lock()
	s.tests[id] = c
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		delete(s.tests, id)
		s.mu.Unlock()
	}
}

func (s *Sink) hop(id string, h Hop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hopLocked(id, h)
}

func (s *Sink) hopLocked(id string, h Hop) {
	c := s.tests[id]
	if c == nil {
		return
	}
	if h.Last && len(c) == cap(c) {
		<-c // There is room for the last in any case.
	}
	select {
	case c <- h:
	default:
	}
}

// written tells what Write made of a test.
func (p *projection) written(id string, lines int) {
	if lines == 0 {
		p.hop(id, Hop{Name: "encoded", Error: fmt.Sprintf("format %s has no line for a test; nothing is to be found at the other end", p.cfg.Format)})
	} else {
		p.hop(id, Hop{Name: "encoded", Detail: "format " + p.cfg.Format})
	}
	if peer := p.peer(); peer != "" {
		p.hop(id, Hop{Name: "connected", Detail: peer})
	}
}

// peer is whom the output is connected with, as far as it knows.
func (p *projection) peer() string {
	if peer, ok := p.cfg.Output.(Peered); ok {
		return peer.Peer()
	}
	return ""
}
